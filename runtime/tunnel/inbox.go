package tunnel

import (
	"io"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"

	"github.com/raylink/raylink/runtime/tunnel/internal/codec"
)

// inbox is the receive queue of a stream. The connection's reader appends messages and never
// blocks; one goroutine, the stream's reader, removes them. Its bytes are bounded by the credit
// granted to the peer: a full window, plus excess credit while the stream's reader waits for a
// message larger than that.
//
// Both sides work in batches, so that a small message needs no lock: all messages of one read of
// the connection are published together, see [Conn.publish], and the stream's reader takes the
// whole queue at once.
type inbox struct {
	arrivals
	receiveBatch

	conn *Conn
	id   uint32
	what string

	// aliases is set if the last large message was decoded in place: see [packet.decode].
	aliases atomic.Bool
	// dropped is set when unread messages are to be discarded, ended when further arrivals are.
	dropped, ended atomic.Bool

	mu            sync.Mutex // guards the fields below
	ready         chan struct{}
	queue         []packet
	end           error
	readerWaiting bool
	// large is the number of queued messages that have used excess credit.
	large int
	// credit plus allowance is what the peer may still send. owed has been consumed but not yet
	// granted again. window is the current window size.
	credit, owed, window int
	// windowGrowth is the part of the window that was taken from the connection's shared budget.
	windowGrowth int
	// granted is the time of the last grant, since the connection began.
	granted time.Duration
	// For the partially received message: total is the credit it needs, got the credit charged so
	// far, and excess the credit requested beyond the window.
	total, got, excess int

	header, trailer Header
}

// arrivals is the part of an inbox that is owned by the connection's reader.
type arrivals struct {
	// assembly is the partially received message, or nil.
	assembly *assembly
	// allowance is credit set aside so that it can be charged without the lock. It is 0 while a
	// message is partially received.
	allowance int
	// fresh holds the messages not yet published. The bodies of small ones are still in the read
	// buffer; freshBytes is their total size. listed reports whether the inbox is in
	// Conn.unpublished.
	fresh      []packet
	freshBytes int
	listed     bool
	// arrived is the credit used before the window was widened.
	arrived int
	widened bool
}

// receiveBatch is the part of an inbox that is owned by the stream's reader: the messages taken out
// of the queue and not yet returned by receive. They still count against the window.
type receiveBatch struct {
	inHand []packet
	next   int
	// returned is the cost of the messages returned since the last call of grantable. When it
	// reaches grantAt, the credit is granted again.
	returned, grantAt int
}

// packet is one message. It is kept small since a stream may queue very many.
type packet struct {
	body []byte
	// slab owns the memory of the body. Messages may share a slab; it is set in the last of them
	// only.
	slab *codec.Buffer
}

// cost returns the credit that the message used.
func (m packet) cost() int {
	if m.slab != nil && m.slab.Cost > 0 {
		return m.slab.Cost
	}
	return len(m.body) + messageCost
}

// excess returns the part of the cost that was granted beyond the window.
func (m packet) excess() int {
	if m.slab == nil {
		return 0
	}
	return m.slab.Excess
}

// decode decodes the message into one that must be empty, or discards it if that is nil. A large
// message may alias the memory of the packet, and owns it then. aliases is whether the last large
// one did.
func (m packet) decode(to proto.Message, aliases *atomic.Bool) (err error) {
	aliased := false
	switch {
	case to == nil:
	case m.slab != nil && m.slab.Cost > 0:
		aliased, err = codec.DecodeAliasing(m.body, to)
		if aliases.Load() != aliased {
			aliases.Store(aliased)
		}
	default:
		err = codec.Decode(m.body, to)
	}
	if !aliased {
		m.slab.Free()
	}
	return err
}

// maxIdlePackets is the largest capacity of an empty queue that is kept.
const maxIdlePackets = 256

func (b *inbox) open(c *Conn, id uint32, what string) {
	b.conn, b.id, b.what = c, id, what
	b.window, b.granted = c.own.streamWindow, time.Since(c.started)
	b.credit = b.window
	b.ready = make(chan struct{}, 1)
}

func (b *inbox) signal() {
	select {
	case b.ready <- struct{}{}:
	default:
	}
}

// charge takes n bytes of the peer's credit. Exceeding the credit is a protocol violation.
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

