package tunnel

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/raylink/raylink/runtime/internal/usercode"
)

// Waking another goroutine for each call costs more than most handlers take, so the read loop may
// run a handler inline. The frames behind the call wait meanwhile. Reading is therefore handed over
// to another goroutine when the handler is about to block (callContext.Waits), and when it turns
// out to take long (see [Overseer]).

// Work is work that the read loop runs inline.
type Work interface {
	// Serve does the work. It should take no longer than waking a goroutine, a few microseconds. A
	// watchdog covers longer ones.
	Serve()
}

// ServeHere makes the read loop run work inline once ServeUnary, from which it must be called, has
// returned. The request is no longer available then. Each call of ServeUnary may call it once.
func (in *Incoming) ServeHere(work Work) {
	c := in.conn()
	c.inline, c.inlineCall = work, in
}

// MoreBehind reports whether further data has already been read behind this call on the connection,
// which work run inline would delay. It is for use in ServeUnary.
func (in *Incoming) MoreBehind() bool { return in.conn().in.end > in.conn().frameEnd }

// Waits announces that the work which serves the call may block. If that work runs inline, another
// goroutine takes over reading, and Waits returns true. Waits is a method of the context that
// [Incoming.Context] returns.
func (c *callContext) Waits() bool {
	return c.inlineTurn != 0 && c.conn.handOver(c.inlineTurn)
}

// errHandedOver stops a read loop whose reading another goroutine has taken over.
var errHandedOver = errors.New("tunnel: reading was handed over")

// serveInline runs the work that a handler left for the read loop. It reports whether this
// goroutine is still the read loop afterwards.
func (c *Conn) serveInline() bool {
	c.publish()
	work, in := c.inline, c.inlineCall
	c.inline, c.inlineCall = nil, nil
	turn := c.turns.Add(1) // odd: inline work is running
	in.ctx.inlineTurn = turn
	if !c.overseen.Load() {
		c.cfg.Overseer.add(c)
	}
	c.serveWork(work, in, turn)
	if !c.turns.CompareAndSwap(turn, turn+1) {
		return false
	}
	if c.inlined++; c.inlined%inlineBatch == 0 {
		_ = c.beforeRead(false) // never fails when not between frames
		c.mu.Lock()
		c.out.corked = true
		c.mu.Unlock()
	}
	return true
}

func (c *Conn) serveWork(work Work, in *Incoming, turn uint64) {
	returned := false
	defer func() {
		if returned {
			return
		}
		f := usercode.Outcome(false, recover())
		if f.Goexit {
			c.handOver(turn) // Goexit ends the goroutine of the read loop
		}
		if !in.replied.Load() {
			in.Reply(nil, c.failed(in.Procedure, f))
		}
	}()
	work.Serve()
	returned = true
}

// inlineBatch is the number of inline calls after which their answers are written although further
// calls are already buffered, so that the other side can proceed. It is a small multiple of the
// cost of a system call.
const inlineBatch = 16

// handOver starts another read loop if the inline work of the given epoch still occupies this one,
// and reports whether it did.
func (c *Conn) handOver(turn uint64) bool {
	if !c.turns.CompareAndSwap(turn, turn+1) {
		return false
	}
	go c.read()
	return true
}

// Overseer is the watchdog and sweeper of the active connections of a process. It ticks every
// millisecond. If a read loop is found in the same handler at two consecutive ticks, another
// goroutine takes over reading. If a caller is found reading at two consecutive ticks, it is
// interrupted. Callers whose contexts have ended are notified, see [Conn.Wait]. The connections of
// a process share one Overseer. The zero value is ready to use.
type Overseer struct {
	mu    sync.Mutex // guards the fields below
	conns map[*Conn]*overseen
	timer *time.Timer
	armed bool

	// Owned by the tick: scratch memory.
	tick  []*overseen
	found []openCall
}

// overseen is the last observed state of a connection, and the number of consecutive ticks without
// anything left to do for it.
type overseen struct {
	conn               *Conn
	turn, spell, calls uint64
	times              int
}

const (
	// overseeEvery is the interval between ticks. An inline handler occupies the read loop for at
	// most twice that.
	overseeEvery = time.Millisecond
	// overseeQuiet is the number of consecutive ticks without work or new calls after which a
	// connection is no longer swept.
	overseeQuiet = 50
)

func (o *Overseer) add(c *Conn) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if c.overseen.Swap(true) {
		return
	}
	if o.conns == nil {
		o.conns = make(map[*Conn]*overseen)
	}
	last := &overseen{conn: c}
	last.see()
	o.conns[c] = last
	if o.armed {
		return
	}
	o.armed = true
	if o.timer == nil {
		o.timer = time.AfterFunc(overseeEvery, o.look)
		return
	}
	o.timer.Reset(overseeEvery)
}

// look is one tick. Ticks do not overlap: each rearms the timer at its end.
func (o *Overseer) look() {
	o.mu.Lock()
	for _, last := range o.conns {
		o.tick = append(o.tick, last)
	}
	o.mu.Unlock()
	for _, last := range o.tick {
		o.sweep(last)
	}
	clear(o.tick)
	o.tick = o.tick[:0]
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.armed = len(o.conns) > 0; o.armed {
		o.timer.Reset(overseeEvery)
	}
}

// sweep handles one connection. The connection stays registered while there is anything that only
// the Overseer does for it.
func (o *Overseer) sweep(last *overseen) {
	c, before := last.conn, *last
	last.see()
	same := last.turn == before.turn && last.spell == before.spell
	if same && last.turn%2 == 1 {
		c.handOver(last.turn)
	}
	swept := true
	if c.dialled {
		if o.found, swept = c.sweepContexts(o.found); same {
			c.interrupt(last.spell)
		}
	}
	if !swept || !same || last.calls != before.calls || last.spell%2 == 1 {
		last.times = 0
		return
	}
	if last.times++; last.times <= overseeQuiet {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	// Clear the mark first and check again afterwards: whatever begins checks the mark after it has
	// changed the state.
	c.overseen.Store(false)
	if last.unchanged() {
		delete(o.conns, c)
		return
	}
	c.overseen.Store(true)
}

// see records the current state of the connection.
func (l *overseen) see() {
	l.turn, l.spell, l.calls = l.conn.turns.Load(), l.conn.spells.Load(), 0
	if l.conn.dialled {
		l.calls = l.conn.calls.Load() // served calls change turn if they need the watchdog
	}
}

func (l *overseen) unchanged() bool {
	now := overseen{conn: l.conn}
	now.see()
	return now.turn == l.turn && now.spell == l.spell && now.calls == l.calls
}

// inlining is the connection's state of inline work.
type inlining struct {
	// turns is the epoch of inline work: it is incremented when work begins and when it ends, so it
	// is odd while some runs. The goroutine that increments an odd value decides which goroutine
	// reads from then on.
	turns atomic.Uint64
	// overseen reports whether the connection is registered with the Overseer.
	overseen atomic.Bool

	// Owned by the read loop. inline is the work left for it, inlineCall the call that the work
	// serves, and frameEnd the end of the current frame in the buffer.
	inline     Work
	inlineCall *Incoming
	frameEnd   int
	// inlined counts the calls that were served inline.
	inlined uint
}
