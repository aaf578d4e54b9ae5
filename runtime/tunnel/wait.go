package tunnel

import (
	"context"
	"errors"
	"time"

	"github.com/raylink/raylink/runtime/internal/faults"
)

// Most calls are over in less than a millisecond, and to watch their contexts meanwhile costs more
// than all else that their callers do: a channel and a select for a caller that waits, a
// registration for another. So at first only the sweeper ([Overseer]) looks at them, every
// millisecond. A caller whose context has ended, or whose call has been open for some time, is
// notified to watch its context itself from then on. A call costs the sweeper a bounded number of
// looks, however many others there are and have been.

// waiting is the part of a call that has [Call.Waits] or [Call.Follow].
type waiting struct {
	// tokens has, for a caller that waits, room for both: watch, at the most once, and then over.
	tokens chan token

	// Guarded by the connection's lock, while the call is open: the caller's context, how often the
	// sweeper has looked at it, and, if only the sweeper does, where in the connection's sweep the
	// call is, counted from 1.
	ctx   context.Context //nolint:containedctx // as long as the caller waits
	looks int
	place int
	// reads says that the caller is to read the connection itself. Only Start and Wait use it.
	reads bool
}

// token notifies a caller that waits.
type token uint8

const (
	// watch: from now on the caller is to watch its context.
	watch token = iota
	// over: the call is.
	over
)

const (
	// mostLooks is how often the sweeper looks at the context of a call before its caller is to
	// watch it.
	mostLooks = 8
	// sweepAtOnce is how many calls of a connection are all looked at in each tick. Of more of them
	// each tick takes a part, so that each is looked at every sweepTicks ticks at the latest.
	sweepAtOnce = 2048
	sweepTicks  = 4
	// sweepChunk is how many are looked at for each time that the connection's lock is taken.
	sweepChunk = 256
)

// sweep has the calls of a connection whose contexts only the sweeper looks at, in no order. It is
// guarded by the connection's lock.
//
// A round looks at all of them, from the last to the first. Where one is removed the last takes its
// place: that one has been looked at in this round or is new, so none is ever passed over.
type sweep struct {
	calls []*Call
	// next is where the round has got to: calls[:next] are still to be looked at. quota is how many
	// of a round a tick looks at, and due, how many are left of that in this tick.
	next, quota, due int
}

func (s *sweep) add(call *Call) {
	s.calls = append(s.calls, call)
	call.place = len(s.calls)
}

// remove does nothing for a call that is not there.
func (s *sweep) remove(call *Call) {
	if call.place == 0 {
		return
	}
	i, last := call.place-1, len(s.calls)-1
	moved := s.calls[last]
	s.calls[i], moved.place = moved, i+1
	s.calls[last], call.place = nil, 0
	s.calls = s.calls[:last]
	s.next = min(s.next, last)
	if last == 0 && cap(s.calls) > keptSlots {
		s.calls = nil // after a burst
	}
}

func (s *sweep) clear() {
	for _, call := range s.calls {
		call.place = 0
	}
	*s = sweep{}
}

// tick begins a tick.
func (s *sweep) tick() {
	if s.next == 0 {
		s.next = len(s.calls)
		ticks := min(max(s.next/sweepAtOnce, 1), sweepTicks)
		s.quota = (s.next + ticks - 1) / ticks
	}
	s.due = s.quota
}

// Reset makes a call that is over one that can be started again, without what it had; it keeps what
// waiting needs.
func (call *Call) Reset() {
	*call = Call{Waits: call.Waits, Verdict: call.Verdict, waiting: waiting{tokens: call.tokens}}
}

// expect prepares for a caller that is going to wait: it is to read its own answer if it is alone
// and the read loop is parked. Callers hold the lock.
func (c *Conn) expect(call *Call) {
	if call.tokens == nil {
		call.tokens = make(chan token, 2)
	}
	call.reads = false
	if c.gate.open > 1 {
		c.passOwnership(begun)
		return
	}
	if c.owner == ownedByLoop {
		c.alone++
		return
	}
	call.reads = c.passOwnership(begunAlone)
}

// sweepLater leaves the call's context to the sweeper. Callers hold the lock.
func (c *Conn) sweepLater(ctx context.Context, call *Call) {
	call.ctx, call.looks = ctx, 0
	c.unwatched.add(call)
	if !c.overseen.Load() {
		c.cfg.Overseer.add(c)
	}
}

