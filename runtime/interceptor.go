package runtime

import (
	"context"
	"slices"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"
)

// Invocation is one call that a node is about to serve, as an interceptor sees it.
type Invocation struct {
	// Node is the node that serves.
	Node Ref
	// Method is the method that was called.
	Method *Method
	// Request is a unary method's request; nil for streams. It is shared: replace it, don't change
	// it.
	Request proto.Message
	// Response is a unary method's response, set once next has returned nil. It is shared too. An
	// interceptor that does not call next sets it itself; nil is the empty message.
	Response proto.Message
	// Stream is a streaming method's stream; nil for unary methods. It may be wrapped before next
	// is called; a wrapper costs streams inside one process their hand-over without copies.
	Stream connect.ServerStream
}

// Invoke serves one call. ctx is what the node's method will get: [CallFrom] reads the call from
// it.
type Invoke func(ctx context.Context, in *Invocation) error

// Interceptor wraps the serving of calls: every call to a node of this process passes, whatever way
// it came, local ones included; only what every node answers (ping, info, stop, ...) does not.
// Nodes outside any system, behind stubs, have none. It runs while the call holds its turn. It is
// called once for each node; the Invoke it returns is called for each call, concurrently where the
// node's methods are.
type Interceptor func(next Invoke) Invoke

// chainInterceptors makes one Invoke of several; the first is the outermost. It returns nil for
// none.
func chainInterceptors(interceptors []Interceptor, impl any) Invoke {
	if len(interceptors) == 0 {
		return nil
	}
	next := func(ctx context.Context, in *Invocation) error {
		m := in.Method
		if m.shape != connect.StreamTypeUnary {
			return m.stream(impl, ctx, in.Stream)
		}
		if isNil(in.Request) {
			in.Request = m.newRequest()
		}
		if !m.isRequest(in.Request) {
			return connect.Errorf(connect.CodeInternal, "an interceptor made a %T the request of %s", in.Request, m.fullName())
		}
		res, err := m.unary(impl, ctx, in.Request)
		in.Response = res
		return err
	}
	for _, interceptor := range slices.Backward(interceptors) {
		next = interceptor(next)
	}
	return next
}
