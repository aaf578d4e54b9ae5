package tunnel

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"

	"github.com/raylink/raylink/internal/connecterr"
	"github.com/raylink/raylink/internal/usercode"
	"github.com/raylink/raylink/runtime/tunnel/internal/codec"
)

// Handler serves the calls of a connection.
type Handler interface {
	// ServeUnary is called for each unary call, once its request is complete, on the read loop and
	// in order of arrival. It must not block. The call is answered by [Incoming.Reply], during
	// ServeUnary or later. [Incoming.RunInline] leaves work for the read loop to run inline.
	ServeUnary(call *Incoming)
	// ServeStream is called for each streaming call, on its own goroutine. Its error is the outcome
	// of the stream.
	ServeStream(ctx context.Context, call *Incoming, stream connect.ServerStream) error
}

// Allocator is implemented by a [Handler] that keeps state of its own per call, so that both can
// share one allocation.
type Allocator interface {
	// NewIncoming allocates the Incoming of a call with these names, which the tunnel then fills
	// in. It is called on the read loop, for calls of every shape.
	NewIncoming(names *Names) *Incoming
}

// HandlerState is what a handler keeps of one call.
type HandlerState interface {
	// Ended is called as [Incoming.OnEnd] has requested, once, when the call's context has ended
	// for another reason than that the call was answered. It is called on the goroutine that ends
	// the context, and must not block.
	Ended()
}

// Incoming is a call on the serving side. It holds what every call has, since most calls are small
// and numerous. What only some calls have is in details.
type Incoming struct {
	// Names holds the target, the caller and the procedure.
	*Names

	// State is what the handler keeps of the call; nil if it keeps nothing. It is set by
	// [Allocator.NewIncoming], and used by the tunnel only for [Incoming.OnEnd].
	State HandlerState
	// RequestBytes is the encoded size of a unary request.
	RequestBytes int
	// StreamType is the shape of the call.
	StreamType connect.StreamType

	ctx servedContext
	// details is set by the read loop before the call is in the connection's table, and not
	// modified afterwards.
	details *callDetails
	// response is the header and trailer set by the handler, allocated on first use.
	response atomic.Pointer[responseMeta]
	// cost is the number of bytes that the call uses of the send window. meta is what is charged
	// for the metadata before the message.
	cost, meta uint32
	id         uint32

	replied atomic.Bool
}

// callDetails is the state that few calls have.
type callDetails struct {
	header Header
	chain  []byte
	stream *serverStream
	// assembly is owned by the read loop.
	assembly *assembly
}

// responseMeta is the metadata of the response. The handler may set it while the call is being
// ended by the read loop or by the end of the connection. It is guarded by servedContext.mu.
type responseMeta struct{ header, trailer Header }

// ensureDetails returns details, allocated on first use. It is for the read loop before the call is
// in the table.
func (in *Incoming) ensureDetails() *callDetails {
	if in.details == nil {
		in.details = &callDetails{}
	}
	return in.details
}

// stream returns the stream of the call, nil for a unary call.
func (in *Incoming) stream() *serverStream {
	if in.details == nil {
		return nil
	}
	return in.details.stream
}

// assembly returns the partially received request, or nil.
func (in *Incoming) assembly() *assembly {
	if in.details == nil {
		return nil
	}
	return in.details.assembly
}

func (in *Incoming) conn() *Conn { return in.ctx.conn }

// Header returns the header of the request, nil if there is none. It must not be modified.
func (in *Incoming) Header() Header {
	if in.details == nil {
		return nil
	}
	return in.details.header
}

// Chain returns the chain set by the caller, nil if there is none.
func (in *Incoming) Chain() []byte {
	if in.details == nil {
		return nil
	}
	return in.details.chain
}

// SetHeader sets the response header. It must be called before Reply, and on streams before the
// first Send; later calls have no effect. It is safe for concurrent use, also with the end of the
// call.
func (in *Incoming) SetHeader(h Header) {
	in.setResponse(h, func(r *responseMeta) { r.header = h })
}

