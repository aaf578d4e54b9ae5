package tunnel

import (
	"context"
	"errors"
	"sync/atomic"
	"unicode/utf8"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"

	"github.com/raylink/raylink/runtime/internal/usercode"
)

// Handler serves what comes in over a connection.
type Handler interface {
	// ServeUnary gets each unary call, complete, on the connection's reading goroutine and in the
	// order in which they came. It must not block. The call is answered by [Incoming.Reply], then
	// or later; [Incoming.ServeHere] leaves the rest to that goroutine.
	ServeUnary(call *Incoming)
	// ServeStream runs a call of the other shapes on a goroutine of its own. What it returns is the
	// stream's outcome.
	ServeStream(ctx context.Context, call *Incoming, stream connect.ServerStream) error
}

// Allocator is a [Handler] that keeps more of each call than the tunnel does, and so makes the
// memory for both at once.
type Allocator interface {
	// NewIncoming makes an Incoming of which the tunnel fills in the rest. It is called on the
	// connection's reading goroutine, for calls of every shape.
	NewIncoming() *Incoming
}

// Incoming is a call on the serving side. Most calls are small, quick and many, so it has what
// every call has; the rest is in extra.
type Incoming struct {
	// Names say whom the call is for, who makes it, and which method.
	*Names

	// Owner is the handler's own; the tunnel only looks at it for [Incoming.OnEnd].
	Owner any
	// RequestBytes is the encoded size of a unary request.
	RequestBytes int
	// StreamType is the call's shape.
	StreamType connect.StreamType

	ctx callContext
	// extra is set by the reading goroutine before the call is on the connection's table, and never
	// after.
	extra *extra
	// response is what the handler has set. It is made when there is something to set.
	response atomic.Pointer[responseMeta]
	// cost is what the call takes of the window; meta, what stands before its message and is held
	// with it.
	cost, meta uint32
	id         uint32

	replied atomic.Bool
}

// extra is what few calls have.
type extra struct {
	header Header
	chain  []byte
	stream *serverStream
	// assembly belongs to the reading goroutine.
	assembly *assembly
}

// responseMeta goes with the response. The handler sets it while the reading goroutine, or the
// connection's end, may be ending the call: it is guarded by the lock of the call's context.
type responseMeta struct{ header, trailer Header }

// more is extra, for the reading goroutine before the call is on the table.
func (in *Incoming) more() *extra {
	if in.extra == nil {
		in.extra = &extra{}
	}
	return in.extra
}

// stream is the call's stream, nil for a unary call's.
func (in *Incoming) stream() *serverStream {
	if in.extra == nil {
		return nil
	}
	return in.extra.stream
}

// assembly is the request in the making, or nil.
func (in *Incoming) assembly() *assembly {
	if in.extra == nil {
		return nil
	}
	return in.extra.assembly
}

func (in *Incoming) conn() *Conn { return in.ctx.conn }

// Header came with the request; nil for none. Nobody changes it.
func (in *Incoming) Header() Header {
	if in.extra == nil {
		return nil
	}
	return in.extra.header
}

// Chain is what the caller put there; nil for none.
func (in *Incoming) Chain() []byte {
	if in.extra == nil {
		return nil
	}
	return in.extra.chain
}

// SetHeader sets what goes back before the response. It is called before Reply, on streams before
// the first Send; later it has no effect. Safe for concurrent use, also with the end of the call.
func (in *Incoming) SetHeader(h Header) {
	in.setResponse(h, func(r *responseMeta) { r.header = h })
}

// SetTrailer sets what goes back after the response. It is called before Reply, on streams before
// ServeStream returns; later it has no effect. Safe for concurrent use, also with the end of the
// call.
func (in *Incoming) SetTrailer(h Header) {
	in.setResponse(h, func(r *responseMeta) { r.trailer = h })
}

func (in *Incoming) setResponse(h Header, set func(*responseMeta)) {
	if len(h) > 0 || in.response.Load() != nil {
		in.changeResponse(set)
	}
}

func (in *Incoming) changeResponse(set func(*responseMeta)) {
	r := in.response.Load()
	if r == nil {
		in.response.CompareAndSwap(nil, new(responseMeta))
		r = in.response.Load()
	}
	in.ctx.mu.Lock()
	set(r)
	in.ctx.mu.Unlock()
}

// responded is what the handler has set so far.
func (in *Incoming) responded() (header, trailer Header) {
	if r := in.response.Load(); r != nil {
		return in.setSoFar(r)
	}
	return nil, nil
}

func (in *Incoming) setSoFar(r *responseMeta) (header, trailer Header) {
	in.ctx.mu.Lock()
	defer in.ctx.mu.Unlock()
	return r.header, r.trailer
}

// Client is the caller's host, as it said in the handshake.
func (in *Incoming) Client() string { return in.conn().hello.Client }

// OnEnd makes the end of the call's context call Owner, which has a method Ended, unless that end
// was because the call was answered. It is called by whoever ends the context, and must not block.
// Unlike the context's own means it starts no timer: a caller whose deadline passes says so. It is
// for use in ServeUnary, once.
func (in *Incoming) OnEnd() { in.ctx.tellOwner() }

