package table

import (
	"container/list"
	"context"
	"fmt"
	"time"
)

// waiter is a call of Insert or Sample. It is guarded by the table's lock, though its slices are
// the caller's: the caller does not touch them before it has the lock again, or ready is closed.
type waiter struct {
	op     Op
	caller string
	// call is the number of the call, or 0: see WithCall.
	call uint64
	// try means that the call does not wait.
	try bool
	// done of total items were processed.
	done, total int

	items []Item
	keys  []Key

	samples []Sample
	beta    float64

	// report is called while the call waits, with no lock, or nil.
	report func(Blocked)

	// ready is closed when the call is complete or has failed with err. It is nil if the call has
	// not had to wait.
	ready chan struct{}
	err   error
	since time.Duration
}

// left returns how many items the call still wants.
func (w *waiter) left() int { return w.total - w.done }

// queue is the calls of one kind that wait, in the order in which they came.
type queue struct {
	list.List // of *waiter

	// last is the caller that was served last, and when.
	last   string
	lastAt time.Duration
}

// first returns the first call that waits, or nil.
func (q *queue) first() *waiter {
	if e := q.Front(); e != nil {
		return e.Value.(*waiter) //nolint:forcetypeassert // see queue
	}
	return nil
}

// fail ends all waiting calls with an error.
func (q *queue) fail(err error) {
	for w := q.first(); w != nil; w = q.first() {
		w.err = err
		q.pop()
	}
}

// pop ends the wait of the first call.
func (q *queue) pop() {
	w := q.first()
	q.Remove(q.Front())
	close(w.ready)
}

// wait performs a call as far as the limiter allows, and waits for the rest.
func (t *Table) wait(ctx context.Context, q *queue, w *waiter) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, fmt.Errorf("%v table %q: %w", w.op, t.config.Name, err)
	}
	w.call = callOf(ctx)
	t.mu.Lock()
	if t.closed != nil {
		defer t.mu.Unlock()
		return 0, t.closed
	}
	now := t.now()
	if q.Len() == 0 {
		t.advance(w, now)
	}
	if w.left() == 0 {
		t.serve()
		t.mu.Unlock()
		return w.total, nil
	}
	w.since = now
	if w.try {
		defer t.mu.Unlock()
		t.serve()
		return w.done, &BlockedError{Blocked: t.blocked(q, w), Table: t.config.Name}
	}
	w.ready = make(chan struct{})
	e := q.PushBack(w)
	t.serve()
	t.mu.Unlock()

	if !t.interrupted(ctx, q, w) {
		return w.done, w.err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if w.err != nil || w.left() == 0 {
		return w.done, w.err // was served meanwhile
	}
	blocked := t.blocked(q, w)
	q.Remove(e)
	t.serve()
	return w.done, &BlockedError{Blocked: blocked, Table: t.config.Name, Cause: ctx.Err()}
}

type callKey struct{}

// WithCall returns a context that gives a call of Insert or Sample a number, by which
// [Table.Waiting] finds it. The number should not be that of another call.
func WithCall(ctx context.Context, call uint64) context.Context {
	return context.WithValue(ctx, callKey{}, call)
}

func callOf(ctx context.Context) uint64 {
	call, _ := ctx.Value(callKey{}).(uint64)
	return call
}

// Waiting returns what a call waits for, or false if no call with this number waits.
func (t *Table) Waiting(call uint64) (Blocked, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, q := range []*queue{&t.inserters, &t.samplers} {
		for e := q.Front(); e != nil; e = e.Next() {
			if w := e.Value.(*waiter); w.call == call && call != 0 { //nolint:forcetypeassert // see queue
				return t.blocked(q, w), true
			}
		}
	}
	return Blocked{}, false
}

// firstReport and reportInterval are when a call that waits reports again what it waits for. The
// interval doubles in between.
const (
	firstReport    = 10 * time.Millisecond
	reportInterval = 100 * time.Millisecond
)

// interrupted waits until a call is complete or has failed, and reports meanwhile what it waits
// for. It returns true if the context has ended before.
func (t *Table) interrupted(ctx context.Context, q *queue, w *waiter) bool {
	var tick <-chan time.Time
	for interval := firstReport; ; interval = min(2*interval, reportInterval) {
		if w.report != nil {
			t.mu.Lock()
			waiting, blocked := w.err == nil && w.left() > 0, t.blocked(q, w)
			t.mu.Unlock()
			if waiting {
				w.report(blocked)
			}
			tick = time.After(interval)
		}
		select {
		case <-w.ready:
			return false
		case <-ctx.Done():
			return true
		case <-tick:
		}
	}
}

// serve performs waiting calls, in their order, as far as the limiter allows.
func (t *Table) serve() {
	if t.inserters.Len() == 0 && t.samplers.Len() == 0 {
		return
	}
	now := t.now()
	for progress := true; progress; {
		progress = false
		for _, q := range []*queue{&t.inserters, &t.samplers} {
			for w := q.first(); w != nil && t.advance(w, now); w = q.first() {
				progress = true
				if w.left() > 0 {
					break
				}
				q.pop()
			}
		}
	}
}

// advance performs what the limiter allows of a call. It reports whether that was anything.
func (t *Table) advance(w *waiter, now time.Duration) bool {
	before, inserted, sampled := w.done, t.counts.Inserted, t.counts.Sampled
	q := &t.inserters
	if w.op == Draw {
		q = &t.samplers
	}
	for w.left() > 0 {
		var n int
		if w.op == Insert {
			n = t.insertSome(w, now)
		} else {
			n = t.drawSome(w, now)
		}
		if n == 0 {
			break
		}
		w.done += n
	}
	if w.done == before {
		return false
	}
	q.last, q.lastAt = w.caller, now
	t.meter.add(now, t.counts.Inserted-inserted, t.counts.Sampled-sampled)
	return true
}

// insertSome inserts as many items of a call as the limiter allows now.
func (t *Table) insertSome(w *waiter, now time.Duration) int {
	n := t.limit.canInsert(w.left(), t.size, t.sampler.any())
	for i := w.done; i < w.done+n; i++ {
		w.keys[i] = t.add(&w.items[i], now)
	}
	return n
}

// drawSome draws as many items of a call as the limiter allows now: one by one, if they may leave
// the table.
func (t *Table) drawSome(w *waiter, now time.Duration) int {
	want := w.left()
	if t.maxSampled() > 0 {
		want = 1
	}
	n := t.limit.canSample(want, t.size, t.sampler.any())
	if n > 0 {
		t.draw(w.samples[w.done:w.done+n], w, now)
	}
	return n
}

// blocked describes a call that waits. It visits those before it.
func (t *Table) blocked(q *queue, w *waiter) Blocked {
	ahead := 0
	for e := q.Front(); e != nil; e = e.Next() {
		other := e.Value.(*waiter) //nolint:forcetypeassert // see queue
		if other == w {
			break
		}
		ahead += other.left()
	}
	return t.blockedBehind(w, ahead)
}

// blockedBehind describes a call that waits, if those before it want a number of items.
func (t *Table) blockedBehind(w *waiter, ahead int) Blocked {
	now := t.now()
	b := Blocked{Caller: w.caller, Op: w.op, Done: w.done, Total: w.total, Waited: now - w.since}
	last := &t.samplers
	if w.op == Insert {
		b.Needs = t.limit.forInserts(ahead+w.left(), t.size)
	} else {
		b.Needs = t.limit.forSamples(ahead+w.left(), t.size, t.sampler.any())
		last = &t.inserters
	}
	if last.last != "" {
		b.Needs.From, b.Needs.Ago = last.last, now-last.lastAt
	}
	return b
}
