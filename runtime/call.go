package runtime

import (
	"context"
	"errors"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"
)

// Call calls the method and waits for its response.
//
// The request belongs to nobody from then on, nor does the response once returned: nobody may
// change either. A nil request is the empty message. A call whose context ends returns at once,
// unless its method runs on the caller's own goroutine: a call to an idle node in the same process
// returns when its method does, whose context has ended then too.
func (u *Unary[Req, Res]) Call(ctx context.Context, ref Ref, req Req) (Res, error) {
	var none Res
	res, err := ref.t.invoke(ctx, &u.m, orEmpty(req, u.m.newRequest))
	if err != nil {
		return none, err
	}
	return res.(Res), nil //nolint:forcetypeassert // the method's table made it
}

// CallAsync is [CallAsync] for the method.
func (u *Unary[Req, Res]) CallAsync(ctx context.Context, ref Ref, req Req) *Future[Res] {
	return &Future[Res]{f: ref.t.submit(ctx, &u.m, orEmpty(req, u.m.newRequest))}
}

// method is the method of the handle's service at an index of its [Table].
func (r Ref) method(index int) (*Method, error) {
	if r.t == nil {
		return nil, errNoNode()
	}
	return r.t.service.methods[index], nil
}

// CallUnary is [Unary.Call] for the method at an index of the [Table] that ref's service is made
// of. It is for generated code, as are the functions below.
func CallUnary[Req, Res proto.Message](ctx context.Context, ref Ref, index int, req Req) (Res, error) {
	var none Res
	m, err := ref.method(index)
	if err != nil {
		return none, err
	}
	res, err := ref.t.invoke(ctx, m, orEmpty(req, m.newRequest))
	if err != nil {
		return none, err
	}
	return res.(Res), nil //nolint:forcetypeassert // the method's table made it
}

// CallAsync enqueues a call of a method. It blocks only while the way to the node is full or being
// opened, until it is not or ctx ends. Calls enqueued one after the other run in that order. The
// call lives as long as ctx; the future's outcome is the call's.
func CallAsync[Req, Res proto.Message](ctx context.Context, ref Ref, index int, req Req) *Future[Res] {
	m, err := ref.method(index)
	if err != nil {
		return &Future[Res]{f: failedFuture(err)}
	}
	return &Future[Res]{f: ref.t.submit(ctx, m, orEmpty(req, m.newRequest))}
}

// failedFuture is that of a call of no node.
func failedFuture(err error) *future {
	f := newFuture(&Method{spec: connect.Spec{Procedure: "/(a method of no node)"}}, nil)
	f.complete(err)
	return f
}

// beginStream begins a call of a streaming method.
func beginStream(ctx context.Context, ref Ref, index int) (*callStream, error) {
	m, err := ref.method(index)
	if err != nil {
		return nil, err
	}
	stream, err := ref.t.stream(ctx, m)
	if err != nil {
		return nil, err
	}
	return &callStream{ctx: ctx, stream: stream, method: m, target: ref.t}, nil
}

// CallServerStream begins a call of a method, and returns its stream of responses.
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

// sendOnly sends the only request.
func (c *callStream) sendOnly(req proto.Message) error {
	err := c.stream.Send(req)
	if err == nil {
		err = c.stream.CloseSend()
	}
	if err != nil && isLocalRefusal(err) {
		_ = c.stream.Close() // nothing has begun
		return err
	}
	// Otherwise the node, or what lost it, says why on the receiving side.
	return nil
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

// CallClientStream begins a call of a method, and returns the stream to send its requests on.
func CallClientStream[Req, Res proto.Message](ctx context.Context, ref Ref, index int) (ClientStreamingClient[Req, Res], error) {
	c, err := beginStream(ctx, ref, index)
	if err != nil {
		return nil, err
	}
	return clientStreamingClient[Req, Res]{c}, nil
}

// CallBidiStream begins a call of a method, and returns its stream.
func CallBidiStream[Req, Res proto.Message](ctx context.Context, ref Ref, index int) (BidiStreamingClient[Req, Res], error) {
	c, err := beginStream(ctx, ref, index)
	if err != nil {
		return nil, err
	}
	return bidiStreamingClient[Req, Res]{c}, nil
}

// orEmpty makes nil the empty message.
func orEmpty[M proto.Message](msg M, fresh func() proto.Message) proto.Message {
	var none M
	if any(msg) == any(none) {
		return fresh()
	}
	return msg
}

// chainOf is who waits for the calls made with ctx: the turn that its method holds, and whoever
// waits for that.
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
