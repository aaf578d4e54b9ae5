package runtime

import (
	"context"
	"sync"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"
)

// clientTarget reaches a node through a connect client, whatever its transport. Such a transport can't pipeline, so async calls are sent one
// after the other, in order, by one goroutine for each handle, which lives while there is something to send.
type clientTarget struct {
	client *connect.Client

	mu      sync.Mutex // guards the line
	line    []*clientCall
	sending bool
}

type clientCall struct {
	ctx    context.Context //nolint:containedctx // it waits in line with its call
	method *Method
	req    proto.Message
	future *future
}

// invoke makes a unary call and waits. Where async calls wait to be sent it waits behind them.
func (c *clientTarget) invoke(ctx context.Context, t *target, m *Method, req proto.Message) (proto.Message, error) {
	c.mu.Lock()
	sending := c.sending
	c.mu.Unlock()
	if !sending || m.Concurrent() {
		return c.call(ctx, m, req)
	}
	f := newFuture(m, t)
	if err := c.submit(ctx, m, req, f); err != nil {
		return nil, err
	}
	return f.get(ctx)
}

// call makes a unary call.
func (c *clientTarget) call(ctx context.Context, m *Method, req proto.Message) (proto.Message, error) {
	if ctx.Err() != nil {
		return nil, causeOf(ctx)
	}
	ctx = c.metadata(ctx)
	res := m.newResponse()
	if err := c.client.CallUnary(ctx, m.spec, req, res); err != nil {
		return nil, clientError(ctx, err)
	}
	return res, nil
}

func (c *clientTarget) submit(ctx context.Context, m *Method, req proto.Message, f *future) error {
	if ctx.Err() != nil {
		return causeOf(ctx)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	f.watch(ctx, func(cause error) { cancel(cause) })
	if m.Concurrent() {
		// It takes no turn, so there is no order to keep.
		go func() { f.complete(c.call(ctx, m, req)) }()
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.line) >= m.service.config.MaxPending {
		cancel(nil)
		return connect.Errorf(connect.CodeResourceExhausted, "%d calls wait to be sent on this handle, the most it takes; the oldest is %s",
			len(c.line), c.line[0].method.name)
	}
	c.line = append(c.line, &clientCall{ctx: ctx, method: m, req: req, future: f})
	if !c.sending {
		c.sending = true
		go c.send()
	}
	return nil
}

func (c *clientTarget) send() {
	for {
		c.mu.Lock()
		if len(c.line) == 0 {
			c.line, c.sending = nil, false
			c.mu.Unlock()
			return
		}
		call := c.line[0]
		c.line = c.line[1:]
		c.mu.Unlock()
		res, err := c.call(call.ctx, call.method, call.req)
		call.future.complete(res, err)
	}
}

func (c *clientTarget) stream(ctx context.Context, m *Method) (connect.ClientStream, error) {
	life, cancel := context.WithCancel(c.metadata(ctx))
	stream, err := c.client.CallClientStream(life, m.spec)
	if err != nil {
		cancel()
		return nil, clientError(ctx, err)
	}
	return &clientTargetStream{stream: stream, shape: m.shape, ctx: ctx, life: life, cancel: cancel}, nil
}

// metadata puts what [WithMetadata] said where connect looks for it.
func (c *clientTarget) metadata(ctx context.Context) context.Context {
	md := outgoing(ctx)
	if md.Len() == 0 {
		return ctx
	}
	info, ok := connect.CallInfoForClientContext(ctx)
	if !ok {
		ctx, info = connect.NewClientContext(ctx)
	}
	md.addTo(info.RequestHeader())
	return ctx
}

// clientError makes a context's end the error that every other way gives.
func clientError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return causeOf(ctx)
	}
	return overdue(ctx, withoutInternalDetails(err))
}
