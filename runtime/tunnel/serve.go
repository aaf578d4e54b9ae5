package tunnel

import (
	"context"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect/v2"

	"github.com/raylink/raylink/internal/connecterr"
	"github.com/raylink/raylink/internal/usercode"
)

// Calls on the accepting side. Everything but the handlers of streams runs on the read loop.

// notRunError refuses a call for which no code of the node has run. The tunnel creates it in
// registerCall, and a handler by [Incoming.ReplyNotRun].
type notRunError struct{ reason *connect.Error }

// Error returns the reason's text.
func (e *notRunError) Error() string { return e.reason.Error() }

// Unwrap returns the error that the caller gets.
func (e *notRunError) Unwrap() error { return e.reason }

// servedTable holds the open calls of an accepting side, and counts what they use. It is guarded by
// Conn.mu.
type servedTable struct {
	calls []*Incoming // by id
	// open is the number of open calls. streams counts those streams too that have ended, but whose
	// handlers have not returned.
	open, streams int
	// requestBytes is the total size of the requests. metaBytes is the total charged for names,
	// chains and headers.
	requestBytes, metaBytes int
}

// at returns the open call with this id, or nil.
func (t *servedTable) at(id uint32) *Incoming {
	if int(id) >= len(t.calls) {
		return nil
	}
	return t.calls[id]
}

func (t *servedTable) add(in *Incoming) {
	for len(t.calls) <= int(in.id) {
		t.calls = append(t.calls, nil)
	}
	t.calls[in.id] = in
	t.open++
	t.requestBytes += int(in.cost)
	t.metaBytes += int(in.meta)
	if in.stream() != nil {
		t.streams++
	}
}

// remove removes a call, after which its id may be reused.
func (t *servedTable) remove(in *Incoming) {
	t.calls[in.id] = nil
	t.open--
	t.requestBytes -= int(in.cost)
	t.metaBytes -= int(in.meta)
}

// servedCall returns the open call with this id, or nil.
func (l *readLoop) servedCall(id uint32) *Incoming {
	l.conn.mu.Lock()
	defer l.conn.mu.Unlock()
	return l.conn.served.at(id)
}

func (l *readLoop) onCall(h frameHeader, body []byte) error {
	c := l.conn
	p := parser{rest: body}
	names := l.names.read(&p)
	in := l.newIncoming(names)
	in.Names, in.id, in.StreamType = names, h.id(), connect.StreamType(h.flags()&callShape)
	in.ctx.conn, in.ctx.in = c, in
	if h.flags()&callDeadline != 0 {
		// A deadline beyond the range of time.Duration means no deadline.
		if remaining := p.uint64(); remaining < uint64(maxDeadline/time.Microsecond) {
			in.ctx.deadline = max(l.now.Sub(c.started)+time.Duration(remaining)*time.Microsecond, 1)
		}
	}
	if h.flags()&callChain != 0 {
		in.ensureDetails().chain = append([]byte{}, p.bytes()...)
	}
	fields := 0
	if h.flags()&callHeader != 0 {
		before := len(p.rest)
		in.ensureDetails().header, fields = p.header(c.own.maxHeader)
		fields -= before - len(p.rest)
	}
	total := len(p.rest)
	if h.flags()&flagSized != 0 {
		total = p.totalSize()
	}
	meta := len(body) - len(p.rest)
	if meta > c.own.maxHeader {
		p.failf("a CALL with %d bytes before its message, the limit is %d", meta, c.own.maxHeader)
	}
	in.meta = uint32(meta + fields) //nolint:gosec // bounded by the length of a frame
	unary := in.StreamType == connect.StreamTypeUnary
	if !unary && (total > 0 || h.flags()&flagSized != 0) {
		p.failf("a CALL of a stream with a message")
	}
	if p.err != nil {
		return p.err
	}
	in.RequestBytes = total
	if unary {
		in.cost = uint32(callCost + meta + total) //nolint:gosec // a size on the wire has 31 bits
	}
	if unary && h.flags()&flagSized != 0 {
		in.ensureDetails() // allocates details for the assembly
	}
	if err := l.registerCall(in); err != nil {
		if _, refused := errors.AsType[*notRunError](err); refused {
			return nil
		}
		return err
	}
	c.calls.Add(1)
	switch {
	case !unary:
		go c.serveStream(in)
	case h.flags()&flagSized != 0:
		a := newUnaryAssembly(total, in.aliases)
		in.details.assembly = a
		return a.add(p.rest)
	default:
		l.serveUnary(in, request{body: p.rest})
	}
	return nil
}

const maxDeadline = 100 * 365 * 24 * time.Hour

