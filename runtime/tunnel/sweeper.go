package tunnel

import (
	"context"
	"sync"
)

const (
	// maxChecks is how often the sweeper checks the context of a call before the caller has to
	// watch it.
	maxChecks = 8
	// sweepAtOnce is the number of calls per connection up to which every tick checks all of them.
	// With more calls each tick checks a part, so that every call is checked at least once in
	// sweepTicks ticks.
	sweepAtOnce = 2048
	sweepTicks  = 4
	// sweepChunk is the number of calls checked per acquisition of the connection's lock.
	sweepChunk = 256
)

// sweeper checks the contexts of a connection's young calls. Watching the context of each would
// cost more than everything else that a caller does: a channel and a select for a caller that
// waits, a registration for one that does not. Most calls finish in less than a millisecond, so at
// first only the sweeper checks their contexts, at every tick of the [Watchdog]. A caller whose
// context has ended, or whose call has been open for some time, is notified to watch its context
// itself from then on. The sweeper thus checks each call a bounded number of times, however many
// other calls there are.
//
// A round visits all calls, from the last to the first. A removed call is replaced by the last one,
// which has already been visited in this round or is new, so no call is ever skipped.
//
// The sweeper is guarded by Conn.mu. The caller of its methods must hold that, except for tick.
type sweeper struct {
	// mu is Conn.mu. It and open are not modified.
	mu   *sync.Mutex
	open *callTable
	// calls is the unordered set of the calls whose contexts only the sweeper checks.
	calls []*Call
	// next is the position of the round: calls[:next] have not been visited. quota is how many
	// calls of a round each tick visits, and remaining how many are left of that in this tick.
	next, quota, remaining int
}

// add leaves the context of a call to the sweeper.
func (s *sweeper) add(ctx context.Context, call *Call) {
	call.ctx, call.checks = ctx, 0
	s.calls = append(s.calls, call)
	call.sweepIndex = len(s.calls)
}

// remove takes a call out of the set, if it is there.
func (s *sweeper) remove(call *Call) {
	if call.sweepIndex == 0 {
		return
	}
	i, last := call.sweepIndex-1, len(s.calls)-1
	moved := s.calls[last]
	s.calls[i], moved.sweepIndex = moved, i+1
	s.calls[last], call.sweepIndex = nil, 0
	s.calls = s.calls[:last]
	s.next = min(s.next, last)
	if last == 0 && cap(s.calls) > maxIdleSlots {
		s.calls = nil // release memory after a burst
	}
}

// clear takes all calls out of the set.
func (s *sweeper) clear() {
	for _, call := range s.calls {
		call.sweepIndex = 0
	}
	s.calls, s.next, s.quota, s.remaining = nil, 0, 0, 0 // not mu and open, which tick reads without the lock
}

// beginTick starts a tick, and a new round if the last one is complete.
func (s *sweeper) beginTick() {
	if s.next == 0 {
		s.next = len(s.calls)
		ticks := min(max(s.next/sweepAtOnce, 1), sweepTicks)
		s.quota = (s.next + ticks - 1) / ticks
	}
	s.remaining = s.quota
}

// sweptCall is a call that the sweeper is checking.
type sweptCall struct {
	id   uint32
	call *Call
	ctx  context.Context //nolint:containedctx // used for one check
	// watchContext, if not nil, is to be called: the call has been open for long or its context has
	// ended.
	watchContext func()
}

// tick checks the calls that are due, and notifies the callers of those that have been open for
// long or whose contexts have ended. The caller must not hold Conn.mu. scratch is memory for the
// check, returned for reuse. empty reports whether no calls are left to check.
func (s *sweeper) tick(scratch []sweptCall) (_ []sweptCall, empty bool) {
	s.mu.Lock()
	s.beginTick()
	for s.remaining > 0 && s.next > 0 {
		scratch = s.nextChunk(scratch[:0])
		s.mu.Unlock()
		// Err and WatchContext run foreign code, so they are called without the lock.
		for _, o := range scratch {
			if o.watchContext == nil && o.ctx.Err() != nil {
				o.watchContext = s.notifyIfOpen(o)
			}
			if o.watchContext != nil {
				o.watchContext()
			}
		}
		clear(scratch)
		s.mu.Lock()
	}
	empty = len(s.calls) == 0
	s.mu.Unlock()
	return scratch, empty
}

// nextChunk takes the next calls of the round.
func (s *sweeper) nextChunk(scratch []sweptCall) []sweptCall {
	for n := min(s.remaining, s.next, sweepChunk); n > 0; n-- {
		s.next--
		s.remaining--
		call := s.calls[s.next]
		o := sweptCall{id: call.id, call: call, ctx: call.ctx}
		if call.checks++; call.checks > maxChecks {
			o.watchContext = s.makeCallerWatch(call)
		}
		scratch = append(scratch, o)
	}
	return scratch
}

// notifyIfOpen makes the caller of a call whose context has ended watch that context, if the call
// is still open. If the Call has been reused for another call meanwhile, that call is notified
// early, which is harmless. The caller must not hold Conn.mu.
func (s *sweeper) notifyIfOpen(o sweptCall) func() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open.holds(o.id, o.call) && o.call.sweepIndex > 0 {
		return s.makeCallerWatch(o.call)
	}
	return nil
}

// makeCallerWatch takes the call out of the set and makes its caller watch the context. A caller
// that waits gets a signal. For another caller makeCallerWatch returns the function to call without
// the lock.
func (s *sweeper) makeCallerWatch(call *Call) func() {
	s.remove(call)
	if call.Synchronous {
		call.signals <- signalWatch
		return nil
	}
	return call.WatchContext
}
