package runtime

import (
	"context"
	"errors"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"
)

// Call calls the method and waits for its response.
//
// The request belongs to nobody from then on, nor does the response once returned: nobody may change either. A nil request is the empty
// message. A call whose context ends returns at once, unless its method runs on the caller's own goroutine: a call to an idle node in the
// same process returns when its method does, whose context has ended then too.
func (u *Unary[Req, Res]) Call(ctx context.Context, ref Ref, req Req) (Res, error) {
	var none Res
	res, err := ref.t.invoke(ctx, &u.m, orEmpty(req, u.newRequest))
	if err != nil {
		return none, err
	}
	return res.(Res), nil //nolint:forcetypeassert // the method's table made it
}

// CallAsync enqueues a call of the method. It blocks only while the way to the node is full or being opened, until it is not or ctx ends. Calls
// enqueued one after the other run in that order. The call lives as long as ctx; the future's outcome is the call's.
func (u *Unary[Req, Res]) CallAsync(ctx context.Context, ref Ref, req Req) *Future[Res] {
	return &Future[Res]{f: ref.t.submit(ctx, &u.m, orEmpty(req, u.newRequest))}
}

// Call begins a call of the method, and returns its stream of responses.
func (s *ServerStreaming[Req, Res]) Call(ctx context.Context, ref Ref, req Req) (ServerStreamingClient[Res], error) {
	stream, err := ref.t.stream(ctx, &s.m)
	if err != nil {
		return nil, err
	}
	out := &clientStream[Req, Res]{stream: stream, method: &s.typed}
	err = stream.Send(orEmpty(req, s.newRequest))
	if err == nil {
		err = stream.CloseSend()
	}
	if err != nil && isLocalRefusal(err) {
		_ = stream.Close() // nothing has begun
		return nil, err
	}
	// Otherwise the node, or what lost it, says why on the receiving side.
	return out, nil
}

// isLocalRefusal reports whether a call was refused on the caller's side, for what it was to carry.
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

// Call begins a call of the method, and returns the stream to send its requests on.
func (c *ClientStreaming[Req, Res]) Call(ctx context.Context, ref Ref) (ClientStreamingClient[Req, Res], error) {
	stream, err := ref.t.stream(ctx, &c.m)
	if err != nil {
		return nil, err
	}
	return &clientStream[Req, Res]{stream: stream, method: &c.typed}, nil
}

// Call begins a call of the method, and returns its stream.
func (b *BidiStreaming[Req, Res]) Call(ctx context.Context, ref Ref) (BidiStreamingClient[Req, Res], error) {
	stream, err := ref.t.stream(ctx, &b.m)
	if err != nil {
		return nil, err
	}
	return &clientStream[Req, Res]{stream: stream, method: &b.typed}, nil
}

// orEmpty makes nil the empty message.
func orEmpty[M proto.Message](msg M, fresh func() M) M {
	var none M
	if any(msg) == any(none) {
		return fresh()
	}
	return msg
}

// chainOf is who waits for the calls made with ctx: the turn that its method holds, and whoever waits for that.
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

// localCall describes a call made with ctx to a node of this process.
func localCall(ctx context.Context, m *Method, metadata Metadata) *callContext {
	c := newCall(ctx, m, byLocal)
	c.call.receive(metadata)
	if cc := callContextOf(ctx); cc != nil {
		c.call.from = &cc.node.identity
		c.chain = chainOf(ctx)
	}
	return c
}

// errNoNode is what the zero Ref answers.
func errNoNode() error {
	return connect.NewError(connect.CodeFailedPrecondition, "the handle reaches no node: it is the zero value; get one from Create, Find or a NodeRef")
}
