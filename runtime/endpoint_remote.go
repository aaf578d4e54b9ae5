package runtime

import (
	"context"
	"errors"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"

	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	"github.com/raylink/raylink/internal/connecterr"
	"github.com/raylink/raylink/runtime/tunnel"
)

// remoteEndpoint is a node in another process, reached through a tunnel.
type remoteEndpoint struct {
	remote    *remote
	tunnelTag string
}

func (e *remoteEndpoint) record() *nodev1.NodeRecord      { return e.remote.record() }
func (e *remoteEndpoint) nid() string                     { return e.remote.nid }
func (e *remoteEndpoint) label() string                   { return e.remote.path() }
func (e *remoteEndpoint) host() *Host                     { return e.remote.host }
func (*remoteEndpoint) local() *Node                      { return nil }
func (e *remoteEndpoint) tag() string                     { return e.tunnelTag }
func (e *remoteEndpoint) tagged(tag string) endpoint      { return &remoteEndpoint{e.remote, tag} }
func (e *remoteEndpoint) ended(ctx context.Context) error { return e.remote.ended(ctx) }

// fillCall fills in the call for the wire.
func fillCall(ctx context.Context, c *tunnel.Call, target string, m *Method, req proto.Message, metadata Metadata, waits bool) {
	c.Target, c.Procedure, c.Request, c.Response = target, m.spec.Procedure, req, m.newResponse()
	c.Header = metadata.header
	if cc := callContextOf(ctx); cc != nil {
		c.Caller = cc.node.encodedCaller
		if waits {
			c.Chain = chainOf(ctx).appendTo(nil)
		}
	}
}

// newWaitedCall returns a call from the host's pool. The caller returns it with freeWaitedCall once
// it has ended or if it never began: the tunnel no longer uses it then.
func (h *Host) newWaitedCall() *tunnel.Call {
	if c, ok := h.waited.Get().(*tunnel.Call); ok {
		return c
	}
	return &tunnel.Call{Synchronous: true, ReportAfterDeadline: true}
}

func (h *Host) freeWaitedCall(c *tunnel.Call) {
	c.Reset()
	h.waited.Put(c)
}

// invoke implements endpoint. A call that did not begin because the node had moved is made once
// more.
func (e *remoteEndpoint) invoke(ctx context.Context, m *Method, req proto.Message, out *outgoing) (proto.Message, error) {
	r := e.remote
	res, err := e.invokeOnce(ctx, m, req, out)
	if err == nil || ctx.Err() != nil {
		return res, err
	}
	if isNotHere(err) {
		if rerr := r.refresh(ctx); rerr != nil {
			return nil, r.explain(ctx, withoutInternalDetails(err))
		}
		res, err = e.invokeOnce(ctx, m, req, out)
		return res, withoutInternalDetails(err)
	}
	if isLost(err) {
		return nil, r.explain(ctx, err)
	}
	return nil, err
}

func (e *remoteEndpoint) invokeOnce(ctx context.Context, m *Method, req proto.Message, out *outgoing) (proto.Message, error) {
	r := e.remote
	conn, target, err := r.conn(ctx, e.tunnelTag)
	if err != nil {
		return nil, endedAt(err, r.path(), m, unsent)
	}
	c := r.host.newWaitedCall()
	defer r.host.freeWaitedCall(c)
	fillCall(ctx, c, target, m, req, out.metadata, true)
	mayBlock(ctx)
	if err := conn.Start(ctx, c); err != nil {
		return nil, endedAt(err, r.path(), m, unsent)
	}
	conn.Wait(ctx, c, causeOf)
	deliver(out.info, Metadata{c.ResponseHeader}, Metadata{c.ResponseTrailer})
	if c.Err != nil {
		err := withDeadlineCause(ctx, c.Err)
		if canceledOverdue(ctx, err) {
			err = causeOf(ctx)
		}
		return nil, endedAt(err, r.path(), m, unanswered)
	}
	return c.Response, nil
}

// canceledOverdue reports whether the node called the call canceled because this side's deadline
// passed before its own.
func canceledOverdue(ctx context.Context, err error) bool {
	return connect.CodeOf(err) == connect.CodeCanceled && errors.Is(ctx.Err(), context.DeadlineExceeded)
}

