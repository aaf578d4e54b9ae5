package tunnel

import (
	"context"
	"encoding/binary"
	"errors"
	"time"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"

	"github.com/raylink/raylink/internal/connecterr"
	"github.com/raylink/raylink/runtime/internal/faults"
	"github.com/raylink/raylink/runtime/tunnel/internal/codec"
)

// Call is one unary call. The caller sets the first group of fields and must not access the Call
// until it is done.
type Call struct {
	callWait

	// Target is the callee, Caller the calling entity, and Procedure the method, as
	// "/package.Service/Method".
	Target, Caller, Procedure string
	// Header is sent with the request; nil means none. It must not be modified afterwards.
	Header Header
	// Chain is sent with the request and opaque to the tunnel; nil means none.
	Chain []byte
	// Request is the message to send; nil means the empty message. It must not be modified
	// afterwards.
	Request proto.Message
	// Response is an empty message into which the connection's reader decodes the response. nil
	// discards the response.
	Response proto.Message
	// Done is called exactly once when the call is over, on the goroutine that ends it: the
	// connection's reader, or the one that cancels the call or ends the connection. It must not
	// block. It is not used if Synchronous is set.
	Done func(*Call)

	// Synchronous announces that the caller waits for the call: it calls [Conn.Wait] after Start,
	// and Done is not used.
	Synchronous bool
	// ReportAfterDeadline makes a synchronous call wait for up to ReportGrace after its deadline
	// for the peer to report how far the call had come.
	ReportAfterDeadline bool
	// WatchContext is for a call that is not Synchronous. It is called once to notify that the
	// context given to Start must be watched from now on, if the call is open for some milliseconds
	// or that context ends first. It may be called when the call has just ended, and must not
	// block. nil means that the context is not checked at all.
	WatchContext func()

	// Err is the outcome, set before Done: nil or a [connect.Error].
	Err error
	// ResponseHeader and ResponseTrailer are set before Done.
	ResponseHeader, ResponseTrailer Header
	// ResponseBytes is the encoded size of the response.
	ResponseBytes int

	conn       *Conn
	id         uint32
	outMessage *outMessage
	// raw keeps the response encoded in body, for the caller to decode.
	raw  bool
	body *codec.Buffer
}

// slot is the dialling side's state of an open call. A cancelled call keeps its slot, with call and
// stream nil, until the peer's REPLY.
type slot struct {
	busy   bool
	call   *Call
	stream *clientStream
	cost   int
	// reply is the partially received response of several fragments.
	reply *partialReply
}

// Start sends a call. It blocks only while the send window is full, until there is room, or ctx or
// the connection ends. The remaining time of ctx is sent as the call's deadline, but Start does not
// watch ctx after it has returned: use [Call.Cancel] to stop waiting. Calls started by one
// goroutine reach the peer in that order.
//
// After an error Done is never called. Every error of Start matches [ErrNotRun].
func (c *Conn) Start(ctx context.Context, call *Call) error {
	size, err := codec.Size(call.Request)
	if err != nil {
		return notRun(c.cannotEncode(call.Procedure, call.Request, err))
	}
	if size > c.peer.maxMessage {
		return notRun(MessageTooLarge(call.Procedure, true, size, c.peer.maxMessage))
	}
	meta := metaSize(call.Target, call.Caller, call.Procedure, call.Header, call.Chain)
	if meta > c.peer.maxHeader {
		return notRun(tooLarge("what goes with the request of "+call.Procedure, meta, c.peer.maxHeader, "the receiver's header"))
	}
	if err := ctx.Err(); err != nil {
		return notRun(contextError(err, ""))
	}
	cost := callCost + meta + size
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.acquireWindow(ctx, cost); err != nil {
		return err
	}
	var body *codec.Encoded
	if size > inlineBytes {
		// Encode only after acquiring the window, so that blocked calls hold no memory, and without
		// the lock, since encoding may take long.
		var err error
		c.mu.Unlock()
		body, err = codec.Encode(call.Request, size)
		c.mu.Lock()
		if err != nil {
			err = notRun(c.cannotEncode(call.Procedure, call.Request, err))
		} else {
			err = c.refusalError()
		}
		if err != nil {
			c.sendWindow.release(cost)
			body.Free()
			return err
		}
	}
	id := c.allocateID(slot{call: call, cost: cost})
	call.conn, call.id, call.outMessage = c, id, nil
	if err := c.sendCall(ctx, call, body, meta, size); err != nil {
		c.releaseID(id)
		return notRun(c.cannotEncode(call.Procedure, call.Request, err))
	}
	c.calls.Add(1)
	if call.Synchronous {
		c.beginWait(call)
	}
	if call.Synchronous || call.WatchContext != nil {
		c.addToSweep(ctx, call)
	}
	c.startKeepalive()
	if c.out.calls++; c.sendWindow.open == 1 || c.out.calls >= callBatch {
		c.flush() // no other call to share the write with
	} else {
		c.kick()
	}
	return nil
}