// chargeSmall charges a whole small message of n bytes to the allowance, and reports whether it
// could.
func (b *inbox) chargeSmall(n, limit int) bool {
	if b.assembly != nil || n > limit || n+messageCost > b.allowance {
		return false
	}
	b.allowance -= n + messageCost
	return true
}

// push handles a DATA frame. If tooMuch is not nil, the stream must be ended with it; err ends the
// connection.
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
	total := p.totalSize()
	if p.err != nil {
		return nil, p.err
	}
	if total > limit {
		return MessageTooLarge(b.what, !b.conn.dialled, total, limit), nil
	}
	b.assembly = b.newAssembly(total)
	if err := b.assembly.add(p.rest); err != nil {
		return nil, err
	}
	b.publish() // earlier messages must not wait for this one
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

// newAssembly returns an assembly for a message. Its first buffer is no larger than what the peer
// has credit for, which is accounted for: a size that is only announced is not allocated.
func (b *inbox) newAssembly(total int) *assembly {
	b.mu.Lock()
	most := max(initialStreamBytes, b.credit+b.allowance)
	b.mu.Unlock()
	if b.aliases.Load() {
		return &assembly{total: total, buf: codec.NewAliasable(min(total, most))}
	}
	return newAssembly(total, most)
}

// put adds a whole small message. Its body stays in the read buffer until it is published.
func (b *inbox) put(body []byte) {
	b.freshBytes += len(body)
	b.fresh = append(b.fresh, packet{body: body})
	if !b.listed {
		b.listed = true
		b.conn.reading.unpublished = append(b.conn.reading.unpublished, b)
	}
}

// retainBodies preserves the bodies of small messages beyond the current read. If they are a large
// part of the read buffer, they share that memory. Otherwise they are copied, so that a slow reader
// holds little more memory than its window.
func (b *inbox) retainBodies() {
	last := len(b.fresh) - 1
	for last >= 0 && b.fresh[last].slab != nil {
		last-- // a large message has memory of its own
	}
	if last < 0 {
		return
	}
	in := &b.conn.reading.in
	switch {
	case 2*b.freshBytes >= len(in.buf):
		b.fresh[last].slab = in.mem.Share()
	case b.freshBytes < codec.MinBuffer:
		// A pooled buffer would be many times larger than such small messages.
		own := make([]byte, 0, b.freshBytes)
		for i := range b.fresh[:last+1] {
			m := &b.fresh[i]
			start := len(own)
			own = append(own, m.body...)
			m.body = own[start:]
		}
	default:
		slab := codec.NewBuffer(b.freshBytes)
		for i := range b.fresh[:last+1] {
			m := &b.fresh[i]
			start := len(slab.B)
			slab.B = append(slab.B, m.body...)
			m.body = slab.B[start:]
		}
		b.fresh[last].slab = slab
	}
	b.freshBytes = 0
}

// assembled publishes the partially received message if it is now complete.
func (b *inbox) assembled() {
	a := b.assembly
	if !a.complete() {
		return
	}
	b.assembly = nil
	b.mu.Lock()
	a.buf.Cost, a.buf.Excess = b.total, b.excess
	b.total, b.got, b.excess = 0, 0, 0
	b.mu.Unlock()
	b.fresh = append(b.fresh, packet{body: a.buf.B, slab: a.buf})
	b.publish()
}

