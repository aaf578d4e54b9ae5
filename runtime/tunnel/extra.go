package tunnel

// extraBudget limits the credit that all streams of a connection have granted beyond their windows,
// for messages larger than the window. A stream's reader that waits for such a message gets all the
// extra credit that it needs at once, or waits in FIFO order until it can. Partially received
// messages can therefore always be completed, and each has a waiting reader. It is guarded by
// Conn.mu.
type extraBudget struct {
	used    int
	waiting []extraWaiter
}

type extraWaiter struct {
	inbox *inbox
	n     int
}

func (e *extraBudget) fits(n, limit int) bool { return e.used == 0 || e.used+n <= limit }

// extraLimit is the size of the budget: one message of the maximum size.
func (c *Conn) extraLimit() int { return c.own.maxMessage }

// askExtra grants n bytes beyond the window, now or once the budget has room.
func (c *Conn) askExtra(b *inbox, n int) {
	c.mu.Lock()
	e := &c.extra
	if len(e.waiting) > 0 || !e.fits(n, c.extraLimit()) {
		e.waiting = append(e.waiting, extraWaiter{inbox: b, n: n})
		c.mu.Unlock()
		return
	}
	e.used += n
	c.mu.Unlock()
	b.grantExtra(n)
}

// releaseExtra returns n bytes to the budget and grants what waits for it.
func (c *Conn) releaseExtra(n int) {
	if n == 0 {
		return
	}
	c.mu.Lock()
	c.extra.used -= n
	granted := c.nextExtra()
	c.mu.Unlock()
	for _, w := range granted {
		w.inbox.grantExtra(w.n)
	}
}

// leaveExtra is releaseExtra for an inbox that is closed. Part of the n bytes may not have been
// granted yet.
func (c *Conn) leaveExtra(b *inbox, n int) {
	if n == 0 {
		return
	}
	c.mu.Lock()
	for i, w := range c.extra.waiting {
		if w.inbox == b {
			c.extra.waiting = append(c.extra.waiting[:i], c.extra.waiting[i+1:]...)
			n -= w.n
			break
		}
	}
	c.extra.used -= n
	granted := c.nextExtra()
	c.mu.Unlock()
	for _, w := range granted {
		w.inbox.grantExtra(w.n)
	}
}

func (c *Conn) nextExtra() []extraWaiter {
	var granted []extraWaiter
	e := &c.extra
	for len(e.waiting) > 0 && e.fits(e.waiting[0].n, c.extraLimit()) {
		e.used += e.waiting[0].n
		granted = append(granted, e.waiting[0])
		e.waiting = e.waiting[1:]
	}
	return granted
}

// grantExtra adds the credit to the inbox and then sends it to the peer, in this order, so that the
// peer never uses credit that has not been counted.
func (b *inbox) grantExtra(n int) {
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
