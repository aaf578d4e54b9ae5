package tunnel

import (
	"encoding/binary"
	"errors"
	"time"

	"connectrpc.com/connect/v2"

	"github.com/raylink/raylink/internal/invariants"
	"github.com/raylink/raylink/runtime/tunnel/internal/sock"
)

// readLoop is the receiving side of a connection: it reads frames and handles each. Its methods run
// on the goroutine that owns the reading, see readOwner, which also owns the fields unless they say
// otherwise.
type readLoop struct {
	inlining
	readOwnership

	conn   *Conn
	in     frameReader
	names  nameTable
	now    time.Time
	poller sock.Poller
	// request is the unary request that is being delivered to the handler.
	request request
	// aliasing is the set of procedures whose last large response aliased its receive buffer.
	aliasing map[string]bool
	// fragment is the fragment that is being read straight into its assembly. Its assembly is nil
	// if there is none.
	fragment fragment
	// lastDestination caches the destination of the last DATA frame. unpublished lists the streams
	// that have received messages since the last publish.
	lastDestination destination
	unpublished     []*inbox
}

// read is the read loop: it reads frames and handles each until the connection ends. It blocks only
// in reading, in awaitWriter, and in work run inline, see runInline.
func (l *readLoop) read() {
	err := l.readFrames()
	for errors.Is(err, errYielded) {
		if !l.awaitReclaim() {
			return
		}
		err = l.readFrames()
	}
	if !errors.Is(err, errReadLoopReplaced) {
		l.readingEnded(err)
	}
}

// readingEnded ends the connection with the error that its reader met.
func (l *readLoop) readingEnded(err error) {
	c := l.conn
	c.mu.Lock()
	c.out.corked = false
	c.mu.Unlock()
	if errors.Is(err, ErrProtocol) {
		c.cfg.Logger.Error("tunnel: the peer violated the protocol", "peer", c.peerName(), "error", err)
		l.sendFatalGoAway(err)
		c.fail(err)
		return
	}
	c.fail(err)
}

// sendFatalGoAway tries to notify the peer why the connection is about to end, for at most 100 ms.
func (l *readLoop) sendFatalGoAway(reason error) {
	c := l.conn
	const moment = 100 * time.Millisecond
	c.mu.Lock()
	busy := c.out.writing || c.err != nil
	c.out.writing = true // keeps every other writer out
	c.mu.Unlock()
	if busy {
		return
	}
	if err := c.nc.SetWriteDeadline(time.Now().Add(moment)); err != nil {
		return
	}
	body := appendErrorBlock(nil, connect.NewError(connect.CodeInternal, reason.Error()), maxGoAwayBytes)
	// Best effort: the connection ends either way.
	_, _ = c.writeBatch(&batch{buf: append(makeHeader(kindGoAway, goAwayFatal, 0, len(body)).append(nil), body...)})
}

// beforeRead writes what was queued during the last burst, since the next read may block. Between
// frames it returns errYielded if the read loop is to yield to a caller.
func (l *readLoop) beforeRead(between bool) error {
	c := l.conn
	l.publish()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.out.corked = false
	if invariants.Enabled {
		l.auditOwner()
	}
	c.flush()
	if between && l.yieldReading() {
		return errYielded
	}
	return nil
}

// poll busy-polls the socket if an answer or a further call is likely to arrive soon. It returns 0
// and no error if the reader is to block instead.
func (l *readLoop) poll(dst []byte, between bool) (int, error) {
	c := l.conn
	if between && c.dialled && l.readingFor == nil {
		return 0, nil
	}
	return l.poller.Read(dst)
}

func (l *readLoop) afterRead(n int) {
	c := l.conn
	l.now = time.Now()
	if n > 0 {
		c.sawTraffic.Store(true)
		c.received.Add(uint64(n))
	}
	c.mu.Lock()
	c.out.corked = true
	c.mu.Unlock()
}

func (l *readLoop) readFrames() error {
	err := l.readEachFrame()
	if !errors.Is(err, errReadLoopReplaced) && !errors.Is(err, errYielded) { // in those cases another goroutine is already reading
		l.publish()
	}
	return err
}

