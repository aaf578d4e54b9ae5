package tunnel

import (
	"context"
	"encoding/binary"
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
		c.aloneCalls = 0
	}
	if s.call == nil || !s.call.Synchronous {
		c.applyOwnerEvent(eventBegun) // for callers that wait, beginWait does it
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
