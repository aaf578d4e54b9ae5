package tunnel

import (
	"container/list"
	"context"
	"fmt"
)

// sendWindow is the send window of a connection: it admits unary requests while they fit the peer's
// window, and calls of every shape while fewer than maxOpen are open. Waiters are admitted in FIFO
// order. It is guarded by Conn.mu.
type sendWindow struct {
	window, maxOpen int
	used, open      int
	// waiters holds [*waiter]s. It is a linked list because any of thousands may leave at once.
	waiters list.List
}

type waiter struct {
	cost    int
	granted bool
	ready   chan struct{}
}

func (s *sendWindow) fits(cost int) bool {
	return s.open < s.maxOpen && (cost == 0 || s.used == 0 || s.used+cost <= s.window)
}

func (s *sendWindow) acquire(cost int) {
	s.used += cost
	s.open++
}

// release releases what a call acquired, and admits waiters that now fit.
func (s *sendWindow) release(cost int) {
	s.used -= cost
	s.open--
	if s.waiters.Len() > 0 {
		s.admitWaiters()
	}
}

func (s *sendWindow) admitWaiters() {
	for first := s.waiters.Front(); first != nil; first = s.waiters.Front() {
		w := first.Value.(*waiter) //nolint:forcetypeassert // the list holds nothing else
		if !s.fits(w.cost) {
			return
		}
		s.waiters.Remove(first)
		s.acquire(w.cost)
		w.granted = true
		close(w.ready)
	}
}

func (s *sendWindow) abandon(place *list.Element) {
	s.waiters.Remove(place)
	s.admitWaiters()
}

// acquireWindow acquires the send window for a call of the given cost, and blocks while it does not
// fit. It is called with c.mu held and returns with it held, and releases it while it blocks. After
// an error nothing is acquired.
func (c *Conn) acquireWindow(ctx context.Context, cost int) error {
	if err := c.refusalError(); err != nil {
		return err
	}
	s := &c.sendWindow
	// A stream costs nothing, so it may pass requests that wait for bytes.
	if s.fits(cost) && (s.waiters.Len() == 0 || cost == 0) {
		s.acquire(cost)
		return nil
	}
	w := &waiter{cost: cost, ready: make(chan struct{})}
	place := s.waiters.PushBack(w)
	c.mu.Unlock()
	select {
	case <-w.ready:
	case <-ctx.Done():
	case <-c.refused:
	}
	c.mu.Lock()
	if !w.granted {
		s.abandon(place)
		if err := c.refusalError(); err != nil {
			return err
		}
		return notRun(contextError(ctx.Err(), fmt.Sprintf(
			"waiting for the send window of the connection to %s: %d of %d bytes of requests in %d of %d calls are not answered yet",
			c.peerName(), s.used, s.window, s.open, s.maxOpen)))
	}
	err := c.refusalError()
	if err == nil && ctx.Err() != nil {
		err = notRun(contextError(ctx.Err(), ""))
	}
	if err != nil {
		s.release(cost)
	}
	return err
}