// publish moves the fresh messages to the queue and unparks the stream's reader.
func (b *inbox) publish() {
	if len(b.fresh) == 0 {
		return
	}
	b.retainBodies()
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
		b.conn.excess.release(releasePackets(b.fresh))
		b.fresh = nil
		return
	}
	for i := range b.fresh {
		if b.fresh[i].excess() > 0 {
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
	if b.readerWaiting {
		b.signal()
	}
	b.mu.Unlock()
}

// emptied returns list for reuse, or nil if its capacity is too large to keep.
func emptied(list []packet) []packet {
	if cap(list) > maxIdlePackets {
		return nil
	}
	return list[:0]
}

// releasePackets frees unread messages, and returns the credit that they used beyond the window.
func releasePackets(list []packet) int {
	extra := 0
	for i := range list {
		extra += list[i].excess()
		list[i].slab.Free()
	}
	clear(list)
	return extra
}

// widen raises the window to the configured size. It is called once the stream has used a good part
// of its initial window.
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

// enlarge raises the window by up to n bytes, as far as the shared budget permits, and returns by
// how much. The caller must hold b.mu and grant the result.
func (b *inbox) enlarge(n int) int {
	n = b.conn.windows.take(n)
	b.window += n
	b.windowGrowth += n
	return n
}

// returnWindow returns the stream's share of the budget. The caller must hold b.mu, and the queue
// must be empty.
func (b *inbox) returnWindow() {
	b.conn.windows.used.Add(int64(-b.windowGrowth))
	b.windowGrowth = 0
}

// discard frees the partially received message of a stream that has ended.
func (b *inbox) discard() {
	if b.assembly != nil {
		b.assembly.buf.Free()
		b.assembly = nil
	}
}

// progress calls demand if the stream's reader is waiting.
func (b *inbox) progress() {
	b.mu.Lock()
	waiting := b.readerWaiting && b.end == nil
	b.mu.Unlock()
	if waiting {
		b.demand()
	}
}

// demand grants the credit that the partially received message still needs. It is called when the
// stream's reader waits for that message.
func (b *inbox) demand() {
	b.mu.Lock()
	if b.total == 0 || b.excess > 0 || len(b.queue) > 0 || b.end != nil {
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
	b.excess = max(lacking, 0)
	lacking = b.excess
	b.mu.Unlock()
	b.conn.grant(b.id, owed)
	if lacking > 0 {
		b.conn.excess.request(b, lacking)
	}
}

// receive blocks until the next message or the end of the stream. The caller must free the packet's
// slab after use.
func (b *inbox) receive() (packet, error) {
	if b.next < len(b.inHand) && !b.dropped.Load() {
		return b.nextInHand(), nil
	}
	for {
		b.mu.Lock()
		owed := b.grantable()
		if b.end == nil || len(b.queue) > 0 {
			b.grantAt = b.window/4 - b.owed
		}
		switch {
		case b.large > 0 && len(b.queue) > 0:
			// Take large messages one by one, since their excess credit must be returned even if
			// the reader takes no further message.
			m := b.first()
			b.returned += m.cost() - m.excess()
			owed += b.grantable()
			b.mu.Unlock()
			b.conn.grant(b.id, owed)
			b.conn.excess.release(m.excess())
			return m, nil
		case len(b.queue) > 0:
			clear(b.inHand)
			b.inHand, b.queue, b.next = b.queue, emptied(b.inHand), 0
			b.mu.Unlock()
			b.conn.grant(b.id, owed)
			return b.nextInHand(), nil
		case b.end != nil:
			err := b.end
			b.returnWindow()
			b.mu.Unlock()
			return packet{}, err
		}
		b.readerWaiting = true
		b.mu.Unlock()
		b.conn.grant(b.id, owed)
		b.demand()
		<-b.ready
		b.mu.Lock()
		b.readerWaiting = false
		b.mu.Unlock()
	}
}

// nextInHand returns the next of the messages in hand.
func (b *inbox) nextInHand() packet {
	m := b.inHand[b.next]
	b.next++
	if b.returned += m.cost(); b.returned >= b.grantAt {
		b.mu.Lock()
		owed := b.grantable()
		b.grantAt = b.window/4 - b.owed
		b.mu.Unlock()
		b.conn.grant(b.id, owed)
	}
	return m
}

// first removes the first message from the queue. The caller must hold b.mu.
func (b *inbox) first() packet {
	m := b.queue[0]
	b.queue[0] = packet{}
	if b.queue = b.queue[1:]; len(b.queue) == 0 {
		b.queue = nil
	}
	if m.excess() > 0 {
		b.large--
	}
	return m
}

// grantable accounts for the messages returned since the last call, and returns the credit to
// grant. The caller must hold b.mu and be the stream's reader.
func (b *inbox) grantable() int {
	b.owed += b.returned
	b.returned = 0
	if b.end != nil || b.owed < b.window/4 {
		return 0
	}
	owed := b.owed
	b.owed = 0
	now := time.Since(b.conn.started)
	if now-b.granted < quickWindow && b.window < b.conn.cfg.MaxStreamWindow {
		owed += b.enlarge(min(b.window, b.conn.cfg.MaxStreamWindow-b.window))
	}
	b.granted = now
	b.credit += owed
	return owed
}

// quickWindow is the time below which consuming a quarter of the window means that the window is
// too small: unparking a sender takes a good part of it.
const quickWindow = 2 * time.Millisecond

// close ends the inbox with err. Only the first end counts. Queued messages can still be read
// unless drop is set.
func (b *inbox) close(err error, drop bool) {
	b.mu.Lock()
	extra := 0
	if b.end == nil {
		b.end = err
		b.ended.Store(true)
		// The partially received message will never be complete.
		extra, b.excess, b.total = b.excess, 0, 0
	}
	if drop {
		b.dropped.Store(true)
		extra += releasePackets(b.queue)
		b.queue, b.large = nil, 0
		b.returnWindow()
	}
	b.signal()
	b.mu.Unlock()
	b.conn.excess.cancel(b, extra)
}

// closeSend ends the inbox after the peer's CLOSE_SEND: the stream is half-closed.
func (b *inbox) closeSend() { b.close(io.EOF, false) }

// reply ends the inbox of a client's stream with the outcome in a REPLY.
func (b *inbox) reply(r *outcome) {
	b.mu.Lock()
	if r.header != nil {
		b.header = r.header
	}
	b.trailer = r.trailer
	b.mu.Unlock()
	switch {
	case r.err != nil:
		b.close(r.err, false)
	case b.assembly != nil:
		b.close(connect.NewError(connect.CodeInternal, "the stream ended in the middle of a message"), false)
	default:
		b.closeSend()
	}
}

// head records the response header that precedes the first message.
func (b *inbox) head(header Header) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.header = header
}

// windowBudget is what all streams of a connection may have beyond their initial windows. Its
// methods are safe for concurrent use.
type windowBudget struct {
	limit int
	used  atomic.Int64
}

// take takes up to n bytes from the budget, and returns how many.
func (w *windowBudget) take(n int) int {
	for n > 0 {
		used := w.used.Load()
		n = min(n, w.limit-int(used))
		if n > 0 && w.used.CompareAndSwap(used, used+int64(n)) {
			return n
		}
	}
	return 0
}

// excessBudget limits the credit that all streams of a connection have granted beyond their
// windows, for messages larger than the window. A stream's reader that waits for such a message
// gets all the excess credit that it needs at once, or waits in FIFO order until it can. Partially
// received messages can therefore always be completed, and each has a waiting reader. Its methods
// are safe for concurrent use.
type excessBudget struct {
	// limit is the size of the budget: one message of the maximum size.
	limit int

	mu      sync.Mutex // guards the fields below
	used    int
	waiting []excessWaiter
}

type excessWaiter struct {
	inbox *inbox
	n     int
}

func (e *excessBudget) fits(n int) bool { return e.used == 0 || e.used+n <= e.limit }

// request grants n bytes beyond the window, now or once the budget has room.
func (e *excessBudget) request(b *inbox, n int) {
	e.mu.Lock()
	if len(e.waiting) > 0 || !e.fits(n) {
		e.waiting = append(e.waiting, excessWaiter{inbox: b, n: n})
		e.mu.Unlock()
		return
	}
	e.used += n
	e.mu.Unlock()
	b.grantExcess(n)
}

// release returns n bytes to the budget and grants what waits for it.
func (e *excessBudget) release(n int) {
	if n == 0 {
		return
	}
	e.mu.Lock()
	e.used -= n
	granted := e.admit()
	e.mu.Unlock()
	for _, w := range granted {
		w.inbox.grantExcess(w.n)
	}
}

// cancel is release for an inbox that is closed. Part of the n bytes may not have been granted yet.
func (e *excessBudget) cancel(b *inbox, n int) {
	if n == 0 {
		return
	}
	e.mu.Lock()
	for i, w := range e.waiting {
		if w.inbox == b {
			e.waiting = append(e.waiting[:i], e.waiting[i+1:]...)
			n -= w.n
			break
		}
	}
	e.used -= n
	granted := e.admit()
	e.mu.Unlock()
	for _, w := range granted {
		w.inbox.grantExcess(w.n)
	}
}

// admit takes the waiters that now fit out of the queue. The caller must hold e.mu, and grant them
// afterwards.
func (e *excessBudget) admit() []excessWaiter {
	var granted []excessWaiter
	for len(e.waiting) > 0 && e.fits(e.waiting[0].n) {
		e.used += e.waiting[0].n
		granted = append(granted, e.waiting[0])
		e.waiting = e.waiting[1:]
	}
	return granted
}

// grantExcess adds the credit to the inbox and then sends it to the peer, in this order, so that
// the peer never uses credit that has not been counted.
func (b *inbox) grantExcess(n int) {
	b.mu.Lock()
	open := b.end == nil
	if open {
		b.credit += n
	}
	b.mu.Unlock()
	if open {
		b.conn.grant(b.id, n)
	}
}
