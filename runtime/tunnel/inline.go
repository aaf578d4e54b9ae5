package tunnel

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/raylink/raylink/runtime/internal/usercode"
)

// Waking another goroutine for each call costs more than most handlers take, so the reading
// goroutine may run a handler itself. What is behind it on the connection waits meanwhile;
// therefore reading is handed over to another goroutine when the handler is about to wait for
// something (callContext.Waits), and when it turns out to take long ([Overseer]).

// Work is what the reading goroutine is to do itself.
type Work interface {
	// Serve does the work. It should take no longer than waking a goroutine, a few microseconds,
	// and is overseen in case it does.
	Serve()
}

// ServeHere makes the reading goroutine do the work when ServeUnary, in which it is called, has
// returned. The request is not there any more then. One call of it counts for each call of
// ServeUnary.
func (in *Incoming) ServeHere(work Work) {
	c := in.conn()
	c.inline, c.inlineCall = work, in
}

// MoreBehind says whether something that has been read already is behind this call on the
// connection, and would wait for work that is done here. It is for use in ServeUnary.
func (in *Incoming) MoreBehind() bool { return in.conn().in.end > in.conn().frameEnd }

// Waits tells the connection that the work which serves the call is about to wait for others: if
// that work is done on the reading goroutine, another one goes on reading, and the answer is true.
// It is a method of [Incoming.Context]'s result.
func (c *callContext) Waits() bool {
	return c.inlineTurn != 0 && c.conn.handOver(c.inlineTurn)
}

// errHandedOver ends a reading goroutine whose work another one goes on with.
var errHandedOver = errors.New("tunnel: reading was handed over")

// serveInline does what a handler has left for the reading goroutine. It reports whether that still
// is the reading goroutine afterwards.
func (c *Conn) serveInline() bool {
	c.publish()
	work, in := c.inline, c.inlineCall
	c.inline, c.inlineCall = nil, nil
	turn := c.turns.Add(1) // odd: at work
	in.ctx.inlineTurn = turn
	if !c.overseen.Load() {
		c.cfg.Overseer.add(c)
	}
	c.serveWork(work, in, turn)
	if !c.turns.CompareAndSwap(turn, turn+1) {
		return false
	}
	if c.inlined++; c.inlined%inlineBatch == 0 {
		_ = c.beforeRead(false) // which only says no between frames
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
			c.handOver(turn) // this was the reading goroutine
		}
		if !in.replied.Load() {
			in.Reply(nil, c.failed(in.Procedure, f))
		}
	}()
	work.Serve()
	returned = true
}

// inlineBatch is after how many calls their answers are written, though more calls have been read:
// so the other side has something to do meanwhile. It is a small multiple of what a system call
// costs.
const inlineBatch = 16

// handOver makes another goroutine go on reading, if the work of that turn still keeps this one.
func (c *Conn) handOver(turn uint64) bool {
	if !c.turns.CompareAndSwap(turn, turn+1) {
		return false
	}
	go c.read()
	return true
}

// Overseer is what sweeps the connections of a process on which something goes on, every
// millisecond. A reading goroutine that is found in the same handler twice is given another one to
// read with; a caller that is found reading twice stops; and callers are notified of the end of
// their contexts, see [Conn.Wait]. Connections of one process share one; the zero value is ready.
type Overseer struct {
	mu    sync.Mutex // guards what follows
	conns map[*Conn]*overseen
	timer *time.Timer
	armed bool

	// Owned by the tick: memory to use again.
	tick  []*overseen
	found []openCall
}

// overseen is what was last seen of a connection, and how often in a row nothing was left to do for
// it.
type overseen struct {
	conn               *Conn
	turn, spell, calls uint64
	times              int
}

const (
	// overseeEvery is how often the connections are swept. A handler keeps a connection for twice
	// that at the most.
	overseeEvery = time.Millisecond
	// overseeQuiet is how often in a row nothing is left to do and no call begins, before a
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

// look is one tick. There is one at a time: it starts the timer anew when it is done.
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

// sweep looks at one connection. It stays with the Overseer for as long as anything is left that
// only the Overseer sees to.
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
	// First the mark, then another look: what begins looks for the mark after it has left its
	// trace.
	c.overseen.Store(false)
	if last.unchanged() {
		delete(o.conns, c)
		return
	}
	c.overseen.Store(true)
}

// see notes how the connection is now.
func (l *overseen) see() {
	l.turn, l.spell, l.calls = l.conn.turns.Load(), l.conn.spells.Load(), 0
	if l.conn.dialled {
		l.calls = l.conn.calls.Load() // those that are served leave their trace in turn, if they need it
	}
}

func (l *overseen) unchanged() bool {
	now := overseen{conn: l.conn}
	now.see()
	return now.turn == l.turn && now.spell == l.spell && now.calls == l.calls
}

// inlining is a connection's part in all this.
type inlining struct {
	// turns counts the beginnings and ends of work on the reading goroutine: it is odd while some
	// is done. Who adds one to an odd count decides which goroutine reads from then on.
	turns atomic.Uint64
	// overseen says that the overseer knows the connection.
	overseen atomic.Bool

	// What follows belongs to the reading goroutine: the work that is left for it, for which call,
	// and where the frame at hand ends.
	inline     Work
	inlineCall *Incoming
	frameEnd   int
	// inlined counts the calls that were served so.
	inlined uint
}
