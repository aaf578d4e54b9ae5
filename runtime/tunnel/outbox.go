package tunnel

import (
	"encoding/binary"
	"net"
	"runtime"
	"sync/atomic"

	"github.com/raylink/raylink/runtime/tunnel/internal/codec"
)

// outbox is the outgoing side of a connection. Small frames are encoded directly into one buffer,
// in order. A message that is large, or that waits for credit, is an outMessage: it waits in a
// sendQueue, a FIFO queue. Its fragments follow the small frames of a batch, with up to
// quantumBytes from each queue in round-robin order. The outbox is guarded by Conn.mu.
type outbox struct {
	buf   []byte
	spare []byte
	// calls is the number of CALLs of a dialling side queued since the last batch was collected.
	calls int
	// lastSize is the size of the last batch's buffer, so that the next one is allocated at about
	// that size.
	lastSize int
	// batch is the batch being written.
	batch batch
	// ring holds the queues that have a fragment ready to be sent.
	ring []*sendQueue
	// requests holds the non-empty queues of unary requests.
	requests map[orderKey]*sendQueue
	// maxFragment is the largest fragment that the peer accepts.
	maxFragment int
	// replyBytes is the size of the queued unary responses that the writer has not taken yet.
	// encoding is the size of the responses that are being encoded.
	replyBytes, encoding int
	// pongs is the number of PONGs in buf.
	pongs int
	// full is set while buf holds more than fullBytes. An accepting side then stops reading, see
	// [Conn.awaitWriter].
	full atomic.Bool
	// replyWindow is the part of the peer's window used by large responses in flight. replies waits
	// for the window in FIFO order.
	replyWindow int
	replies     []*outMessage
	// sendingReplies holds the large responses that the writer has not finished taking, by call id,
	// so that a CANCEL can stop them.
	sendingReplies map[uint32]*outMessage

	// writing is set while a goroutine writes. corked is set while the reader is processing a
	// burst; it flushes at the end, so that all answers to one read go out in one write.
	writing bool
	corked  bool
}

const (
	// maxBufferedMessage is the size of the largest message encoded into the common buffer. Up to
	// this size a copy costs less than a separate buffer.
	maxBufferedMessage = 8 << 10
	// sendBlockBytes is the size of the common buffer at which Send on a stream blocks for the
	// writer.
	sendBlockBytes = 256 << 10
	// fullBytes is the size of the common buffer at which an accepting side stops reading. What it
	// reads makes it write, so a peer that never reads could otherwise make the buffer grow without
	// bound.
	fullBytes = 1 << 20
	// maxPongs is the number of PONGs that a dialling side queues for a peer that does not read. It
	// cannot stop reading, since the peer may have stopped reading until its answers are read; one
	// more PING ends the connection.
	maxPongs = 1 << 10
	// batchBytes is how much of the messages one write takes.
	batchBytes = 512 << 10
	// quantumBytes is how much is sent from one queue before the next one, as in deficit round
	// robin. With a single fragment per round all large messages would be in flight at once, and
	// both sides would touch more memory than fits their CPU caches. A far larger message still
	// delays others only briefly.
	quantumBytes = 1 << 20
)

// orderKey identifies the unary requests whose order is preserved.
type orderKey struct{ target, caller string }

// sendQueue is a FIFO queue of outgoing messages.
type sendQueue struct {
	messages []*outMessage
	inRing   bool
	// quantumUsed is the number of bytes taken from it in the current round.
	quantumUsed int
	// The fields below are for the queues of streams.
	stream bool
	// lastSmall is the size of the last message if it was small, else 0.
	lastSmall int
	credit    int
	// window is the largest credit seen so far.
	window int
	// closeErr is set once nothing more can be sent, and is the reason.
	closeErr error
}

// outMessage is one outgoing message that is queued.
type outMessage struct {
	id    uint32
	kind  kind
	flags uint8
	// meta precedes the message in its first frame.
	meta  []byte
	body  *codec.Encoded
	off   int
	queue *sendQueue
	key   orderKey
	// reply is set for a unary response, reserved once it has its share of the peer's window.
	reply    bool
	reserved bool
	started  bool
	// finished is set when the writer has taken all of it, or it was dropped.
	finished bool
	dropped  bool
	// inBatch is set while the writer holds a fragment; the writer then frees the body.
	inBatch bool
	// sent, if not nil, is closed when the message is finished.
	sent chan struct{}
}

