package tunnel

import (
	"context"
	"sync"
	"time"
)

// callContext is the context of a call that is served. Most calls' contexts are never waited for, so it makes its channel and its
// timer only when somebody does.
type callContext struct {
	deadline time.Time

	mu    sync.Mutex // guards what follows
	err   error
	done  chan struct{}
	timer *time.Timer
	after map[*func()]struct{}
	ended interface{ Ended() }

	// in is the call.
	in *Incoming
}

var _ context.Context = (*callContext)(nil)

// Deadline is the call's.
func (c *callContext) Deadline() (time.Time, bool) { return c.deadline, !c.deadline.IsZero() }

// Value has none.
func (*callContext) Value(any) any { return nil }

// Done is closed when the call is over.
func (c *callContext) Done() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.done == nil {
		c.done = make(chan struct{})
		if c.err != nil {
			close(c.done)
		}
		c.arm()
	}
	return c.done
}

// Err is why the call is over, or nil.
func (c *callContext) Err() error {
	c.mu.Lock()
	err := c.err
	c.mu.Unlock()
	if err == nil && !c.deadline.IsZero() && !time.Now().Before(c.deadline) {
		c.end(context.DeadlineExceeded)
		return c.Err()
	}
	return err
}

// AfterFunc makes the context package derive contexts without a goroutine for each.
func (c *callContext) AfterFunc(run func()) func() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		go run()
		return func() bool { return false }
	}
	if c.after == nil {
		c.after = make(map[*func()]struct{})
	}
	key := &run
	c.after[key] = struct{}{}
	c.arm()
	return func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		_, there := c.after[key]
		delete(c.after, key)
		return there
	}
}

// arm starts the deadline's timer.
func (c *callContext) arm() {
	if c.timer == nil && c.err == nil && !c.deadline.IsZero() {
		c.timer = time.AfterFunc(time.Until(c.deadline), func() { c.end(context.DeadlineExceeded) })
	}
}

// onEnd makes end call ended.
func (c *callContext) onEnd(ended interface{ Ended() }) {
	c.mu.Lock()
	over := c.err != nil
	c.ended = ended
	c.mu.Unlock()
	if over {
		ended.Ended()
	}
}

// finish ends the context of a call that has been answered.
func (c *callContext) finish() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.close(context.Canceled)
	}
}

// end ends the context, once.
func (c *callContext) end(err error) {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	if !c.deadline.IsZero() && !time.Now().Before(c.deadline) {
		err = context.DeadlineExceeded // the caller saw the same deadline pass, and its CANCEL was faster than the timer here
	}
	c.close(err)
	ended := c.ended
	c.mu.Unlock()
	if ended != nil {
		ended.Ended()
	}
}

// close makes err the end. Callers hold the lock.
func (c *callContext) close(err error) {
	c.err = err
	if c.done != nil {
		close(c.done)
	}
	if c.timer != nil {
		c.timer.Stop()
	}
	for run := range c.after {
		go (*run)()
	}
	c.after = nil
}