func (l *readLoop) readEachFrame() error {
	c := l.conn
	for {
		if l.inlineWork != nil && !l.runInline() {
			return errReadLoopReplaced
		}
		if l.readingFor != nil && l.answered {
			return nil
		}
		if l.fragment.assembly != nil {
			if err := l.finishFragment(); err != nil {
				return err
			}
			continue
		}
		if !c.dialled && c.out.full.Load() {
			l.awaitWriter()
		}
		b, err := l.in.peek(headerBytes)
		if err != nil {
			return l.readError(err)
		}
		h := readHeader(b)
		if !l.plainData(h) {
			if err := h.check(!c.dialled, &c.own); err != nil {
				return err
			}
		}
		if h.kind() == kindData && h.flags() == 0 && h.length() > l.in.end-l.in.begin-headerBytes {
			begun, err := l.beginFragment(h)
			if err != nil {
				return err
			}
			if begun {
				continue
			}
		}
		if b, err = l.in.peek(headerBytes + h.length()); err != nil {
			return l.readError(err)
		}
		if l.readRun(h) {
			continue
		}
		l.frameEnd = l.in.begin + len(b)
		if err := l.handle(h, b[headerBytes:]); err != nil {
			return err
		}
		l.in.skip(headerBytes + h.length())
	}
}

// readRun consumes the buffered run of consecutive single-frame messages of one stream that starts
// with h. If the fast path does not apply it returns false and has consumed nothing.
func (l *readLoop) readRun(h frameHeader) bool {
	c := l.conn
	if !l.plainData(h) {
		return false
	}
	t := l.assembling(h.id())
	if t.inbox == nil {
		return false
	}
	took := false
	for t.inbox.chargeSmall(h.length(), c.own.maxMessage) {
		end := l.in.begin + headerBytes + h.length()
		t.inbox.put(l.in.buf[l.in.begin+headerBytes : end])
		l.in.begin, took = end, true
		if l.in.end-end < headerBytes {
			break
		}
		next := readHeader(l.in.buf[end:])
		if !next.sameExceptLength(h) || !l.plainData(next) || l.in.end-end < headerBytes+next.length() {
			break
		}
		h = next
	}
	return took
}

// plainData is a fast path of check that accepts the most common frames of streams. A frame that it
// does not accept may still be valid.
func (l *readLoop) plainData(h frameHeader) bool {
	c := l.conn
	return h.kind() == kindData && h.flags() == 0 && h.id() != 0 && h.length() <= c.own.maxFragment
}

// fragment is a partially received fragment of a large message that is being read straight into its
// assembly. It outlives the goroutine that began to read it.
type fragment struct {
	destination

	id uint32
}

// beginFragment makes the partially received DATA frame h the current fragment. It returns false if
// the frame is to be read like any other.
func (l *readLoop) beginFragment(h frameHeader) (bool, error) {
	t := l.assembling(h.id())
	if t.assembly == nil || t.assembly.discard {
		return false, nil
	}
	if t.inbox != nil {
		if err := t.inbox.charge(h.length()); err != nil {
			return false, err
		}
	}
	dst, err := t.assembly.extend(h.length())
	if err != nil {
		return false, err
	}
	l.in.skip(headerBytes)
	l.in.readTo(dst)
	l.fragment = fragment{destination: t, id: h.id()}
	return true, nil
}

// finishFragment reads the rest of the current fragment.
func (l *readLoop) finishFragment() error {
	if err := l.in.fillDst(); err != nil {
		return l.readError(err)
	}
	f := l.fragment
	l.fragment = fragment{}
	l.frameEnd = l.in.begin
	return l.assembled(f.id, f.destination)
}

// destination is where the DATA frames of one call go. assembly is nil if no message is
// partially received, and inbox is nil for a unary call. The zero destination means that no data is
// expected.
type destination struct {
	assembly *assembly
	inbox    *inbox
	incoming *Incoming
}

func (l *readLoop) assembling(id uint32) destination {
	if l.lastDestination.inbox != nil && l.lastDestination.inbox.id == id && !l.lastDestination.inbox.ended.Load() {
		t := l.lastDestination
		t.assembly = t.inbox.assembly
		return t
	}
	t := l.findAssembling(id)
	if t.inbox != nil && t.inbox.ended.Load() {
		t.inbox.discard()
		t = destination{}
	}
	l.lastDestination = t
	return t
}

func (l *readLoop) findAssembling(id uint32) destination {
	c := l.conn
	if c.dialled {
		c.mu.Lock()
		defer c.mu.Unlock()
		s := c.open.at(id)
		switch {
		case s == nil:
			return destination{}
		case s.stream != nil:
			return destination{assembly: s.stream.inbox.assembly, inbox: &s.stream.inbox}
		case s.reply != nil:
			return destination{assembly: &s.reply.assembly}
		}
		return destination{}
	}
	in := l.servedCall(id)
	switch {
	case in == nil:
		return destination{}
	case in.stream() != nil:
		b := &in.stream().inbox
		return destination{assembly: b.assembly, inbox: b, incoming: in}
	}
	return destination{assembly: in.assembly(), incoming: in}
}

// assembled delivers a message if its last fragment has arrived.
func (l *readLoop) assembled(id uint32, t destination) error {
	c := l.conn
	switch {
	case t.inbox != nil:
		t.inbox.assembled()
	case !t.assembly.complete():
	case c.dialled:
		l.replyComplete(id)
	default:
		l.requestComplete(t.incoming)
	}
	return nil
}

