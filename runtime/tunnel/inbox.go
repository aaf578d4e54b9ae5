package tunnel

import (
	"io"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect/v2"
)

// inbox is what has come of a stream and waits for its reader. The reading goroutine of the
// connection puts messages in and never waits; one reader takes them out. Its bytes are bounded by
// the credit that its side has granted: a window full, and what more a reader grants that waits for
// a message larger than that.
//
// Both sides work in batches, so that a small message costs no lock: what one read has brought is
// published at once, see [Conn.publish], and the reader takes at once all that is there.
type inbox struct {
	arrivals
	batchInHand

	conn *Conn
	id   uint32
	what string

	// dropped says that what has not been read is not wanted any more; ended, that nothing that
	// comes is.
	dropped, ended atomic.Bool

	mu      sync.Mutex // guards what follows
	ready   chan struct{}
	queue   []packet
	end     error
	waiting bool
	// large is how many of the queue have an extra.
	large int
	// credit is, with the allowance, what the peer may still send; owed was read and not granted
	// again yet.
	credit, owed, window int
	// beyond is how much of the window was taken of what the connection's streams share.
	beyond int
	// granted is when credit was last granted again.
	granted time.Duration
	// total is what the message in the making takes of the credit, got what it has taken, and asked
	// what its reader has asked the connection to grant beyond the window.
	total, got, asked int

	header, trailer Header
}

// arrivals belong to the connection's reading goroutine.
type arrivals struct {
	// assembly is the message in the making.
	assembly *assembly
	// allowance is credit that was set aside, to be charged without the lock. There is none while a
	// message is in the making.
	allowance int
	// fresh are the messages that are not published yet. Small ones are still where they were read;
	// burst is how many bytes those have. listed says that the connection is to publish them.
	fresh  []packet
	burst  int
	listed bool
	// arrived is how much credit has been used until the window was widened.
	arrived int
	widened bool
}

// batchInHand belongs to the reader: the messages that it has taken out of the queue and not
// returned yet. All of them still take credit.
type batchInHand struct {
	taken []packet
	next  int
	// paid is what the messages returned since the last time have taken of the window, and due when
	// that is to be granted again.
	paid, due int
}

// packet is one message. A stream may have very many, so it is small.
type packet struct {
	body []byte
	// slab holds the body, and is set in the last of the messages that it holds.
	slab *buffer
}

// cost is what the message took of the window.
func (m packet) cost() int {
	if m.slab != nil && m.slab.cost > 0 {
		return m.slab.cost
	}
	return len(m.body) + messageCost
}

// extra is what it took beyond.
func (m packet) extra() int {
	if m.slab == nil {
		return 0
	}
	return m.slab.extra
}

// keptPackets is how many places for messages a stream keeps that has nothing to put there.
const keptPackets = 256

func (b *inbox) open(c *Conn, id uint32, what string) {
	b.conn, b.id, b.what = c, id, what
	b.window, b.granted = c.own.streamWindow, monotonic()
	b.credit = b.window
	b.ready = make(chan struct{}, 1)
}

func (b *inbox) signal() {
	select {
	case b.ready <- struct{}{}:
	default:
	}
}

