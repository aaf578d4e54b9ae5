package tunnel

import (
	"context"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect/v2"

	"github.com/raylink/raylink/runtime/internal/faults"
	"github.com/raylink/raylink/runtime/internal/usercode"
)

// What the accepting side does with the calls that come in. All but the handlers runs on the
// reading goroutine.

// notRunError refuses a call before it has reached the handler.
type notRunError struct{ reason *connect.Error }

// Error is the reason's.
func (e *notRunError) Error() string { return e.reason.Error() }

// Unwrap is the error that the caller is told of.
func (e *notRunError) Unwrap() error { return e.reason }

// servedAt is the open call of an id, or nil. Callers hold the lock.
func (c *Conn) servedAt(id uint32) *Incoming {
	if int(id) >= len(c.served) {
		return nil
	}
	return c.served[id]
}

func (c *Conn) servedBy(id uint32) *Incoming {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.servedAt(id)
}

// retire takes a call off the table: its id may come again. Callers hold the lock.
func (c *Conn) retire(in *Incoming) {
	c.served[in.id] = nil
	c.serving--
	c.requestBytes -= int(in.cost)
	c.metaBytes -= int(in.meta)
}

func (c *Conn) onCall(h frameHeader, body []byte) error {
	in := c.newIncoming()
	in.id, in.StreamType = h.id(), connect.StreamType(h.flags()&callShape)
	in.ctx.conn, in.ctx.in = c, in
	p := parser{rest: body}
	in.Names = c.names.read(&p)
	if h.flags()&callDeadline != 0 {
		// A deadline that is further away than a duration can say is none.
		if remaining := p.uint64(); remaining < uint64(maxDeadline/time.Microsecond) {
			in.ctx.deadline = max(c.now.Sub(c.born)+time.Duration(remaining)*time.Microsecond, 1)
		}
	}
	if h.flags()&callChain != 0 {
		in.more().chain = append([]byte{}, p.bytes()...)
	}
	fields := 0
	if h.flags()&callHeader != 0 {
		before := len(p.rest)
		in.more().header, fields = p.header(c.own.maxHeader)
		fields -= before - len(p.rest)
	}
	total := len(p.rest)
	if h.flags()&flagSized != 0 {
		total = p.sized()
	}
	meta := len(body) - len(p.rest)
	if meta > c.own.maxHeader {
		p.failf("a CALL with %d bytes before its message, the limit is %d", meta, c.own.maxHeader)
	}
	in.meta = uint32(meta + fields) //nolint:gosec // a frame's length bounds both
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
		in.more() // for the assembly
	}
	if err := c.take(in); err != nil {
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
		a := newUnaryAssembly(total, in.keeps)
		in.extra.assembly = a
		return a.add(p.rest)
	default:
		c.serveUnary(in, request{body: p.rest})
	}
	return nil
}

const maxDeadline = 100 * 365 * 24 * time.Hour

// take puts a call on the table, if it may be there. One that the peer should not have sent ends
// the connection; one that cannot be served right now is refused, and the refusal returned.
func (c *Conn) take(in *Incoming) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return c.err
	}
	switch {
	case int(in.id) > c.own.maxCalls:
		return violation("call id %d, the limit is %d", in.id, c.own.maxCalls)
	case c.servedAt(in.id) != nil:
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
		refusal = tooLarge("what goes with the call of "+clipped(in.Procedure), meta, c.own.maxHeader, "the receiver's header")
	case c.metaBytes > 0 && c.metaBytes+meta > c.own.window:
		refusal = connect.Errorf(connect.CodeResourceExhausted, "headers and names of %d bytes go with the open calls; with the %d of %s they would "+
			"pass the limit of %d", c.metaBytes, meta, clipped(in.Procedure), c.own.window)
	case stream && c.streams >= c.own.maxStreams:
		refusal = connect.Errorf(connect.CodeResourceExhausted, "%d streams are open on the connection, which is the limit", c.streams)
	}
	if refusal != nil {
		start := c.out.begin(0)
		err := &notRunError{refusal}
		c.appendFailure(in.id, start, nil, nil, err)
		return err
	}
	if c.requestBytes > 0 && cost > 0 && c.requestBytes+cost > c.own.window {
		return violation("requests of %d bytes at once, the window is %d", c.requestBytes+cost, c.own.window)
	}
	if stream {
		in.more().stream = newServerStream(in) // before the call is on the table
	}
	c.requestBytes += cost
	c.metaBytes += meta
	for len(c.served) <= int(in.id) {
		c.served = append(c.served, nil)
	}
	c.served[in.id] = in
	c.serving++
	if stream {
		c.streams++
	}
	c.watch()
	return nil
}

// request is what [Incoming.Decode] reads. It belongs to the reading goroutine.
type request struct {
	body []byte
	// own says that body is the call's own, and that the message may keep it.
	own bool
}

func (c *Conn) newIncoming() *Incoming {
	if c.allocator != nil {
		return c.allocator.NewIncoming()
	}
	return &Incoming{}
}

func (c *Conn) serveUnary(in *Incoming, r request) {
	c.request = r
	returned := false
	defer func() {
		c.request.body = nil
		if returned {
			return
		}
		f := usercode.Outcome(false, recover())
		in.Reply(nil, c.failed(in.Procedure, f))
		if f.Goexit { // this is the reading goroutine, in the middle of a frame
			c.fail(fmt.Errorf("the handler of %s %w", in.Procedure, f))
		}
	}()
	c.handler.ServeUnary(in)
	returned = true
}

func (c *Conn) serveStream(in *Incoming) {
	in.stream().watch()
	c.guard(in, func() error {
		return c.handler.ServeStream(in.Context(), in, in.stream())
	}, in.stream().finish)
}

// requestComplete hands on a unary call whose request came in several fragments.
func (c *Conn) requestComplete(in *Incoming) {
	a := in.extra.assembly
	in.extra.assembly = nil
	if in.ctx.Err() != nil {
		in.refuse(in.ctx.Err())
		a.buf.free()
		return
	}
	c.serveUnary(in, request{body: a.buf.b, own: true})
	if in.keeps = !c.request.own; !in.keeps {
		a.buf.free()
	}
}

func (c *Conn) onCancel(id uint32) {
	if faults.Uncancelled {
		return
	}
	c.mu.Lock()
	in := c.servedAt(id)
	var p *parcel
	if in == nil {
		p = c.cancelReply(id)
	}
	c.mu.Unlock()
	if in == nil || p != nil {
		return // answered already: the two crossed
	}
	in.ctx.end(context.Canceled) // which ends a stream's lane and inbox too, see serverStream.watch
	if in.assembly() != nil {    // the call has not run, and will not
		in.extra.assembly = nil
		in.refuse(context.Canceled)
	}
}

// cancelReply stops a large response in the middle. A REPLY that replaces it is the last word.
// Callers hold the lock.
func (c *Conn) cancelReply(id uint32) *parcel {
	p := c.out.leaving[id]
	if p == nil {
		return nil
	}
	c.out.drop(p)
	start := c.out.begin(0)
	c.appendFailure(id, start, nil, nil, context.Canceled)
	c.out.admitReplies(c.peer.window)
	return p
}

func (c *Conn) onCloseSend(id uint32) {
	if in := c.servedBy(id); in != nil && in.stream() != nil {
		in.stream().inbox.closeSend()
	}
}
