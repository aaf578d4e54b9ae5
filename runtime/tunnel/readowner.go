package tunnel

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"github.com/raylink/raylink/internal/invariants"
	"github.com/raylink/raylink/internal/usercode"
)

// One goroutine at a time reads a connection. On the dialling side the read loop yields to a caller
// that is alone on its connection. The caller then reads its own answer, which saves unparking a
// goroutine between the arrival of the answer and the return of the call (leader/follower reading).
// This is the owner after an event; where there is a dash, the event cannot happen:
//
//	owner       | yielded | begunAlone  | begun       | stalled     | answered | left
//	loop        | none    | loop        | loop        | loop        | -        | -
//	none        | -       | caller      | loop        | loop        | -        | -
//	caller      | -       | caller      | caller      | interrupted | none     | loop
//	interrupted | -       | interrupted | interrupted | interrupted | none     | loop
//
// On the accepting side the loop is always the owner, but not always the same goroutine: a read
// loop that runs a handler inline is replaced by another one if the handler is about to block or
// takes long (see [readLoop.replaceReadLoop]). inlineEpoch decides that:
//
//	inlineEpoch  inline work begins  ends    may block, takes long
//	even         odd                 -       unchanged
//	odd          -                   even    even, and another goroutine is the loop
//
// All read state is kept in the connection, down to the bytes of a partially received fragment. The
// reader may therefore be interrupted at any byte and another goroutine continues there, so that a
// slow peer cannot hold up a caller.

// readOwner identifies the goroutine that may read a connection.
type readOwner uint8

const (
	// ownerInvalid is the entry of the table for an event that cannot happen.
	ownerInvalid readOwner = iota
	// ownerLoop: the read loop.
	ownerLoop
	// ownerNone: none. The read loop is parked, and no call is open.
	ownerNone
	// ownerCaller: the caller of a call that was the only open one when it began.
	ownerCaller
	// ownerInterrupted: that caller, which stops at its next read because the connection's read
	// deadline has passed.
	ownerInterrupted
)

func (o readOwner) String() string {
	return [...]string{"invalid", "loop", "none", "caller", "interrupted"}[o]
}

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
	// eventStalled: the Watchdog has found the same epoch (ownerEpoch) at two consecutive ticks:
	// either one caller was reading all the time, or none was.
	eventStalled
	// eventAnswered: the reading caller has its answer, is between frames, and no call is open.
	eventAnswered
	// eventLeft: the reading caller stops for any other reason.
	eventLeft

	ownerEvents
)

func (e ownerEvent) String() string {
	return [...]string{"yielded", "begunAlone", "begun", "stalled", "answered", "left"}[e]
}

// ownerTable is the complete transition table: the owner after an event.
type ownerTable [ownerInterrupted + 1][ownerEvents]readOwner

