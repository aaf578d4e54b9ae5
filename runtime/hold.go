package runtime

import (
	"context"
	"sync"

	"google.golang.org/protobuf/proto"
)

// Hold holds the answers of methods back until something has happened that they share, such as one
// commit for many writes: see [Node.HoldAnswer].
type Hold struct {
	// done is closed when the answers are released; err is set before.
	done chan struct{}
	err  error

	mu       sync.Mutex // guards the fields below
	released bool
	jobs     []*job
}

// NewHold returns a Hold that holds no answers yet.
func NewHold() *Hold { return &Hold{done: make(chan struct{})} }

// Done returns a channel that is closed by Release.
func (h *Hold) Done() <-chan struct{} { return h.done }

// Err returns the error of the release; nil before.
func (h *Hold) Err() error {
	select {
	case <-h.done:
		return h.err
	default:
		return nil
	}
}

// Release lets the answers go, and those of methods that are held later. With an error, each
// caller gets that instead of its answer. It must be called once, in the end: the node's own end
// waits for its calls as long as it waits for methods. It must not be called in a turn of the node
// that still has to return.
func (h *Hold) Release(err error) {
	h.mu.Lock()
	if h.released {
		h.mu.Unlock()
		return
	}
	h.released, h.err = true, err
	jobs := h.jobs
	h.jobs = nil
	close(h.done)
	h.mu.Unlock()
	for _, j := range jobs {
		j.release(err)
	}
}

// HoldAnswer holds the answer of the running method back until h is released. ctx is the method's
// context, or one derived from it. The method returns its answer, or its error, as always, and with
// it its turn: the calls behind it run, and no goroutine waits. From then on it counts towards
// MaxPending ([Limits]), as a queued call does. The calls of a caller still begin in their order,
// but a later one may be answered first.
//
// The answer is complete when the method returns: interceptors see it before it is released. It
// must not be part of the node's state. A later HoldAnswer of the same method replaces an earlier
// one. In a stream, a task and Do it does nothing.
func (n *Node) HoldAnswer(ctx context.Context, h *Hold) {
	if cc := callContextOf(ctx); cc != nil && cc.node == n && cc.call.method != nil {
		cc.hold = h
	}
}

// keep keeps the outcome of a job until the release. It returns false if that has happened already.
// A concurrent method has a goroutine of its own, which waits.
func (h *Hold) keep(j *job) bool {
	turn := j.cc.turn
	if turn == nil {
		j.res, j.err = j.cc.node.awaitHold(j.cc, j.res, j.err)
		return false
	}
	turn.Outlive()
	h.mu.Lock()
	kept := !h.released
	if kept {
		h.jobs = append(h.jobs, j)
	}
	h.mu.Unlock()
	if !kept {
		j.fail(h.err)
		turn.Finish()
	}
	return kept
}

// release ends a job that was kept.
func (j *job) release(err error) {
	j.fail(err)
	j.end()
	j.cc.turn.Finish()
}

func (j *job) fail(err error) {
	if err != nil {
		j.res, j.err = nil, j.cc.node.convertError(j.cc, err)
	}
}

// awaitHold waits for the release of a call's answer without a turn.
func (n *Node) awaitHold(cc *callContext, res proto.Message, err error) (proto.Message, error) {
	h := cc.hold
	if cc.turn != nil {
		cc.turn.GiveBack()
	}
	mayBlock(cc)
	select {
	case <-h.done:
		if h.err != nil {
			return nil, n.convertError(cc, h.err)
		}
		return res, err
	case <-cc.caller.Done():
		return nil, n.ended(cc.caller, cc.call.method, running)
	case <-n.life.Done():
		return nil, n.unreturned(cc.call.method)
	}
}
