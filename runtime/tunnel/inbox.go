package tunnel

import (
	"io"
	"sync"

	"connectrpc.com/connect/v2"
)

// inbox is what has come of a stream and waits for its reader. The reading goroutine of the connection puts messages in and never
// waits; one reader takes them out. Its bytes are bounded by the credit that its side has granted: a window full, and what more a
// reader grants that waits for a message larger than that.
type inbox struct {
	conn *Conn
	id   uint32
	what string

	// assembly, the message in the making, belongs to the connection's reading goroutine, as do pushes.
	assembly *assembly

	mu      sync.Mutex // guards what follows
	ready   chan struct{}
	queue   []packet
	end     error
	waiting bool
	// credit is what the peer may still send; owed was read and not granted again yet.
	credit, owed, window int
	// total is what the message in the making takes of the credit, got what it has taken, and asked what its reader has
	// asked the connection to grant beyond the window.
	total, got, asked int

	header, trailer Header
}

// packet is one message, and what it took of the window and beyond.
type packet struct {
	body        *buffer
	cost, extra int
}

func (b *inbox) open(c *Conn, id uint32, what string) {
	b.conn, b.id, b.what = c, id, what
	b.window = c.own.streamWindow
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
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.end != nil {
		return nil
	}
	if b.credit -= n; b.credit < 0 {
		return violation("%d bytes more than the credit of stream %d", -b.credit, b.id)
	}
	b.got += n
	return nil
}

// push takes a DATA frame. tooLarge is what to end the stream with.
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
			return tooLarge("a message of "+b.what, len(body), limit, "the receiver's"), nil
		}
		buf := newBuffer(len(body))
		buf.b = append(buf.b, body...)
		b.put(packet{body: buf, cost: cost})
		return nil, nil
	}
	p := parser{rest: body}
	total := p.sized()
	if p.err != nil {
		return nil, p.err
	}
	if total > limit {
		return tooLarge("a message of "+b.what, total, limit, "the receiver's"), nil
	}
	b.assembly = newAssembly(total, claimOfStream)
	if err := b.assembly.add(p.rest); err != nil {
		return nil, err
	}
	b.mu.Lock()
	if b.end == nil {
		b.total, b.got = total+cost-len(p.rest), cost
	}
	b.mu.Unlock()
	b.progress()
	return nil, nil
}

// assembled notes that the message in the making has grown, and puts it into the queue when it is complete.
func (b *inbox) assembled() {
	a := b.assembly
	if !a.complete() {
		return
	}
	b.assembly = nil
	b.mu.Lock()
	cost, extra := b.total, b.asked
	b.total, b.got, b.asked = 0, 0, 0
	b.mu.Unlock()
	b.put(packet{body: a.buf, cost: cost, extra: extra})
}

func (b *inbox) put(m packet) {
	b.mu.Lock()
	if b.end != nil {
		b.mu.Unlock()
		m.body.free()
		b.conn.releaseExtra(m.extra)
		return
	}
	b.queue = append(b.queue, m)
	if b.waiting {
		b.signal()
	}
	b.mu.Unlock()
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

// receive waits for the next message.
func (b *inbox) receive() (*buffer, error) {
	for {
		b.mu.Lock()
		if len(b.queue) > 0 {
			m := b.queue[0]
			b.queue[0] = packet{}
			if b.queue = b.queue[1:]; len(b.queue) == 0 {
				b.queue = nil
			}
			owed := b.consume(m)
			b.mu.Unlock()
			b.conn.grant(b.id, owed)
			b.conn.releaseExtra(m.extra)
			return m.body, nil
		}
		if b.end != nil {
			err := b.end
			b.mu.Unlock()
			return nil, err
		}
		b.waiting = true
		b.mu.Unlock()
		b.demand()
		<-b.ready
		b.mu.Lock()
		b.waiting = false
		b.mu.Unlock()
	}
}

// consume says what to grant again for a message that was read.
func (b *inbox) consume(m packet) int {
	if b.end != nil {
		return 0
	}
	if b.owed += m.cost - m.extra; b.owed < b.window/4 {
		return 0
	}
	owed := b.owed
	b.owed = 0
	b.credit += owed
	return owed
}

// close ends the inbox with err; only the first end counts. What is queued can still be read, unless drop says otherwise.
func (b *inbox) close(err error, drop bool) {
	b.mu.Lock()
	extra := 0
	if b.end == nil {
		b.end = err
		// The message in the making will not be complete any more.
		extra, b.asked, b.total = b.asked, 0, 0
	}
	if drop {
		for _, m := range b.queue {
			extra += m.extra
			m.body.free()
		}
		b.queue = nil
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
