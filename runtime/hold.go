package runtime

import (
	"context"
	"sync"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"

	"github.com/raylink/raylink/internal/connecterr"
	"github.com/raylink/raylink/internal/invariants"
	"github.com/raylink/raylink/internal/usercode"
)

// Hold holds the answers of methods back until something has happened that they share, such as one
// commit for many writes: see [Node.HoldAnswer]. The zero Hold holds none yet. A Hold must not be
// copied after its first use. Its methods are safe for concurrent use.
type Hold struct {
	mu       sync.Mutex // guards the fields below
	released bool
	err      error
	// done is closed by Release; nil while it is not waited for.
	done chan struct{}
	// first and last are the list of the answers that are held. It does not change after the
	// release.
	first, last *heldAnswer
}

// heldAnswer says that a Hold holds an answer back. It is made by HoldAnswer, and in the Hold's
// list once the method has returned.
type heldAnswer struct {
	hold *Hold
	// also is for a further Hold that the same method has asked for. It is set before the method
	// returns, and the answer is in that Hold's list once this one has let it go.
	also *heldAnswer

	// job is the call; nil while the answer is not in the list. Guarded by hold.mu, like the next.
	job        *job
	prev, next *heldAnswer
}

// forsaken marks a call whose answer is not to be held, because nothing waits for it any more or
// its node has ended.
var forsaken = new(heldAnswer) //nolint:gochecknoglobals // a marker, never modified

// Release lets the answers go, in the order in which their methods have returned, and at once those
// that are held later. If err is not nil, each caller gets it instead of its answer, as if its
// method had returned it. Every Hold must be released in the end, also if what the answers wait for
// has failed: until then its callers wait, and so does the graceful end of their node. Only the
// first Release has an effect. It does not block, and may be called anywhere, also by a method of
// the node.
func (h *Hold) Release(err error) {
	h.mu.Lock()
	if h.released {
		h.mu.Unlock()
		return
	}
	h.released, h.err = true, err
	if h.done != nil {
		close(h.done)
	}
	first := h.first
	h.first, h.last = nil, nil
	h.mu.Unlock()
	releaseFrom(first, err)
}

// releaseFrom releases the rest of a list. Methods of err, which the node's code has made, may end
// the goroutine: the rest is then released by another one.
func releaseFrom(a *heldAnswer, err error) {
	var next *heldAnswer
	defer func() {
		if next != nil {
			go releaseFrom(next, err)
		}
	}()
	for ; a != nil; a = next {
		next = a.next
		a.job.release(a, err)
	}
}

// Done returns a channel that is closed by Release.
func (h *Hold) Done() <-chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.done == nil {
		h.done = make(chan struct{})
		if h.released {
			close(h.done)
		}
	}
	return h.done
}

// Err returns the error of the Release; nil before.
func (h *Hold) Err() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.err
}

// add appends an answer to the list. If the Hold has been released it returns false, and the error
// of the release.
func (h *Hold) add(a *heldAnswer, j *job) (added bool, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.released {
		return false, h.err
	}
	a.job, a.prev = j, h.last
	if h.last == nil {
		h.first = a
	} else {
		h.last.next = a
	}
	h.last = a
	return true, nil
}

// remove removes an answer from the list. It returns false if it is not there, or released.
func (h *Hold) remove(a *heldAnswer) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.released || a.job == nil {
		return false
	}
	if a.prev == nil {
		h.first = a.next
	} else {
		a.prev.next = a.next
	}
	if a.next == nil {
		h.last = a.prev
	} else {
		a.next.prev = a.prev
	}
	a.job, a.prev, a.next = nil, nil, nil
	return true
}

