package tunnel

import (
	"container/list"
	"context"
	"fmt"
)

// gate lets unary requests out while they fit the peer's window, and calls of every shape while
// they are not too many. Who has to wait waits in order. It is guarded by the connection's lock.
type gate struct {
	window, maxOpen int
	used, open      int
	// waiters are [*waiter]s: any of them may leave, and thousands at once.
	waiters list.List
}

type waiter struct {
	cost    int
	granted bool
	ready   chan struct{}
}

func (g *gate) fits(cost int) bool {
	return g.open < g.maxOpen && (cost == 0 || g.used == 0 || g.used+cost <= g.window)
}

func (g *gate) take(cost int) {
	g.used += cost
	g.open++
}

// give ends a call, and lets those in who waited for it.
func (g *gate) give(cost int) {
	g.used -= cost
	g.open--
	if g.waiters.Len() > 0 {
		g.serve()
	}
}

func (g *gate) serve() {
	for first := g.waiters.Front(); first != nil; first = g.waiters.Front() {
		w := first.Value.(*waiter) //nolint:forcetypeassert // nothing else is in it
		if !g.fits(w.cost) {
			return
		}
		g.waiters.Remove(first)
		g.take(w.cost)
		w.granted = true
		close(w.ready)
	}
}

func (g *gate) leave(place *list.Element) {
	g.waiters.Remove(place)
	g.serve()
}

// enter waits until a call of that cost may go out. It is called with the connection's lock and
// returns with it; after an error nothing is held of the gate.
func (c *Conn) enter(ctx context.Context, cost int) error {
	if err := c.refusing(); err != nil {
		return err
	}
	g := &c.gate
	// A call that costs nothing (a stream) may pass those that wait for the window.
	if g.fits(cost) && (g.waiters.Len() == 0 || cost == 0) {
		g.take(cost)
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
		g.leave(place)
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
		g.give(cost)
	}
	return err
}
