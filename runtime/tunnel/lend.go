package tunnel

import (
	"errors"
	"os"
	"sync/atomic"
	"time"
)

// A caller that is alone on its connection reads its own answer: then nobody has to be woken between the answer's coming and the caller's
// going on. For that the reading goroutine of a dialling side lends the reading to such callers while nothing else is open, and takes it back when
// there is more to wait for, when a caller has waited for some time (from then on it can be told that its context ends), and when nobody calls any more.

// readingBy says who reads a connection.
type readingBy uint8

const (
	// byReader: the reading goroutine.
	byReader readingBy = iota
	// byNobody: it has lent the reading, and no call is open but that of a caller who is about to read.
	byNobody
	// byCaller: a caller who waits for the answer to its call.
	byCaller
)

// lending is a connection's part in that.
type lending struct {
	// spells counts the beginnings and ends of a caller's reading: it is odd while one reads.
	spells atomic.Uint64
	// back wakes the reading goroutine.
	back chan struct{}

	// What follows is guarded by the connection's lock: who reads, how many calls in a row were made by callers who were alone, and whether
	// the caller that reads has been interrupted.
	by          readingBy
	alone       int
	interrupted bool

	// What follows belongs to who reads: the caller's call, and whether its answer has come.
	waited   *Call
	answered bool
}

// lendAfter is how many calls in a row were alone before the reading is lent.
const lendAfter = 4

var (
	// errLent ends the reading goroutine's reading for a while.
	errLent = errors.New("tunnel: reading is lent")
	// errInterrupted ends a caller's reading before its answer has come.
	errInterrupted = errors.New("tunnel: reading is taken back")
)

// stopped is why reading stops, of which err is the first sign.
func (c *Conn) stopped(err error) error {
	switch {
	case errors.Is(err, errLent), errors.Is(err, errInterrupted):
		return err
	case c.waited != nil && isInterruption(err):
		return errInterrupted
	}
	return lost(err)
}

// readOn makes a caller that was interrupted in the middle of a large message read the rest of it.
func (c *Conn) readOn(err error) bool {
	if c.waited == nil || !isInterruption(err) {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.resume()
	return true
}

// readFor reads until the call is answered, or the reading is taken back.
func (c *Conn) readFor(call *Call) {
	c.waited, c.answered = call, false
	c.spells.Add(1)
	err := c.readFrames()
	c.waited = nil
	c.spells.Add(1)
	if err != nil && !errors.Is(err, errInterrupted) {
		c.readingEnded(err)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.out.corked = false
	c.resume()
	if err == nil && c.gate.open == 0 && c.in.begin == c.in.end && c.err == nil {
		c.by = byNobody
	} else {
		c.takeBack()
	}
	c.flush()
}

// lend reports whether the reading goroutine is to stop for a while. Callers hold the lock.
func (c *Conn) lend() bool {
	if c.alone < lendAfter || c.gate.open > 0 || !c.dialled || c.by != byReader || c.err != nil || c.peerDrained || c.quiet != nil {
		return false
	}
	c.by = byNobody
	c.spells.Add(2) // so that the overseer sees that something has happened
	return true
}

// awaitReading waits until the reading goroutine is to read again. It reports false if the connection has ended.
func (c *Conn) awaitReading() bool {
	if !c.overseen.Load() {
		c.cfg.Overseer.add(c)
	}
	select {
	case <-c.back:
		return true
	case <-c.done:
		return false
	}
}

// takeBack makes the reading goroutine read again. Callers hold the lock, and nobody reads.
func (c *Conn) takeBack() {
	c.by, c.alone = byReader, 0
	select {
	case c.back <- struct{}{}:
	default:
	}
}

// interrupt makes a caller that has been reading in that spell stop. Where nobody has read since, the reading goroutine does again.
func (c *Conn) interrupt(spell uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.spells.Load() != spell || c.err != nil:
	case c.by == byNobody && c.gate.open == 0:
		c.takeBack()
	case c.by == byCaller && !c.interrupted:
		c.interrupted = c.nc.SetReadDeadline(time.Unix(1, 0)) == nil
	}
}

// resume takes an interruption back. Callers hold the lock.
func (c *Conn) resume() {
	if c.interrupted {
		c.interrupted = false
		_ = c.nc.SetReadDeadline(time.Time{}) // whoever reads next will be told what is wrong
	}
}

// isInterruption says whether a Read failed because the caller that reads is to stop.
func isInterruption(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }
