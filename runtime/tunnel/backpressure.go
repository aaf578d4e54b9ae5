package tunnel

// An accepting side answers what it reads: calls, whether it serves or refuses them, and PINGs. If
// the peer sent without ever reading, the answers would pile up here. So it stops reading while
// more than fullBytes of them wait for the writer.
//
// Two sides that both send more than the other reads can't block each other for good: a dialling
// side never stops reading, so the answers that an accepting side waits for are always read, unless
// the peer has failed. That is found out by [Conn.beat].

// awaitWriter blocks the reading goroutine of an accepting side until the writer has taken what
// waits to be written, or the connection has ended.
func (c *Conn) awaitWriter() {
	_ = c.beforeRead(false) // which only says no between frames
	for {
		c.mu.Lock()
		c.paused = len(c.out.buf) > fullBytes/2 && c.err == nil
		if !c.paused {
			c.out.full.Store(false)
			c.out.corked = true
			c.mu.Unlock()
			return
		}
		c.watch()
		c.mu.Unlock()
		select {
		case <-c.drained:
		case <-c.done:
		}
	}
}

// resumeReading lets a reading goroutine go on that waits for the writer. Callers hold the lock,
// and have just taken what was to be written.
func (c *Conn) resumeReading() {
	if c.paused {
		c.paused = false
		select {
		case c.drained <- struct{}{}:
		default:
		}
	}
}

// onPing answers a PING.
func (c *Conn) onPing(body []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.out.pongs++; c.dialled && c.out.pongs > maxPongs {
		return violation("more than %d PINGs before their PONGs were read", maxPongs)
	}
	c.out.frame(kindPong, 0, body)
	return nil
}
