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
// the node's work and with the run itself. Its values are those of the node: the values of a local
// caller's context are not visible in it, as those of a remote caller's could not be.
//
// It is one allocation. Only a method that waits on Done, derives a context or asks for the cause
// pays for a context that joins these ends.
type callContext struct {
	call Call
	// node is the serving node.
	node *Node
	// life has the node's values and ends with its work.
	life context.Context //nolint:containedctx // part of this context
	// caller is the context of the call; it ends when the call is canceled.
	caller context.Context //nolint:containedctx // as above
	// turn is the one that the method holds, or nil.
	turn *mailbox.Turn
	// ownTurn is its storage where the method runs on the caller's own goroutine.
	ownTurn mailbox.Turn
	// chain are the calls that wait for this one, see chain.go.
	chain *chain
	// in or future gets the error where the method has not returned when its node has stopped, see
	// cut. Both are nil where the caller itself waits for the end of the node.
	in     *tunnel.Incoming
	future *future
	// sent is the fingerprint of the request of a call from this process, see fingerprint.go.
	sent fingerprint

	mu sync.Mutex // guards the fields below
	// err is what Err has returned; it never changes afterwards.
	err error
	// over is the reason why the context has ended by itself: the method has returned, or the call
	// was aborted.
	over error
	// joint is allocated when a single joined context is needed.
	joint *joint
}

// joint is a context that ends with the first of a call's ends.
type joint struct {
	ctx    context.Context //nolint:containedctx // as above
	cancel context.CancelCauseFunc
	unlink func() bool
}

var _ context.Context = (*callContext)(nil)

// maxDeadline is the furthest that a deadline may be away; one beyond that is no deadline, whatever
// way the call came. Connect's header for it has ten digits of milliseconds, which are 115 days.
const maxDeadline = 100 * 24 * time.Hour

// Deadline implements [context.Context].
func (c *callContext) Deadline() (time.Time, bool) {
	deadline, ok := c.caller.Deadline()
	if !ok || time.Until(deadline) > maxDeadline {
		return time.Time{}, false
	}
	return deadline, true
}

// Done implements [context.Context].
func (c *callContext) Done() <-chan struct{} { return c.join().Done() }

// Err implements [context.Context].
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

// Value implements [context.Context].
func (c *callContext) Value(key any) any {
	switch key.(type) {
	case callKey:
		return c
	case *int:
		// Package context uses an unexported *int key to find the innermost cancelable context, for
		// its cause and to derive others without a goroutine. Without this it would find the node's
		// life, and miss the caller's end. TestCauseOfACall fails if the standard library changes
		// that.
		if joined := c.join(); joined.Value(key) == any(joined) {
			return joined
		}
	}
	return c.life.Value(key)
}

// join returns the joined context, and makes it on first use.
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

// end ends the context when the method has returned, and releases what join registered.
func (c *callContext) end() { c.abort(context.Canceled) }

// abort ends the context with a cause, possibly while the method is running.
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

// cut completes the call with err although its method has not returned.
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