// SetTrailer sets the response trailer. It must be called before Reply, and on streams before
// ServeStream returns; later calls have no effect. It is safe for concurrent use, also with the end
// of the call.
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

// responseMetadata returns the header and trailer set so far.
func (in *Incoming) responseMetadata() (header, trailer Header) {
	if r := in.response.Load(); r != nil {
		return in.lockedMetadata(r)
	}
	return nil, nil
}

func (in *Incoming) lockedMetadata(r *responseMeta) (header, trailer Header) {
	in.ctx.mu.Lock()
	defer in.ctx.mu.Unlock()
	return r.header, r.trailer
}

// Client returns the id of the caller's host, as sent in the handshake.
func (in *Incoming) Client() string { return in.conn().hello.Client }

// OnEnd has the end of the call's context reported to State, which must be set, by
// [HandlerState.Ended]. It starts no timer for the deadline; it relies on the caller's CANCEL. It
// must be called in ServeUnary and at most once.
func (in *Incoming) OnEnd() { in.ctx.notifyHandler() }

// Context returns the call's context. It ends when the deadline passes, when the caller cancels,
// when the connection ends, or when the call has been answered. It carries no values. It is cheap:
// its channel and timer are made on first use.
func (in *Incoming) Context() context.Context { return &in.ctx }

// PeerAddr returns the network address of the caller's end.
func (in *Incoming) PeerAddr() string { return in.conn().peerAddr() }

// Decode decodes the request into msg, which must be empty. It must be called before ServeUnary
// returns, and not for streams. A large request may be decoded only once, since msg may alias its
// bytes.
func (in *Incoming) Decode(msg proto.Message) error {
	var err error
	if r := &in.conn().reading.request; r.mayAlias {
		var aliased bool
		aliased, err = codec.DecodeAliasing(r.body, msg)
		r.mayAlias = !aliased
	} else {
		err = codec.Decode(r.body, msg)
	}
	if err != nil {
		return Undecodable(in.Procedure, true, err)
	}
	return nil
}

// DecodeWith passes the encoded request to decode, which must not keep it. Otherwise it is like
// [Incoming.Decode].
func (in *Incoming) DecodeWith(decode func(request []byte) error) error {
	if err := decode(in.conn().reading.request.body); err != nil {
		return Undecodable(in.Procedure, true, err)
	}
	return nil
}

// Reply answers a unary call with res (nil means the empty message) or an error. It is safe for
// concurrent use and does not block. res must not be modified afterwards. Only the first Reply has
// an effect.
func (in *Incoming) Reply(res proto.Message, err error) { in.replySized(res, unknownSize, err) }

// unknownSize is the size of a message for which codec.Size has not been called.
const unknownSize = -1

// replySized is Reply with a response whose size codec.Size has just returned, or unknownSize.
func (in *Incoming) replySized(res proto.Message, size int, err error) {
	if !in.replied.CompareAndSwap(false, true) {
		return
	}
	header, trailer := in.responseMetadata()
	if s := in.stream(); s != nil && s.headSent.Load() {
		header = nil
	}
	answered := false
	defer func() {
		if answered {
			in.ctx.finish()
			return
		}
		f := usercode.Outcome(false, recover()) // a method of the message or error panicked or ended the goroutine
		in.conn().reply(in, header, trailer, nil, 0, in.conn().notEncoded(in, nil, f))
		in.ctx.finish()
	}()
	in.conn().reply(in, header, trailer, res, size, err)
	answered = true
}

// ReplyEncoded is [Incoming.Reply] with a response that is encoded already, for handlers that
// encode faster than protobuf. The response is copied.
func (in *Incoming) ReplyEncoded(response []byte) {
	in.replySized(&codec.Raw{B: response}, len(response), nil)
}