// publish makes the stream messages received so far available to their readers. The connection's
// reader calls it before a read that may block, before work that may take long, and before it
// handles a frame of another kind, so that the order of frames is kept.
func (l *readLoop) publish() {
	for i, b := range l.unpublished {
		b.listed = false
		b.publish()
		l.unpublished[i] = nil
	}
	l.unpublished = l.unpublished[:0]
}

func (l *readLoop) handle(h frameHeader, body []byte) error {
	if k := h.kind(); k != kindData && k != kindCredit {
		l.publish()
		l.lastDestination = destination{}
	}
	switch h.kind() {
	case kindName:
		return l.names.add(h.id(), body)
	case kindCall:
		return l.onCall(h, body)
	case kindData:
		return l.onData(h, body)
	case kindCloseSend:
		l.onCloseSend(h.id())
	case kindCancel:
		l.onCancel(h.id())
	case kindHead:
		return l.onHead(h.id(), body)
	case kindReply:
		return l.onReply(h, body)
	case kindCredit:
		return l.onCredit(h.id(), body)
	case kindPing:
		return l.onPing(body)
	case kindPong:
	case kindGoAway:
		return l.onGoAway(h, body)
	case kindHello, kindWelcome, kindRefuse, kindProof, kindAdmit:
		return violation("a handshake frame after the handshake")
	}
	return nil
}

func (l *readLoop) onData(h frameHeader, body []byte) error {
	c := l.conn
	t := l.assembling(h.id())
	if t.inbox != nil {
		return l.onStreamData(h, body, t)
	}
	if t.assembly == nil {
		if !c.dialled || l.wasOpened(h.id()) {
			return nil // the rest of a message of a finished call, which crossed the end of the call
		}
		return violation("DATA for call %d, which is not open", h.id())
	}
	if h.flags()&flagSized != 0 {
		return violation("a second message for the unary call %d", h.id())
	}
	if err := t.assembly.add(body); err != nil {
		return err
	}
	return l.assembled(h.id(), t)
}

// wasOpened reports whether this side has ever begun a call with this id.
func (l *readLoop) wasOpened(id uint32) bool {
	l.conn.mu.Lock()
	defer l.conn.mu.Unlock()
	return int(id) < l.conn.open.idsUsed
}