// HoldAnswer holds the answer of the running method back until h is released: for a method that has
// done its work, but may answer only when something has happened that it shares with later calls,
// such as one commit for many writes. ctx is the method's context, or one derived from it. The
// method then returns its answer or its error as always, and with it its turn. The calls behind it
// run, and no goroutine waits. Only a sync call that runs inline keeps the goroutine of its caller,
// which waits anyway.
//
// HoldAnswer returns false, and does nothing, where there is no answer to hold: in streams, tasks,
// functions of [Node.Do] and methods of other nodes, and if the call's context or the method has
// ended. Such code waits by itself, after [Node.EndTurn] if it has a turn:
//
//	if !node.HoldAnswer(ctx, &group.hold) {
//		node.EndTurn(ctx)
//		select {
//		case <-group.hold.Done():
//			return group.hold.Err()
//		case <-ctx.Done():
//			return ctx.Err()
//		}
//	}
//
// The answer is complete when the method returns: interceptors see it then, and not the error of
// the release. It must not be part of the node's state, since it is sent without a turn, nor be
// modified. If the method is held by several Holds, the answer goes when all of them are released;
// the error is that of the first HoldAnswer whose Hold has one. A method that panics or ends its
// goroutine is not held: its caller gets the error at once.
//
// While its answer is held a call counts as running: towards MaxPending ([Limits]) like one that
// has given its turn back, or towards MaxStreams if its method is concurrent. If the caller's
// context ends, the caller gets that error at once and the Hold forgets the call. The graceful end
// of the node waits for the release; once its time is up, or if it ends without grace, the callers
// get the error Unavailable. The calls of a caller still begin in their order, but a later one may
// be answered first.
func (n *Node) HoldAnswer(ctx context.Context, h *Hold) bool {
	if h == nil {
		panic("raylink: HoldAnswer without a Hold")
	}
	cc := callContextOf(ctx)
	if cc == nil || cc.node != n || cc.call.method == nil || cc.call.method.shape != connect.StreamTypeUnary {
		return false
	}
	n.endsHeld.Do(func() { context.AfterFunc(n.work, n.endHeld) })
	cc.mu.Lock()
	defer cc.mu.Unlock()
	first := cc.held.Load()
	if cc.over != nil || first == forsaken {
		return false
	}
	if first == nil {
		cc.held.Store(&heldAnswer{hold: h})
		return true
	}
	last := first
	for ; last.hold != h; last = last.also {
		if last.also == nil {
			last.also = &heldAnswer{hold: h}
			break
		}
	}
	return true
}

// endHeld ends the calls whose answers are held, when the node's work has ended.
func (n *Node) endHeld() {
	for _, of := range n.mailbox.Running() {
		if j, ok := of.(*job); ok {
			n.endHeldAnswer(j)
		}
	}
}

func (n *Node) endHeldAnswer(j *job) {
	if j.forsake() {
		j.fail(n.unanswered(j.cc))
		j.settle()
	}
}

// unanswered is the error of a call whose answer was held when its context or its node ended.
func (n *Node) unanswered(cc *callContext) error {
	m := cc.call.method
	switch {
	case cc.caller.Err() != nil:
		return n.ended(cc.caller, m, heldBack)
	case n.work.Err() != nil:
		return closedError(n.path, "stopped while it held the answer of "+m.name+" back")
	default: // a future that was canceled
		return endedAt(connecterr.Canceled(context.Canceled), n.path, m, heldBack)
	}
}

// isHeld reports whether the method has returned and its answer is held.
func (c *callContext) isHeld() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	held := c.held.Load()
	return c.over != nil && held != nil && held != forsaken
}

// keep keeps the outcome of the job back, if its method has asked for that. It returns false if the
// job is to be answered now. Otherwise the job belongs to the Hold: it may be over already.
func (j *job) keep() bool {
	cc := j.cc
	if cc.held.Load() == nil {
		return false
	}
	if cc.turn != nil {
		cc.turn.Outlive()
	}
	j.req = nil
	if j.err == nil {
		j.held = fingerprintOf(j.res)
	}
	if !j.holdOn() {
		if cc.turn != nil {
			cc.turn.Finish()
		}
		return false
	}
	if j.in != nil {
		j.in.OnEnd()
	}
	if n := cc.node; n.work.Err() != nil {
		n.endHeldAnswer(j) // endHeld may be over
	}
	return true
}

