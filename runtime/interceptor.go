package runtime

import (
	"context"
	"slices"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"
)

// Invocation is one call that a node is about to serve.
type Invocation struct {
	// Node is the serving node.
	Node Ref
	// Method is the method that was called.
	Method *Method
	// Request is a unary method's request; nil for streams. It is shared with the caller: an
	// interceptor may replace it, but must not modify it.
	Request proto.Message
	// Response is a unary method's response, set once next has returned nil; it must not be
	// modified either. An interceptor that does not call next sets it itself; nil is the empty
	// message.
	Response proto.Message
	// Stream is a streaming method's stream; nil for unary methods. An interceptor may wrap it
	// before it calls next; then messages of streams within a process are copied instead of passed
	// by reference.
	Stream connect.ServerStream
}

// Invoke serves one call. ctx is the context of the node's method, from which [CallFrom] gets the
// call.
type Invoke func(ctx context.Context, in *Invocation) error

// Interceptor wraps the serving of calls: of every call to a node of this process, local or remote,
// except the built-in methods of every node (ping, info, stop, ...). Nodes outside any system
// have none. The Interceptor is called once for each node; the Invoke that it returns is called for
// each call, while the call holds its turn, and concurrently if the node's methods are.
type Interceptor func(next Invoke) Invoke

// chainInterceptors combines interceptors into one Invoke; the first is the outermost. It returns
// nil if there are none.
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