// Context ends when the call's deadline passes, its caller cancels it, the connection ends, or it
// has been answered. It carries no values. Asking for it is cheap: timers and channels are made
// when somebody waits.
func (in *Incoming) Context() context.Context { return &in.ctx }

// PeerAddr is the network address of the caller's end.
func (in *Incoming) PeerAddr() string { return in.conn().nc.RemoteAddr().String() }

// Decode reads the request into msg, an empty message. The request is there until ServeUnary
// returns, and not for streams. A large one is decoded once: its bytes become the message's own.
func (in *Incoming) Decode(msg proto.Message) error {
	var err error
	if r := &in.conn().request; r.own {
		var kept bool
		kept, err = decodeKeeping(r.body, msg)
		r.own = !kept
	} else {
		err = fill(r.body, msg)
	}
	if err != nil {
		return cannotDecode("the request of "+in.Procedure, connect.CodeInvalidArgument, err)
	}
	return nil
}

// Reply answers a unary call, with res (nil is the empty message) or an error. It may be called
// from any goroutine and does not block; res may not be changed any more. A second Reply does
// nothing.
func (in *Incoming) Reply(res proto.Message, err error) {
	if !in.replied.CompareAndSwap(false, true) {
		return
	}
	header, trailer := in.responded()
	if s := in.stream(); s != nil && s.headSent.Load() {
		header = nil
	}
	answered := false
	defer func() {
		if answered {
			in.ctx.finish()
			return
		}
		f := usercode.Outcome(false, recover()) // the message's or error's own doing
		in.conn().reply(in, header, trailer, nil, in.conn().notEncoded(in, nil, f))
		in.ctx.finish()
	}()
	in.conn().reply(in, header, trailer, res, err)
	answered = true
}

// ReplyNotRun answers a call of any shape with an error, and tells its caller that the call
// certainly has not run: the caller's error matches [ErrNotRun], so the call may be made again
// elsewhere. It is for handlers that refuse a call before any of its own code has seen it.
func (in *Incoming) ReplyNotRun(err error) { in.Reply(nil, &notRunError{authored(err)}) }

// refuse ends a call that the handler may still be busy with: what it has prepared is not touched.
func (in *Incoming) refuse(err error) {
	if in.replied.CompareAndSwap(false, true) {
		in.conn().reply(in, nil, nil, nil, err)
		in.ctx.end(context.Canceled)
	}
}

// Refuse answers a call with an error although its handler goes on: what the handler has prepared,
// and its own answer, are not looked at. It does nothing where the call was answered before.
func (in *Incoming) Refuse(err error) { in.refuse(err) }

// abandon ends a call whose connection is gone.
func (in *Incoming) abandon(reason error) {
	if s := in.stream(); s != nil {
		s.inbox.close(reason, false)
	}
	in.ctx.end(context.Canceled)
}

// reply queues the REPLY to a call of any shape.
func (c *Conn) reply(in *Incoming, header, trailer Header, res proto.Message, failure error) {
	size := 0
	if _, refused := failure.(*notRunError); failure != nil && !refused { //nolint:errorlint // the value itself
		failure = authored(failure) // without the lock: its methods may be anybody's
	}
	if failure == nil {
		var err error
		if size, err = sizeOf(res); err != nil {
			failure = c.notEncoded(in, res, err)
		} else if size > c.peer.maxMessage {
			failure = MessageTooLarge(in.Procedure, false, size, c.peer.maxMessage)
		}
	}
	var body *encoded
	if failure == nil && size > inlineBytes {
		if body, failure = c.encodeReply(in, res, size); failure == nil {
			size = body.size
		} else {
			size = 0
		}
	}
	if meta := metaSize("", "", "", header, nil) + trailer.size(); meta > c.peer.maxHeader {
		// An error is worth more than what goes beside it.
		if failure == nil {
			failure = tooLarge("the header and trailer of "+in.Procedure, meta, c.peer.maxHeader, "the receiver's header")
		}
		header, trailer = nil, nil
	}
	c.mu.Lock()
	if c.servedAt(in.id) != in {
		c.mu.Unlock()
		body.free()
		return // the connection is gone, or the call was ended before
	}
	err := errEncodingEnded // of the encoding, which for small messages is done below
	defer func() {          // also where the message ends this goroutine
		if c.serving == 0 {
			c.flush()
		} else {
			c.kick()
		}
		c.checkQuiet()
		c.mu.Unlock()
		if err != nil {
			_ = c.notEncoded(in, res, err) // not with the lock
		}
	}()
	c.retire(in)
	if failure == nil {
		failure = c.overflow(in, size)
	}
	if failure != nil {
		body.free()
		body = nil
		if c.backlog() > c.cfg.MaxBacklog-c.peer.maxHeader {
			header, trailer, failure = nil, nil, brief(failure)
		}
	}
	err = c.queueReply(in, header, trailer, res, size, body, failure)
}

