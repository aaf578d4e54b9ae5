package tunnel

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"

	"github.com/raylink/raylink/internal/connecterr"
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
	// requestBytes is the encoded size of the request, once Start has computed it.
	requestBytes int
	// raw keeps the response encoded in body, for the caller to decode.
	raw  bool
	body *codec.Buffer
}

// slot is the dialling side's state of an open call. A canceled call keeps its slot, with call and
// stream nil, until the peer's REPLY.
type slot struct {
	busy   bool
	call   *Call
	stream *clientStream
	cost   int
	// reply is the partially received response of several fragments.
	reply *partialReply
}

// maxIdleSlots is how many slots are kept on a connection without open calls.
const maxIdleSlots = 1 << 10

// callTable holds the open calls of a dialling side by id. It is guarded by Conn.mu.
type callTable struct {
	// slots[0] stands for the connection itself.
	slots []slot
	free  []uint32
	// idsUsed is the high-water mark of len(slots).
	idsUsed int
}

func newCallTable() callTable { return callTable{slots: make([]slot, 1)} }

// at returns the slot of an open call, or nil.
func (t *callTable) at(id uint32) *slot {
	if int(id) >= len(t.slots) || !t.slots[id].busy {
		return nil
	}
	return &t.slots[id]
}

// holds reports whether the call with this id is call, neither over nor canceled.
func (t *callTable) holds(id uint32, call *Call) bool {
	s := t.at(id)
	return s != nil && s.call == call
}

// allocate assigns a free id. The send window guarantees that there is one.
func (t *callTable) allocate(s slot) uint32 {
	s.busy = true
	if n := len(t.free); n > 0 {
		id := t.free[n-1]
		t.free = t.free[:n-1]
		t.slots[id] = s
		return id
	}
	t.slots = append(t.slots, s)
	t.idsUsed = max(t.idsUsed, len(t.slots))
	return uint32(len(t.slots) - 1) //nolint:gosec // at most maxCallID
}

// release frees an id.
func (t *callTable) release(id uint32) {
	t.slots[id] = slot{}
	t.free = append(t.free, id)
}

// shrink releases memory after a burst. No call may be open.
func (t *callTable) shrink() {
	if len(t.slots) > maxIdleSlots {
		t.slots, t.free = make([]slot, 1), nil
	}
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
		return notRun(Unsendable(call.Procedure, c.dialled, call.Request, err))
	}
	call.requestBytes = size
	if size > c.peer.maxMessage {
		return notRun(MessageTooLarge(call.Procedure, true, size, c.peer.maxMessage))
	}
	meta := metaSize(call.Target, call.Caller, call.Procedure, call.Header, call.Chain)
	if meta > c.peer.maxHeader {
		return notRun(tooLarge("the metadata (with names and chain) of the request of "+call.Procedure, meta, c.peer.maxHeader, "the receiver's header"))
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
	if size > maxBufferedMessage {
		// Encode only after acquiring the window, so that blocked calls hold no memory, and without
		// the lock, since encoding may take long.
		var err error
		c.mu.Unlock()
		body, err = codec.Encode(call.Request, size)
		c.mu.Lock()
		if err != nil {
			err = notRun(Unsendable(call.Procedure, c.dialled, call.Request, err))
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
		return notRun(Unsendable(call.Procedure, c.dialled, call.Request, err))
	}
	c.calls.Add(1)
	if call.Synchronous {
		if call.signals == nil {
			call.signals = make(chan signal, 2)
		}
		c.reading.beginWait(call)
	}
	if call.Synchronous || call.WatchContext != nil {
		c.sweeper.add(ctx, call)
		c.reading.ensureWatched()
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

// acquireWindow acquires the send window for a call of the given cost, and blocks while it does not
// fit. It is called with c.mu held and returns with it held, and releases it while it blocks. After
// an error nothing is acquired.
func (c *Conn) acquireWindow(ctx context.Context, cost int) error {
	if err := c.refusalError(); err != nil {
		return err
	}
	s := &c.sendWindow
	// A stream costs nothing, so it may pass requests that wait for bytes.
	if s.fits(cost) && (s.waiters.Len() == 0 || cost == 0) {
		s.acquire(cost)
		return nil
	}
	w := &waiter{cost: cost, ready: make(chan struct{})}
	place := s.waiters.PushBack(w)
	c.mu.Unlock()
	select {
	case <-w.ready:
	case <-ctx.Done():
	case <-c.refused:
	}
	c.mu.Lock()
	if !w.granted {
		s.abandon(place)
		if err := c.refusalError(); err != nil {
			return err
		}
		return notRun(contextError(ctx.Err(), fmt.Sprintf(
			"waiting for the send window of the connection to %s: %d of %d bytes of requests in %d of %d calls are not answered yet",
			c.peerName(), s.used, s.window, s.open, s.maxOpen)))
	}
	err := c.refusalError()
	if err == nil && ctx.Err() != nil {
		err = notRun(contextError(ctx.Err(), ""))
	}
	if err != nil {
		s.release(cost)
	}
	return err
}

// sendCall queues the CALL frame.
func (c *Conn) sendCall(ctx context.Context, call *Call, body *codec.Encoded, meta, size int) error {
	o := &c.out
	names := [3]string{call.Target, call.Caller, call.Procedure}
	numbers := c.interner.intern(o, names, &c.peer)
	if body == nil && len(o.requests) > 0 {
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
	if !c.open.holds(call.id, call) {
		c.mu.Unlock()
		return
	}
	c.open.slots[call.id].call = nil
	c.sweeper.remove(call)
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
		call.signals <- signalOver // the last access: the Call belongs to its caller again
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

// allocateID assigns an id to a call that has acquired the send window. The caller must hold c.mu.
func (c *Conn) allocateID(s slot) uint32 {
	if c.sendWindow.open > 1 {
		c.reading.aloneCalls = 0
	}
	if s.call == nil || !s.call.Synchronous {
		c.reading.applyOwnerEvent(eventBegun) // for callers that wait, beginWait does it
	}
	return c.open.allocate(s)
}

// releaseID frees an id and the send window after the final frame of its call. The caller must hold
// c.mu.
func (c *Conn) releaseID(id uint32) {
	s := &c.open.slots[id]
	cost := s.cost
	if s.call != nil {
		c.sweeper.remove(s.call)
	}
	c.open.release(id)
	c.sendWindow.release(cost)
	if c.sendWindow.open == 0 {
		c.open.shrink()
	}
	c.checkIdle()
}

// callWait is the state of a call that uses [Call.Synchronous] or [Call.WatchContext].
type callWait struct {
	// signals notifies a caller that waits. It has room for the two signals that a call gets at
	// most: one signalWatch, then signalOver.
	signals chan signal

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

// signal is a notification to a caller that waits.
type signal uint8

const (
	// signalWatch: the caller must watch its context from now on.
	signalWatch signal = iota
	// signalOver: the call has ended.
	signalOver
)

// Reset prepares a finished call for another Start. It clears everything but Synchronous,
// ReportAfterDeadline and the memory that waiting needs.
func (call *Call) Reset() {
	*call = Call{Synchronous: call.Synchronous, ReportAfterDeadline: call.ReportAfterDeadline, callWait: callWait{signals: call.signals}}
}

// Wait blocks until a call with Synchronous set is over. It must be called exactly once after each
// successful [Conn.Start] of such a call, with the same context. The calling goroutine may read the
// connection meanwhile (leader/follower reading). If the context ends first, the call is canceled
// with the error that ended returns for it. That happens immediately if the call has been open for
// some milliseconds, and otherwise within two milliseconds, or five if thousands of calls are as
// young. A call with ReportAfterDeadline set takes up to ReportGrace longer after a deadline.
func (c *Conn) Wait(ctx context.Context, call *Call, ended func(context.Context) error) {
	watches := call.readsConn && c.reading.readAsCaller(call)
	if !watches && <-call.signals == signalOver {
		return
	}
	for {
		select {
		case t := <-call.signals:
			if t == signalOver {
				return
			}
		case <-ctx.Done():
			if call.ReportAfterDeadline && call.awaitReport(ctx) {
				return
			}
			call.Cancel(ended(ctx))
			for <-call.signals != signalOver {
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
// the call is over. It returns false at once for a call whose context was canceled before its
// deadline.
func (call *Call) awaitReport(ctx context.Context) bool {
	if !errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return false
	}
	limit := time.NewTimer(reportRequestDelay)
	defer limit.Stop()
	for asked := false; ; {
		select {
		case t := <-call.signals:
			if t == signalOver {
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
	if !c.open.holds(call.id, call) || call.outMessage != nil && !call.outMessage.started {
		return false
	}
	c.out.frame(kindCancel, call.id, nil)
	c.kick()
	return true
}