// ReplyNotRun answers a call of any shape with an error and certifies that the call has not run.
// The caller's error matches [ErrNotRun], so the call may be retried elsewhere. It is for handlers
// that refuse a call before any code of the node has run for it.
func (in *Incoming) ReplyNotRun(err error) { in.Reply(nil, &notRunError{connecterr.From(err)}) }

// refuse ends a call whose handler may still be running. It does not access the metadata that the
// handler has set.
func (in *Incoming) refuse(err error) {
	if in.replied.CompareAndSwap(false, true) {
		in.conn().reply(in, nil, nil, nil, 0, err)
		in.ctx.end(context.Canceled)
	}
}

// Refuse answers a call with an error while its handler is still running. The handler's own answer
// and metadata are ignored. It does nothing if the call has been answered.
func (in *Incoming) Refuse(err error) { in.refuse(err) }

// abandon ends a call whose connection has ended.
func (in *Incoming) abandon(reason error) {
	if s := in.stream(); s != nil {
		s.inbox.close(reason, false)
	}
	in.ctx.end(context.Canceled)
}

// reply queues the REPLY to a call of any shape. size is that of the response, or unknownSize.
func (c *Conn) reply(in *Incoming, header, trailer Header, res proto.Message, size int, failure error) {
	if _, refused := failure.(*notRunError); failure != nil && !refused { //nolint:errorlint // deliberately not errors.As: see appendFailure
		failure = connecterr.From(failure) // before taking the lock: it calls methods of foreign error types
	}
	if failure != nil {
		size = 0
	} else {
		var err error
		if size == unknownSize {
			size, err = codec.Size(res)
		}
		if err != nil {
			failure = c.notEncoded(in, res, err)
		} else if size > c.peer.maxMessage {
			failure = MessageTooLarge(in.Procedure, false, size, c.peer.maxMessage)
		}
	}
	var body *codec.Encoded
	if failure == nil && size > maxBufferedMessage {
		if body, failure = c.encodeReply(in, res, size); failure == nil {
			size = body.Size
		} else {
			size = 0
		}
	}
	if meta := metaSize("", "", "", header, nil) + trailer.size(); meta > c.peer.maxHeader {
		// An error takes precedence over its metadata.
		if failure == nil {
			failure = tooLarge("the header and trailer of "+in.Procedure, meta, c.peer.maxHeader, "the receiver's header")
		}
		header, trailer = nil, nil
	}
	c.mu.Lock()
	if c.served.at(in.id) != in {
		c.mu.Unlock()
		body.Free()
		return // the connection has ended, or the call was already ended
	}
	err := errEncodingEnded // the result of encoding, which is done below for small messages
	defer func() {          // runs also if the message ends this goroutine
		if c.served.open == 0 {
			c.flush()
		} else {
			c.kick()
		}
		c.checkIdle()
		c.mu.Unlock()
		if err != nil {
			_ = c.notEncoded(in, res, err) // logs, so not under the lock
		}
	}()
	c.served.remove(in)
	if failure == nil {
		failure = c.overflow(in, size)
	}
	if failure != nil {
		body.Free()
		body = nil
		if c.backlog() > c.cfg.MaxBacklog-c.peer.maxHeader {
			header, trailer, failure = nil, nil, brief(failure)
		}
	}
	err = c.queueReply(in, header, trailer, res, size, body, failure)
}

// encodeReply encodes a large response. Meanwhile the response counts towards the backlog, so that
// concurrent handlers cannot exceed the limit together.
func (c *Conn) encodeReply(in *Incoming, res proto.Message, size int) (*codec.Encoded, error) {
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
	body, err := codec.Encode(res, size)
	if err != nil {
		return nil, c.notEncoded(in, res, err)
	}
	return body, nil
}

// backlog returns the number of bytes that wait to be written or are being encoded. The caller must
// hold c.mu.
func (c *Conn) backlog() int { return c.out.replyBytes + len(c.out.buf) + c.out.encoding }