// registerCall adds a call to the table. A call that violates the protocol ends the connection with
// the returned error. A call that cannot be served now is refused, and the refusal is returned as a
// [*notRunError].
func (l *readLoop) registerCall(in *Incoming) error {
	c := l.conn
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return c.err
	}
	switch {
	case int(in.id) > c.own.maxCalls:
		return violation("call id %d, the limit is %d", in.id, c.own.maxCalls)
	case c.served.at(in.id) != nil:
		return violation("call id %d is open already", in.id)
	case c.peerDrained:
		return violation("a call after GOAWAY")
	}
	var refusal *connect.Error
	stream := in.StreamType != connect.StreamTypeUnary
	cost, meta := int(in.cost), int(in.meta)
	switch {
	case c.draining != nil:
		refusal = connect.Errorf(connect.CodeUnavailable, "the server is shutting down, %s was not run", in.Procedure)
	case in.RequestBytes > c.own.maxMessage:
		refusal = MessageTooLarge(in.Procedure, true, in.RequestBytes, c.own.maxMessage)
	case meta > c.own.maxHeader:
		refusal = tooLarge("the metadata of the call of "+clipped(in.Procedure), meta, c.own.maxHeader, "the receiver's header")
	case c.served.metaBytes > 0 && c.served.metaBytes+meta > c.own.window:
		refusal = connect.Errorf(connect.CodeResourceExhausted, "the open calls have %d bytes of headers and names; with the %d of %s they would "+
			"exceed the limit of %d", c.served.metaBytes, meta, clipped(in.Procedure), c.own.window)
	case stream && c.served.streams >= c.own.maxStreams:
		refusal = connect.Errorf(connect.CodeResourceExhausted, "%d streams are open on the connection, which is the limit", c.served.streams)
	}
	if refusal != nil {
		start := c.out.beginFrame(0)
		err := &notRunError{refusal}
		c.appendFailure(in.id, start, nil, nil, err)
		return err
	}
	if c.served.requestBytes > 0 && cost > 0 && c.served.requestBytes+cost > c.own.window {
		return violation("requests of %d bytes in flight, the window is %d", c.served.requestBytes+cost, c.own.window)
	}
	if stream {
		in.ensureDetails().stream = newServerStream(in) // set before the call is in the table
	}
	c.served.add(in)
	c.startKeepalive()
	return nil
}

// request is the source of [Incoming.Decode]. It is owned by the read loop.
type request struct {
	body []byte
	// mayAlias reports that the decoded message may alias body: the call owns it.
	mayAlias bool
}

func (l *readLoop) newIncoming(names *Names) *Incoming {
	c := l.conn
	if c.allocator != nil {
		return c.allocator.NewIncoming(names)
	}
	return &Incoming{}
}

func (l *readLoop) serveUnary(in *Incoming, r request) {
	c := l.conn
	l.request = r
	returned := false
	defer func() {
		l.request.body = nil
		if returned {
			return
		}
		f := usercode.Outcome(false, recover())
		in.Reply(nil, c.handlerFailed(in.Procedure, f))
		if f.Goexit { // Goexit ended the read loop in the middle of a frame
			c.fail(fmt.Errorf("the handler of %s %w", in.Procedure, f))
		}
	}()
	c.handler.ServeUnary(in)
	returned = true
}

func (c *Conn) serveStream(in *Incoming) {
	in.stream().watchContext()
	c.runHandler(in, func() error {
		return c.handler.ServeStream(in.Context(), in, in.stream())
	}, in.stream().finish)
}

// requestComplete delivers a unary call whose request of several fragments is complete.
func (l *readLoop) requestComplete(in *Incoming) {
	a := in.details.assembly
	in.details.assembly = nil
	if in.ctx.Err() != nil {
		in.refuse(in.ctx.Err())
		a.buf.Free()
		return
	}
	l.serveUnary(in, request{body: a.buf.B, mayAlias: true})
	if in.aliases = !l.request.mayAlias; !in.aliases {
		a.buf.Free()
	}
}

func (l *readLoop) onCancel(id uint32) {
	c := l.conn
	c.mu.Lock()
	in := c.served.at(id)
	var p *outMessage
	if in == nil {
		p = c.cancelReply(id)
	}
	c.mu.Unlock()
	if in == nil || p != nil {
		return // already answered: CANCEL and REPLY have crossed
	}
	in.ctx.end(context.Canceled) // ends a stream too, see serverStream.watchContext
	if in.assembly() != nil {    // the call has not run, and will not
		in.details.assembly = nil
		in.refuse(context.Canceled)
	}
}

// cancelReply stops sending a partially sent response, and queues another REPLY as the final frame.
// It returns nil if no response is being sent. The caller must hold c.mu.
func (c *Conn) cancelReply(id uint32) *outMessage {
	p := c.out.sendingReplies[id]
	if p == nil {
		return nil
	}
	c.out.drop(p)
	start := c.out.beginFrame(0)
	c.appendFailure(id, start, nil, nil, context.Canceled)
	c.out.admitReplies(c.peer.window)
	return p
}

func (l *readLoop) onCloseSend(id uint32) {
	if in := l.servedCall(id); in != nil && in.stream() != nil {
		in.stream().inbox.closeSend()
	}
}

// runHandler runs a handler and then calls end exactly once with the error for the caller, even if
// the handler or a method of its error panics or ends its goroutine. A failure after the handler
// has answered is not converted.
func (c *Conn) runHandler(in *Incoming, handle func() error, end func(error)) {
	usercode.Run(func() error {
		if err := handle(); err != nil {
			return connecterr.From(err)
		}
		return nil
	}, func(err error) {
		if f, ok := err.(*usercode.UnreturnedError); ok && !in.replied.Load() { //nolint:errorlint // created by Run
			err = c.handlerFailed(in.Procedure, f)
		}
		end(err)
	})
}

// handlerFailed logs a handler that did not return, and returns the error for its caller.
func (c *Conn) handlerFailed(procedure string, f *usercode.UnreturnedError) *connect.Error {
	f.Log(c.cfg.Logger, "tunnel: a handler", "call", procedure)
	if f.Goexit {
		return connect.NewError(connect.CodeInternal, fmt.Sprintf("%s %v", procedure, f))
	}
	return connect.NewError(connect.CodeInternal, procedure+" panicked")
}
