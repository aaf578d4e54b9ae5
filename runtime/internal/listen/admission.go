package listen

import (
	"container/list"
	"context"
	"net"
	"net/netip"
	"sync"
	"time"
)

// Limits of connections whose other side has not proven yet that it knows the token. They are
// bounded in number and time: however many are opened, calls on admitted connections continue, and
// a new caller can still connect. The source with the most of them makes room for others.
const (
	// maxPending is the maximum number of such connections.
	maxPending = 512
	// maxWaiting is how many more may wait for room, of which nothing is read. The oldest make room
	// for newer ones, so that of a burst nothing is left that would exclude later callers.
	maxWaiting = maxPending
	// pendingGrace is how long a connection is protected from being closed in favour of a newer
	// one: long enough for a handshake.
	pendingGrace = 250 * time.Millisecond
	// PendingTime is how long a connection may take to be admitted, and how long it may be idle.
	PendingTime = 10 * time.Second
)

// admission holds the connections that are not admitted yet, the oldest first.
type admission struct {
	mu      sync.Mutex // guards the fields below, and those of pending
	pending list.List  // of *pending
	// sources counts the pending connections by source.
	sources map[netip.Prefix]int
	// waiting are those that wait for room, the oldest first, and waitingSources counts them.
	waiting        list.List // of *arrival
	waitingSources map[netip.Prefix]int
	closed         bool
	// freed wakes an enter that waits for room.
	freed chan struct{}
}

// arrival is a connection that waits for room.
type arrival struct {
	nc     net.Conn
	source netip.Prefix
	// displaced is closed when the connection was closed in favor of a newer one.
	displaced chan struct{}
	place     *list.Element // nil when it waits no more
}

// pending is one connection, until it is admitted or closed.
type pending struct {
	in     *admission
	nc     net.Conn
	source netip.Prefix
	timer  *time.Timer
	// dropped is closed when the connection was closed because of the limits.
	dropped chan struct{}
	// place is the connection's element in the list; nil once it is admitted or closed.
	place *list.Element
	since time.Time
	// active is when the connection was last useful: accepted, or served a request.
	active time.Time
	// watches counts its open health streams.
	watches  int
	admitted bool
}

func newAdmission() *admission {
	return &admission{freed: make(chan struct{}, 1), sources: make(map[netip.Prefix]int), waitingSources: make(map[netip.Prefix]int)}
}

// await lets a connection wait for room; the caller must enter it. At the limit it closes another
// one, which it returns: the oldest of the source that has the most of them.
func (a *admission) await(nc net.Conn) (_ *arrival, displaced net.Conn) {
	a.mu.Lock()
	defer a.mu.Unlock()
	w := &arrival{nc: nc, source: sourceOf(nc.RemoteAddr()), displaced: make(chan struct{})}
	w.place = a.waiting.PushBack(w)
	a.waitingSources[w.source]++
	if a.waiting.Len() <= maxWaiting {
		return w, nil
	}
	e, _ := oldestOfLargest(&a.waiting, a.waitingSources)
	oldest, _ := e.Value.(*arrival)
	a.stopWaiting(oldest)
	close(oldest.displaced)
	_ = oldest.nc.Close()
	return w, oldest.nc
}

// stopWaiting removes a connection from those that wait. The caller holds the lock.
func (a *admission) stopWaiting(w *arrival) {
	if w.place == nil {
		return
	}
	a.waiting.Remove(w.place)
	w.place = nil
	if a.waitingSources[w.source]--; a.waitingSources[w.source] == 0 {
		delete(a.waitingSources, w.source)
	}
}

// enterLater is enter for a connection that waits. It also returns nil when that was displaced.
func (a *admission) enterLater(ctx context.Context, w *arrival) *pending {
	defer func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.stopWaiting(w)
	}()
	return a.enter(ctx, w.nc, w.displaced)
}

// enter adds a connection. At the limit it closes another one, or waits until that one's grace has
// passed. It returns nil, with the connection closed, if ctx ends or the connection is displaced
// first.
func (a *admission) enter(ctx context.Context, nc net.Conn, displaced <-chan struct{}) *pending {
	for {
		select {
		case <-displaced:
			return nil
		default:
		}
		p, wait := a.tryEnter(nc)
		if p != nil {
			return p
		}
		t := time.NewTimer(wait)
		select {
		case <-a.freed:
		case <-t.C:
		case <-displaced:
		case <-ctx.Done():
			t.Stop()
			_ = nc.Close()
			return nil
		}
		t.Stop()
	}
}

