package runtime

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"

	"github.com/raylink/raylink/internal/connecterr"
	"github.com/raylink/raylink/internal/usercode"
	"github.com/raylink/raylink/runtime/tunnel"
)

// ClientInvocation is one call that is about to be made. It belongs to the interceptors of the call
// until they return, and must not be used concurrently.
type ClientInvocation struct {
	// Node is the node to be called. Changing it has no effect.
	Node Ref
	// Method is the method to be called; its Spec has the kind of the call and the idempotency that
	// the schema declares. Changing it has no effect.
	Method *Method
	// Request is a unary method's request; nil for streams. An interceptor may replace it, but must
	// not modify it.
	Request proto.Message
	// Response is a unary method's response, set once next has returned nil; it must not be
	// modified either. An interceptor that does not call next sets it itself; nil is the empty
	// message.
	Response proto.Message
	// Stream is a streaming method's stream, set once next has returned nil. An interceptor may
	// replace it by a wrapper that sees every message; then messages of streams within a process
	// are copied instead of passed by reference.
	Stream connect.ClientStream

	to     *interceptedEndpoint
	method *Method
	// async is set for an asynchronous call.
	async *asyncInvocation
	ends  []func(error)
}

// OnEnd registers a function that is called once, when the call is over: with nil if it succeeded,
// or the error that its caller gets. A unary call is over when its interceptors have returned. A
// stream is over when its caller has received the last response or an error, or has closed it, or
// when the call's context has ended. fn runs on the goroutine that ended the call, and must not
// block. OnEnd must be called before the interceptor returns.
func (in *ClientInvocation) OnEnd(fn func(error)) { in.ends = append(in.ends, fn) }

// ClientInvoke makes one call. A unary call is over when it returns. For a stream it only begins
// the call and sets in.Stream; the messages follow later.
type ClientInvoke func(ctx context.Context, in *ClientInvocation) error

// ClientInterceptor wraps the making of calls, whatever way a call goes and of every kind. It is
// called once for each set of interceptors, by [WithClientInterceptor] or [Ref.Intercepted]; the
// ClientInvoke that it returns is called for each call, concurrently.
//
// An interceptor may
//
//   - pass another context to next: with more metadata ([WithMetadata]), or with a deadline. A
//     stream lives as long as the context that it was begun with. [OutgoingMetadata] returns what a
//     context's calls carry.
//   - replace the request, the response, the stream and the error.
//   - not call next, or call it more than once, one after the other, to repeat a unary call or the
//     beginning of a stream. See [Retry].
//
// The built-in methods of every node (ping, info, stop, ...) are not intercepted. An error for a
// message or metadata that cannot be sent, and the refusal of a call that would wait for itself,
// are returned by next.
//
// A call that waits for its response runs its interceptors on the caller's goroutine. An
// asynchronous call runs them on a goroutine of its own, and returns its future once they have
// called next for the first time and the call is queued, so that calls are still made in order.
// [Future.Cancel] ends the context of the interceptors, and completes the future without waiting
// for them. A panic in an interceptor fails its call with Internal, and is logged.
type ClientInterceptor func(next ClientInvoke) ClientInvoke

// Intercepted returns a Ref to the same node whose calls are wrapped by interceptors, the first
// outermost. Those of the runtime ([WithClientInterceptor]), and of earlier calls of Intercepted,
// are outside of them. A [nodev1.NodeRef] that is made from the Ref does not carry them.
func (r Ref) Intercepted(interceptors ...ClientInterceptor) Ref {
	if r.to == nil || len(interceptors) == 0 {
		return r
	}
	to := &interceptedEndpoint{endpoint: r.to}
	if outer, ok := r.to.(*interceptedEndpoint); ok {
		*to = *outer
	}
	to.layers = append(slices.Clip(to.layers), newClientLayer(interceptors, len(to.layers)))
	return Ref{service: r.service, to: to}
}

// interceptedEndpoint is an endpoint whose calls interceptors wrap, except those of built-in
// methods. [Ref] calls the interceptors: what they pass on decides what the call carries.
type interceptedEndpoint struct {
	endpoint

	// layers are the sets of interceptors, the outermost first; there is at least one.
	layers []ClientInvoke
}

// tagged implements endpoint.
func (e *interceptedEndpoint) tagged(tag string) endpoint {
	return &interceptedEndpoint{e.endpoint.tagged(tag), e.layers}
}

// intercepted returns the endpoint with the client interceptors of the host, if it has any. h may
// be nil.
func (h *Host) intercepted(to endpoint) endpoint {
	if h == nil || h.layers == nil {
		return to
	}
	return &interceptedEndpoint{to, h.layers}
}