// Wait waits until a call that Waits is over. It must be called once after each successful
// [Conn.Start] of such a call, with the same context, and may make the caller read the connection
// meanwhile. If the context ends first, the call is cancelled with what ended makes of it: at once
// where the call has been open for some milliseconds, and within two milliseconds before that, or
// five if thousands of calls are as young. A call that asks for a Verdict takes up to VerdictGrace
// longer after a deadline.
func (c *Conn) Wait(ctx context.Context, call *Call, ended func(context.Context) error) {
	watches := call.reads && c.readFor(call)
	if !watches && <-call.tokens == over {
		return
	}
	for {
		select {
		case t := <-call.tokens:
			if t == over {
				return
			}
		case <-ctx.Done():
			if call.Verdict && call.awaitVerdict(ctx) {
				return
			}
			call.Cancel(ended(ctx))
			for <-call.tokens != over {
			}
			return
		}
	}
}

// VerdictGrace is how long after its deadline a call waits for the peer, which has the same
// deadline, to say how far the call had come: whether it still waited, or ran. The peer looks at
// the deadline of a call that waits only when it is asked, after verdictAsk.
const (
	VerdictGrace = 4 * time.Millisecond
	verdictAsk   = time.Millisecond
)

// awaitVerdict waits for the peer's word on a call whose deadline has passed. It returns whether
// the call is over. A call that was cancelled before its deadline waits for nothing.
func (call *Call) awaitVerdict(ctx context.Context) bool {
	if !errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return false
	}
	limit := time.NewTimer(verdictAsk)
	defer limit.Stop()
	for asked := false; ; {
		select {
		case t := <-call.tokens:
			if t == over {
				return true
			}
		case <-limit.C:
			if asked || !call.askVerdict() {
				return false
			}
			asked = true
			limit.Reset(VerdictGrace - verdictAsk)
		}
	}
}

// AwaitVerdict waits, for VerdictGrace at most, until done is closed, which the outcome of a call
// with Done does, for the peer's word on a call whose deadline has passed.
func (call *Call) AwaitVerdict(done <-chan struct{}) {
	limit := time.NewTimer(verdictAsk)
	defer limit.Stop()
	select {
	case <-done:
		return
	case <-limit.C:
	}
	if !call.askVerdict() {
		return
	}
	limit.Reset(VerdictGrace - verdictAsk)
	select {
	case <-done:
	case <-limit.C:
	}
}

// askVerdict cancels the call at the peer and leaves it open here, for the peer's reply. It returns
// false where none will come: the call is over, or was never sent.
func (call *Call) askVerdict() bool {
	c := call.conn
	c.mu.Lock()
	defer c.mu.Unlock()
	if int(call.id) >= len(c.slots) || c.slots[call.id].call != call || call.parcel != nil && !call.parcel.started {
		return false
	}
	c.out.frame(kindCancel, call.id, nil)
	c.kick()
	return true
}

// openCall is a call that the sweeper looks at.
type openCall struct {
	id   uint32
	call *Call
	ctx  context.Context //nolint:containedctx // for one look
	// follow is to be called: the call has been open for long.
	follow func()
}

// sweepContexts looks at calls whose contexts only the sweeper looks at, and notifies the callers
// of those that have been open for long, or whose contexts have ended. found is memory to use, and
// returned for the next time. swept says that no such call is left.
func (c *Conn) sweepContexts(found []openCall) (_ []openCall, swept bool) {
	c.mu.Lock()
	c.unwatched.tick()
	for c.unwatched.due > 0 && c.unwatched.next > 0 {
		found = c.nextUnwatched(found[:0])
		c.mu.Unlock()
		// A context's Err and what Follow does are others' code, which is not called with the lock.
		for _, o := range found {
			if o.follow == nil && o.ctx.Err() != nil {
				o.follow = c.notify(o)
			}
			if o.follow != nil {
				o.follow()
			}
		}
		clear(found)
		c.mu.Lock()
	}
	swept = len(c.unwatched.calls) == 0
	c.mu.Unlock()
	return found, swept
}

// nextUnwatched takes the next calls of a round. Callers hold the lock.
func (c *Conn) nextUnwatched(found []openCall) []openCall {
	s := &c.unwatched
	for n := min(s.due, s.next, sweepChunk); n > 0; n-- {
		s.next--
		s.due--
		call := s.calls[s.next]
		o := openCall{id: call.id, call: call, ctx: call.ctx}
		if call.looks++; call.looks > mostLooks {
			o.follow = c.toWatch(call)
		}
		found = append(found, o)
	}
	return found
}

// notify is for a call whose context has ended: it makes its caller watch the context, if it is
// still that call. (If it is another that uses the same memory, that one is notified too early,
// which does no harm.)
func (c *Conn) notify(o openCall) func() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.slotOf(o.id); s != nil && s.call == o.call && o.call.place > 0 {
		return c.toWatch(o.call)
	}
	return nil
}

// toWatch makes the caller watch its context: one that waits has a token, and for another that is
// done by what is returned. Callers hold the lock.
func (c *Conn) toWatch(call *Call) func() {
	c.unwatched.remove(call)
	if call.Waits {
		if !faults.Deafness {
			call.tokens <- watch
		}
		return nil
	}
	return call.Follow
}
