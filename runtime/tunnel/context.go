package tunnel

import (
	"context"
	"sync"
	"time"
)

// callContext is the context of a call that is served. Most calls' contexts are never waited for,
// so it makes its channel and its timer only when somebody does.
type callContext struct {
	conn *Conn
	// in is the call.
	in *Incoming
	// deadline is when it ends by itself, after the connection's beginning; 0 for never.
	deadline time.Duration
	// inlineTurn is the turn of the reading goroutine that serves the call, or 0.
	inlineTurn uint64

	mu sync.Mutex // guards what follows
	// telling says that the call's owner is to be told of the end.
	telling bool
	err     error
	watched *watched
}

// watched is what a context needs that somebody waits for.
type watched struct {
	done  chan struct{}
	timer *time.Timer
	after map[*func()]struct{}
}

var _ context.Context = (*callContext)(nil)

// Deadline is the call's.
func (c *callContext) Deadline() (time.Time, bool) {
	if c.deadline == 0 {
		return time.Time{}, false
	}
	return c.conn.born.Add(c.deadline), true
}

// overdue says whether the deadline has passed.
func (c *callContext) overdue() bool { return c.deadline != 0 && time.Since(c.conn.born) >= c.deadline }

// watch is what waiting needs. Callers hold the lock.
func (c *callContext) watch() *watched {
	if c.watched == nil {
		c.watched = &watched{}
	}
	return c.watched
}

// Value has none.
func (*callContext) Value(any) any { return nil }

// Done is closed when the call is over.
func (c *callContext) Done() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	w := c.watch()
	if w.done == nil {
		w.done = make(chan struct{})
		if c.err != nil {
			close(w.done)
		}
		c.arm()
	}
	return w.done
}

// Err is why the call is over, or nil.
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

// AfterFunc makes the context package derive contexts without a goroutine for each.
func (c *callContext) AfterFunc(run func()) func() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		go run()
		return func() bool { return false }
	}
	w := c.watch()
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
	if w := c.watched; w.timer == nil && c.err == nil && c.deadline != 0 {
		w.timer = time.AfterFunc(c.deadline-time.Since(c.conn.born), func() { c.end(context.DeadlineExceeded) })
	}
}

// tellOwner makes end tell the call's owner.
func (c *callContext) tellOwner() {
	c.mu.Lock()
	over := c.err != nil
	c.telling = true
	c.mu.Unlock()
	if over {
		c.tell()
	}
}

func (c *callContext) tell() {
	if owner, ok := c.in.Owner.(interface{ Ended() }); ok {
		owner.Ended()
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
	if c.overdue() {
		err = context.DeadlineExceeded // the caller saw the same deadline pass, and its CANCEL was faster than the timer here
	}
	c.close(err)
	telling := c.telling
	c.mu.Unlock()
	if telling {
		c.tell()
	}
}

// close makes err the end. Callers hold the lock.
func (c *callContext) close(err error) {
	c.err = err
	w := c.watched
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