func (l *readLoop) onCredit(id uint32, body []byte) error {
	c := l.conn
	n, used := binary.Uvarint(body)
	if used != len(body) || n == 0 || n > ceilingMaxMessage {
		return violation("a CREDIT of %x", body)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if id == 0 {
		if c.dialled || int(n) > c.out.replyWindow {
			return violation("CREDIT of %d for responses, %d are in flight", n, c.out.replyWindow)
		}
		c.out.replyWindow -= int(n)
		c.out.admitReplies(c.peer.window)
		return nil
	}
	var q *sendQueue
	if c.dialled {
		if s := c.open.at(id); s != nil && s.stream != nil {
			q = &s.stream.queue
		}
	} else if in := c.served.at(id); in != nil && in.stream() != nil {
		q = &in.stream().queue
	}
	if q == nil {
		return nil
	}
	if q.credit += int(n); q.credit > 2*ceilingMaxMessage {
		return violation("more CREDIT than a stream can use")
	}
	if len(q.messages) == 0 || !q.messages[0].started { // else the credit may be an excess grant for this one message
		q.window = max(q.window, q.credit)
	}
	c.out.schedule(q)
	return nil
}

// Responses on the dialling side. Everything here runs on the connection's reader.

// responseMetadata parses the header and trailer of a response into r.
func (p *parser) responseMetadata(r *outcome, flags uint8, most int) {
	header, trailer := 0, 0
	if flags&replyHeader != 0 {
		r.header, header = p.header(most)
	}
	if flags&replyTrailer != 0 {
		r.trailer, trailer = p.header(most - header)
	}
	if header+trailer > most && r.err == nil {
		// The peer knew the limit from the handshake.
		r.err = tooLarge("the header and trailer of the response", header+trailer, most, "the receiver's header")
	}
}

func (l *readLoop) onReply(h frameHeader, body []byte) error {
	c := l.conn
	var r outcome
	p := parser{rest: body}
	flags := h.flags()
	if flags&replyError != 0 {
		failure := p.errorBlock()
		if flags&replyNotRun != 0 {
			failure = notRun(failure)
		}
		r.err = failure
	}
	if flags&(replyHeader|replyTrailer) != 0 {
		p.responseMetadata(&r, flags, c.own.maxHeader)
	}
	total := 0
	if flags&flagSized != 0 {
		total = p.totalSize()
	}
	if flags&replyMessage == 0 {
		p.end()
	}
	if p.err == nil && (flags&flagSized != 0 && flags&replyMessage == 0 || flags&replyMessage != 0 && flags&replyError != 0) {
		p.failf("a REPLY with flags 0x%02x", flags)
	}
	if p.err != nil {
		return p.err
	}
	c.mu.Lock()
	s := c.open.at(h.id())
	if s == nil {
		over := c.err != nil
		c.mu.Unlock()
		if over {
			return nil
		}
		return violation("REPLY for call %d, which is not open", h.id())
	}
	if flags&replyNotRun != 0 && c.crossedGoAway(r.err) {
		r.err = c.refusalError()
	}
	if s.stream != nil {
		stream := s.stream
		c.out.close(&stream.queue, errCallOver)
		c.releaseID(h.id())
		c.mu.Unlock()
		if flags&replyMessage != 0 {
			return violation("a REPLY with a message for the stream %d", h.id())
		}
		stream.inbox.reply(&r)
		return nil
	}
	if s.reply != nil { // superseded: the peer gave up in the middle of a message
		l.returnReplyWindow(s.reply)
		s.reply = nil
	}
	if s.call != nil { // a peer may answer before it has received all of the request
		c.out.drop(s.call.outMessage)
	}
	if flags&flagSized != 0 {
		defer c.mu.Unlock()
		return l.beginReply(s, &partialReply{outcome: r}, total, p.rest)
	}
	call := s.call
	c.releaseID(h.id())
	c.mu.Unlock()
	if call != nil {
		l.answered = l.answered || call == l.readingFor
		if r.err == nil && len(p.rest) > c.own.maxMessage {
			r.err = responseTooLarge(call.Procedure, len(p.rest), c.own.maxMessage)
		}
		call.complete(&r, p.rest, false)
	}
	return nil
}

// beginReply handles the first fragment of a large response. The caller must hold c.mu.
func (l *readLoop) beginReply(s *slot, r *partialReply, total int, first []byte) error {
	c := l.conn
	r.assembly = assembly{total: total, discard: s.call == nil}
	if c.replyBytes > 0 && c.replyBytes+total > c.own.window {
		return violation("responses of %d bytes in flight, the window is %d", c.replyBytes+total, c.own.window)
	}
	c.replyBytes += total
	s.reply = r
	if total > c.own.maxMessage {
		// The peer knew the limit from the handshake. Only this call fails, and the rest of the
		// message is discarded.
		r.err = responseTooLarge("the call", total, c.own.maxMessage)
		r.discard = true
	}
	if !r.discard {
		r.buf = newUnaryAssembly(total, l.aliasing[s.call.Procedure]).buf
	}
	return r.add(first)
}

// replyComplete ends a call whose response of several fragments is complete.
func (l *readLoop) replyComplete(id uint32) {
	c := l.conn
	c.mu.Lock()
	s := &c.open.slots[id]
	if !s.busy || s.reply == nil {
		c.mu.Unlock()
		return
	}
	r, call := s.reply, s.call
	l.returnReplyWindow(r)
	c.releaseID(id)
	c.mu.Unlock()
	if call == nil {
		r.buf.Free()
		return
	}
	l.answered = l.answered || call == l.readingFor
	var body []byte
	if r.buf != nil {
		body = r.buf.B
	}
	procedure := call.Procedure // the Call must not be accessed once it is complete
	l.recordAliasing(procedure, r.buf, call.complete(&r.outcome, body, true))
}

// returnReplyWindow returns the window that a large response used to the peer. The caller must hold
// c.mu.
func (l *readLoop) returnReplyWindow(r *partialReply) {
	c := l.conn
	c.replyBytes -= r.total
	c.out.frame(kindCredit, 0, appendInt(nil, r.total))
	c.kick()
}

func (l *readLoop) onHead(id uint32, body []byte) error {
	c := l.conn
	p := parser{rest: body}
	header, cost := p.header(c.own.maxHeader)
	if p.end(); p.err != nil {
		return p.err
	}
	c.mu.Lock()
	s := c.open.at(id)
	if s == nil || s.stream == nil {
		late := s != nil || c.err != nil
		c.mu.Unlock()
		if late {
			return nil
		}
		return violation("HEAD for call %d, which is not open", id)
	}
	stream := s.stream
	c.mu.Unlock()
	if cost > c.own.maxHeader {
		stream.abort(tooLarge("the header of "+stream.req.Procedure, cost, c.own.maxHeader, "the receiver's header"))
		return nil
	}
	if stream.gotHead {
		return violation("a second HEAD for the stream %d", id)
	}
	stream.gotHead = true
	stream.inbox.head(header)
	return nil
}
