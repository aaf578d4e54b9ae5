package tunnel

import (
	"context"
	"errors"
	"time"

	"github.com/raylink/raylink/runtime/internal/faults"
)

// Most calls finish in less than a millisecond. Watching the context of each would cost more than
// everything else that a caller does: a channel and a select for a caller that waits, a
// registration for one that does not. At first, therefore, only the sweeper (see [Watchdog]) checks
// the contexts, every millisecond. A caller whose context has ended, or whose call has been open
// for some time, is notified to watch its context itself from then on. The sweeper checks each call
// a bounded number of times, however many other calls there are.

// callWait is the state of a call that uses [Call.Synchronous] or [Call.WatchContext].
type callWait struct {
	// tokens notifies a caller that waits. It has room for the two tokens that a call gets at most:
	// one tokenWatch, then tokenOver.
	tokens chan token

	// Guarded by Conn.mu while the call is open. ctx is the caller's context. checks counts how
	// often the sweeper has checked it. sweepIndex is the position of the call in the connection's
	// sweep, counted from 1, or 0 if the sweeper no longer checks it.
	ctx        context.Context //nolint:containedctx // lives as long as the caller waits
	checks     int
	sweepIndex int
	// readsConn is set if the caller is to read the connection itself. It is used by Start and Wait
	// only.
	readsConn bool
}

// token is a notification to a caller that waits.
type token uint8