// submit implements endpoint. It returns when the call is queued for sending. The outcome completes
// the future on the goroutine that reads the connection.
func (e *remoteEndpoint) submit(ctx context.Context, m *Method, req proto.Message, f *future, out *outgoing) error {
	r := e.remote
	conn, target, err := r.conn(ctx, e.tunnelTag)
	if err != nil {
		return endedAt(err, r.path(), m, unsent)
	}
	c := &tunnel.Call{}
	fillCall(ctx, c, target, m, req, out.metadata, false)
	info := out.info
	c.Done = func(*tunnel.Call) {
		var show func()
		if info != nil { // or else no call allocates it
			show = func() { deliver(info, Metadata{c.ResponseHeader}, Metadata{c.ResponseTrailer}) }
		}
		if c.Err == nil {
			f.completeWith(c.Response, nil, show)
			return
		}
		if canceledOverdue(ctx, c.Err) {
			f.completeWith(nil, endedAt(causeOf(ctx), r.path(), m, unanswered), show)
			return
		}
		if !isLost(c.Err) && !isNotHere(c.Err) {
			f.completeWith(nil, withDeadlineCause(ctx, c.Err), show)
			return
		}
		// Looking up the node's fate takes a while, and must not block the reader.
		go func() {
			err := c.Err
			if isNotHere(err) {
				_ = r.refresh(ctx) // explain waits for a new record from any source
				err = withoutInternalDetails(err)
			}
			f.complete(r.explain(ctx, err))
		}()
	}
	// Set before the future is shared; WatchContext is called after Start.
	f.cancelBy(func(cause error) error {
		err := endedAt(connecterr.Canceled(cause), r.path(), m, unanswered)
		c.Cancel(err)
		return err
	})
	if ctx.Done() != nil {
		f.remote = c
		c.WatchContext = func() { f.watchContext(ctx) }
	}
	if err := conn.Start(ctx, c); err != nil {
		if ctx.Err() != nil {
			return endedAt(causeOf(ctx), r.path(), m, unsent)
		}
		if !isLost(err) {
			return err // refused on this side, such as for its size
		}
		return r.explain(ctx, err)
	}
	return nil
}

func (e *remoteEndpoint) stream(ctx context.Context, m *Method, out *outgoing) (connect.ClientStream, error) {
	r := e.remote
	conn, target, err := r.conn(ctx, e.tunnelTag)
	if err != nil {
		return nil, err
	}
	mayBlock(ctx)
	req := tunnel.StreamRequest{Target: target, Procedure: m.spec.Procedure, StreamType: m.shape, Header: out.metadata.header}
	if info := out.info; info != nil {
		shown := false
		req.OnMetadata = func(header, trailer tunnel.Header) {
			if !shown {
				shown = true
				deliverHeader(info, Metadata{header})
			}
			deliverTrailer(info, Metadata{trailer})
		}
	}
	if cc := callContextOf(ctx); cc != nil {
		// No chain: the caller that opens a stream need not wait for it, and the stream may outlive
		// the turn that it was opened in.
		req.Caller = cc.node.encodedCaller
	}
	stream, err := conn.Stream(ctx, req)
	if err != nil {
		return nil, err
	}
	return &remoteStream{ClientStream: stream, ctx: ctx, remote: r, method: m}, nil
}

// remoteStream adds the cause of the node's end to the loss of its connection.
type remoteStream struct {
	connect.ClientStream

	ctx    context.Context //nolint:containedctx // a stream lives as long as its call's context
	remote *remote
	method *Method
	source source // used by ReceiveEmpty only
}

var (
	_ connect.ClientStream = (*remoteStream)(nil)
	_ tunnel.EmptyReceiver = (*remoteStream)(nil)
)

func (s *remoteStream) Receive(msg any) error { return s.explained(s.ClientStream.Receive(msg)) }

// ReceiveEmpty implements [tunnel.EmptyReceiver].
func (s *remoteStream) ReceiveEmpty(msg proto.Message) error {
	return s.explained(s.source.from(s.ClientStream).fill(msg))
}

func (s *remoteStream) explained(err error) error {
	if err == nil {
		return nil
	}
	if s.ctx.Err() != nil {
		return endedAt(causeOf(s.ctx), s.remote.path(), s.method, streaming)
	}
	if isLost(err) {
		return s.remote.explain(s.ctx, err)
	}
	if isNotHere(err) {
		_ = s.remote.refresh(s.ctx) // the next call reaches the node where it is now; repeating this one is up to its caller
	}
	return withoutInternalDetails(err)
}