func (a *admission) tryEnter(nc net.Conn) (_ *pending, wait time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := time.Now()
	source := sourceOf(nc.RemoteAddr())
	if a.pending.Len() >= maxPending {
		e, most := oldestOfLargest(&a.pending, a.sources)
		oldest, _ := e.Value.(*pending)
		// A source that has more than its part has no grace against others.
		if wait := pendingGrace - now.Sub(oldest.since); wait > 0 && most <= a.sources[source]+1 {
			return nil, wait
		}
		oldest.drop()
	}
	p := &pending{in: a, nc: nc, source: source, dropped: make(chan struct{}), since: now, active: now}
	p.place = a.pending.PushBack(p)
	a.sources[source]++
	p.timer = time.AfterFunc(PendingTime, p.expire)
	if a.closed {
		p.drop()
	}
	return p, 0
}

// oldestOfLargest returns the oldest connection of the sources that have the most of them, and how
// many they have. The connections are in a list with one at least, the oldest first, and counted by
// source.
func oldestOfLargest(connections *list.List, sources map[netip.Prefix]int) (oldest *list.Element, most int) {
	for _, n := range sources {
		most = max(most, n)
	}
	for e := connections.Front(); oldest == nil; e = e.Next() {
		if c, ok := e.Value.(interface{ from() netip.Prefix }); ok && sources[c.from()] == most {
			oldest = e
		}
	}
	return oldest, most
}

func (w *arrival) from() netip.Prefix { return w.source }
func (p *pending) from() netip.Prefix { return p.source }

// close closes all connections that are not admitted, and any that enter later.
func (a *admission) close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.closed = true
	for a.pending.Len() > 0 {
		if p, ok := a.pending.Front().Value.(*pending); ok {
			p.drop()
		}
	}
}

// closeIdle closes the connections without an open health stream.
func (a *admission) closeIdle() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for e := a.pending.Front(); e != nil; {
		p, _ := e.Value.(*pending)
		e = e.Next()
		if p.watches == 0 {
			p.drop()
		}
	}
}

// drop closes the connection. The caller holds the lock.
func (p *pending) drop() {
	p.leave()
	close(p.dropped)
	_ = p.nc.Close()
}

// leave removes the connection from the list. The caller holds the lock.
func (p *pending) leave() {
	if p.place == nil {
		return
	}
	p.timer.Stop()
	p.in.pending.Remove(p.place)
	p.place = nil
	if p.in.sources[p.source]--; p.in.sources[p.source] == 0 {
		delete(p.in.sources, p.source)
	}
	select {
	case p.in.freed <- struct{}{}:
	default:
	}
}

// expire closes the connection if it has been idle for too long, or rearms its timer.
func (p *pending) expire() {
	p.in.mu.Lock()
	defer p.in.mu.Unlock()
	if p.place == nil {
		return
	}
	rest := PendingTime - time.Since(p.active)
	if p.watches > 0 {
		rest = PendingTime
	}
	if rest > 0 {
		p.timer.Reset(rest)
		return
	}
	p.drop()
}

// admit lifts the limits: the other side has proven that it knows the token.
func (p *pending) admit() {
	p.in.mu.Lock()
	defer p.in.mu.Unlock()
	if !p.admitted {
		p.admitted = true
		p.leave()
	}
}

func (p *pending) isAdmitted() bool {
	p.in.mu.Lock()
	defer p.in.mu.Unlock()
	return p.admitted
}

// gone removes a connection that was closed.
func (p *pending) gone() {
	p.in.mu.Lock()
	defer p.in.mu.Unlock()
	p.leave()
}

// answers counts a request that is served without a token; watch is set for a health stream. The
// returned function ends that.
func (p *pending) answers(watch bool) (done func()) {
	count := func(by int) {
		p.in.mu.Lock()
		defer p.in.mu.Unlock()
		p.active = time.Now()
		if watch {
			p.watches += by
		}
	}
	count(1)
	return func() { count(-1) }
}
