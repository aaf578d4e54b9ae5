package runtime

import (
	"context"
	"sync"
	"time"

	"connectrpc.com/connect/v2"

	"github.com/raylink/raylink/runtime/internal/mailbox"
	"github.com/raylink/raylink/runtime/tunnel"
)

type callKey struct{}

// callContext is the context of one run of a node's method. It ends with the caller's context, with
// the node's work and with the run itself; its values are the node's alone, so that nothing of a
// local caller's context leaks in that a remote caller's could not.
//
// It is one allocation. Only a method that waits on Done, derives a context or asks for the cause
// pays for joining the ends.
type callContext struct {
	call Call
	// node is the node that serves.
	node *Node
	// life carries the node's values and ends with its work.
	life context.Context //nolint:containedctx // it is what a context is made of
	// caller ends with the call.
	caller context.Context //nolint:containedctx // as above
	// turn is the one that the method holds, or nil.
	turn *mailbox.Turn
	// ownTurn is that one where the caller's own goroutine runs the method.
	ownTurn mailbox.Turn
	// chain is who waits for this call, see chain.go.
	chain *chain
	// in or future is the caller of a method that has not returned when its node has stopped, see
	// cut. Both are nil for callers that wait for the end of the node, too.
	in     *tunnel.Incoming
	future *future
	// sent is the request of a call from this process, see seal.go.
	sent seal

	mu sync.Mutex // guards all below
	// err is what Err has said: it never says anything else afterwards.
	err error
	// over is why the run's context has ended by itself: the method has returned, or the call was
	// taken back.
	over error
	// joint is made for those who need one context.
	joint *joint
}

// joint is the one context that ends with the first of a call's ends.
type joint struct {
	ctx    context.Context //nolint:containedctx // as above
	cancel context.CancelCauseFunc
	unlink func() bool
}

var _ context.Context = (*callContext)(nil)

// maxDeadline is how far away a deadline may be: one that is further is none, whatever way the call
// came. Connect's header for it has ten digits for milliseconds, which are 115 days.
const maxDeadline = 100 * 24 * time.Hour

// Deadline implements context.Context.
func (c *callContext) Deadline() (time.Time, bool) {
	deadline, ok := c.caller.Deadline()
	if !ok || time.Until(deadline) > maxDeadline {
		return time.Time{}, false
	}
	return deadline, true
}

// Done implements context.Context.
func (c *callContext) Done() <-chan struct{} { return c.join().Done() }

// Err implements context.Context.
func (c *callContext) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.err = c.state()
	}
	return c.err
}

func (c *callContext) state() error {
	if c.joint != nil {
		return c.joint.ctx.Err()
	}
	if err := c.caller.Err(); err != nil {
		return err
	}
	if c.over != nil {
		return context.Canceled
	}
	return c.life.Err()
}

// Value implements context.Context.
func (c *callContext) Value(key any) any {
	switch key.(type) {
	case callKey:
		return c
	case *int:
		// This is how package context looks for the context that can be cancelled, to ask for its
		// cause and to derive others without a goroutine. It is not the node's life, which is what
		// it would find otherwise. Should that change, TestCauseOfACall says so.
		if joined := c.join(); joined.Value(key) == any(joined) {
			return joined
		}
	}
	return c.life.Value(key)
}

// join makes the one context that ends with the first of the ends.
func (c *callContext) join() context.Context {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.joint != nil {
		return c.joint.ctx
	}
	j := &joint{}
	c.joint = j
	j.ctx, j.cancel = context.WithCancelCause(c.caller)
	switch life := c.life; {
	case c.over != nil:
		j.cancel(c.over)
	case life.Err() != nil:
		j.cancel(context.Cause(life))
	default:
		j.unlink = context.AfterFunc(life, func() { j.cancel(context.Cause(life)) })
	}
	return j.ctx
}

// end ends the context when the method has returned, and frees what join took.
func (c *callContext) end() { c.abort(context.Canceled) }

// abort ends the context, also while the method may be running.
func (c *callContext) abort(cause error) {
	c.mu.Lock()
	if c.over == nil {
		c.over = cause
	}
	j := c.joint
	c.mu.Unlock()
	if j == nil {
		return
	}
	if j.unlink != nil {
		j.unlink()
	}
	j.cancel(cause)
}

// cut ends the wait of the caller although the method goes on.
func (c *callContext) cut(err *connect.Error) {
	switch {
	case c.in != nil:
		c.in.Refuse(err)
	case c.future != nil:
		c.future.complete(fromPeer(c.caller, err))
	}
}

// callContextOf returns the call context that ctx belongs to, or nil.
func callContextOf(ctx context.Context) *callContext {
	c, _ := ctx.Value(callKey{}).(*callContext)
	return c
}