// overflow returns an error if a response of this size would exceed the backlog limit. The caller
// must hold c.mu.
func (c *Conn) overflow(in *Incoming, size int) error {
	waiting := c.backlog()
	if waiting+size <= c.cfg.MaxBacklog {
		return nil
	}
	return connect.Errorf(connect.CodeResourceExhausted,
		"%d bytes of responses wait for %s to read them; with the %d of %s they would exceed the limit of %d",
		waiting, c.peerName(), size, clipped(in.Procedure), c.cfg.MaxBacklog)
}

// brief returns the code and the beginning of the text of an error, for use when the backlog is
// nearly full.
func brief(failure error) error {
	known := connecterr.From(failure)
	short := connect.NewError(known.Code(), clipped(known.Message()))
	if _, refused := errors.AsType[*notRunError](failure); refused {
		return &notRunError{short}
	}
	return short
}

// clipped returns the beginning of a text, for errors that must not grow with what a peer sends.
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

// maxBrief is the maximum length of an error text when the backlog is nearly full.
const maxBrief = 200

// queueReply queues the REPLY. If the response cannot be encoded, the caller gets a failure instead
// and queueReply returns the encoding error. The caller must hold c.mu.
func (c *Conn) queueReply(
	in *Incoming, header, trailer Header, res proto.Message, size int, body *codec.Encoded, failure error,
) (err error) {
	o := &c.out
	stream := in.stream()
	if stream != nil {
		o.close(&stream.queue, errCallOver)
	}
	if body != nil {
		flags, meta := appendReplyMeta(nil, header, trailer)
		p := &outMessage{id: in.id, kind: kindReply, flags: flags | replyMessage, meta: meta, body: body}
		o.pushReply(p, c.peer.window)
		return nil
	}
	start := o.beginFrame(header.size() + trailer.size() + size)
	queued := false
	defer func() {
		if !queued {
			o.buf = o.buf[:start+headerBytes]
			if failure == nil { // encoding ended this goroutine
				failure = Unsendable(in.Procedure, c.dialled, nil, errEncodingEnded)
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
		if b, err = codec.Append(b, res, size); err != nil {
			failure = Unsendable(in.Procedure, c.dialled, res, err)
			return err
		}
	}
	o.buf = b
	o.endFrame(start, kindReply, flags, in.id)
	queued = true
	return nil
}

// notEncoded logs that a response cannot be encoded, and returns the error for the caller.
func (c *Conn) notEncoded(in *Incoming, res proto.Message, err error) *connect.Error {
	c.cfg.Logger.Error("tunnel: a response could not be encoded", "call", in.Procedure, "target", in.Target, "error", err)
	return Unsendable(in.Procedure, c.dialled, res, err)
}

// appendFailure completes a REPLY that carries an error. Its frame header is at start.
func (c *Conn) appendFailure(id uint32, start int, header, trailer Header, failure error) {
	o := &c.out
	flags := replyError
	// Not errors.As: an error of a handler's own, which may wrap one from another call, must not
	// count as a refusal.
	if _, refused := failure.(*notRunError); refused { //nolint:errorlint // see above
		flags |= replyNotRun
	}
	room := c.peer.maxHeader - header.size() - trailer.size()
	o.buf = appendErrorBlock(o.buf, connecterr.From(failure), room)
	more, b := appendReplyMeta(o.buf, header, trailer)
	o.buf = b
	o.endFrame(start, kindReply, flags|more, id)
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

// servedContext is the context of a served call. Few of them are ever waited for, so the channel
// and the timer are made on first use.
type servedContext struct {
	conn *Conn
	in   *Incoming
	// deadline is the call's deadline, relative to Conn.started; 0 means none.
	deadline time.Duration
	// inlineEpoch is the epoch of the inline work that serves the call, or 0.
	inlineEpoch uint64

	mu sync.Mutex // guards the fields below
	// notifyOnEnd is set if the handler is to be notified of the end.
	notifyOnEnd bool
	err         error
	waiters     *contextWaiters
}

// contextWaiters is the state of a context that is waited for.
type contextWaiters struct {
	done  chan struct{}
	timer *time.Timer
	after map[*func()]struct{}
}

var (
	_ context.Context = (*servedContext)(nil)
	// Package context looks for this method, see [context.AfterFunc].
	_ interface{ AfterFunc(run func()) func() bool } = (*servedContext)(nil)
)

// Deadline returns the call's deadline, if it has one.
func (c *servedContext) Deadline() (time.Time, bool) {
	if c.deadline == 0 {
		return time.Time{}, false
	}
	return c.conn.started.Add(c.deadline), true
}

// overdue reports whether the deadline has passed.
func (c *servedContext) overdue() bool {
	return c.deadline != 0 && time.Since(c.conn.started) >= c.deadline
}

// ensureWaiters returns the state of the waiters, made on first use. The caller must hold c.mu.
func (c *servedContext) ensureWaiters() *contextWaiters {
	if c.waiters == nil {
		c.waiters = &contextWaiters{}
	}
	return c.waiters
}

// Value returns nil: the context carries no values.
func (*servedContext) Value(any) any { return nil }

// Done returns a channel that is closed when the call is over.
func (c *servedContext) Done() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	w := c.ensureWaiters()
	if w.done == nil {
		w.done = make(chan struct{})
		if c.err != nil {
			close(w.done)
		}
		c.arm()
	}
	return w.done
}

// Err returns why the call is over, or nil. It checks the deadline itself, without the timer.
func (c *servedContext) Err() error {
	c.mu.Lock()
	err := c.err
	c.mu.Unlock()
	if err == nil && c.overdue() {
		c.end(context.DeadlineExceeded)
		return c.Err()
	}
	return err
}

// AfterFunc lets the context package derive contexts without a goroutine for each.
func (c *servedContext) AfterFunc(run func()) func() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		go run()
		return func() bool { return false }
	}
	w := c.ensureWaiters()
	if w.after == nil {
		w.after = make(map[*func()]struct{})
	}
	key := &run
	w.after[key] = struct{}{}
	c.arm()
	return func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		_, there := w.after[key]
		delete(w.after, key)
		return there
	}
}