// callBatch is the number of queued calls after which the caller of the last one writes them itself
// although more may follow, so that the peer can proceed.
const callBatch = 32

// sendCall queues the CALL frame.
func (c *Conn) sendCall(ctx context.Context, call *Call, body *codec.Encoded, meta, size int) error {
	o := &c.out
	names := [3]string{call.Target, call.Caller, call.Procedure}
	numbers := c.interner.intern(o, names, &c.peer)
	if guarded && !faults.Reordering && body == nil && len(o.requests) > 0 {
		if _, busy := o.requests[orderKey{call.Target, call.Caller}]; busy {
			// An earlier request of the same order is still being sent: queue behind it.
			var err error
			if body, err = codec.Encode(call.Request, size); err != nil {
				return err
			}
		}
	}
	if body != nil {
		flags, meta := appendCall(ctx, numbers.append(nil, names), connect.StreamTypeUnary, call.Header, call.Chain)
		call.outMessage = &outMessage{
			id: call.id, kind: kindCall, flags: flags, meta: meta, body: body, key: orderKey{call.Target, call.Caller},
		}
		o.pushRequest(call.outMessage)
		return nil
	}
	start := o.beginFrame(meta + size)
	flags, b := appendCall(ctx, numbers.append(o.buf, names), connect.StreamTypeUnary, call.Header, call.Chain)
	b, err := codec.Append(b, call.Request, size)
	if err != nil {
		o.buf = o.buf[:start]
		return err
	}
	o.buf = b
	o.endFrame(start, kindCall, flags, call.id)
	return nil
}

// appendCall appends the body of a CALL between the names and the message.
func appendCall(ctx context.Context, b []byte, shape connect.StreamType, header Header, chain []byte) (uint8, []byte) {
	flags := uint8(shape) & callShape
	if deadline, ok := ctx.Deadline(); ok {
		flags |= callDeadline
		remaining := max(time.Until(deadline).Microseconds(), 1)
		b = binary.AppendUvarint(b, uint64(remaining))
	}
	if len(chain) > 0 {
		flags |= callChain
		b = appendBytes(b, chain)
	}
	if len(header) > 0 {
		flags |= callHeader
		b = header.append(b)
	}
	return flags, b
}

// metaSize returns an upper bound on the bytes before the message of a CALL.
func metaSize(target, caller, procedure string, header Header, chain []byte) int {
	n := 3*(1+varintBytes) + len(target) + len(caller) + len(procedure) + binary.MaxVarintLen64
	if len(chain) > 0 {
		n += varintBytes + len(chain)
	}
	if len(header) > 0 {
		n += header.size()
	}
	return n
}

