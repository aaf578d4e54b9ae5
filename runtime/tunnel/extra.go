package tunnel

// extraBudget bounds what all streams of a connection have granted beyond their windows, for
// messages larger than these. A reader that waits for such a message gets all that it lacks at
// once, or waits its turn: so those in the making can always be completed, and are being waited
// for. It is guarded by the connection's lock.
type extraBudget struct {
	used    int
	waiting []extraWaiter
}

type extraWaiter struct {
	inbox *inbox
	n     int
}

func (e *extraBudget) fits(n, limit int) bool { return e.used == 0 || e.used+n <= limit }

// extraLimit allows one message of the largest size.
func (c *Conn) extraLimit() int { return c.own.maxMessage }

// askExtra grants n bytes beyond the window, now or when there is room.
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

// releaseExtra gives n bytes back to the budget.
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

// leaveExtra is releaseExtra for an inbox that is closed, and may be waiting for some of the n
// bytes.
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

// grantExtra counts the credit, and only then tells the peer.
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