// holdOn has the answer held by the first of its Holds that is not released. It returns false if
// there is none, or if one failed; the outcome is then final.
func (j *job) holdOn() bool {
	cc := j.cc
	cc.mu.Lock()
	for held := cc.held.Load(); held != nil; held = held.also {
		if held == forsaken {
			cc.mu.Unlock()
			j.fail(cc.node.unanswered(cc))
			return false
		}
		added, err := held.hold.add(held, j)
		cc.held.Store(held)
		if added {
			cc.mu.Unlock()
			return true
		}
		if err != nil {
			cc.mu.Unlock()
			j.fail(cc.node.releaseError(cc, err))
			return false
		}
	}
	cc.held.Store(nil)
	cc.mu.Unlock()
	return false
}

// release ends the hold a of the job, which that has let go.
func (j *job) release(a *heldAnswer, err error) {
	settled := false
	defer func() {
		if !settled { // a method of err has ended the goroutine
			j.fail(j.cc.node.goexited(j.cc.call.method))
			j.settle()
		}
	}()
	switch {
	case err != nil:
		j.fail(j.cc.node.releaseError(j.cc, err))
	case a.also != nil:
		if j.advance(a) {
			settled = true
			return
		}
	}
	settled = true
	j.settle()
}

// advance passes the job on to the Holds after a.
func (j *job) advance(a *heldAnswer) bool {
	cc := j.cc
	cc.mu.Lock()
	if cc.held.Load() == a {
		cc.held.Store(a.also)
	}
	cc.mu.Unlock()
	return j.holdOn()
}

// settle answers a job whose answer was held, and ends it in the mailbox.
func (j *job) settle() {
	if invariants.Messages && j.err == nil && j.held.Get().isModified() {
		j.fail(j.cc.node.modifiedError("the response of %s was changed while it was held back: a method must return a clone of what it changes later",
			j.cc.call.method.fullName()))
	}
	j.end()
	j.leave()
}

// leave ends a job that was held in the mailbox.
func (j *job) leave() {
	if turn := j.cc.turn; turn != nil {
		turn.Finish()
		return
	}
	j.cc.node.leaveConcurrent(j.cc)
}

// forsake is called when nothing waits for the job's answer any more: it is not held from then on.
// It returns true if it was held. The job is then the caller's to settle or to leave.
func (j *job) forsake() bool {
	cc := j.cc
	cc.mu.Lock()
	defer cc.mu.Unlock()
	held := cc.held.Swap(forsaken)
	return held != nil && held != forsaken && held.hold.remove(held)
}

func (j *job) fail(err error) { j.res, j.err = nil, err }

// releaseError converts the error of a release for one caller.
func (n *Node) releaseError(cc *callContext, err error) (out error) {
	returned := false
	defer func() {
		if !returned {
			out = n.failed(cc.call.method, usercode.Outcome(false, recover()))
		}
	}()
	out = n.convertError(cc, err)
	returned = true
	return out
}

// awaitHolds waits for the release of the answer of a method that has run on its caller's
// goroutine.
func (n *Node) awaitHolds(cc *callContext, res proto.Message, err error) (proto.Message, error) {
	answer := fingerprintOf(res)
	for held := cc.held.Load(); held != nil; held = held.also {
		if rerr := n.awaitHold(cc, held.hold); rerr != nil {
			return nil, rerr
		}
	}
	if invariants.Messages && err == nil && answer.Get().isModified() {
		return nil, n.modifiedError("the response of %s was changed while it was held back: a method must return a clone of what it changes later",
			cc.call.method.fullName())
	}
	return res, err
}

func (n *Node) awaitHold(cc *callContext, h *Hold) error {
	done := h.Done()
	select {
	case <-done:
	default:
		if cc.turn != nil {
			cc.turn.GiveBack()
		}
		mayBlock(cc)
		select {
		case <-done:
		case <-cc.caller.Done():
			return n.unanswered(cc)
		case <-n.work.Done():
			return n.unanswered(cc)
		}
	}
	if err := h.Err(); err != nil {
		return n.releaseError(cc, err)
	}
	return nil
}