// Cancel ends the call with err at once and notifies the peer. It does nothing if the call is over.
// It must not be called on a Call whose Start failed.
func (call *Call) Cancel(err error) {
	c := call.conn
	c.mu.Lock()
	if int(call.id) >= len(c.slots) || c.slots[call.id].call != call {
		c.mu.Unlock()
		return
	}
	c.slots[call.id].call = nil
	c.unwatched.remove(call)
	p := call.outMessage
	c.out.drop(p)
	if p != nil && !p.started {
		c.releaseID(call.id) // never sent
	} else {
		c.out.frame(kindCancel, call.id, nil)
	}
	c.kick()
	c.mu.Unlock()
	if err == nil {
		err = context.Canceled
	}
	call.finish(connecterr.From(err))
}

func (call *Call) finish(err error) {
	call.Err = err
	call.outMessage = nil
	switch {
	case call.Synchronous:
		call.tokens <- tokenOver // the last access: the Call belongs to its caller again
	case call.Done != nil:
		call.Done(call)
	}
}

// complete ends a call that was answered. mayAlias permits the response to alias body; aliased
// reports whether it does.
func (call *Call) complete(r *outcome, body []byte, mayAlias bool) (aliased bool) {
	call.ResponseHeader, call.ResponseTrailer, call.ResponseBytes = r.header, r.trailer, len(body)
	var err error
	switch {
	case r.err != nil:
		err = r.err
	case call.raw:
		call.body = codec.NewBuffer(len(body))
		call.body.B = append(call.body.B, body...)
	case call.Response != nil:
		var wrong error
		if mayAlias {
			aliased, wrong = codec.DecodeAliasing(body, call.Response)
		} else {
			wrong = codec.Decode(body, call.Response)
		}
		if wrong != nil {
			err = Undecodable(call.Procedure, false, wrong)
		}
	}
	call.finish(err)
	return aliased
}

// maxIdleSlots is how many slots are kept on a connection without open calls.
const maxIdleSlots = 1 << 10

// isOpen reports whether the call is neither over nor cancelled. The caller must hold c.mu.
func (c *Conn) isOpen(call *Call) bool {
	s := c.slotOf(call.id)
	return s != nil && s.call == call
}

// allocateID assigns a free id. The send window guarantees that there is one. The caller must hold
// c.mu.
func (c *Conn) allocateID(s slot) uint32 {
	s.busy = true
	if c.sendWindow.open > 1 {
		c.reading.aloneCalls = 0
	}
	if s.call == nil || !s.call.Synchronous {
		c.reading.applyOwnerEvent(eventBegun) // for callers that wait, beginWait does it
	}
	if n := len(c.free); n > 0 {
		id := c.free[n-1]
		c.free = c.free[:n-1]
		c.slots[id] = s
		return id
	}
	c.slots = append(c.slots, s)
	c.idsUsed = max(c.idsUsed, len(c.slots))
	return uint32(len(c.slots) - 1) //nolint:gosec // at most maxCallID
}

// releaseID frees an id after the final frame of its call. The caller must hold c.mu.
func (c *Conn) releaseID(id uint32) {
	s := &c.slots[id]
	cost := s.cost
	if s.call != nil {
		c.unwatched.remove(s.call)
	}
	*s = slot{}
	c.free = append(c.free, id)
	c.sendWindow.release(cost)
	if c.sendWindow.open == 0 && len(c.slots) > maxIdleSlots {
		c.slots, c.free = make([]slot, 1), nil // release memory after a burst
	}
	c.checkIdle()
}

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
		c.reading.applyOwnerEvent(eventBegun)
		return
	}
	if c.reading.owner == ownerLoop {
		c.reading.aloneCalls++
		return
	}
	call.readsConn = c.reading.applyOwnerEvent(eventBegunAlone)
}

// addToSweep leaves the call's context to the sweeper. The caller must hold c.mu.
func (c *Conn) addToSweep(ctx context.Context, call *Call) {
	call.ctx, call.checks = ctx, 0
	c.unwatched.add(call)
	if !c.reading.watched.Load() {
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
	watches := call.readsConn && c.reading.readAsCaller(call)
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
