package runtime

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"

	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	"github.com/raylink/raylink/internal/connecterr"
	"github.com/raylink/raylink/internal/usercode"
	"github.com/raylink/raylink/runtime/tunnel"
)

// clientEndpoint reaches a node through a connect client, over any transport. Such a transport
// cannot pipeline, so asynchronous calls are sent one after the other, in order, by one goroutine
// per handle. It runs only while calls are queued.
type clientEndpoint struct {
	client *connect.Client

	mu      sync.Mutex // guards the fields below
	queue   []*clientCall
	sending bool
}

func (*clientEndpoint) record() *nodev1.NodeRecord  { return &nodev1.NodeRecord{} }
func (*clientEndpoint) nid() string                 { return "" }
func (*clientEndpoint) label() string               { return "the node" }
func (*clientEndpoint) host() *Host                 { return nil }
func (*clientEndpoint) local() *Node                { return nil }
func (*clientEndpoint) tag() string                 { return "" }
func (c *clientEndpoint) tagged(string) endpoint    { return c }
func (*clientEndpoint) ended(context.Context) error { return errNoEnd() }

type clientCall struct {
	ctx    context.Context //nolint:containedctx // queued with its call
	cancel context.CancelCauseFunc
	method *Method
	req    proto.Message
	out    *outgoing
	future *future
}

// invoke makes a unary call and waits for it. It queues behind asynchronous calls that are not sent
// yet.
func (c *clientEndpoint) invoke(ctx context.Context, m *Method, req proto.Message, out *outgoing) (proto.Message, error) {
	c.mu.Lock()
	sending := c.sending
	c.mu.Unlock()
	if !sending || m.Concurrent() {
		res, deliver, err := c.call(ctx, m, req, out)
		deliver()
		return res, err
	}
	f := newFuture(m, c)
	if err := c.submit(ctx, m, req, f, out); err != nil {
		return nil, err
	}
	return f.get(ctx)
}

// call makes a unary call. deliver stores the response's metadata for the caller.
func (c *clientEndpoint) call(ctx context.Context, m *Method, req proto.Message, out *outgoing) (res proto.Message, deliver func(), err error) {
	if ctx.Err() != nil {
		return nil, func() {}, endedAt(causeOf(ctx), c.label(), m, unsent)
	}
	ctx, own := out.transportContext(ctx)
	res = m.newResponse()
	err = c.client.CallUnary(ctx, m.spec, req, res)
	deliver = func() {}
	if isMetadataSet(ctx, err) {
		deliver = func() { deliverFrom(out.info, own) }
	}
	if err != nil {
		return nil, deliver, endedAt(clientError(ctx, undecodable(m, false, unsendable(m, req, err))), c.label(), m, unanswered)
	}
	return res, deliver, nil
}