// newClientLayer combines interceptors into one ClientInvoke; the first is the outermost. Inside of
// them are the layers of the call's endpoint beyond depth, and then the call itself.
func newClientLayer(interceptors []ClientInterceptor, depth int) ClientInvoke {
	next := func(ctx context.Context, in *ClientInvocation) error {
		if further := depth + 1; further < len(in.to.layers) {
			return in.to.layers[further](ctx, in)
		}
		return in.call(ctx)
	}
	for _, interceptor := range slices.Backward(interceptors) {
		next = interceptor(next)
	}
	return next
}

// clientLayers combines the interceptors of a host's calls; nil if there are none.
func clientLayers(interceptors []ClientInterceptor) []ClientInvoke {
	if len(interceptors) == 0 {
		return nil
	}
	return []ClientInvoke{newClientLayer(interceptors, 0)}
}

// interceptors returns the endpoint with the interceptors that wrap a call of the method, or nil if
// there are none.
func (r Ref) interceptors(m *Method) *interceptedEndpoint {
	if to, ok := r.to.(*interceptedEndpoint); ok && !m.builtin {
		return to
	}
	return nil
}

func (e *interceptedEndpoint) newInvocation(m *Method, req proto.Message) *ClientInvocation {
	return &ClientInvocation{Node: Ref{service: m.service, to: e}, Method: m, Request: req, to: e, method: m}
}

// invokeIntercepted is [Ref.invoke] inside the interceptors.
func (e *interceptedEndpoint) invokeIntercepted(ctx context.Context, m *Method, req proto.Message) (res proto.Message, err error) {
	in := e.newInvocation(m, req)
	usercode.Run(func() error { return in.run(ctx) }, func(outcome error) {
		if err = in.convertError(outcome); err == nil {
			res = in.Response
		}
		in.end(err)
	})
	return res, err
}

// streamIntercepted is [Ref.stream] inside the interceptors.
func (e *interceptedEndpoint) streamIntercepted(ctx context.Context, m *Method) (c *callStream, err error) {
	in := e.newInvocation(m, nil)
	usercode.Run(func() error { return in.run(ctx) }, func(outcome error) {
		if err = in.convertError(outcome); err != nil {
			in.end(err)
			return
		}
		c = &callStream{ctx: ctx, stream: in.Stream, method: m, to: e}
		if len(in.ends) > 0 {
			c.watchEnd(in.end)
		}
	})
	return c, err
}

// run runs the interceptors, and the call inside of them.
func (in *ClientInvocation) run(ctx context.Context) error {
	if err := in.to.layers[0](ctx, in); err != nil {
		return err
	}
	return in.check()
}

// convertError converts the panic or Goexit of an interceptor to the error of its call.
func (in *ClientInvocation) convertError(err error) error {
	f, ok := err.(*usercode.UnreturnedError) //nolint:errorlint // Run's own type
	if !ok {
		return err
	}
	f.Log(in.to.host().logger(), "a client interceptor", slog.String("method", in.method.fullName()))
	return connect.Errorf(connect.CodeInternal, "calling %s: a client interceptor %v", in.method.fullName(), f)
}

// check returns the error for an interceptor that left no result, or one of the wrong type.
func (in *ClientInvocation) check() error {
	m := in.method
	switch {
	case m.shape != connect.StreamTypeUnary:
		if in.Stream == nil {
			return connect.Errorf(connect.CodeInternal, "a client interceptor returned neither a stream of %s nor an error", m.fullName())
		}
	case isNil(in.Response):
		in.Response = m.newResponse()
	case !m.isResponse(in.Response):
		return connect.Errorf(connect.CodeInternal, "a client interceptor made a %T the response of %s", in.Response, m.fullName())
	}
	return nil
}

// end runs the functions that OnEnd has registered. They are user code.
func (in *ClientInvocation) end(err error) {
	for _, fn := range in.ends {
		usercode.Run(func() error { fn(err); return nil }, func(err error) {
			if f, ok := err.(*usercode.UnreturnedError); ok { //nolint:errorlint // Run's own type
				f.Log(in.to.host().logger(), "a client interceptor's OnEnd function", slog.String("method", in.method.fullName()))
			}
		})
	}
}

// call makes the call itself.
func (in *ClientInvocation) call(ctx context.Context) error {
	m, to := in.method, in.to.endpoint
	if m.shape == connect.StreamTypeUnary {
		if isNil(in.Request) {
			in.Request = m.newRequest()
		}
		if !m.isRequest(in.Request) {
			return connect.Errorf(connect.CodeInternal, "a client interceptor made a %T the request of %s", in.Request, m.fullName())
		}
	}
	out, err := outgoingOf(ctx, m)
	switch {
	case err != nil:
	case m.shape != connect.StreamTypeUnary:
		in.Stream, err = to.stream(ctx, m, out)
	case in.async != nil:
		in.Response, err = in.async.call(ctx, to, m, in.Request, out)
	default:
		in.Response, err = to.invoke(ctx, m, in.Request, out)
	}
	return err
}

