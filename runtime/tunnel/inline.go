package tunnel

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/raylink/raylink/internal/usercode"
)

// Waking another goroutine for each call costs more than most handlers take, so the read loop may
// run a handler inline. The frames behind the call wait meanwhile. Reading is therefore handed over
// to another goroutine when the handler is about to block (callContext.Waits), and when it turns
// out to take long (see [Watchdog]).

// Work is work that the read loop runs inline.
type Work interface {
	// Serve does the work. It should take no longer than waking a goroutine, a few microseconds. A
	// watchdog covers longer ones.
	Serve()
}

// RunInline makes the read loop run work inline once ServeUnary, from which it must be called, has
// returned. The request is no longer available then. Each call of ServeUnary may call it once.
func (in *Incoming) RunInline(work Work) {
	c := in.conn()
	c.inlineWork, c.inlineCall = work, in
}

// MoreBuffered reports whether further data has already been read behind this call on the
// connection, which work run inline would delay. It is for use in ServeUnary.
func (in *Incoming) MoreBuffered() bool { return in.conn().in.end > in.conn().frameEnd }

// Waits announces that the work which serves the call may block. If that work runs inline, another
// goroutine takes over reading, and Waits returns true. Waits is a method of the context that
// [Incoming.Context] returns.
func (c *callContext) Waits() bool {
	return c.inlineEpoch != 0 && c.conn.replaceReadLoop(c.inlineEpoch)
}

// errReadLoopReplaced stops a read loop whose reading another goroutine has taken over.
var errReadLoopReplaced = errors.New("tunnel: reading was handed over")

// runInline runs the work that a handler left for the read loop. It reports whether this
// goroutine is still the read loop afterwards.
func (c *Conn) runInline() bool {
	c.publish()
	work, in := c.inlineWork, c.inlineCall
	c.inlineWork, c.inlineCall = nil, nil
	epoch := c.inlineEpoch.Add(1) // odd: inline work is running
	in.ctx.inlineEpoch = epoch
	if !c.watched.Load() {
		c.cfg.Watchdog.add(c)
	}
	c.runWork(work, in, epoch)
	if !c.inlineEpoch.CompareAndSwap(epoch, epoch+1) {
		return false
	}
	if c.inlineCalls++; c.inlineCalls%inlineBatch == 0 {
		_ = c.beforeRead(false) // never fails when not between frames
		c.mu.Lock()
		c.out.corked = true
		c.mu.Unlock()
	}
	return true
}

func (c *Conn) runWork(work Work, in *Incoming, epoch uint64) {
	returned := false
	defer func() {
		if returned {
			return
		}
		f := usercode.Outcome(false, recover())
		if f.Goexit {
			c.replaceReadLoop(epoch) // Goexit ends the goroutine of the read loop
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
func (c *Conn) replaceReadLoop(epoch uint64) bool {
	if !c.inlineEpoch.CompareAndSwap(epoch, epoch+1) {
		return false
	}
	go c.read()
	return true
}

// Watchdog is the watchdog and sweeper of the active connections of a process. It ticks every
// millisecond. If a read loop is found in the same handler at two consecutive ticks, another
// goroutine takes over reading. If a caller is found reading at two consecutive ticks, it is
// interrupted. Callers whose contexts have ended are notified, see [Conn.Wait]. The connections of
// a process share one Watchdog. The zero value is ready to use.
type Watchdog struct {
	mu    sync.Mutex // guards the fields below
	conns map[*Conn]*watchedConn
	timer *time.Timer
	armed bool

	// Owned by the tick: scratch memory.
	scratch      []*watchedConn
	scratchCalls []openCall
}

// watchedConn is the last observed state of a connection, and the number of consecutive ticks
// without anything left to do for it.
type watchedConn struct {
	conn                           *Conn
	inlineEpoch, ownerEpoch, calls uint64
	idleTicks                      int
}

const (
	// watchdogPeriod is the interval between ticks. An inline handler occupies the read loop for at
	// most twice that.
	watchdogPeriod = time.Millisecond
	// watchdogIdleTicks is the number of consecutive ticks without work or new calls after which a
	// connection is no longer swept.
	watchdogIdleTicks = 50
)

func (w *Watchdog) add(c *Conn) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if c.watched.Swap(true) {
		return
	}
	if w.conns == nil {
		w.conns = make(map[*Conn]*watchedConn)
	}
	last := &watchedConn{conn: c}
	last.observe()
	w.conns[c] = last
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

// tick is one tick. Ticks do not overlap: each rearms the timer at its end.
func (w *Watchdog) tick() {
	w.mu.Lock()
	for _, last := range w.conns {
		w.scratch = append(w.scratch, last)
	}
	w.mu.Unlock()
	for _, last := range w.scratch {
		w.sweep(last)
	}
	clear(w.scratch)
	w.scratch = w.scratch[:0]
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.armed = len(w.conns) > 0; w.armed {
		w.timer.Reset(watchdogPeriod)
	}
}

// sweep handles one connection. The connection stays registered while there is anything that only
// the Watchdog does for it.
func (w *Watchdog) sweep(last *watchedConn) {
	c, before := last.conn, *last
	last.observe()
	same := last.inlineEpoch == before.inlineEpoch && last.ownerEpoch == before.ownerEpoch
	if same && last.inlineEpoch%2 == 1 {
		c.replaceReadLoop(last.inlineEpoch)
	}
	swept := true
	if c.dialled {
		if w.scratchCalls, swept = c.sweepContexts(w.scratchCalls); same {
			c.interruptReader(last.ownerEpoch)
		}
	}
	if !swept || !same || last.calls != before.calls || last.ownerEpoch%2 == 1 {
		last.idleTicks = 0
		return
	}
	if last.idleTicks++; last.idleTicks <= watchdogIdleTicks {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	// Clear the mark first and check again afterwards: whatever begins checks the mark after it has
	// changed the state.
	c.watched.Store(false)
	if last.unchanged() {
		delete(w.conns, c)
		return
	}
	c.watched.Store(true)
}

// observe records the current state of the connection.
func (l *watchedConn) observe() {
	l.inlineEpoch, l.ownerEpoch, l.calls = l.conn.inlineEpoch.Load(), l.conn.ownerEpoch.Load(), 0
	if l.conn.dialled {
		l.calls = l.conn.calls.Load() // served calls change inlineEpoch if they need the watchdog
	}
}

func (l *watchedConn) unchanged() bool {
	now := watchedConn{conn: l.conn}
	now.observe()
	return now.inlineEpoch == l.inlineEpoch && now.ownerEpoch == l.ownerEpoch && now.calls == l.calls
}

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
