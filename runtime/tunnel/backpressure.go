package tunnel

// Back-pressure on the accepting side. It answers what it reads: calls, whether served or refused,
// and PINGs. If the peer sent without reading, the answers would accumulate. The accepting side
// therefore stops reading while more than fullBytes of output wait for the writer.
//
// This cannot deadlock two sides that both send more than the other reads: a dialling side never
// stops reading, so the output of an accepting side is always read eventually, unless the peer has
// failed, which [Conn.keepaliveTick] detects.

// awaitWriter blocks the read loop of an accepting side until the writer has taken most of the
// queued output, or the connection has ended.
func (c *Conn) awaitWriter() {
	_ = c.beforeRead(false) // never fails when not between frames
	for {
		c.mu.Lock()
		c.paused = len(c.out.buf) > fullBytes/2 && c.err == nil
		if !c.paused {
			c.out.full.Store(false)
			c.out.corked = true
			c.mu.Unlock()
			return
		}
		c.startKeepalive()
		c.mu.Unlock()
		select {
		case <-c.resume:
		case <-c.done:
		}
	}
}

// resumeReading unblocks awaitWriter. The caller must hold c.mu and have just collected a batch.
func (c *Conn) resumeReading() {
	if c.paused {
		c.paused = false
		select {
		case c.resume <- struct{}{}:
		default:
		}
	}
}

// onPing answers a PING with a PONG.
func (c *Conn) onPing(body []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.out.pongs++; c.dialled && c.out.pongs > maxPongs {
		return violation("more than %d PINGs before their PONGs were read", maxPongs)
	}
	c.out.frame(kindPong, 0, body)
	return nil
}