func (m *outMessage) remaining() int { return m.body.Size - m.off }

// finish marks an outMessage as finished and unblocks its sender.
func (o *outbox) finish(m *outMessage) {
	m.finished = true
	if o.sendingReplies[m.id] == m {
		delete(o.sendingReplies, m.id)
	}
	if m.sent != nil {
		close(m.sent)
	}
}

// ready reports whether a frame of the queue may be sent now.
func (q *sendQueue) ready() bool { return len(q.messages) > 0 && q.sendable(floorMaxFragment) >= 0 }

// sendable returns how many bytes of the first message may be sent now in one frame, or -1 if the
// queue must wait for credit. The queue must not be empty.
func (q *sendQueue) sendable(maxFragment int) int {
	m := q.messages[0]
	rest := m.remaining()
	bounded := q.stream
	switch {
	case m.started:
		if bounded && q.credit <= 0 {
			return -1
		}
	case rest > wholeBytes:
		// The first frame of a large message carries the size only. If the message fits the window,
		// it waits for enough credit that the fragments can follow without a pause: the receiver
		// grants credit again after a quarter of its window at the latest.
		if need := rest + messageCost + varintBytes; bounded && q.credit < min(need, q.window/2) {
			return -1
		}
		return 0
	default:
		if bounded && q.credit < rest+messageCost {
			return -1
		}
		return rest
	}
	if rest = min(rest, maxFragment); bounded {
		rest = min(rest, q.credit)
	}
	return rest
}

// frame appends a complete frame.
func (o *outbox) frame(k kind, id uint32, body []byte) {
	o.reserve(len(body))
	o.buf = makeHeader(k, 0, id, len(body)).append(o.buf)
	o.buf = append(o.buf, body...)
}

// reserve makes room in the common buffer for a frame with a body of n bytes.
func (o *outbox) reserve(n int) {
	need := len(o.buf) + headerBytes + n
	if need > fullBytes {
		o.full.Store(true)
	}
	if need <= cap(o.buf) {
		return
	}
	larger := append(codec.GetBytes(max(need, 2*cap(o.buf), o.lastSize)), o.buf...)
	codec.PutBytes(o.buf)
	o.buf = larger
}

// beginFrame starts a frame with a body of about n bytes and returns its offset. The body is then
// appended to buf, and endFrame completes the frame.
func (o *outbox) beginFrame(n int) int {
	o.reserve(n)
	start := len(o.buf)
	o.buf = append(o.buf, 0, 0, 0, 0, 0, 0, 0, 0)
	return start
}

// endFrame writes the header of the frame started at start.
func (o *outbox) endFrame(start int, k kind, flags uint8, id uint32) {
	binary.LittleEndian.PutUint64(o.buf[start:], uint64(makeHeader(k, flags, id, len(o.buf)-start-headerBytes)))
}

// push appends an outMessage to a queue.
func (o *outbox) push(q *sendQueue, m *outMessage) {
	m.queue = q
	q.messages = append(q.messages, m)
	o.schedule(q)
}

// schedule adds a queue to the ring if it has a frame ready.
func (o *outbox) schedule(q *sendQueue) {
	if !q.inRing && q.ready() {
		q.inRing = true
		o.ring = append(o.ring, q)
	}
}

// pushRequest appends a unary request to the queue of its key.
func (o *outbox) pushRequest(m *outMessage) {
	q := o.requests[m.key]
	if q == nil {
		q = &sendQueue{}
		if o.requests == nil {
			o.requests = make(map[orderKey]*sendQueue)
		}
		o.requests[m.key] = q
	}
	o.push(q, m)
}

// pushReply queues a unary response. A response of more than one frame waits for its share of the
// peer's window, so that the peer holds few partial responses and always has room to complete them.
func (o *outbox) pushReply(m *outMessage, window int) {
	m.reply = true
	o.replyBytes += m.remaining()
	if m.remaining() <= wholeBytes {
		o.push(&sendQueue{}, m)
		return
	}
	if o.sendingReplies == nil {
		o.sendingReplies = make(map[uint32]*outMessage)
	}
	o.sendingReplies[m.id] = m
	o.replies = append(o.replies, m)
	o.admitReplies(window)
}

func (o *outbox) admitReplies(window int) {
	for len(o.replies) > 0 {
		m := o.replies[0]
		if o.replyWindow > 0 && o.replyWindow+m.remaining() > window {
			return
		}
		o.replyWindow += m.remaining()
		m.reserved = true
		o.replies[0] = nil
		o.replies = o.replies[1:]
		o.push(&sendQueue{}, m)
	}
}

// drop removes the unsent rest of an outMessage.
func (o *outbox) drop(m *outMessage) {
	if m == nil || m.finished {
		return
	}
	if m.reply {
		o.replyBytes -= m.remaining()
		if m.reserved && !m.started {
			o.replyWindow -= m.remaining()
		}
	}
	if m.queue == nil {
		o.replies = without(o.replies, m)
	} else {
		m.queue.messages = without(m.queue.messages, m)
		o.removeIfEmpty(m)
		o.schedule(m.queue)
	}
	m.dropped = true
	o.finish(m)
	if !m.inBatch {
		m.body.Free()
		m.body = nil
	}
}

// close drops everything in a queue, and makes later sends fail with why.
func (o *outbox) close(q *sendQueue, why error) {
	if q.closeErr == nil {
		q.closeErr = why
	}
	for len(q.messages) > 0 {
		o.drop(q.messages[0])
	}
}

// removeIfEmpty removes the queue of a unary request once it is empty.
func (o *outbox) removeIfEmpty(m *outMessage) {
	if m.kind == kindCall && len(m.queue.messages) == 0 {
		delete(o.requests, m.key)
	}
}

func without(list []*outMessage, m *outMessage) []*outMessage {
	for i := range list {
		if list[i] == m {
			copy(list[i:], list[i+1:])
			list[len(list)-1] = nil
			return list[:len(list)-1]
		}
	}
	return list
}

// batch is the input of one write: the common buffer, with the headers of fragments appended, and
// the fragments, which are written from where they are.
type batch struct {
	buf      []byte
	cuts     []cut
	messages []*outMessage
	iov      net.Buffers
	// partial is set if flush has collected the batch and written only its first done bytes.
	partial bool
	done    int
}

// cut inserts a fragment into the output at an offset of the buffer.
type cut struct {
	at       int
	fragment []byte
}

// collect fills the next batch, and reports whether there is anything to write.
func (o *outbox) collect(b *batch) bool {
	if len(o.buf) == 0 && len(o.ring) == 0 {
		return false
	}
	o.calls, o.pongs = 0, 0
	o.full.Store(false)
	b.buf, o.buf, o.spare, o.lastSize = o.buf, o.spare[:0], nil, len(o.buf)
	for total := 0; total < batchBytes && len(o.ring) > 0; {
		q := o.ring[0]
		if q.ready() { // credit and messages may be gone since the queue was added
			n := o.addFragment(q, b)
			total += n
			q.quantumUsed += n
		}
		ready := q.ready()
		if ready && q.quantumUsed < quantumBytes {
			continue
		}
		q.quantumUsed = 0
		copy(o.ring, o.ring[1:])
		if ready {
			o.ring[len(o.ring)-1] = q
			continue
		}
		o.ring[len(o.ring)-1] = nil
		o.ring = o.ring[:len(o.ring)-1]
		q.inRing = false
	}
	if len(b.buf) == 0 {
		o.spare, b.buf = b.buf, nil
		return false
	}
	return true
}

// addFragment adds the next fragment of a queue to the batch and returns its size with the frame
// header.
func (o *outbox) addFragment(q *sendQueue, b *batch) int {
	m, n := q.messages[0], q.sendable(o.maxFragment)
	k, flags, length := kindData, uint8(0), n
	var size []byte
	if !m.started {
		k, flags = m.kind, m.flags
		if n < m.remaining() {
			flags |= flagSized
			size = appendInt(size, m.remaining())
		}
		length += len(m.meta) + len(size)
		if q.stream {
			q.credit -= messageCost
		}
		m.started = true
	}
	if q.stream {
		q.credit -= n + len(size)
	}
	b.buf = makeHeader(k, flags, m.id, length).append(b.buf)
	if k != kindData || flags&flagSized != 0 {
		b.buf = append(b.buf, m.meta...)
		b.buf = append(b.buf, size...)
	}
	m.body.Next(n, func(part []byte) { b.cuts = append(b.cuts, cut{at: len(b.buf), fragment: part}) })
	if !m.inBatch {
		m.inBatch = true
		b.messages = append(b.messages, m)
	}
	m.off += n
	if m.reply {
		o.replyBytes -= n
	}
	if m.remaining() == 0 {
		q.messages[0] = nil
		q.messages = q.messages[1:]
		o.removeIfEmpty(m)
		o.finish(m)
	}
	return n + headerBytes
}

// vectors returns the batch as a list of buffers for writev.
func (b *batch) vectors() net.Buffers {
	b.iov = b.iov[:0]
	from := 0
	for _, c := range b.cuts {
		if c.at > from {
			b.iov = append(b.iov, b.buf[from:c.at])
		}
		b.iov = append(b.iov, c.fragment)
		from = c.at
	}
	if from < len(b.buf) {
		b.iov = append(b.iov, b.buf[from:])
	}
	return b.iov
}

// size returns the number of bytes in the batch.
func (b *batch) size() int {
	n := len(b.buf)
	for _, c := range b.cuts {
		n += len(c.fragment)
	}
	return n
}

// unwritten returns the unwritten part of the batch.
func (b *batch) unwritten() net.Buffers {
	iov, skip := b.vectors(), b.done
	for len(iov) > 0 && len(iov[0]) <= skip {
		skip -= len(iov[0])
		iov = iov[1:]
	}
	if len(iov) > 0 {
		iov[0] = iov[0][skip:]
	}
	return iov
}

// release frees the buffers of a written batch. The caller must hold c.mu.
func (o *outbox) release(b *batch) {
	for i, m := range b.messages {
		m.inBatch = false
		if m.finished && m.body != nil {
			m.body.Free()
			m.body = nil
		}
		b.messages[i] = nil
	}
	b.messages = b.messages[:0]
	clear(b.cuts)
	b.cuts = b.cuts[:0]
	clear(b.iov) // drop references to the memory of messages
	b.iov = b.iov[:0]
	if b.buf != nil { // else the write was of nothing but what TLS had to say
		o.spare, b.buf = b.buf[:0], nil
	}
	b.partial, b.done = false, 0
}

// maxIdleBuffer is the largest buffer kept while there is nothing to write.
const maxIdleBuffer = 4 << 10

// shrink frees large buffers when there is nothing to write, so that an idle connection holds
// little memory.
func (o *outbox) shrink() {
	if cap(o.spare) > maxIdleBuffer {
		codec.PutBytes(o.spare)
		o.spare = nil
	}
	if cap(o.buf) > maxIdleBuffer && len(o.buf) == 0 {
		codec.PutBytes(o.buf)
		o.buf = nil
	}
}

// kick starts a writer goroutine if there is something to write and none is running. The caller
// must hold c.mu.
func (c *Conn) kick() {
	if c.startWriting() {
		go c.writeFunc()
	}
}

func (c *Conn) startWriting() bool {
	if c.out.writing || c.out.corked || c.err != nil || (len(c.out.buf) == 0 && len(c.out.ring) == 0 && !c.secured.unsent()) {
		return false
	}
	c.out.writing = true
	return true
}

// write is the writer goroutine: it writes until nothing is queued. What is queued during a write
// goes out with the next one. No timer delays frames, and batches grow with the load.
func (c *Conn) write() {
	b := &c.out.batch
	// Let other goroutines queue their frames first, so that they share the write.
	runtime.Gosched()
	c.mu.Lock()
	for c.err == nil && (b.partial || c.out.collect(b) || c.secured.unsent()) {
		c.resumeReading()
		c.mu.Unlock()
		n, err := c.writeBatch(b)
		c.sent.Add(uint64(n)) //nolint:gosec // not negative
		c.mu.Lock()
		c.out.release(b)
		if err != nil {
			c.mu.Unlock()
			c.fail(lostError(err))
			c.mu.Lock()
		}
	}
	c.stopWriting()
	c.mu.Unlock()
}

func (c *Conn) stopWriting() {
	c.out.writing = false
	c.out.shrink()
	c.secured.shrink()
	c.checkIdle()
}

// writeBatch writes the part of the batch that has not been written yet, and may block.
func (c *Conn) writeBatch(b *batch) (int64, error) {
	if c.secured != nil {
		return c.secured.write(b)
	}
	return b.writeTo(c.nc)
}

// tryWrite writes as much of the batch as the socket accepts. whole reports whether that is all.
func (c *Conn) tryWrite(b *batch) (n int, whole bool, err error) {
	if c.secured != nil {
		return c.secured.tryWrite(b, &c.nonblocking)
	}
	n, err = c.nonblocking.Write(b.vectors())
	b.done = n
	return n, n == b.size(), err
}

// writeTo writes the part of the batch that has not been written yet.
func (b *batch) writeTo(nc net.Conn) (int64, error) {
	if len(b.cuts) == 0 {
		n, err := nc.Write(b.buf[b.done:])
		return int64(n), err
	}
	iov := b.unwritten()
	return iov.WriteTo(nc)
}

// flushBytes is the largest common buffer that flush writes itself. A larger one is better written
// by another goroutine, in parallel with the reader or the caller. Large messages are written up to
// batchBytes, since they are in the CPU cache of the goroutine that queued them.
const flushBytes = 64 << 10

// flush writes what is queued: on this goroutine if it is little and the socket accepts it, else on
// a writer goroutine. It is called and returns with c.mu held, and may release it meanwhile.
func (c *Conn) flush() {
	if !c.startWriting() {
		return
	}
	if !c.nonblocking.Available() || len(c.out.buf) > flushBytes {
		go c.writeFunc()
		return
	}
	b := &c.out.batch
	if !c.out.collect(b) && !c.secured.unsent() {
		c.stopWriting()
		return
	}
	c.resumeReading()
	c.mu.Unlock()
	n, whole, err := c.tryWrite(b)
	c.sent.Add(uint64(n)) //nolint:gosec // not negative
	c.mu.Lock()
	switch {
	case err != nil:
		c.out.release(b)
		c.mu.Unlock()
		c.fail(lostError(err))
		c.mu.Lock()
		c.stopWriting()
	case !whole:
		b.partial = true
		go c.writeFunc()
	default:
		c.out.release(b)
		if len(c.out.buf) > 0 || len(c.out.ring) > 0 {
			go c.writeFunc()
		} else {
			c.stopWriting()
		}
	}
}

// Back-pressure on the accepting side. It answers what it reads: calls, whether served or refused,
// and PINGs. If the peer sent without reading, the answers would accumulate. The accepting side
// therefore stops reading while more than fullBytes of output wait for the writer.
//
// This cannot deadlock two sides that both send more than the other reads: a dialling side never
// stops reading, so the output of an accepting side is always read eventually, unless the peer has
// failed, which [Conn.keepaliveTick] detects.

// awaitWriter blocks the read loop of an accepting side until the writer has taken most of the
// queued output, or the connection has ended.
func (l *readLoop) awaitWriter() {
	c := l.conn
	_ = l.beforeRead(false) // never fails when not between frames
	for {
		c.mu.Lock()
		c.paused = len(c.out.buf) > fullBytes/2 && c.err == nil
		if !c.paused {
			c.out.full.Store(false)
			c.out.corked = true
			c.mu.Unlock()
			return
		}
		c.startKeepalive()
		c.mu.Unlock()
		select {
		case <-c.resume:
		case <-c.done:
		}
	}
}

// resumeReading unblocks awaitWriter. The caller must hold c.mu and have just collected a batch.
func (c *Conn) resumeReading() {
	if c.paused {
		c.paused = false
		select {
		case c.resume <- struct{}{}:
		default:
		}
	}
}

// onPing answers a PING with a PONG.
func (l *readLoop) onPing(body []byte) error {
	c := l.conn
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.out.pongs++; c.dialled && c.out.pongs > maxPongs {
		return violation("more than %d PINGs before their PONGs were read", maxPongs)
	}
	c.out.frame(kindPong, 0, body)
	return nil
}

// grant sends the peer n bytes of credit. The inbox must already have counted them.
func (c *Conn) grant(id uint32, n int) {
	if n <= 0 {
		return
	}
	c.mu.Lock()
	c.out.frame(kindCredit, id, appendInt(nil, n))
	c.kick()
	c.mu.Unlock()
}
