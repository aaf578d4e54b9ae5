package tunnel

import (
	"container/list"
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