// arm starts the deadline's timer.
func (c *servedContext) arm() {
	if w := c.waiters; w.timer == nil && c.err == nil && c.deadline != 0 {
		w.timer = time.AfterFunc(c.deadline-time.Since(c.conn.started), func() { c.end(context.DeadlineExceeded) })
	}
}

// notifyHandler makes end notify the handler, at once if the context has already ended.
func (c *servedContext) notifyHandler() {
	c.mu.Lock()
	over := c.err != nil
	c.notifyOnEnd = true
	c.mu.Unlock()
	if over {
		c.callEnded()
	}
}

func (c *servedContext) callEnded() {
	if state := c.in.State; state != nil {
		state.Ended()
	}
}

// finish ends the context of an answered call.
func (c *servedContext) finish() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.close(context.Canceled)
	}
}

// end ends the context with err. Only the first end has an effect.
func (c *servedContext) end(err error) {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	if c.overdue() {
		err = context.DeadlineExceeded // the caller's CANCEL at the same deadline arrived before the local timer fired
	}
	c.close(err)
	notify := c.notifyOnEnd
	c.mu.Unlock()
	if notify {
		c.callEnded()
	}
}

// close sets the end and releases all waiters. The caller must hold c.mu.
func (c *servedContext) close(err error) {
	c.err = err
	w := c.waiters
	if w == nil {
		return
	}
	if w.done != nil {
		close(w.done)
	}
	if w.timer != nil {
		w.timer.Stop()
	}
	for run := range w.after {
		go (*run)()
	}
	w.after = nil
}