// asyncInvocation is the state of an asynchronous call inside interceptors.
type asyncInvocation struct {
	// queued is closed when the call is queued for the first time, or its interceptors have
	// returned.
	queued     chan struct{}
	queuedOnce sync.Once

	mu sync.Mutex // guards inner
	// inner is the newest of the calls that the interceptors have made; nil before the first.
	inner *future
}

// submitIntercepted is [Ref.submit] inside the interceptors.
func (e *interceptedEndpoint) submitIntercepted(ctx context.Context, m *Method, req proto.Message) *future {
	f := newFuture(m, e)
	caller := ctx
	ctx, deliver := withOwnCallInfo(ctx, m)
	ctx, cancel := context.WithCancelCause(ctx)
	in := e.newInvocation(m, req)
	a := &asyncInvocation{queued: make(chan struct{})}
	in.async = a
	f.cancelBy(func(cause error) error {
		err := a.cancel(e, m, cause)
		cancel(cause)
		return err
	})
	go usercode.Run(func() error { return in.run(ctx) }, func(err error) {
		err = in.convertError(err)
		in.end(err)
		f.completeWith(in.Response, err, deliver)
		a.release()
		cancel(nil) // or else it stays registered with the caller's context for as long as that lives
	})
	mayBlock(caller)
	select {
	case <-a.queued:
	case <-caller.Done():
	}
	return f
}

// withOwnCallInfo gives a call a CallInfo of its own instead of the caller's, which the caller may
// read before the call has ended. deliver copies what the call has set to the caller's. It is nil
// if ctx has no CallInfo.
func withOwnCallInfo(ctx context.Context, m *Method) (_ context.Context, deliver func()) {
	info, ok := connect.CallInfoForClientContext(ctx)
	if !ok {
		return ctx, nil
	}
	resetInfo(info, m)
	ctx, own := connect.NewClientContext(ctx)
	copyHeader(own.RequestHeader(), info.RequestHeader())
	return ctx, func() { deliverFrom(info, own) }
}

func (a *asyncInvocation) release() { a.queuedOnce.Do(func() { close(a.queued) }) }

// call makes the call and waits for it. The caller of the method does not wait yet, so its turn
// cannot be part of a cycle.
func (a *asyncInvocation) call(ctx context.Context, to endpoint, m *Method, req proto.Message, out *outgoing) (proto.Message, error) {
	f := newFuture(m, to)
	a.mu.Lock()
	a.inner = f
	a.mu.Unlock()
	if err := to.submit(ctx, m, req, f, out); err != nil {
		f.complete(err)
	}
	a.release()
	<-f.done // it ends with ctx
	return f.outcome()
}

// cancel cancels the call in progress, and returns the error for cause.
func (a *asyncInvocation) cancel(to endpoint, m *Method, cause error) error {
	a.mu.Lock()
	f := a.inner
	a.mu.Unlock()
	if f == nil {
		return endedAt(connecterr.Canceled(cause), to.label(), m, unsent)
	}
	if !f.isDone() { // else the interceptors are between two calls
		f.abort(cause)
		<-f.done
		if _, err := f.outcome(); err != nil {
			return err
		}
	}
	return endedAt(connecterr.Canceled(cause), to.label(), m, unanswered)
}

// OutgoingMetadata returns the metadata that the node will see of a call made with ctx: the pairs
// of [WithMetadata], and those of the request header of connect's client context.
func OutgoingMetadata(ctx context.Context) Metadata {
	var out Metadata
	if own, ok := ctx.Value(metadataKey{}).(*contextMetadata); ok {
		out = own.metadata
	}
	if info, ok := connect.CallInfoForClientContext(ctx); ok {
		if header, err := tunnel.HeaderFrom(info.RequestHeader()); err == nil {
			out.header = append(slices.Clip(out.header), header...)
		}
	}
	return out.withoutReserved()
}

// streamEnd calls a function once, when a stream is over.
type streamEnd struct {
	isOver  atomic.Bool
	fn      func(error)
	unwatch func() bool
}

// watchEnd has fn called with the outcome of the stream.
func (c *callStream) watchEnd(fn func(error)) {
	e := &streamEnd{fn: fn}
	c.end = e
	e.unwatch = context.AfterFunc(c.ctx, func() { e.report(endedAt(causeOf(c.ctx), c.to.label(), c.method, streaming)) })
}

// over reports the outcome of the stream. It does nothing if e is nil.
func (e *streamEnd) over(err error) {
	if e != nil {
		e.report(err)
		e.unwatch()
	}
}

// report calls the function, the first time that it is called.
func (e *streamEnd) report(err error) {
	if e.isOver.Swap(true) {
		return
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	e.fn(err)
}