func (c *clientEndpoint) submit(ctx context.Context, m *Method, req proto.Message, f *future, out *outgoing) error {
	if ctx.Err() != nil {
		return endedAt(causeOf(ctx), c.label(), m, unsent)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	f.watch(ctx, func(cause error) error {
		cancel(cause)
		return endedAt(connecterr.Canceled(cause), c.label(), m, unanswered)
	})
	call := &clientCall{ctx: ctx, cancel: cancel, method: m, req: req, out: out, future: f}
	if m.Concurrent() {
		// It takes no turn, so it needs no order.
		go c.run(call, func() {})
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.queue) >= m.service.config.MaxPending {
		c.removeEnded()
	}
	if len(c.queue) >= m.service.config.MaxPending {
		cancel(nil)
		return connect.Errorf(connect.CodeResourceExhausted, "%d calls wait to be sent on this handle, the most it takes; the oldest is %s",
			len(c.queue), c.queue[0].method.name)
	}
	c.queue = append(c.queue, call)
	if !c.sending {
		c.sending = true
		go c.send()
	}
	return nil
}

// removeEnded removes the queued calls whose contexts have ended. They would otherwise count as
// pending until the call before them returns.
func (c *clientEndpoint) removeEnded() {
	c.queue = slices.DeleteFunc(c.queue, func(call *clientCall) bool {
		if call.ctx.Err() == nil {
			return false
		}
		call.future.completeWith(nil, endedAt(causeOf(call.ctx), c.label(), call.method, unsent), nil)
		return true
	})
}

// send makes the queued calls, one after the other, until there are none.
func (c *clientEndpoint) send() {
	for {
		c.mu.Lock()
		if len(c.queue) == 0 {
			c.queue, c.sending = nil, false
			c.mu.Unlock()
			return
		}
		call := c.queue[0]
		c.queue = c.queue[1:]
		c.mu.Unlock()
		c.run(call, func() { go c.send() })
	}
}

// run makes the call and completes its future, even if the client's transport or interceptors,
// which are user code, panic or end the goroutine. After a Goexit it calls goOn.
func (c *clientEndpoint) run(call *clientCall, goOn func()) {
	var res proto.Message
	var deliver func()
	usercode.Run(func() (err error) {
		res, deliver, err = c.call(call.ctx, call.method, call.req, call.out)
		return err
	}, func(err error) {
		if f, ok := err.(*usercode.UnreturnedError); ok { //nolint:errorlint // Run's own type
			const what = "a connect client"
			f.Log(c.host().logger(), what, slog.String("method", call.method.fullName()))
			err = connect.Errorf(connect.CodeInternal, "%s, calling %s, %v", what, call.method.fullName(), f)
			if f.Goexit {
				defer goOn()
			}
		}
		call.future.completeWith(res, err, deliver)
		call.cancel(nil) // or else it stays registered with the caller's context for as long as that lives
	})
}

func (c *clientEndpoint) stream(ctx context.Context, m *Method, out *outgoing) (connect.ClientStream, error) {
	streamCtx, own := out.transportContext(ctx)
	streamCtx, cancel := context.WithCancel(streamCtx)
	stream, err := c.client.CallClientStream(streamCtx, m.spec)
	if err != nil {
		cancel()
		return nil, endedAt(clientError(ctx, err), c.label(), m, unsent)
	}
	return &clientEndpointStream{stream: stream, method: m, info: out.info, own: own, ctx: ctx, streamCtx: streamCtx, cancel: cancel}, nil
}

// transportContext returns the context for a call of connect's client, with a [connect.CallInfo] of
// its own, because several calls may use the caller's. It contains the request header of the
// caller's CallInfo, including reserved keys, which are for the transport, and the metadata of
// [WithMetadata]. own is nil if there is neither.
func (o *outgoing) transportContext(ctx context.Context) (_ context.Context, own *connect.CallInfo) {
	if o.info == nil && o.fromContext.Len() == 0 {
		return ctx, nil
	}
	ctx, own = connect.NewClientContext(ctx)
	if o.info != nil {
		for key, values := range o.info.RequestHeader().All() {
			own.RequestHeader().SetValues(key, slices.Clone(values))
		}
	}
	o.fromContext.addTo(own.RequestHeader())
	return ctx, own
}

// isMetadataSet reports whether the transport has finished setting the metadata of a call or stream
// that ended with err. Connect's transports do not wait for the response, or for a handler, once
// the caller's context has ended: what comes later may still set metadata at any time.
func isMetadataSet(ctx context.Context, err error) bool {
	e, ok := errors.AsType[*connect.Error](err)
	return ctx.Err() == nil || err == nil || errors.Is(err, io.EOF) || ok && e.IsRemote()
}

// deliverFrom copies what a transport has set in own, the CallInfo of the call, to info, the
// caller's.
func deliverFrom(info, own *connect.CallInfo) {
	if info == nil || own == nil {
		return
	}
	infos.Lock()
	defer infos.Unlock()
	copyInfo(info, own)
	copyHeader(info.ResponseHeader(), own.ResponseHeader())
	copyHeader(info.ResponseTrailer(), own.ResponseTrailer())
}

func copyInfo(to, from *connect.CallInfo) {
	to.Spec, to.PeerAddr, to.Protocol, to.Codec = from.Spec, from.PeerAddr, from.Protocol, from.Codec
	to.RequestEncoding, to.ResponseEncoding = from.RequestEncoding, from.ResponseEncoding
	to.SendStats, to.ReceiveStats, to.TransportInfo = from.SendStats, from.ReceiveStats, from.TransportInfo
}

func copyHeader(to, from *connect.Header) {
	*to = connect.Header{}
	for key, values := range from.All() {
		to.SetValues(key, slices.Clone(values))
	}
}

// unsendable is the error for err, which a connect client returned for a call of m with msg. Where
// msg cannot be encoded, it is the same error as for every other way.
func unsendable(m *Method, msg any, err error) error {
	e, ok := errors.AsType[*connect.Error](err)
	message, isMessage := msg.(proto.Message)
	if !ok || e.IsRemote() || e.Code() != connect.CodeInternal || !isMessage {
		return err
	}
	if why := tunnel.CheckMessage(m.spec.Procedure, true, message); why != nil {
		return why
	}
	return err
}

// undecodable converts a connect transport's error for a message that it could not decode to the
// error of every other way. The transport uses InvalidArgument for a response too.
//
// connecthttp v2.0 has neither a type nor a sentinel for these errors, so their texts are matched,
// and only for local errors with a cause. errors.Is(cause, proto.Error) would not do: it misses
// errors of decompression, and matches an InvalidArgument of a user's interceptor that has parsed a
// message itself. TestUndecodableResponseIsInternalWhateverTheCodec and the contract test fail if
// connect changes the texts.
func undecodable(m *Method, request bool, err error) error {
	e, ok := errors.AsType[*connect.Error](err)
	if !ok || e.IsRemote() || e.Code() != connect.CodeInvalidArgument {
		return err
	}
	cause := errors.Unwrap(e)
	if cause == nil {
		return err
	}
	switch message := e.Message(); {
	case strings.HasPrefix(message, "unmarshal message: "):
	case !request && (strings.HasPrefix(message, "decompress: ") || strings.HasPrefix(message, "get decompressor: ")):
	default:
		return err
	}
	return tunnel.Undecodable(m.spec.Procedure, request, cause)
}

// clientError converts the end of a context or connection to the error that every other way gives.
func clientError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return causeOf(ctx)
	}
	// Transports also use this code for connections that break; the caller has canceled nothing.
	if e, ok := errors.AsType[*connect.Error](err); ok && !e.IsRemote() && e.Code() == connect.CodeCanceled {
		return connect.Errorf(connect.CodeUnavailable, "the connection to the node was lost: %s", e.Message()).WithCause(err)
	}
	return withDeadlineCause(ctx, withoutInternalDetails(err))
}
