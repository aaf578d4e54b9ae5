package tunnel

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"
)

// Waking another goroutine for each call costs more than most handlers take, so the reading goroutine may run a handler itself. What is
// behind it on the connection waits meanwhile; therefore reading is handed over to another goroutine when the handler is about to wait for
// something (callContext.Waits), and when it turns out to take long ([Overseer]).

// Work is what the reading goroutine is to do itself.
type Work interface {
	// Serve does the work. It should take no longer than waking a goroutine, a few microseconds, and is overseen in case it does.
	Serve()
}

// ServeHere makes the reading goroutine do the work when ServeUnary, in which it is called, has returned. The request is not there any more
// then. One call of it counts for each call of ServeUnary.
func (in *Incoming) ServeHere(work Work) {
	c := in.conn()
	c.inline, c.inlineCall = work, in
}

// MoreBehind says whether something that has been read already is behind this call on the connection, and would wait for work that is done
// here. It is for use in ServeUnary.
func (in *Incoming) MoreBehind() bool { return in.conn().in.end > in.conn().frameEnd }

// Waits tells the connection that the work which serves the call is about to wait for others: if that work is done on the reading goroutine,
// another one goes on reading, and the answer is true. It is a method of [Incoming.Context]'s result.
func (c *callContext) Waits() bool {
	return c.inlineTurn != 0 && c.conn.handOver(c.inlineTurn)
}

// errHandedOver ends a reading goroutine whose work another one goes on with.
var errHandedOver = errors.New("tunnel: reading was handed over")

// serveInline does what a handler has left for the reading goroutine. It reports whether that still is the reading goroutine afterwards.
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
		switch value := recover(); {
		case value != nil:
			in.Reply(nil, c.recovered(in.Procedure, value))
		case !returned:
			c.handOver(turn) // the handler ended this goroutine
		}
	}()
	work.Serve()
	returned = true
}

// inlineBatch is after how many calls their answers are written, though more calls have been read: so the other side has something to do
// meanwhile. It is a small multiple of what a system call costs.
const inlineBatch = 16

// handOver makes another goroutine go on reading, if the work of that turn still keeps this one.
func (c *Conn) handOver(turn uint64) bool {
	if !c.turns.CompareAndSwap(turn, turn+1) {
		return false
	}
	go c.read()
	return true
}

// Overseer looks after connections whose reading goroutine runs handlers: every millisecond, for as long as there is any. One that is found at
// the same work twice is given another goroutine to read with. Connections of one process share one; the zero value is ready.
type Overseer struct {
	mu    sync.Mutex // guards all below
	conns map[*Conn]*overseen
	timer *time.Timer
	armed bool
}

// overseen is what was last seen of a connection, and how often in a row.
type overseen struct {
	turn, spell, calls uint64
	times              int
}

const (
	// overseeEvery is how often is looked. A handler keeps a connection for twice that at the most.
	overseeEvery = time.Millisecond
	// overseeQuiet is how often in a row nothing happens before a connection is no longer looked at.
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
	o.conns[c] = &overseen{turn: c.turns.Load(), spell: c.spells.Load(), calls: c.calls.Load()}
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

func (o *Overseer) look() {
	all, quiet := o.survey()
	var found []openCall
	for i, c := range all {
		found = c.lookAfter(found)
		if spell := quiet[i]; spell != busy {
			c.interrupt(spell)
		}
	}
}

// busy stands for a connection on which somebody's reading has changed since the last look.
const busy = ^uint64(0)

// survey looks at all connections. It returns those that were dialled, each with the spell that it has been in since the last look, or busy.
func (o *Overseer) survey() (dialled []*Conn, quiet []uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for c, last := range o.conns {
		now := overseen{turn: c.turns.Load(), spell: c.spells.Load()}
		if c.dialled {
			now.calls = c.calls.Load()
		}
		quietFor := busy
		if now.turn == last.turn && now.spell == last.spell {
			quietFor = now.spell
			if now.turn%2 == 1 {
				c.handOver(now.turn)
			}
		}
		if c.dialled {
			dialled, quiet = append(dialled, c), append(quiet, quietFor)
		}
		if quietFor == busy || now.calls != last.calls {
			*last = now
			continue
		}
		if last.times++; last.times > overseeQuiet {
			// First the mark, then another look: whoever begins something looks for the mark after.
			c.overseen.Store(false)
			if c.turns.Load() == now.turn && c.spells.Load() == now.spell && (!c.dialled || c.calls.Load() == now.calls) || c.overseen.Swap(true) {
				delete(o.conns, c)
			}
		}
	}
	if o.armed = len(o.conns) > 0; o.armed {
		o.timer.Reset(overseeEvery)
	}
	return dialled, quiet
}

// inlining is a connection's part in all this.
type inlining struct {
	// turns counts the beginnings and ends of work on the reading goroutine: it is odd while some is done. Who adds one to an odd count
	// decides which goroutine reads from then on.
	turns atomic.Uint64
	// overseen says that the overseer knows the connection.
	overseen atomic.Bool

	// What follows belongs to the reading goroutine: the work that is left for it, for which call, and where the frame at hand ends.
	inline     Work
	inlineCall *Incoming
	frameEnd   int
	// inlined counts the calls that were served so.
	inlined uint
}
