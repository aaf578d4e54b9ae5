package tunnel

import (
	"context"
	"fmt"
)

// gate lets unary requests out while they fit the peer's window, and calls of every shape while they are not too many. Who has to
// wait waits in order. It is guarded by the connection's lock.
type gate struct {
	window, maxOpen int
	used, open      int
	waiters         []*waiter
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
	g.serve()
}

func (g *gate) serve() {
	for len(g.waiters) > 0 && g.fits(g.waiters[0].cost) {
		w := g.waiters[0]
		g.waiters[0] = nil
		g.waiters = g.waiters[1:]
		g.take(w.cost)
		w.granted = true
		close(w.ready)
	}
}

func (g *gate) leave(w *waiter) {
	for i := range g.waiters {
		if g.waiters[i] == w {
			g.waiters = append(g.waiters[:i], g.waiters[i+1:]...)
			break
		}
	}
	g.serve()
}

// enter waits until a call of that cost may go out. It is called with the connection's lock and returns with it; after an
// error nothing is held of the gate.
func (c *Conn) enter(ctx context.Context, cost int) error {
	if err := c.refusing(); err != nil {
		return err
	}
	g := &c.gate
	// A call that costs nothing (a stream) may pass those that wait for the window.
	if g.fits(cost) && (len(g.waiters) == 0 || cost == 0) {
		g.take(cost)
		return nil
	}
	w := &waiter{cost: cost, ready: make(chan struct{})}
	g.waiters = append(g.waiters, w)
	c.mu.Unlock()
	select {
	case <-w.ready:
	case <-ctx.Done():
	case <-c.refused:
	}
	c.mu.Lock()
	if !w.granted {
		g.leave(w)
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
