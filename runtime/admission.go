package runtime

import (
	"container/list"
	"context"
	"net"
	"sync"
	"time"
)

// What connections may hold before their other side has shown that it knows the token. They are
// bounded in number and time, so that however many are opened, calls on admitted connections go on,
// and a new caller still gets in.
const (
	// maxPending is how many there may be at once.
	maxPending = 512
	// pendingGrace is how long one is safe from being closed in favour of a newer one: enough for a
	// handshake.
	pendingGrace = 250 * time.Millisecond
	// pendingTime is how long one may take to be admitted, and how long it may be idle.
	pendingTime = 10 * time.Second
)

// admission keeps the connections that are not admitted yet, the oldest first.
type admission struct {
	mu      sync.Mutex // guards all below, and the fields of pending
	pending list.List  // of *pending
	closed  bool
	// freed wakes an enter that waits for room.
	freed chan struct{}
}

// pending is one connection, until it is admitted or gone.
type pending struct {
	in    *admission
	nc    net.Conn
	timer *time.Timer
	// place is where the connection stands in the list; nil once it is admitted or gone.
	place *list.Element
	since time.Time
	// active is when it was last of any use: accepted, or answered.
	active time.Time
	// watches are the open streams of health.
	watches  int
	admitted bool
}

func newAdmission() *admission { return &admission{freed: make(chan struct{}, 1)} }

// enter takes a connection in. Where there are too many it closes the oldest, or waits until that
// may be closed. It returns nil, and has closed the connection, when ctx ends first.
func (a *admission) enter(ctx context.Context, nc net.Conn) *pending {
	for {
		p, wait := a.tryEnter(nc)
		if p != nil {
			return p
		}
		t := time.NewTimer(wait)
		select {
		case <-a.freed:
		case <-t.C:
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
	if a.pending.Len() >= maxPending {
		oldest, _ := a.pending.Front().Value.(*pending)
		if wait := pendingGrace - now.Sub(oldest.since); wait > 0 {
			return nil, wait
		}
		oldest.drop()
	}
	p := &pending{in: a, nc: nc, since: now, active: now}
	p.place = a.pending.PushBack(p)
	p.timer = time.AfterFunc(pendingTime, p.expire)
	if a.closed {
		p.drop()
	}
	return p, 0
}

// close closes all that are not admitted, now and later.
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

// closeIdle closes those of which no stream of health is open.
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
	_ = p.nc.Close()
}

// leave takes the connection out of the list. The caller holds the lock.
func (p *pending) leave() {
	if p.place == nil {
		return
	}
	p.timer.Stop()
	p.in.pending.Remove(p.place)
	p.place = nil
	select {
	case p.in.freed <- struct{}{}:
	default:
	}
}

// expire closes the connection if it is of no use.
func (p *pending) expire() {
	p.in.mu.Lock()
	defer p.in.mu.Unlock()
	if p.place == nil {
		return
	}
	rest := pendingTime - time.Since(p.active)
	if p.watches > 0 {
		rest = pendingTime
	}
	if rest > 0 {
		p.timer.Reset(rest)
		return
	}
	p.drop()
}

// admit says that the other side knows the token: the bounds no longer hold.
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

// gone says that the connection was closed.
func (p *pending) gone() {
	p.in.mu.Lock()
	defer p.in.mu.Unlock()
	p.leave()
}

// answers says that a request that needs no token is being answered; watch, that it is a stream.
// The returned function ends that.
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
