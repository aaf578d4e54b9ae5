package runtime

import (
	"context"
	"errors"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"
)

// Call calls the method and waits for its response.
//
// Neither the request nor the response may be modified afterwards, by any side: in the same process
// they are passed by reference. A nil request is the empty message. Call returns as soon as ctx
// ends, with one exception: a call within a process to an idle node, or of a concurrent method,
// runs the method on the caller's goroutine. Then it returns when the method does, whose own
// context has ended with ctx.
func (u *Unary[Req, Res]) Call(ctx context.Context, ref Ref, req Req) (Res, error) {
	var none Res
	res, err := ref.invoke(ctx, &u.m, orEmpty(req, u.m.newRequest))
	if err != nil {
		return none, err
	}
	return res.(Res), nil //nolint:forcetypeassert // the method's table made it
}

// CallAsync starts a call of the method, see [CallAsync].
func (u *Unary[Req, Res]) CallAsync(ctx context.Context, ref Ref, req Req) *Future[Res] {
	return &Future[Res]{f: ref.submit(ctx, &u.m, orEmpty(req, u.m.newRequest))}
}

// method returns the method at an index of the [Table] of the handle's service.
func (r Ref) method(index int) (*Method, error) {
	if r.to == nil {
		return nil, errNoNode()
	}
	return r.service.methods[index], nil
}

// CallUnary is [Unary.Call] for the method at an index of the [Table] of ref's service. It is for
// generated code, as are the functions below.
func CallUnary[Req, Res proto.Message](ctx context.Context, ref Ref, index int, req Req) (Res, error) {
	var none Res
	m, err := ref.method(index)
	if err != nil {
		return none, err
	}
	res, err := ref.invoke(ctx, m, orEmpty(req, m.newRequest))
	if err != nil {
		return none, err
	}
	return res.(Res), nil //nolint:forcetypeassert // the method's table made it
}

// CallAsync enqueues a call of a method and returns its future. It blocks only while the node's
// queue is full or its connection is being opened, and no longer than ctx. Calls that are enqueued
// one after the other by a goroutine run in that order. The call is canceled when ctx is. Neither
// request nor response may be modified afterwards.
func CallAsync[Req, Res proto.Message](ctx context.Context, ref Ref, index int, req Req) *Future[Res] {
	m, err := ref.method(index)
	if err != nil {
		return &Future[Res]{f: failedFuture(err)}
	}
	return &Future[Res]{f: ref.submit(ctx, m, orEmpty(req, m.newRequest))}
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

// CallServerStream calls a method with one request and returns the stream of its responses.
func CallServerStream[Req, Res proto.Message](ctx context.Context, ref Ref, index int, req Req) (ServerStreamingClient[Res], error) {
	c, err := beginStream(ctx, ref, index)
	if err != nil {
		return nil, err
	}
	if err := c.sendOnly(orEmpty(req, c.method.newRequest)); err != nil {
		return nil, err
	}
	return serverStreamingClient[Res]{c}, nil
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

// CallClientStream begins a call and returns the stream on which its requests are sent.
func CallClientStream[Req, Res proto.Message](ctx context.Context, ref Ref, index int) (ClientStreamingClient[Req, Res], error) {
	c, err := beginStream(ctx, ref, index)
	if err != nil {
		return nil, err
	}
	return clientStreamingClient[Req, Res]{c}, nil
}

// CallBidiStream begins a call and returns its stream.
func CallBidiStream[Req, Res proto.Message](ctx context.Context, ref Ref, index int) (BidiStreamingClient[Req, Res], error) {
	c, err := beginStream(ctx, ref, index)
	if err != nil {
		return nil, err
	}
	return bidiStreamingClient[Req, Res]{c}, nil
}

// orEmpty replaces a nil message by the empty one.
func orEmpty[M proto.Message](msg M, fresh func() proto.Message) proto.Message {
	var none M
	if any(msg) == any(none) {
		return fresh()
	}
	return msg
}

// chainOf returns the calls that wait for a call made with ctx: the turn that the current method
// holds, and the calls that wait for that.
func chainOf(ctx context.Context) *chain {
	cc := callContextOf(ctx)
	if cc == nil {
		return nil
	}
	if cc.turn == nil || !cc.turn.Held() {
		return cc.chain
	}
	method := "Do"
	if cc.call.method != nil {
		method = cc.call.method.fullName()
	}
	return &chain{nid: cc.node.nid, path: cc.node.path, method: method, overrides: cc.node.overrides, outer: cc.chain}
}

// localCall makes the context of a call made with ctx to a node of this process.
func localCall(ctx context.Context, m *Method, metadata Metadata) *callContext {
	c := newCall(ctx, m, byLocal)
	c.call.receive(metadata)
	if cc := callContextOf(ctx); cc != nil {
		c.call.from = &cc.node.identity
		c.chain = chainOf(ctx)
	}
	return c
}

// errNoNode is the error of the zero Ref's calls.
func errNoNode() error {
	return connect.NewError(connect.CodeFailedPrecondition, "the handle reaches no node: it is the zero value; get one from Create, Find or a NodeRef")
}
