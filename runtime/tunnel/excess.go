package tunnel

// excessBudget limits the credit that all streams of a connection have granted beyond their
// windows, for messages larger than the window. A stream's reader that waits for such a message
// gets all the excess credit that it needs at once, or waits in FIFO order until it can. Partially
// received messages can therefore always be completed, and each has a waiting reader. It is guarded
// by Conn.mu.
type excessBudget struct {
	used    int
	waiting []excessWaiter
}

type excessWaiter struct {
	inbox *inbox
	n     int
}

func (e *excessBudget) fits(n, limit int) bool { return e.used == 0 || e.used+n <= limit }

// extraLimit is the size of the budget: one message of the maximum size.
func (c *Conn) excessLimit() int { return c.own.maxMessage }

// requestExcess grants n bytes beyond the window, now or once the budget has room.
func (c *Conn) requestExcess(b *inbox, n int) {
	c.mu.Lock()
	e := &c.excess
	if len(e.waiting) > 0 || !e.fits(n, c.excessLimit()) {
		e.waiting = append(e.waiting, excessWaiter{inbox: b, n: n})
		c.mu.Unlock()
		return
	}
	e.used += n
	c.mu.Unlock()
	b.grantExcess(n)
}

// releaseExcess returns n bytes to the budget and grants what waits for it.
func (c *Conn) releaseExcess(n int) {
	if n == 0 {
		return
	}
	c.mu.Lock()
	c.excess.used -= n
	granted := c.admitExcess()
	c.mu.Unlock()
	for _, w := range granted {
		w.inbox.grantExcess(w.n)
	}
}

// cancelExcess is releaseExcess for an inbox that is closed. Part of the n bytes may not have been
// granted yet.
func (c *Conn) cancelExcess(b *inbox, n int) {
	if n == 0 {
		return
	}
	c.mu.Lock()
	for i, w := range c.excess.waiting {
		if w.inbox == b {
			c.excess.waiting = append(c.excess.waiting[:i], c.excess.waiting[i+1:]...)
			n -= w.n
			break
		}
	}
	c.excess.used -= n
	granted := c.admitExcess()
	c.mu.Unlock()
	for _, w := range granted {
		w.inbox.grantExcess(w.n)
	}
}

func (c *Conn) admitExcess() []excessWaiter {
	var granted []excessWaiter
	e := &c.excess
	for len(e.waiting) > 0 && e.fits(e.waiting[0].n, c.excessLimit()) {
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
