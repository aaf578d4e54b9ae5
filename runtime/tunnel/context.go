package tunnel

import (
	"context"
	"sync"
	"time"
)

// callContext is the context of a served call. Few of them are ever waited for, so the channel and
// the timer are made on first use.
type callContext struct {
	conn *Conn
	// in is the call.
	in *Incoming
	// deadline is the call's deadline, relative to Conn.started; 0 means none.
	deadline time.Duration
	// inlineEpoch is the epoch of the inline work that serves the call, or 0.
	inlineEpoch uint64

	mu sync.Mutex // guards the fields below
	// notifyOnEnd is set if the call's owner is to be notified of the end.
	notifyOnEnd bool
	err         error
	waiters     *contextWaiters
}

// contextWaiters is the state of a context that is waited for.
type contextWaiters struct {
	done  chan struct{}
	timer *time.Timer
	after map[*func()]struct{}
}

var _ context.Context = (*callContext)(nil)

// Deadline returns the call's deadline, if it has one.
func (c *callContext) Deadline() (time.Time, bool) {
	if c.deadline == 0 {
		return time.Time{}, false
	}
	return c.conn.started.Add(c.deadline), true
}

// overdue reports whether the deadline has passed.
func (c *callContext) overdue() bool {
	return c.deadline != 0 && time.Since(c.conn.started) >= c.deadline
}

// ensureWaiters returns the state of the waiters, made on first use. The caller must hold c.mu.
func (c *callContext) ensureWaiters() *contextWaiters {
	if c.waiters == nil {
		c.waiters = &contextWaiters{}
	}
	return c.waiters
}

// Value returns nil: the context carries no values.
func (*callContext) Value(any) any { return nil }

// Done returns a channel that is closed when the call is over.
func (c *callContext) Done() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	w := c.ensureWaiters()
	if w.done == nil {
		w.done = make(chan struct{})
		if c.err != nil {
			close(w.done)
		}
		c.arm()
	}
	return w.done
}

// Err returns why the call is over, or nil. It checks the deadline itself, without the timer.
func (c *callContext) Err() error {
	c.mu.Lock()
	err := c.err
	c.mu.Unlock()
	if err == nil && c.overdue() {
		c.end(context.DeadlineExceeded)
		return c.Err()
	}
	return err
}

// AfterFunc lets the context package derive contexts without a goroutine for each.
func (c *callContext) AfterFunc(run func()) func() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		go run()
		return func() bool { return false }
	}
	w := c.ensureWaiters()
	if w.after == nil {
		w.after = make(map[*func()]struct{})
	}
	key := &run
	w.after[key] = struct{}{}
	c.arm()
	return func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		_, there := w.after[key]
		delete(w.after, key)
		return there
	}
}

// arm starts the deadline's timer.
func (c *callContext) arm() {
	if w := c.waiters; w.timer == nil && c.err == nil && c.deadline != 0 {
		w.timer = time.AfterFunc(c.deadline-time.Since(c.conn.started), func() { c.end(context.DeadlineExceeded) })
	}
}

// notifyOwner makes end notify the call's owner, at once if the context has already ended.
func (c *callContext) notifyOwner() {
	c.mu.Lock()
	over := c.err != nil
	c.notifyOnEnd = true
	c.mu.Unlock()
	if over {
		c.callEnded()
	}
}

func (c *callContext) callEnded() {
	if owner, ok := c.in.Owner.(interface{ Ended() }); ok {
		owner.Ended()
	}
}

// finish ends the context of an answered call.
func (c *callContext) finish() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.close(context.Canceled)
	}
}

// end ends the context with err. Only the first end has an effect.
func (c *callContext) end(err error) {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	if c.overdue() {
		err = context.DeadlineExceeded // the caller's CANCEL at the same deadline arrived before the local timer fired
	}
	c.close(err)
	telling := c.notifyOnEnd
	c.mu.Unlock()
	if telling {
		c.callEnded()
	}
}

// close sets the end and releases all waiters. The caller must hold c.mu.
func (c *callContext) close(err error) {
	c.err = err
	w := c.waiters
	if w == nil {
		return
	}
	if w.done != nil {
		close(w.done)
	}
	if w.timer != nil {
		w.timer.Stop()
	}
	for run := range w.after {
		go (*run)()
	}
	w.after = nil
}
