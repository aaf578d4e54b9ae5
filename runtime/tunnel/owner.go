package tunnel

import (
	"errors"
	"os"
	"sync/atomic"
	"time"

	"github.com/raylink/raylink/runtime/internal/faults"
)

// One goroutine at a time reads a connection. On the accepting side it is the read loop, see
// [Conn.replaceReadLoop]. On the dialling side the read loop yields to a caller that is alone on
// its connection. The caller then reads its own answer, which saves waking a goroutine between the
// arrival of the answer and the return of the call (leader/follower reading).
//
// All read state is kept in the connection, down to the bytes of a partially received fragment. The
// reader may therefore be interrupted at any byte and another goroutine continues there, so that a
// slow peer cannot hold up a caller.

// readOwner identifies the goroutine that may read a connection.
type readOwner uint8

const (
	// ownerLoop: the read loop.
	ownerLoop readOwner = iota
	// ownerNone: none. The read loop is parked, and no call is open.
	ownerNone
	// ownerCaller: the caller of a call that was the only open one when it began.
	ownerCaller
	// ownerInterrupted: that caller, which stops at its next read because the connection's read
	// deadline has passed.
	ownerInterrupted
)

// ownerEvent is an event that may change the owner.
type ownerEvent uint8

const (
	// eventYielded: the read loop is between frames, no call is open, and each of the last calls
	// was alone.
	eventYielded ownerEvent = iota
	// eventBegunAlone: a call whose caller waits begins, and no other is open.
	eventBegunAlone
	// eventBegun: any other call begins.
	eventBegun
	// eventSwept: the sweeper has found the same epoch (ownerEpoch) at two consecutive ticks:
	// either one caller was reading all the time, or none was.
	eventSwept
	// eventAnswered: the reading caller has its answer, is between frames, and no call is open.
	eventAnswered
	// eventLeft: the reading caller stops for any other reason.
	eventLeft
)

// nextOwner is the complete transition table: the owner after an event. Events that cannot happen
// leave the owner unchanged.
//
//nolint:gochecknoglobals // a constant
var nextOwner = [...][6]readOwner{
	ownerLoop: {
		eventYielded: ownerNone, eventBegunAlone: ownerLoop, eventBegun: ownerLoop,
		eventSwept: ownerLoop, eventAnswered: ownerLoop, eventLeft: ownerLoop,
	},
	ownerNone: {
		eventYielded: ownerNone, eventBegunAlone: ownerCaller, eventBegun: ownerLoop,
		eventSwept: ownerLoop, eventAnswered: ownerNone, eventLeft: ownerNone,
	},
	ownerCaller: {
		eventYielded: ownerCaller, eventBegunAlone: ownerCaller, eventBegun: ownerCaller,
		eventSwept: ownerInterrupted, eventAnswered: ownerNone, eventLeft: ownerLoop,
	},
	ownerInterrupted: {
		eventYielded: ownerInterrupted, eventBegunAlone: ownerInterrupted, eventBegun: ownerInterrupted,
		eventSwept: ownerInterrupted, eventAnswered: ownerNone, eventLeft: ownerLoop,
	},
}

// readOwnership is the connection's state of leader/follower reading.
type readOwnership struct {
	// ownerEpoch is the epoch of ownership by callers: it is incremented when a caller begins to
	// read and when it ends, so it is odd while a caller reads.
	ownerEpoch atomic.Uint64
	// reclaimed unparks the read loop.
	reclaimed chan struct{}

	// Guarded by Conn.mu. aloneCalls counts the consecutive calls that were alone on the
	// connection.
	owner      readOwner
	aloneCalls int

	// Owned by the reader. readingFor is the call of the caller that reads, and answered reports
	// whether its answer has arrived.
	readingFor *Call
	answered   bool
}

// yieldAfter is how many consecutive calls must have been alone before the read loop yields.
const yieldAfter = 4

var (
	// errYielded makes the read loop park until it is to read again.
	errYielded = errors.New("tunnel: the read loop yields")
	// errInterrupted stops a reading caller before its answer has arrived.
	errInterrupted = errors.New("tunnel: the caller that reads was interrupted")
)

// applyOwnerEvent applies an event and reports whether the owner has changed. The caller must hold
// c.mu.
func (c *Conn) applyOwnerEvent(e ownerEvent) bool {
	after := nextOwner[c.owner][e]
	if after == c.owner {
		return false
	}
	c.setOwner(after)
	return true
}

func (c *Conn) setOwner(after readOwner) {
	before := c.owner
	c.owner = after
	switch {
	case after == ownerInterrupted:
		_ = c.nc.SetReadDeadline(time.Unix(1, 0)) // fails only on a closed connection, whose reads fail too
	case before == ownerInterrupted:
		_ = c.nc.SetReadDeadline(time.Time{}) // likewise: the next read reports the error
	}
	if after == ownerLoop {
		c.aloneCalls = 0
		select {
		case c.reclaimed <- struct{}{}:
		default:
		}
	}
}

// readError converts an error of a read to the reason why reading stops.
func (c *Conn) readError(err error) error {
	switch {
	case errors.Is(err, errYielded), errors.Is(err, errInterrupted):
		return err
	case faults.Interruption && c.fragment.assembly != nil:
	case c.readingFor != nil && isInterruption(err):
		return errInterrupted
	}
	return lostError(err)
}

// readAsCaller reads until the call is answered or its caller is interrupted. It reports whether
// the caller must watch its context from then on, because the call has been open for some time.
func (c *Conn) readAsCaller(call *Call) (watch bool) {
	c.readingFor, c.answered = call, false
	c.ownerEpoch.Add(1)
	err := c.readFrames()
	c.readingFor = nil
	c.ownerEpoch.Add(1)
	if err != nil && !errors.Is(err, errInterrupted) {
		c.readingEnded(err)
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.out.corked = false
	if err == nil && c.sendWindow.open == 0 && c.in.betweenFrames() && c.err == nil {
		c.applyOwnerEvent(eventAnswered)
	} else {
		c.applyOwnerEvent(eventLeft)
	}
	if err != nil && c.isOpen(call) {
		c.unwatched.remove(call)
		watch = true
	}
	c.flush()
	return watch
}

// yieldReading reports whether the read loop is to park, and if so gives up ownership. The caller
// must hold c.mu.
func (c *Conn) yieldReading() bool {
	if c.aloneCalls < yieldAfter || c.sendWindow.open > 0 || !c.dialled || c.err != nil || c.peerDrained || c.idle != nil {
		return false
	}
	if c.owner != ownerLoop || !c.applyOwnerEvent(eventYielded) {
		return false
	}
	c.ownerEpoch.Add(2) // the sweeper notices activity, and the count stays even
	return true
}

// awaitReclaim parks the read loop until it is to read again. It returns false if the connection
// has ended.
func (c *Conn) awaitReclaim() bool {
	if !c.watched.Load() {
		c.cfg.Watchdog.add(c)
	}
	select {
	case <-c.reclaimed:
		return true
	case <-c.done:
		return false
	}
}

// interruptReader applies eventSwept if epoch is still ownerEpoch: a caller that has been reading
// since then stops, and an idle connection gets its read loop back.
func (c *Conn) interruptReader(epoch uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ownerEpoch.Load() == epoch && c.err == nil {
		c.applyOwnerEvent(eventSwept)
	}
}

// isInterruption reports whether err of a read means that the reading caller has been interrupted.
func isInterruption(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }
