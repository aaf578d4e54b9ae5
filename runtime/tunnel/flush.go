package tunnel

// flushBytes is the largest common buffer that flush writes itself. A larger one is better written
// by another goroutine, in parallel with the reader or the caller. Large messages are written up to
// batchBytes, since they are in the CPU cache of the goroutine that queued them.
const flushBytes = 64 << 10

// flush writes what is queued: on this goroutine if it is little and the socket accepts it, else on
// a writer goroutine. It is called and returns with c.mu held, and may release it meanwhile.
func (c *Conn) flush() {
	if !c.startWriting() {
		return
	}
	if !c.nonblocking.Available() || len(c.out.buf) > flushBytes {
		go c.writing()
		return
	}
	b := &c.out.batch
	if !c.out.collect(b) {
		c.stopWriting()
		return
	}
	c.resumeReading()
	c.mu.Unlock()
	n, err := c.nonblocking.Write(b.vectors())
	c.sent.Add(uint64(n)) //nolint:gosec // not negative
	c.mu.Lock()
	switch {
	case err != nil:
		c.out.release(b)
		c.mu.Unlock()
		c.fail(lostError(err))
		c.mu.Lock()
		c.stopWriting()
	case n < b.size():
		b.partial, b.done = true, n
		go c.writing()
	default:
		c.out.release(b)
		if len(c.out.buf) > 0 || len(c.out.ring) > 0 {
			go c.writing()
		} else {
			c.stopWriting()
		}
	}
}
