package tunnel

import (
	"errors"
	"os"
	"sync/atomic"
	"time"

	"github.com/raylink/raylink/runtime/internal/faults"
)

// One goroutine at a time reads a connection. On the accepting side that is the read loop, see
// [Conn.handOver]. On the dialling side the read loop yields to a caller that is alone on its
// connection: it reads its own answer, so that no goroutine has to be woken between the answer's
// arrival and the caller's going on (leader/follower reading).
//
// Everything that the reader has begun is in the connection, down to the bytes of a fragment that
// have come. So the reader may be interrupted at any byte, and the next one goes on there: no
// caller is kept by what a slow peer still has to send.

// readOwner says which goroutine may read a connection.
type readOwner uint8

const (
	// ownedByLoop: the read loop.
	ownedByLoop readOwner = iota
	// unowned: none. The read loop is parked, and no call is open.
	unowned
	// ownedByCaller: the caller of the one call that was open when it began.
	ownedByCaller
	// ownerInterrupted: that caller, which stops at its next read: the connection's read deadline
	// has passed.
	ownerInterrupted
)

// ownerEvent is what may change the owner.
type ownerEvent uint8

const (
	// yielded: the read loop is between frames, the calls of late were alone on the connection, and
	// none is open.
	yielded ownerEvent = iota
	// begunAlone: a call begins whose caller waits, and no other is open.
	begunAlone
	// begun: any other call begins.
	begun
	// swept: the sweeper has seen the same spell twice.
	swept
	// answered: the caller that reads has its answer, is between frames, and no call is open.
	answered
	// left: the caller stops reading otherwise.
	left
)

// nextOwner is all that there is to know about ownership: who owns reading after an event. What an
// event that cannot happen would lead to is the owner as it was.
//
//nolint:gochecknoglobals // a constant
var nextOwner = [...][6]readOwner{
	ownedByLoop: {
		yielded: unowned, begunAlone: ownedByLoop, begun: ownedByLoop,
		swept: ownedByLoop, answered: ownedByLoop, left: ownedByLoop,
	},
	unowned: {
		yielded: unowned, begunAlone: ownedByCaller, begun: ownedByLoop,
		swept: ownedByLoop, answered: unowned, left: unowned,
	},
	ownedByCaller: {
		yielded: ownedByCaller, begunAlone: ownedByCaller, begun: ownedByCaller,
		swept: ownerInterrupted, answered: unowned, left: ownedByLoop,
	},
	ownerInterrupted: {
		yielded: ownerInterrupted, begunAlone: ownerInterrupted, begun: ownerInterrupted,
		swept: ownerInterrupted, answered: unowned, left: ownedByLoop,
	},
}

// ownership is a connection's part in that.
type ownership struct {
	// spells counts the beginnings and ends of a caller's reading: it is odd while one reads.
	spells atomic.Uint64
	// reclaimed unparks the read loop.
	reclaimed chan struct{}

	// Guarded by the connection's lock: the owner, and how many calls in a row were alone.
	owner readOwner
	alone int

	// Owned by the reader: the call of the caller that reads, and whether its answer has come.
	waited   *Call
	answered bool
}

// yieldAfter is how many calls in a row were alone before the read loop yields.
const yieldAfter = 4

var (
	// errYielded ends the read loop's reading until it is unparked.
	errYielded = errors.New("tunnel: the read loop yields")
	// errInterrupted ends a caller's reading before its answer has come.
	errInterrupted = errors.New("tunnel: the caller that reads was interrupted")
)

// passOwnership applies an event, and reports whether the owner has changed. Callers hold the lock.
func (c *Conn) passOwnership(e ownerEvent) bool {
	after := nextOwner[c.owner][e]
	if after == c.owner {
		return false
	}
	c.changeOwner(after)
	return true
}

func (c *Conn) changeOwner(after readOwner) {
	before := c.owner
	c.owner = after
	switch {
	case after == ownerInterrupted:
		_ = c.nc.SetReadDeadline(time.Unix(1, 0)) // fails only on a closed connection, whose reads fail too
	case before == ownerInterrupted:
		_ = c.nc.SetReadDeadline(time.Time{}) // likewise: the next read says what is wrong
	}
	if after == ownedByLoop {
		c.alone = 0
		select {
		case c.reclaimed <- struct{}{}:
		default:
		}
	}
}

// stopped is why reading stops, of which err is the first sign.
func (c *Conn) stopped(err error) error {
	switch {
	case errors.Is(err, errYielded), errors.Is(err, errInterrupted):
		return err
	case faults.Interruption && c.fragment.assembly != nil:
	case c.waited != nil && isInterruption(err):
		return errInterrupted
	}
	return lost(err)
}

// readFor reads until the call is answered, or its caller is interrupted. It reports whether the
// caller is to watch its context from then on: it has been waiting for some time.
func (c *Conn) readFor(call *Call) (watch bool) {
	c.waited, c.answered = call, false
	c.spells.Add(1)
	err := c.readFrames()
	c.waited = nil
	c.spells.Add(1)
	if err != nil && !errors.Is(err, errInterrupted) {
		c.readingEnded(err)
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.out.corked = false
	if err == nil && c.gate.open == 0 && c.in.betweenFrames() && c.err == nil {
		c.passOwnership(answered)
	} else {
		c.passOwnership(left)
	}
	if err != nil && c.isOpen(call) {
		c.unwatched.remove(call)
		watch = true
	}
	c.flush()
	return watch
}

// yield reports whether the read loop is to park. Callers hold the lock.
func (c *Conn) yield() bool {
	if c.alone < yieldAfter || c.gate.open > 0 || !c.dialled || c.err != nil || c.peerDrained || c.quiet != nil {
		return false
	}
	if c.owner != ownedByLoop || !c.passOwnership(yielded) {
		return false
	}
	c.spells.Add(2) // so that the sweeper sees a change
	return true
}

// awaitReading parks the read loop until it is to read again. It reports false if the connection
// has ended.
func (c *Conn) awaitReading() bool {
	if !c.overseen.Load() {
		c.cfg.Overseer.add(c)
	}
	select {
	case <-c.reclaimed:
		return true
	case <-c.done:
		return false
	}
}

// interrupt makes a caller that has been reading in that spell stop. Where none has read since, the
// read loop does again.
func (c *Conn) interrupt(spell uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.spells.Load() == spell && c.err == nil {
		c.passOwnership(swept)
	}
}

// isInterruption says whether a Read failed because the caller that reads is to stop.
func isInterruption(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }
