package tunnel

import (
	"context"
	"encoding/binary"
	"time"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"

	"github.com/raylink/raylink/runtime/internal/faults"
)

// Call is one unary call. Its caller fills in the first group of fields, and may not touch the Call
// again until it is done.
type Call struct {
	waiting

	// Target is whom the call is for, Caller who makes it, Procedure which method, as
	// "/package.Service/Method".
	Target, Caller, Procedure string
	// Header goes with the request; nil for none. It may not be changed any more.
	Header Header
	// Chain is opaque to the tunnel; nil for none.
	Chain []byte
	// Request is the message to send; nil is the empty one. It may not be changed any more.
	Request proto.Message
	// Response is an empty message, which the reading goroutine fills with the answer. nil throws
	// the answer away.
	Response proto.Message
	// Done is called exactly once when the call is over, by the connection's reading goroutine or
	// by whoever ended the call or the connection. It must not block. Not for calls that Waits.
	Done func(*Call)

	// Waits says that the caller waits for the call: it calls [Conn.Wait] after Start, and Done is
	// not used.
	Waits bool
	// Verdict says that a call which Waits goes on to wait after its deadline, for VerdictGrace at
	// most, for the peer to say how far it had come.
	Verdict bool
	// Follow, for a call that doesn't Wait, says that Start's context is to be watched from now on:
	// it is called once, if the call is open for some milliseconds or that context ends before. It
	// may come when the call is just over, and must not block. Nil where nobody watches.
	Follow func()

	// Err is set before Done: nil, or a [connect.Error].
	Err error
	// ResponseHeader and ResponseTrailer are set before Done.
	ResponseHeader, ResponseTrailer Header
	// ResponseBytes is the encoded size of the response.
	ResponseBytes int

	conn   *Conn
	id     uint32
	parcel *parcel
	// raw keeps the answer encoded, for its waiter to decode.
	raw  bool
	body *buffer
}

// slot is what the dialling side knows of an open call. A call that was cancelled keeps its slot,
// empty, until the peer's reply.
type slot struct {
	busy   bool
	call   *Call
	stream *clientStream
	cost   int
	// reply is a response of several fragments in the making, with what came before its message.
	reply *partialReply
}

// Start sends a call. It blocks only while the connection's window is full, until there is room,
// ctx ends or the connection does. ctx's remaining time goes with the call as its deadline, but
// Start does not watch ctx once it has returned: a caller that stops waiting says so by
// [Call.Cancel]. Calls that one goroutine starts reach the other side in that order.
//
// After an error Done is never called. All of Start's errors match [ErrNotRun].
func (c *Conn) Start(ctx context.Context, call *Call) error {
	size, err := sizeOf(call.Request)
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
	if err := c.enter(ctx, cost); err != nil {
		return err
	}
	var body *encoded
	if size > inlineBytes {
		// Only now, so that those who wait hold nothing; and without the lock, since it may take a
		// while.
		var err error
		c.mu.Unlock()
		body, err = encode(call.Request, size)
		c.mu.Lock()
		if err != nil {
			err = notRun(c.cannotEncode(call.Procedure, call.Request, err))
		} else {
			err = c.refusing()
		}
		if err != nil {
			c.gate.give(cost)
			body.free()
			return err
		}
	}
	id := c.claim(slot{call: call, cost: cost})
	call.conn, call.id, call.parcel = c, id, nil
	if err := c.sendCall(ctx, call, body, meta, size); err != nil {
		c.vacate(id)
		return notRun(c.cannotEncode(call.Procedure, call.Request, err))
	}
	c.calls.Add(1)
	if call.Waits {
		c.expect(call)
	}
	if call.Waits || call.Follow != nil {
		c.sweepLater(ctx, call)
	}
	c.watch()
	if c.out.calls++; c.gate.open == 1 || c.out.calls >= callBatch {
		c.flush() // a caller that is alone has nobody to share a write with
	} else {
		c.kick()
	}
	return nil
}

// callBatch is after how many calls the caller of the last one writes them itself, though more may
// come: so the other side has something to do meanwhile.
const callBatch = 32

// sendCall queues the CALL frame.
func (c *Conn) sendCall(ctx context.Context, call *Call, body *encoded, meta, size int) error {
	o := &c.out
	names := [3]string{call.Target, call.Caller, call.Procedure}
	numbers := c.interner.refer(o, names, &c.peer)
	if guarded && !faults.Overtaking && body == nil && len(o.requests) > 0 {
		if _, busy := o.requests[laneKey{call.Target, call.Caller}]; busy {
			// An earlier request of the same order is still on its way: go after it.
			var err error
			if body, err = encode(call.Request, size); err != nil {
				return err
			}
		}
	}
	if body != nil {
		flags, meta := appendCall(ctx, numbers.append(nil, names), connect.StreamTypeUnary, call.Header, call.Chain)
		call.parcel = &parcel{
			id: call.id, kind: kindCall, flags: flags, meta: meta, body: body, key: laneKey{call.Target, call.Caller},
		}
		o.pushRequest(call.parcel)
		return nil
	}
	start := o.begin(meta + size)
	flags, b := appendCall(ctx, numbers.append(o.buf, names), connect.StreamTypeUnary, call.Header, call.Chain)
	b, err := appendMessage(b, call.Request, size)
	if err != nil {
		o.buf = o.buf[:start]
		return err
	}
	o.buf = b
	o.patch(start, kindCall, flags, call.id)
	return nil
}

// appendCall writes a CALL's body after the names and up to the message.
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

// metaSize is the most that stands before a CALL's message.
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

// Cancel ends the call at once with err, and tells the peer. It does nothing if the call is over
// already. A Call whose Start failed must not be cancelled.
func (call *Call) Cancel(err error) {
	c := call.conn
	c.mu.Lock()
	if int(call.id) >= len(c.slots) || c.slots[call.id].call != call {
		c.mu.Unlock()
		return
	}
	c.slots[call.id].call = nil
	c.unwatched.remove(call)
	p := call.parcel
	c.out.drop(p)
	if p != nil && !p.started {
		c.vacate(call.id) // the peer never heard of it
	} else {
		c.out.frame(kindCancel, call.id, nil)
	}
	c.kick()
	c.mu.Unlock()
	if err == nil {
		err = context.Canceled
	}
	call.finish(authored(err))
}

func (call *Call) finish(err error) {
	call.Err = err
	call.parcel = nil
	switch {
	case call.Waits:
		call.tokens <- over // the last that is done with it: it is its caller's again
	case call.Done != nil:
		call.Done(call)
	}
}

// complete is the reading goroutine's end of a call that was answered. own says that the response
// may keep the body; it reports whether it has.
func (call *Call) complete(r *outcome, body []byte, own bool) (kept bool) {
	call.ResponseHeader, call.ResponseTrailer, call.ResponseBytes = r.header, r.trailer, len(body)
	var err error
	switch {
	case r.fault != nil:
		err = r.fault
	case call.raw:
		call.body = newBuffer(len(body))
		call.body.b = append(call.body.b, body...)
	case call.Response != nil:
		var wrong error
		if own {
			kept, wrong = decodeKeeping(body, call.Response)
		} else {
			wrong = fill(body, call.Response)
		}
		if wrong != nil {
			err = cannotDecode("the response of "+call.Procedure, connect.CodeInternal, wrong)
		}
	}
	call.finish(err)
	return kept
}

// keptSlots is how many slots a connection keeps on which no call is open.
const keptSlots = 1 << 10

// isOpen says whether the call is neither over nor cancelled. Callers hold the lock.
func (c *Conn) isOpen(call *Call) bool {
	s := c.slotOf(call.id)
	return s != nil && s.call == call
}

// claim takes a free id. The gate has made sure that there is one.
func (c *Conn) claim(s slot) uint32 {
	s.busy = true
	if c.gate.open > 1 {
		c.alone = 0
	}
	if s.call == nil || !s.call.Waits {
		c.passOwnership(begun) // expect does it for callers that wait
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

// vacate gives an id back, once the peer has said its last word on it.
func (c *Conn) vacate(id uint32) {
	s := &c.slots[id]
	cost := s.cost
	if s.call != nil {
		c.unwatched.remove(s.call)
	}
	*s = slot{}
	c.free = append(c.free, id)
	c.gate.give(cost)
	if c.gate.open == 0 && len(c.slots) > keptSlots {
		c.slots, c.free = make([]slot, 1), nil // after a burst
	}
	c.checkQuiet()
}