// encodeReply encodes a large response. While it does, the response counts as one that waits to be
// written, so that handlers that answer at once don't pass the limit together.
func (c *Conn) encodeReply(in *Incoming, res proto.Message, size int) (*encoded, error) {
	c.mu.Lock()
	if err := c.overflow(in, size); err != nil {
		c.mu.Unlock()
		return nil, err
	}
	c.out.encoding += size
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		c.out.encoding -= size
		c.mu.Unlock()
	}()
	body, err := encode(res, size)
	if err != nil {
		return nil, c.notEncoded(in, res, err)
	}
	return body, nil
}

// backlog is how many bytes wait to be written, or are being encoded. Callers hold the lock.
func (c *Conn) backlog() int { return c.out.replyBytes + len(c.out.buf) + c.out.encoding }

// overflow refuses a response that would be one too many of those that wait. Callers hold the lock.
func (c *Conn) overflow(in *Incoming, size int) error {
	waiting := c.backlog()
	if waiting+size <= c.cfg.MaxBacklog {
		return nil
	}
	return connect.Errorf(connect.CodeResourceExhausted,
		"%d bytes of responses wait for %s to read them; with the %d of %s they would pass the limit of %d",
		waiting, c.peerName(), size, clipped(in.Procedure), c.cfg.MaxBacklog)
}

// brief is what is left of an error, and of all that goes with it, where too much waits to be
// written already: the code and the beginning of its text.
func brief(failure error) error {
	known := authored(failure)
	short := connect.NewError(known.Code(), clipped(known.Message()))
	if _, refused := errors.AsType[*notRunError](failure); refused {
		return &notRunError{short}
	}
	return short
}

// clipped is the beginning of a text, for errors that must not grow with what a peer sends.
func clipped(s string) string {
	if len(s) <= maxBrief {
		return s
	}
	s = s[:maxBrief]
	for !utf8.ValidString(s) && len(s) > maxBrief-utf8.UTFMax {
		s = s[:len(s)-1]
	}
	return s + "..."
}

// maxBrief is the longest text that is kept of an error where much waits to be written.
const maxBrief = 200

// queueReply queues the REPLY. A response that can't be encoded becomes its caller's failure, and
// the error says why. Callers hold the lock.
func (c *Conn) queueReply(
	in *Incoming, header, trailer Header, res proto.Message, size int, body *encoded, failure error,
) (err error) {
	o := &c.out
	stream := in.stream()
	if stream != nil {
		o.close(&stream.lane, errOver)
	}
	if body != nil {
		flags, meta := appendReplyMeta(nil, header, trailer)
		p := &parcel{id: in.id, kind: kindReply, flags: flags | replyMessage, meta: meta, body: body}
		o.pushReply(p, c.peer.window)
		return nil
	}
	start := o.begin(header.size() + trailer.size() + size)
	queued := false
	defer func() {
		if !queued {
			o.buf = o.buf[:start+headerBytes]
			if failure == nil { // the message has ended this goroutine
				failure = c.cannotEncode(in.Procedure, nil, errEncodingEnded)
			}
			c.appendFailure(in.id, start, header, trailer, failure)
		}
	}()
	if failure != nil {
		return nil
	}
	flags, b := appendReplyMeta(o.buf, header, trailer)
	if stream == nil {
		flags |= replyMessage
		if b, err = appendMessage(b, res, size); err != nil {
			failure = c.cannotEncode(in.Procedure, res, err)
			return err
		}
	}
	o.buf = b
	o.patch(start, kindReply, flags, in.id)
	queued = true
	return nil
}

// notEncoded is the failure of a call whose response can't be encoded. Its node's owner gets a log
// line.
func (c *Conn) notEncoded(in *Incoming, res proto.Message, err error) *connect.Error {
	c.cfg.Logger.Error("tunnel: a response could not be encoded", "call", in.Procedure, "target", in.Target, "error", err)
	return c.cannotEncode(in.Procedure, res, err)
}

// appendFailure finishes a REPLY that carries an error, of which the frame header stands at start.
func (c *Conn) appendFailure(id uint32, start int, header, trailer Header, failure error) {
	o := &c.out
	flags := replyError
	// The value itself, not one that is wrapped: no error of a handler's own can be one.
	if _, refused := failure.(*notRunError); refused { //nolint:errorlint // see above
		flags |= replyNotRun
	}
	room := c.peer.maxHeader - header.size() - trailer.size()
	o.buf = appendFault(o.buf, authored(failure), room)
	more, b := appendReplyMeta(o.buf, header, trailer)
	o.buf = b
	o.patch(start, kindReply, flags|more, id)
}

func appendReplyMeta(b []byte, header, trailer Header) (uint8, []byte) {
	var flags uint8
	if len(header) > 0 {
		flags |= replyHeader
		b = header.append(b)
	}
	if len(trailer) > 0 {
		flags |= replyTrailer
		b = trailer.append(b)
	}
	return flags, b
}
