package tunnel

import (
	"sync"
	"time"
)

// Watchdog limits how long the goroutine that reads a connection does anything else, for all active
// connections of a process. It ticks every millisecond. If a read loop is found in the same handler
// at two consecutive ticks, another goroutine takes over reading. If a caller is found reading at
// two consecutive ticks, it is interrupted. Each tick also runs the connections' sweepers. The
// connections of a process share one Watchdog. The zero value is ready to use, and a Watchdog
// without active connections has no running timer. Its methods are safe for concurrent use.
type Watchdog struct {
	mu    sync.Mutex // guards the fields below
	conns map[watchable]*watchedConn
	timer *time.Timer
	armed bool

	// Owned by the tick: scratch memory.
	scratch      []*watchedConn
	scratchCalls []sweptCall
}

// watchable is a connection as its Watchdog sees it. Its methods must not block.
type watchable interface {
	// activity returns the current state.
	activity() readActivity
	// replaceReadLoop starts another read loop if the inline work of the given epoch still occupies
	// this one, and reports whether it did.
	replaceReadLoop(epoch uint64) bool
	// interruptReader stops a caller that has been reading since the given epoch, and unparks the
	// read loop of an idle connection.
	interruptReader(epoch uint64)
	// sweep is a tick of the connection's sweeper, see [sweeper.tick].
	sweep(scratch []sweptCall) (_ []sweptCall, empty bool)
	// setWatched records whether the connection is registered, and returns whether it was. Whatever
	// begins on a connection reads that after it has changed the activity.
	setWatched(now bool) (before bool)
}

// readActivity is what the goroutine that reads a connection is doing. If it has not changed
// between two ticks, it has been doing the same all the time.
type readActivity struct {
	// inlineEpoch is odd while the read loop runs a handler inline, and ownerEpoch while a caller
	// reads. Both change whenever that begins or ends.
	inlineEpoch, ownerEpoch uint64
	// calls counts the calls begun by this side.
	calls uint64
}

func (a readActivity) runsInline() bool  { return a.inlineEpoch%2 == 1 }
func (a readActivity) callerReads() bool { return a.ownerEpoch%2 == 1 }

// sameReader reports whether the same handler or caller occupied the reading all the time.
func (a readActivity) sameReader(b readActivity) bool {
	return a.inlineEpoch == b.inlineEpoch && a.ownerEpoch == b.ownerEpoch
}

// watchedConn is the last observed state of a connection, and the number of consecutive ticks
// without anything left to do for it.
type watchedConn struct {
	conn      watchable
	last      readActivity
	idleTicks int
}

const (
	// watchdogPeriod is the interval between ticks. An inline handler occupies the read loop for at
	// most twice that.
	watchdogPeriod = time.Millisecond
	// watchdogIdleTicks is the number of consecutive ticks without work or new calls after which a
	// connection is no longer watched.
	watchdogIdleTicks = 50
)

// add registers a connection, if it is not registered yet.
func (w *Watchdog) add(c watchable) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if c.setWatched(true) {
		return
	}
	if w.conns == nil {
		w.conns = make(map[watchable]*watchedConn)
	}
	w.conns[c] = &watchedConn{conn: c, last: c.activity()}
	if w.armed {
		return
	}
	w.armed = true
	if w.timer == nil {
		w.timer = time.AfterFunc(watchdogPeriod, w.tick)
		return
	}
	w.timer.Reset(watchdogPeriod)
}

// tick checks all registered connections. Ticks do not overlap: each rearms the timer at its end.
func (w *Watchdog) tick() {
	w.mu.Lock()
	for _, conn := range w.conns {
		w.scratch = append(w.scratch, conn)
	}
	w.mu.Unlock()
	for _, conn := range w.scratch {
		w.check(conn)
	}
	clear(w.scratch)
	w.scratch = w.scratch[:0]
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.armed = len(w.conns) > 0; w.armed {
		w.timer.Reset(watchdogPeriod)
	}
}

// check handles one connection. The connection stays registered while there is anything that only
// the Watchdog does for it.
func (w *Watchdog) check(conn *watchedConn) {
	c, before := conn.conn, conn.last
	conn.last = c.activity()
	now := conn.last
	same := now.sameReader(before)
	if same && now.runsInline() {
		c.replaceReadLoop(now.inlineEpoch)
	}
	var noCalls bool
	w.scratchCalls, noCalls = c.sweep(w.scratchCalls)
	if same {
		c.interruptReader(now.ownerEpoch)
	}
	if !noCalls || now != before || now.callerReads() {
		conn.idleTicks = 0
		return
	}
	if conn.idleTicks++; conn.idleTicks <= watchdogIdleTicks {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	// Clear the mark first and check again afterwards: whatever begins checks the mark after it has
	// changed the activity.
	c.setWatched(false)
	if c.activity() == now {
		delete(w.conns, c)
		return
	}
	c.setWatched(true)
}
