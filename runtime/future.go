package runtime

import (
	"context"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"

	"google.golang.org/protobuf/proto"
)

// Future is the outcome of an async call, which may still be to come. Its methods may be called from any goroutine, any number of times; all
// see the same outcome. An error that nobody collects is logged once, when the future is dropped.
type Future[T any] struct{ f *future }

// Get waits for the outcome. If ctx ends first it stops waiting and returns ctx's error; the call goes on. A method that holds the very turn
// which the call waits for is refused at once.
func (f *Future[T]) Get(ctx context.Context) (T, error) {
	var none T
	res, err := f.f.get(ctx)
	if err != nil {
		return none, err
	}
	return res.(T), nil //nolint:errcheck,forcetypeassert // the method's table made it
}

// Done is closed when the outcome is there.
func (f *Future[T]) Done() <-chan struct{} { return f.f.done }

// Cancel takes the call back. One that still waits in line never runs; one that runs has its context canceled. The outcome is then a
// Canceled error, unless it was there already.
func (f *Future[T]) Cancel() { f.f.abort(context.Canceled) }

// future is what Future is about, without its type.
type future struct {
	// where the call went, for errors and circles.
	method *Method
	target *target
	log    *slog.Logger

	done chan struct{}

	mu        sync.Mutex // guards all below
	completed bool
	res       proto.Message
	err       error
	// cancel takes the call back; unwatch ends the watch on the call's context.
	cancel  func(error)
	unwatch func() bool
	// waiting are told of the outcome, see notify.
	waiting []chan<- *future
	// uncollected is set with an error.
	uncollected *uncollected
}

// uncollected outlives its future, to be logged when that is dropped unread.
type uncollected struct {
	collected atomic.Bool
	err       error
	method    string
	log       *slog.Logger
}

func newFuture(method *Method, t *target) *future {
	return &future{method: method, target: t, log: t.logger(), done: make(chan struct{})}
}

// complete sets the outcome; only the first one counts.
func (f *future) complete(res proto.Message, err error) {
	f.mu.Lock()
	if f.completed {
		f.mu.Unlock()
		return
	}
	f.completed = true
	f.res, f.err = res, err
	unwatch := f.unwatch
	f.cancel, f.unwatch = nil, nil
	if err != nil {
		f.uncollected = &uncollected{err: err, method: f.method.fullName(), log: f.log}
		runtime.AddCleanup(f, func(u *uncollected) {
			if !u.collected.Load() {
				u.log.Error("an async call failed and nobody asked for its outcome", slog.String("method", u.method), slog.Any("error", u.err))
			}
		}, f.uncollected)
	}
	close(f.done)
	for _, ch := range f.waiting {
		ch <- f
	}
	f.waiting = nil
	f.mu.Unlock()
	if unwatch != nil {
		unwatch()
	}
}

// watch ties the future to its call: cancel takes the call back, when ctx ends too.
func (f *future) watch(ctx context.Context, cancel func(error)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.completed {
		return
	}
	f.cancel = cancel
	if ctx.Done() != nil {
		f.unwatch = context.AfterFunc(ctx, func() { f.abort(context.Cause(ctx)) })
	}
}

// abort completes the future because of cause, and takes its call back.
func (f *future) abort(cause error) {
	f.mu.Lock()
	cancel := f.cancel
	f.mu.Unlock()
	err := takenBack(cause)
	if cancel != nil {
		cancel(cause)
	}
	f.complete(nil, err)
	f.collect()
}

func (f *future) get(ctx context.Context) (proto.Message, error) {
	if err := f.refuseWait(ctx); err != nil {
		return nil, err
	}
	select {
	case <-f.done:
		return f.outcome()
	case <-ctx.Done():
		return nil, causeOf(ctx)
	}
}

// refuseWait refuses to wait for a call that waits for a turn which the waiter holds.
func (f *future) refuseWait(ctx context.Context) error {
	select {
	case <-f.done:
		return nil
	default:
	}
	if f.method.Concurrent() || f.target.nid == "" {
		return nil
	}
	return chainOf(ctx).circle(f.target.nid, f.target.pathHint(), f.method.fullName(), f.target.service.config.MaxConcurrency)
}

func (f *future) outcome() (proto.Message, error) {
	f.collect()
	return f.res, f.err
}

func (f *future) collect() {
	f.mu.Lock()
	u := f.uncollected
	f.mu.Unlock()
	if u != nil {
		u.collected.Store(true)
	}
}

// notify makes the future send itself to ch when its outcome is there, at once if it is. ch must have room.
func (f *future) notify(ch chan<- *future) {
	f.mu.Lock()
	if !f.completed {
		f.waiting = append(f.waiting, ch)
		f.mu.Unlock()
		return
	}
	f.mu.Unlock()
	ch <- f
}

// Wait waits until n of the futures have their outcome, or ctx ends. It returns those that have it and those that don't, each in the order
// given; done may hold more than n. n is bounded by the number of futures.
func Wait[T any](ctx context.Context, n int, futures ...*Future[T]) (done, pending []*Future[T], err error) {
	arrived := make(chan *future, len(futures))
	stuck := 0
	for _, f := range futures {
		if refusal := f.f.refuseWait(ctx); refusal != nil {
			stuck, err = stuck+1, refusal
		}
		f.f.notify(arrived)
	}
	if n = min(n, len(futures)); n <= len(futures)-stuck {
		err = nil
	}
	for range n {
		if err != nil {
			break
		}
		select {
		case <-arrived:
		case <-ctx.Done():
			err = causeOf(ctx)
		}
	}
	for _, f := range futures {
		select {
		case <-f.Done():
			done = append(done, f)
		default:
			pending = append(pending, f)
		}
	}
	return done, pending, err
}

// Gather waits for all the futures and returns their results in order. It returns the first error that comes up, at once; the other calls
// go on.
func Gather[T any](ctx context.Context, futures ...*Future[T]) ([]T, error) {
	arrived := make(chan *future, len(futures))
	for _, f := range futures {
		if err := f.f.refuseWait(ctx); err != nil {
			return nil, err
		}
		f.f.notify(arrived)
	}
	for range futures {
		select {
		case f := <-arrived:
			if _, err := f.outcome(); err != nil {
				return nil, err
			}
		case <-ctx.Done():
			return nil, causeOf(ctx)
		}
	}
	out := make([]T, len(futures))
	for i, f := range futures {
		out[i] = f.f.res.(T) //nolint:errcheck,forcetypeassert // the method's table made it
	}
	return out, nil
}
