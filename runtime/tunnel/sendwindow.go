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

func (g *sendWindow) fits(cost int) bool {
	return g.open < g.maxOpen && (cost == 0 || g.used == 0 || g.used+cost <= g.window)
}

func (g *sendWindow) acquire(cost int) {
	g.used += cost
	g.open++
}

// release releases what a call acquired, and admits waiters that now fit.
func (g *sendWindow) release(cost int) {
	g.used -= cost
	g.open--
	if g.waiters.Len() > 0 {
		g.admitWaiters()
	}
}

func (g *sendWindow) admitWaiters() {
	for first := g.waiters.Front(); first != nil; first = g.waiters.Front() {
		w := first.Value.(*waiter) //nolint:forcetypeassert // the list holds nothing else
		if !g.fits(w.cost) {
			return
		}
		g.waiters.Remove(first)
		g.acquire(w.cost)
		w.granted = true
		close(w.ready)
	}
}

func (g *sendWindow) abandon(place *list.Element) {
	g.waiters.Remove(place)
	g.admitWaiters()
}

// acquireWindow acquires the send window for a call of the given cost, and blocks while it does not
// fit. It is called with c.mu held and returns with it held, and releases it while it blocks. After
// an error nothing is acquired.
func (c *Conn) acquireWindow(ctx context.Context, cost int) error {
	if err := c.refusing(); err != nil {
		return err
	}
	g := &c.sendWindow
	// A stream costs nothing, so it may pass requests that wait for bytes.
	if g.fits(cost) && (g.waiters.Len() == 0 || cost == 0) {
		g.acquire(cost)
		return nil
	}
	w := &waiter{cost: cost, ready: make(chan struct{})}
	place := g.waiters.PushBack(w)
	c.mu.Unlock()
	select {
	case <-w.ready:
	case <-ctx.Done():
	case <-c.refused:
	}
	c.mu.Lock()
	if !w.granted {
		g.abandon(place)
		if err := c.refusing(); err != nil {
			return err
		}
		return notRun(contextError(ctx.Err(), fmt.Sprintf(
			"waiting for room on the connection to %s: %d of %d bytes of requests in %d of %d calls are not answered yet",
			c.peerName(), g.used, g.window, g.open, g.maxOpen)))
	}
	err := c.refusing()
	if err == nil && ctx.Err() != nil {
		err = notRun(contextError(ctx.Err(), ""))
	}
	if err != nil {
		g.release(cost)
	}
	return err
}