const (
	// tokenWatch: the caller must watch its context from now on.
	tokenWatch token = iota
	// tokenOver: the call has ended.
	tokenOver
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

// sweep is the unordered set of a connection's calls whose contexts only the sweeper checks. It is
// guarded by Conn.mu.
//
// A round visits all of them, from the last to the first. A removed call is replaced by the last
// one, which has already been visited in this round or is new, so no call is ever skipped.
type sweep struct {
	calls []*Call
	// next is the position of the round: calls[:next] have not been visited. quota is how many
	// calls of a round each tick visits, and remaining how many are left of that in this tick.
	next, quota, remaining int
}

func (s *sweep) add(call *Call) {
	s.calls = append(s.calls, call)
	call.sweepIndex = len(s.calls)
}

// remove does nothing if the call is not in the sweep.
func (s *sweep) remove(call *Call) {
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

func (s *sweep) clear() {
	for _, call := range s.calls {
		call.sweepIndex = 0
	}
	*s = sweep{}
}

// tick starts a tick, and a new round if the last one is complete.
func (s *sweep) tick() {
	if s.next == 0 {
		s.next = len(s.calls)
		ticks := min(max(s.next/sweepAtOnce, 1), sweepTicks)
		s.quota = (s.next + ticks - 1) / ticks
	}
	s.remaining = s.quota
}

// Reset prepares a finished call for another Start. It clears everything but Synchronous,
// ReportAfterDeadline and the memory that waiting needs.
func (call *Call) Reset() {
	*call = Call{Synchronous: call.Synchronous, ReportAfterDeadline: call.ReportAfterDeadline, callWait: callWait{tokens: call.tokens}}
}

// beginWait prepares for a caller that is going to wait. The caller becomes the reader of the
// connection if no other call is open and the read loop is parked. The caller must hold c.mu.
func (c *Conn) beginWait(call *Call) {
	if call.tokens == nil {
		call.tokens = make(chan token, 2)
	}
	call.readsConn = false
	if c.sendWindow.open > 1 {
		c.applyOwnerEvent(eventBegun)
		return
	}
	if c.owner == ownerLoop {
		c.aloneCalls++
		return
	}
	call.readsConn = c.applyOwnerEvent(eventBegunAlone)
}

// addToSweep leaves the call's context to the sweeper. The caller must hold c.mu.
func (c *Conn) addToSweep(ctx context.Context, call *Call) {
	call.ctx, call.checks = ctx, 0
	c.unwatched.add(call)
	if !c.watched.Load() {
		c.cfg.Watchdog.add(c)
	}
}

// Wait blocks until a call with Synchronous set is over. It must be called exactly once after each
// successful [Conn.Start] of such a call, with the same context. The calling goroutine may read the
// connection meanwhile (leader/follower reading). If the context ends first, the call is cancelled
// with the error that ended returns for it. That happens immediately if the call has been open for
// some milliseconds, and otherwise within two milliseconds, or five if thousands of calls are as
// young. A call with ReportAfterDeadline set takes up to ReportGrace longer after a deadline.
func (c *Conn) Wait(ctx context.Context, call *Call, ended func(context.Context) error) {
	watches := call.readsConn && c.readAsCaller(call)
	if !watches && <-call.tokens == tokenOver {
		return
	}
	for {
		select {
		case t := <-call.tokens:
			if t == tokenOver {
				return
			}
		case <-ctx.Done():
			if call.ReportAfterDeadline && call.awaitReport(ctx) {
				return
			}
			call.Cancel(ended(ctx))
			for <-call.tokens != tokenOver {
			}
			return
		}
	}
}

// ReportGrace is how long after its deadline a call waits for the peer, which has the same
// deadline, to report whether the call was still queued or running. The peer checks the deadline of
// a queued call only when a CANCEL asks for it, which is sent after reportRequestDelay.
const (
	ReportGrace        = 4 * time.Millisecond
	reportRequestDelay = time.Millisecond
)

// awaitReport waits for the peer's reply to a call whose deadline has passed, and reports whether
// the call is over. It returns false at once for a call whose context was cancelled before its
// deadline.
func (call *Call) awaitReport(ctx context.Context) bool {
	if !errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return false
	}
	limit := time.NewTimer(reportRequestDelay)
	defer limit.Stop()
	for asked := false; ; {
		select {
		case t := <-call.tokens:
			if t == tokenOver {
				return true
			}
		case <-limit.C:
			if asked || !call.requestReport() {
				return false
			}
			asked = true
			limit.Reset(ReportGrace - reportRequestDelay)
		}
	}
}

// AwaitReport waits for the peer's reply to a call whose deadline has passed, for at most
// ReportGrace. done must be closed by the call's Done.
func (call *Call) AwaitReport(done <-chan struct{}) {
	limit := time.NewTimer(reportRequestDelay)
	defer limit.Stop()
	select {
	case <-done:
		return
	case <-limit.C:
	}
	if !call.requestReport() {
		return
	}
	limit.Reset(ReportGrace - reportRequestDelay)
	select {
	case <-done:
	case <-limit.C:
	}
}

// requestReport sends CANCEL for the call and leaves it open here for the peer's reply. It returns
// false if no reply will come, because the call is over or was never sent.
func (call *Call) requestReport() bool {
	c := call.conn
	c.mu.Lock()
	defer c.mu.Unlock()
	if int(call.id) >= len(c.slots) || c.slots[call.id].call != call || call.outMessage != nil && !call.outMessage.started {
		return false
	}
	c.out.frame(kindCancel, call.id, nil)
	c.kick()
	return true
}

// openCall is a call that the sweeper is checking.
type openCall struct {
	id   uint32
	call *Call
	ctx  context.Context //nolint:containedctx // used for one check
	// watchContext, if not nil, is to be called: the call has been open for long or its context has
	// ended.
	watchContext func()
}

// sweepContexts checks the calls in the sweep, and notifies the callers of those that have been
// open for long or whose contexts have ended. found is scratch memory, returned for reuse. swept
// reports whether the sweep is empty.
func (c *Conn) sweepContexts(found []openCall) (_ []openCall, swept bool) {
	c.mu.Lock()
	c.unwatched.tick()
	for c.unwatched.remaining > 0 && c.unwatched.next > 0 {
		found = c.nextUnwatched(found[:0])
		c.mu.Unlock()
		// Err and WatchContext run foreign code, so they are called without the lock.
		for _, o := range found {
			if o.watchContext == nil && o.ctx.Err() != nil {
				o.watchContext = c.notifyIfOpen(o)
			}
			if o.watchContext != nil {
				o.watchContext()
			}
		}
		clear(found)
		c.mu.Lock()
	}
	swept = len(c.unwatched.calls) == 0
	c.mu.Unlock()
	return found, swept
}

// nextUnwatched takes the next calls of the round. The caller must hold c.mu.
func (c *Conn) nextUnwatched(found []openCall) []openCall {
	s := &c.unwatched
	for n := min(s.remaining, s.next, sweepChunk); n > 0; n-- {
		s.next--
		s.remaining--
		call := s.calls[s.next]
		o := openCall{id: call.id, call: call, ctx: call.ctx}
		if call.checks++; call.checks > maxChecks {
			o.watchContext = c.makeCallerWatch(call)
		}
		found = append(found, o)
	}
	return found
}

// notifyIfOpen makes the caller of a call whose context has ended watch that context, if the call
// is still open. If the Call has been reused for another call meanwhile, that call is notified
// early, which is harmless.
func (c *Conn) notifyIfOpen(o openCall) func() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.slotOf(o.id); s != nil && s.call == o.call && o.call.sweepIndex > 0 {
		return c.makeCallerWatch(o.call)
	}
	return nil
}

// makeCallerWatch takes the call out of the sweep and makes its caller watch the context. A caller
// that waits gets a token. For another caller makeCallerWatch returns the function to call without
// the lock. The caller must hold c.mu.
func (c *Conn) makeCallerWatch(call *Call) func() {
	c.unwatched.remove(call)
	if call.Synchronous {
		if !faults.LostNotification {
			call.tokens <- tokenWatch
		}
		return nil
	}
	return call.WatchContext
}