// nextOwner is the table above.
//
//nolint:gochecknoglobals // a constant
var nextOwner = ownerTable{
	ownerLoop: {
		eventYielded: ownerNone, eventBegunAlone: ownerLoop, eventBegun: ownerLoop, eventStalled: ownerLoop,
	},
	ownerNone: {
		eventBegunAlone: ownerCaller, eventBegun: ownerLoop, eventStalled: ownerLoop,
	},
	ownerCaller: {
		eventBegunAlone: ownerCaller, eventBegun: ownerCaller, eventStalled: ownerInterrupted,
		eventAnswered: ownerNone, eventLeft: ownerLoop,
	},
	ownerInterrupted: {
		eventBegunAlone: ownerInterrupted, eventBegun: ownerInterrupted, eventStalled: ownerInterrupted,
		eventAnswered: ownerNone, eventLeft: ownerLoop,
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
// Conn.mu.
func (l *readLoop) applyOwnerEvent(e ownerEvent) bool {
	after := nextOwner[l.owner][e]
	if after == ownerInvalid {
		if invariants.Enabled {
			panic(fmt.Sprintf("tunnel: %v, but the owner of the reading is %v", e, l.owner))
		}
		return false
	}
	if after == l.owner {
		return false
	}
	l.setOwner(after)
	return true
}

// auditOwner panics if the calling goroutine, which is about to read, does not own the reading. The
// caller must hold Conn.mu.
func (l *readLoop) auditOwner() {
	caller := l.owner == ownerCaller || l.owner == ownerInterrupted
	if caller != (l.readingFor != nil) || l.owner == ownerNone {
		panic(fmt.Sprintf("tunnel: a read for %p, but the owner of the reading is %v", l.readingFor, l.owner))
	}
}

func (l *readLoop) setOwner(after readOwner) {
	c := l.conn
	before := l.owner
	l.owner = after
	switch {
	case after == ownerInterrupted:
		_ = c.nc.SetReadDeadline(time.Unix(1, 0)) // fails only on a closed connection, whose reads fail too
	case before == ownerInterrupted:
		_ = c.nc.SetReadDeadline(time.Time{}) // likewise: the next read reports the error
	}
	if after == ownerLoop {
		l.aloneCalls = 0
		select {
		case l.reclaimed <- struct{}{}:
		default:
		}
	}
}

// readError converts an error of a read to the reason why reading stops.
func (l *readLoop) readError(err error) error {
	switch {
	case errors.Is(err, errYielded), errors.Is(err, errInterrupted):
		return err
	case l.readingFor != nil && isInterruption(err):
		return errInterrupted
	}
	return lostError(err)
}

// readAsCaller reads until the call is answered or its caller is interrupted. It reports whether
// the caller must watch its context from then on, because the call has been open for some time.
func (l *readLoop) readAsCaller(call *Call) (watch bool) {
	c := l.conn
	l.readingFor, l.answered = call, false
	l.ownerEpoch.Add(1)
	err := l.readFrames()
	l.readingFor = nil
	l.ownerEpoch.Add(1)
	if err != nil && !errors.Is(err, errInterrupted) {
		l.readingEnded(err)
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.out.corked = false
	if err == nil && c.sendWindow.open == 0 && l.in.betweenFrames() && c.err == nil {
		l.applyOwnerEvent(eventAnswered)
	} else {
		l.applyOwnerEvent(eventLeft)
	}
	if err != nil && c.open.holds(call.id, call) {
		c.sweeper.remove(call)
		watch = true
	}
	c.flush()
	return watch
}

// yieldReading reports whether the read loop is to park, and if so gives up ownership. The caller
// must hold c.mu.
func (l *readLoop) yieldReading() bool {
	c := l.conn
	if l.aloneCalls < yieldAfter || c.sendWindow.open > 0 || !c.dialled || c.err != nil || c.peerDrained || c.idle != nil {
		return false
	}
	if l.owner != ownerLoop || !l.applyOwnerEvent(eventYielded) {
		return false
	}
	l.ownerEpoch.Add(2) // the Watchdog notices activity, and the count stays even
	return true
}

// beginWait prepares for a caller that is going to wait. The caller becomes the reader of the
// connection if no other call is open and the read loop is parked. The caller must hold Conn.mu.
func (l *readLoop) beginWait(call *Call) {
	call.readsConn = false
	if l.conn.sendWindow.open > 1 {
		l.applyOwnerEvent(eventBegun)
		return
	}
	if l.owner == ownerLoop {
		l.aloneCalls++
		return
	}
	call.readsConn = l.applyOwnerEvent(eventBegunAlone)
}

// awaitReclaim parks the read loop until it is to read again. It returns false if the connection
// has ended.
func (l *readLoop) awaitReclaim() bool {
	c := l.conn
	l.ensureWatched()
	select {
	case <-l.reclaimed:
		return true
	case <-c.done:
		return false
	}
}

// interruptReader applies eventStalled if epoch is still ownerEpoch: a caller that has been reading
// since then stops, and an idle connection gets its read loop back.
func (l *readLoop) interruptReader(epoch uint64) {
	c := l.conn
	if !c.dialled {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if l.ownerEpoch.Load() == epoch && c.err == nil {
		l.applyOwnerEvent(eventStalled)
	}
}

// isInterruption reports whether err of a read means that the reading caller has been interrupted.
func isInterruption(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }

// Unparking another goroutine for each call costs more than most handlers take, so the read loop
// may run a handler inline. The frames behind the call wait meanwhile. Reading therefore passes to
// another goroutine when the handler is about to block ([Incoming.MayBlock]), and when it turns out
// to take long (see [Watchdog]).

// Work is work that the read loop runs inline.
type Work interface {
	// Serve does the work. It should take no longer than unparking a goroutine, a few microseconds.
	// A watchdog covers longer ones.
	Serve()
}

// RunInline makes the read loop run work inline once ServeUnary, from which it must be called, has
// returned. The request is no longer available then. Each call of ServeUnary may call it once.
func (in *Incoming) RunInline(work Work) {
	c := in.conn()
	c.reading.inlineWork, c.reading.inlineCall = work, in
}

// MoreBuffered reports whether further data has already been read behind this call on the
// connection, which work run inline would delay. It is for use in ServeUnary.
func (in *Incoming) MoreBuffered() bool { return in.conn().reading.in.end > in.conn().reading.frameEnd }

// MayBlock announces that the work which serves the call may block. If that work runs inline,
// another goroutine takes over reading, and MayBlock returns true. Otherwise it does nothing. It
// must be called on the goroutine that runs the work.
func (in *Incoming) MayBlock() bool {
	return in.ctx.inlineEpoch != 0 && in.conn().reading.replaceReadLoop(in.ctx.inlineEpoch)
}

// errReadLoopReplaced stops a read loop whose reading another goroutine has taken over.
var errReadLoopReplaced = errors.New("tunnel: another goroutine reads")

// runInline runs the work that a handler left for the read loop. It reports whether this
// goroutine is still the read loop afterwards.
func (l *readLoop) runInline() bool {
	c := l.conn
	l.publish()
	work, in := l.inlineWork, l.inlineCall
	l.inlineWork, l.inlineCall = nil, nil
	epoch := l.inlineEpoch.Add(1) // odd: inline work is running
	in.ctx.inlineEpoch = epoch
	l.ensureWatched()
	l.runWork(work, in, epoch)
	if !l.inlineEpoch.CompareAndSwap(epoch, epoch+1) {
		return false
	}
	if l.inlineCalls++; l.inlineCalls%inlineBatch == 0 {
		_ = l.beforeRead(false) // never fails when not between frames
		c.mu.Lock()
		c.out.corked = true
		c.mu.Unlock()
	}
	return true
}

func (l *readLoop) runWork(work Work, in *Incoming, epoch uint64) {
	c := l.conn
	returned := false
	defer func() {
		if returned {
			return
		}
		f := usercode.Outcome(false, recover())
		if f.Goexit {
			l.replaceReadLoop(epoch) // Goexit ends the goroutine of the read loop
		}
		if !in.replied.Load() {
			in.Reply(nil, c.handlerFailed(in.Procedure, f))
		}
	}()
	work.Serve()
	returned = true
}

// inlineBatch is the number of inline calls after which their answers are written although further
// calls are already buffered, so that the other side can proceed. It is a small multiple of the
// cost of a system call.
const inlineBatch = 16

// replaceReadLoop starts another read loop if the inline work of the given epoch still occupies
// this one, and reports whether it did.
func (l *readLoop) replaceReadLoop(epoch uint64) bool {
	if !l.inlineEpoch.CompareAndSwap(epoch, epoch+1) {
		return false
	}
	go l.read()
	return true
}

// ensureWatched registers the connection with the [Watchdog].
func (l *readLoop) ensureWatched() {
	if !l.watched.Load() {
		l.conn.cfg.Watchdog.add(l)
	}
}

var _ watchable = (*readLoop)(nil)

func (l *readLoop) activity() readActivity {
	a := readActivity{inlineEpoch: l.inlineEpoch.Load(), ownerEpoch: l.ownerEpoch.Load()}
	if l.conn.dialled {
		a.calls = l.conn.calls.Load() // served calls change inlineEpoch if they need the Watchdog
	}
	return a
}

func (l *readLoop) sweep(scratch []sweptCall) (_ []sweptCall, empty bool) {
	if !l.conn.dialled {
		return scratch, true
	}
	return l.conn.sweeper.tick(scratch)
}

func (l *readLoop) setWatched(now bool) (before bool) { return l.watched.Swap(now) }

// inlining is the connection's state of inline work.
type inlining struct {
	// inlineEpoch is the epoch of inline work: it is incremented when work begins and when it ends,
	// so it is odd while some runs. The goroutine that increments an odd value decides which
	// goroutine reads from then on.
	inlineEpoch atomic.Uint64
	// watched reports whether the connection is registered with the Watchdog.
	watched atomic.Bool

	// Owned by the read loop. inlineWork is the work left for it, inlineCall the call that the work
	// serves, and frameEnd the end of the current frame in the buffer.
	inlineWork Work
	inlineCall *Incoming
	frameEnd   int
	// inlineCalls counts the calls that were served inline.
	inlineCalls uint
}