// charge takes n bytes of the peer's credit.
func (b *inbox) charge(n int) error {
	if n <= b.allowance {
		b.allowance -= n
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.end != nil {
		return nil
	}
	b.credit += b.allowance
	b.allowance = 0
	if b.credit -= n; b.credit < 0 {
		return violation("%d bytes more than the credit of stream %d", -b.credit, b.id)
	}
	if b.assembly != nil {
		b.got += n
	} else {
		b.allowance, b.credit = b.credit, 0
	}
	return nil
}

// takes says whether a small message of n bytes may come now as a whole, with the credit that has
// been set aside, and charges it.
func (b *inbox) takes(n, limit int) bool {
	if b.assembly != nil || n > limit || n+messageCost > b.allowance {
		return false
	}
	b.allowance -= n + messageCost
	return true
}

// push takes a DATA frame. tooMuch is what to end the stream with.
func (b *inbox) push(sized bool, body []byte, limit int) (tooMuch, err error) {
	cost := len(body)
	if b.assembly == nil {
		cost += messageCost
	}
	if err := b.charge(cost); err != nil {
		return nil, err
	}
	if b.assembly != nil {
		if sized {
			return nil, violation("a second message before the first of stream %d is complete", b.id)
		}
		if err := b.assembly.add(body); err != nil {
			return nil, err
		}
		b.assembled()
		return nil, nil
	}
	if !sized {
		if len(body) > limit {
			return MessageTooLarge(b.what, !b.conn.dialled, len(body), limit), nil
		}
		b.put(body)
		return nil, nil
	}
	p := parser{rest: body}
	total := p.sized()
	if p.err != nil {
		return nil, p.err
	}
	if total > limit {
		return MessageTooLarge(b.what, !b.conn.dialled, total, limit), nil
	}
	b.assembly = newAssembly(total, claimOfStream)
	if err := b.assembly.add(p.rest); err != nil {
		return nil, err
	}
	b.publish() // what came before must not wait for it
	if !b.widened {
		b.widen()
	}
	b.mu.Lock()
	b.credit += b.allowance
	b.allowance = 0
	if b.end == nil {
		b.total, b.got = total+cost-len(p.rest), cost
	}
	b.mu.Unlock()
	b.progress()
	return nil, nil
}

// put takes a small message, which stays where it was read until it is published.
func (b *inbox) put(body []byte) {
	b.burst += len(body)
	b.fresh = append(b.fresh, packet{body: body})
	if !b.listed {
		b.listed = true
		b.conn.unpublished = append(b.conn.unpublished, b)
	}
}

// keep sees to it that small messages last until they have been read. Where they are a good part of
// what was read they keep that memory; else they are copied, so that what waits for its reader
// takes little more than its window.
func (b *inbox) keep() {
	last := len(b.fresh) - 1
	for last >= 0 && b.fresh[last].slab != nil {
		last-- // a large one has memory of its own
	}
	if last < 0 {
		return
	}
	in := &b.conn.in
	switch {
	case 2*b.burst >= len(in.buf):
		b.fresh[last].slab = in.mem.share()
	case b.burst < 1<<smallestClass:
		// A buffer of a pool would take many times as much as messages that are as small as that.
		own := make([]byte, 0, b.burst)
		for i := range b.fresh[:last+1] {
			m := &b.fresh[i]
			start := len(own)
			own = append(own, m.body...)
			m.body = own[start:]
		}
	default:
		slab := newBuffer(b.burst)
		for i := range b.fresh[:last+1] {
			m := &b.fresh[i]
			start := len(slab.b)
			slab.b = append(slab.b, m.body...)
			m.body = slab.b[start:]
		}
		b.fresh[last].slab = slab
	}
	b.burst = 0
}

// assembled notes that the message in the making has grown, and puts it into the queue when it is
// complete.
func (b *inbox) assembled() {
	a := b.assembly
	if !a.complete() {
		return
	}
	b.assembly = nil
	b.mu.Lock()
	a.buf.cost, a.buf.extra = b.total, b.asked
	b.total, b.got, b.asked = 0, 0, 0
	b.mu.Unlock()
	b.fresh = append(b.fresh, packet{body: a.buf.b, slab: a.buf})
	b.publish()
}

// publish hands what has come to the reader.
func (b *inbox) publish() {
	if len(b.fresh) == 0 {
		return
	}
	b.keep()
	if !b.widened {
		for i := range b.fresh {
			b.arrived += b.fresh[i].cost()
		}
		if b.arrived >= floorStreamWindow/4 {
			b.widen()
		}
	}
	b.mu.Lock()
	if b.end != nil {
		b.mu.Unlock()
		b.conn.releaseExtra(release(b.fresh))
		b.fresh = nil
		return
	}
	for i := range b.fresh {
		if b.fresh[i].extra() > 0 {
			b.large++
		}
	}
	if len(b.queue) == 0 {
		b.queue, b.fresh = b.fresh, b.queue
	} else {
		b.queue = append(b.queue, b.fresh...)
		clear(b.fresh)
		b.fresh = emptied(b.fresh)
	}
	if b.waiting {
		b.signal()
	}
	b.mu.Unlock()
}

// emptied is a list of messages for others; one that once was long does not stay so.
func emptied(list []packet) []packet {
	if cap(list) > keptPackets {
		return nil
	}
	return list[:0]
}

// release frees messages that nobody will read, and returns what they took beyond the window.
func release(list []packet) int {
	extra := 0
	for i := range list {
		extra += list[i].extra()
		list[i].slab.free()
	}
	clear(list)
	return extra
}

// widen grants the configured window, as soon as a stream has used a good part of what each has
// from the beginning.
func (b *inbox) widen() {
	b.widened = true
	b.mu.Lock()
	more := 0
	if b.end == nil {
		more = b.enlarge(b.conn.cfg.StreamWindow - b.window)
		b.credit += more
	}
	b.mu.Unlock()
	b.conn.grant(b.id, more)
}

// enlarge makes the window larger by up to n bytes, as far as the streams of the connection have
// room for that. Callers hold the lock, and grant what it returns.
func (b *inbox) enlarge(n int) int {
	n = b.conn.takeWindow(n)
	b.window += n
	b.beyond += n
	return n
}

// leaveWindow gives back what the window has taken of what the connection's streams share. Callers
// hold the lock, and nothing is in the queue.
func (b *inbox) leaveWindow() {
	b.conn.windows.Add(int64(-b.beyond))
	b.beyond = 0
}

// takeWindow takes up to n bytes of what all streams may have beyond the windows that they begin
// with.
func (c *Conn) takeWindow(n int) int {
	for n > 0 {
		used := c.windows.Load()
		n = min(n, c.cfg.MaxStreamBytes-int(used))
		if n > 0 && c.windows.CompareAndSwap(used, used+int64(n)) {
			return n
		}
	}
	return 0
}

// discard forgets the message in the making of a stream that has ended.
func (b *inbox) discard() {
	if b.assembly != nil {
		b.assembly.buf.free()
		b.assembly = nil
	}
}

// progress grants what a waiting reader's message needs.
func (b *inbox) progress() {
	b.mu.Lock()
	waiting := b.waiting && b.end == nil
	b.mu.Unlock()
	if waiting {
		b.demand()
	}
}

// demand grants the credit that the message in the making lacks, since a reader waits for it.
func (b *inbox) demand() {
	b.mu.Lock()
	if b.total == 0 || b.asked > 0 || len(b.queue) > 0 || b.end != nil {
		b.mu.Unlock()
		return
	}
	owed := b.owed
	lacking := b.total - b.got - b.credit - owed
	if lacking+owed <= 0 {
		b.mu.Unlock()
		return
	}
	b.credit, b.owed = b.credit+owed, 0
	b.asked = max(lacking, 0)
	lacking = b.asked
	b.mu.Unlock()
	b.conn.grant(b.id, owed)
	if lacking > 0 {
		b.conn.askExtra(b, lacking)
	}
}

// receive waits for the next message. Who calls it frees its slab when the body has been used.
func (b *inbox) receive() (packet, error) {
	if b.next < len(b.taken) && !b.dropped.Load() {
		return b.hand(), nil
	}
	for {
		b.mu.Lock()
		owed := b.settle()
		if b.end == nil || len(b.queue) > 0 {
			b.due = b.window/4 - b.owed
		}
		switch {
		case b.large > 0 && len(b.queue) > 0:
			// One by one: what a message takes beyond the window is to be given back even if its
			// reader reads no more.
			m := b.first()
			b.paid += m.cost() - m.extra()
			owed += b.settle()
			b.mu.Unlock()
			b.conn.grant(b.id, owed)
			b.conn.releaseExtra(m.extra())
			return m, nil
		case len(b.queue) > 0:
			clear(b.taken)
			b.taken, b.queue, b.next = b.queue, emptied(b.taken), 0
			b.mu.Unlock()
			b.conn.grant(b.id, owed)
			return b.hand(), nil
		case b.end != nil:
			err := b.end
			b.leaveWindow()
			b.mu.Unlock()
			return packet{}, err
		}
		b.waiting = true
		b.mu.Unlock()
		b.conn.grant(b.id, owed)
		b.demand()
		<-b.ready
		b.mu.Lock()
		b.waiting = false
		b.mu.Unlock()
	}
}

// hand returns the next message of those that were taken.
func (b *inbox) hand() packet {
	m := b.taken[b.next]
	b.next++
	if b.paid += m.cost(); b.paid >= b.due {
		b.mu.Lock()
		owed := b.settle()
		b.due = b.window/4 - b.owed
		b.mu.Unlock()
		b.conn.grant(b.id, owed)
	}
	return m
}

// first takes the first message out of the queue. Callers hold the lock.
func (b *inbox) first() packet {
	m := b.queue[0]
	b.queue[0] = packet{}
	if b.queue = b.queue[1:]; len(b.queue) == 0 {
		b.queue = nil
	}
	if m.extra() > 0 {
		b.large--
	}
	return m
}

// settle counts what was read since the last time, and says what to grant again. Callers hold the
// lock, and are the reader.
func (b *inbox) settle() int {
	b.owed += b.paid
	b.paid = 0
	if b.end != nil || b.owed < b.window/4 {
		return 0
	}
	owed := b.owed
	b.owed = 0
	now := monotonic()
	if now-b.granted < quickWindow && b.window < b.conn.cfg.MaxStreamWindow {
		owed += b.enlarge(min(b.window, b.conn.cfg.MaxStreamWindow-b.window))
	}
	b.granted = now
	b.credit += owed
	return owed
}

// quickWindow: a window of which a quarter is read in less time is too small: to wake a sender
// takes a good part of that.
const quickWindow = 2 * time.Millisecond

// close ends the inbox with err; only the first end counts. What is queued can still be read,
// unless drop says otherwise.
func (b *inbox) close(err error, drop bool) {
	b.mu.Lock()
	extra := 0
	if b.end == nil {
		b.end = err
		b.ended.Store(true)
		// The message in the making will not be complete any more.
		extra, b.asked, b.total = b.asked, 0, 0
	}
	if drop {
		b.dropped.Store(true)
		extra += release(b.queue)
		b.queue, b.large = nil, 0
		b.leaveWindow()
	}
	b.signal()
	b.mu.Unlock()
	b.conn.leaveExtra(b, extra)
}

// closeSend is the clean end of what the peer sends.
func (b *inbox) closeSend() { b.close(io.EOF, false) }

// reply is the end of a client's stream.
func (b *inbox) reply(r *outcome) {
	b.mu.Lock()
	if r.header != nil {
		b.header = r.header
	}
	b.trailer = r.trailer
	b.mu.Unlock()
	switch {
	case r.fault != nil:
		b.close(r.fault, false)
	case b.assembly != nil:
		b.close(connect.NewError(connect.CodeInternal, "the stream ended in the middle of a message"), false)
	default:
		b.closeSend()
	}
}

// head is the response's header, which came before its first message.
func (b *inbox) head(header Header) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.header = header
}
