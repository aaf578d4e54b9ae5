package listen

import (
	"container/list"
	"context"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"time"
)

// The limits of connections that are not admitted are shared by source, so that one address which
// connects without end leaves others their part.

// sourceBits is how much of an IPv6 address is its source: a network of 64 bits is what one user
// gets at least (RFC 6177), and any address in it can be taken.
const sourceBits = 64

// sourceOf returns the address that a connection's limits are shared by. Connections without an IP
// address, by Unix socket, have one source together: the zero value.
func sourceOf(remote net.Addr) netip.Prefix {
	tcp, ok := remote.(*net.TCPAddr)
	if !ok {
		return netip.Prefix{}
	}
	address := tcp.AddrPort().Addr().Unmap().WithZone("")
	bits := sourceBits
	if address.Is4() {
		bits = address.BitLen()
	}
	source, err := address.Prefix(bits)
	if err != nil { // there is no address
		return netip.Prefix{}
	}
	return source
}

// queue has waiters by source. They leave it in turn: the first of each source, then the second of
// each. Its owner's lock guards it. It has no more entries than there are waiters.
type queue struct {
	turns list.List // of *line, the next one first
	lines map[netip.Prefix]*line
}

// line has the waiters of one source; it is in the queue as long as there are any.
type line struct {
	source  netip.Prefix
	turn    *list.Element
	waiters list.List // of *waiter
}

type waiter struct {
	ready chan struct{} // closed when the waiter has left the queue by its turn
	line  *line
	place *list.Element // nil when it has left
}

func (q *queue) isEmpty() bool { return q.turns.Len() == 0 }

func (q *queue) push(source netip.Prefix) *waiter {
	l := q.lines[source]
	if l == nil {
		if q.lines == nil {
			q.lines = make(map[netip.Prefix]*line)
		}
		l = &line{source: source}
		l.turn = q.turns.PushBack(l)
		q.lines[source] = l
	}
	w := &waiter{ready: make(chan struct{}), line: l}
	w.place = l.waiters.PushBack(w)
	return w
}

// pop lets the next waiter go on. It reports whether there was one.
func (q *queue) pop() bool {
	turn := q.turns.Front()
	if turn == nil {
		return false
	}
	l, _ := turn.Value.(*line)
	w, _ := l.waiters.Front().Value.(*waiter)
	q.turns.MoveToBack(turn)
	q.remove(w)
	close(w.ready)
	return true
}

// remove removes a waiter, unless it has left.
func (q *queue) remove(w *waiter) {
	if w.place == nil {
		return
	}
	l := w.line
	l.waiters.Remove(w.place)
	w.place = nil
	if l.waiters.Len() == 0 {
		q.turns.Remove(l.turn)
		delete(q.lines, l.source)
	}
}

// crypto bounds the computations of handshakes: how many begin, and how many run at once, so that
// strangers can't take the processors from calls that are served. Where handshakes wait, the
// sources take turns.
type crypto struct {
	mu sync.Mutex // guards the fields below
	// next is when the handshake may begin that is next; it is never long ago.
	next     time.Time
	starting queue
	timer    *time.Timer // for starting; nil when none waits
	// slots is how many more handshakes may be computed.
	slots     int
	computing queue
}

func newCrypto() *crypto { return &crypto{slots: max(1, runtime.GOMAXPROCS(0)/2)} }

const handshakeInterval = time.Second / handshakesPerSecond

// begin blocks until the handshake of a connection may begin. It fails when the connection is
// dropped, or ctx ends.
func (c *crypto) begin(ctx context.Context, p *pending) error {
	c.mu.Lock()
	now := time.Now()
	if earliest := now.Add(-handshakeBurst * handshakeInterval); c.next.Before(earliest) {
		c.next = earliest
	}
	if c.starting.isEmpty() && !c.next.After(now) {
		c.next = c.next.Add(handshakeInterval)
		c.mu.Unlock()
		return nil
	}
	w := c.starting.push(p.source)
	if c.timer == nil {
		c.timer = time.AfterFunc(c.next.Sub(now), c.start)
	}
	c.mu.Unlock()
	var err error
	select {
	case <-w.ready:
		return nil
	case <-p.dropped:
		err = net.ErrClosed
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.starting.remove(w)
	return err
}

// start lets those handshakes begin whose time has come.
func (c *crypto) start() {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	for !c.next.After(now) && c.starting.pop() {
		c.next = c.next.Add(handshakeInterval)
	}
	if c.starting.isEmpty() {
		c.timer = nil
		return
	}
	c.timer.Reset(c.next.Sub(now))
}

// acquire blocks until a handshake of a source may be computed, for as long as those before it
// compute.
func (c *crypto) acquire(source netip.Prefix) {
	c.mu.Lock()
	if c.slots > 0 {
		c.slots--
		c.mu.Unlock()
		return
	}
	w := c.computing.push(source)
	c.mu.Unlock()
	<-w.ready
}

func (c *crypto) release() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.computing.pop() {
		c.slots++
	}
}
