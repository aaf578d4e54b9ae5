package runtime

import (
	"context"
	"errors"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"
)

// method returns the method at an index of the [GeneratedService] of the handle's service.
func (r Ref) method(index int) (*Method, error) {
	if r.to == nil {
		return nil, errNoNode()
	}
	return r.service.methods[index], nil
}

// failedFuture is the future of a call with a Ref that refers to no node.
func failedFuture(err error) *future {
	f := newFuture(&Method{spec: connect.Spec{Procedure: "/(a method of no node)"}}, noEndpoint{})
	f.complete(err)
	return f
}

// beginStream begins a call of a streaming method.
func beginStream(ctx context.Context, ref Ref, index int) (*callStream, error) {
	m, err := ref.method(index)
	if err != nil {
		return nil, err
	}
	return ref.stream(ctx, m)
}

// sendOnly sends the request and closes the sending side.
func (c *callStream) sendOnly(req proto.Message) error {
	err := c.stream.Send(req)
	if err == nil {
		err = c.stream.CloseSend()
	}
	if err != nil && isLocalRefusal(err) {
		_ = c.stream.Close() // the call has not begun
		c.end.over(err)
		return err
	}
	// Any other error is the node's, or that of the connection: receiving returns the reason.
	return nil
}

// isLocalRefusal reports whether a call was refused on the caller's side because of its message or
// metadata.
func isLocalRefusal(err error) bool {
	e, ok := errors.AsType[*connect.Error](err)
	if !ok || e.IsRemote() {
		return false
	}
	switch e.Code() {
	case connect.CodeInvalidArgument, connect.CodeResourceExhausted, connect.CodeInternal:
		return true
	default:
		return false
	}
}
