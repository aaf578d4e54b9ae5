package runtime

import (
	"context"
	"errors"
	"log/slog"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"

	"google.golang.org/protobuf/proto"

	"github.com/raylink/raylink/internal/connecterr"
	"github.com/raylink/raylink/runtime/tunnel"
)

// Future is the outcome of an asynchronous call, which may still be running. Its methods are safe
// for concurrent use and may be called any number of times; all calls see the same outcome. An
// error that is never read is logged once, when the future is garbage collected.
type Future[T any] struct{ f *future }

// Get blocks until the outcome is available. If ctx ends first, it returns ctx's error, and the
// call continues. If the caller holds the turn that the call waits for, Get returns an error at
// once. The result must not be modified.
//
// If the call was made with [connect.NewClientContext], the CallInfo has the response's metadata
// when the outcome is available. After a Get, [Wait] or [Gather] that returned without the outcome,
// nothing is written to the CallInfo until another one of them returns it.
func (f *Future[T]) Get(ctx context.Context) (T, error) {
	var none T
	res, err := f.f.get(ctx)
	if err != nil {
		return none, err
	}
	return res.(T), nil //nolint:forcetypeassert // the method's table made it
}

// Done is closed when the outcome is available.
func (f *Future[T]) Done() <-chan struct{} { return f.f.done }

// Cancel cancels the call. If it is still pending, it never runs; if it is running, its context is
// canceled. The outcome is then a Canceled error, unless it was available before.
func (f *Future[T]) Cancel() { f.f.abort(context.Canceled) }

// String returns the method's full name and the state: pending, done, or failed with the error. It
// does not count as reading the error.
func (f *Future[T]) String() string { return f.f.String() }

// future is the untyped part of a Future.
type future struct {
	// method and to are of the call, for errors and the detection of cycles.
	method *Method
	to     endpoint

	done chan struct{}
	// remote is the call if it goes to another process. That process has the same deadline, and a
	// short time after it to report how far the call has come. Set before the call is made;
	// otherwise nil.
	remote *tunnel.Call

	mu  sync.Mutex // guards the fields below, and closing done
	res proto.Message
	err error
	// cancel cancels the call; unwatch stops watching the call's context.
	cancel  func(error) error
	unwatch func() bool
	// abandoned is set if a wait for the outcome has ended without it. The caller may read its
	// CallInfo from then on, so deliver is kept for the next wait, see outcome.
	abandoned bool
	deliver   func()
	// waiting receive the future when it completes, see notify and forget.
	waiting []chan<- *future
	// uncollected is set together with an error.
	uncollected *uncollected
}

// uncollected outlives its future, to log an error that was never read.
type uncollected struct {
	collected atomic.Bool
	err       error
	method    string
	log       *slog.Logger
}

// String implements [Future].String.
func (f *future) String() string {
	if f == nil {
		return "no call"
	}
	select {
	case <-f.done:
	default:
		return f.method.String() + ": pending"
	}
	if f.err != nil {
		return f.method.String() + ": failed: " + f.err.Error()
	}
	return f.method.String() + ": done"
}

func newFuture(method *Method, to endpoint) *future {
	return &future{method: method, to: to, done: make(chan struct{})}
}

// isDone reports whether the outcome is available.
func (f *future) isDone() bool {
	select {
	case <-f.done:
		return true
	default:
		return false
	}
}

// complete makes err the outcome. Only the first outcome counts; it reports whether this was the
// first.
func (f *future) complete(err error) bool { return f.completeWith(nil, err, nil) }

// completeWith sets the outcome. deliver stores the response's metadata for the caller, before the
// outcome is visible.
func (f *future) completeWith(res proto.Message, err error, deliver func()) bool {
	f.mu.Lock()
	if f.isDone() {
		f.mu.Unlock()
		return false
	}
	switch {
	case deliver == nil:
	case f.abandoned:
		f.deliver = deliver
	default:
		deliver()
	}
	f.res, f.err = res, err
	unwatch := f.unwatch
	f.cancel, f.unwatch = nil, nil
	if err != nil {
		f.uncollected = &uncollected{err: err, method: f.method.fullName(), log: f.to.host().logger()}
		runtime.AddCleanup(f, func(u *uncollected) {
			if !u.collected.Load() {
				u.log.Error("an async call failed and its outcome was not read", slog.String("method", u.method), slog.Any("error", u.err))
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
	return true
}

// watch ties the future to its call: cancel cancels the call, which also happens when ctx ends.
func (f *future) watch(ctx context.Context, cancel func(error) error) {
	f.cancelBy(cancel)
	f.watchContext(ctx)
}

// cancelBy sets the function that cancels the call. It returns the outcome for a cause.
func (f *future) cancelBy(cancel func(error) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.isDone() {
		f.cancel = cancel
	}
}

// watchContext cancels the call when ctx ends.
func (f *future) watchContext(ctx context.Context) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.isDone() && ctx.Done() != nil {
		f.unwatch = context.AfterFunc(ctx, func() {
			if f.remote != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
				f.remote.AwaitReport(f.done)
			}
			f.abort(context.Cause(ctx))
		})
	}
}

// abort cancels the call and completes the future because of cause.
func (f *future) abort(cause error) {
	f.mu.Lock()
	cancel := f.cancel
	f.mu.Unlock()
	err := connecterr.Canceled(cause)
	if cancel != nil {
		err = cancel(cause)
	}
	if f.complete(err) {
		// The caller that cancels knows the outcome.
		f.collect()
	}
}

func (f *future) get(ctx context.Context) (proto.Message, error) {
	if err := f.refuseWait(ctx); err != nil && f.abandon() {
		return nil, err
	}
	if f.isDone() {
		return f.outcome()
	}
	mayBlock(ctx)
	select {
	case <-f.done:
		return f.outcome()
	case <-ctx.Done():
	}
	if f.abandon() {
		return nil, causeOf(ctx)
	}
	return f.outcome() // both happened at once: prefer the outcome
}

// abandon ends a wait without the outcome. It returns false, and does nothing, if the outcome is
// available.
func (f *future) abandon() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.isDone() {
		return false
	}
	f.abandoned = true
	return true
}

// refuseWait refuses to wait for a call that needs a turn which the caller holds.
func (f *future) refuseWait(ctx context.Context) error {
	if f.isDone() {
		return nil
	}
	if f.method.Concurrent() || f.to.nid() == "" {
		return nil
	}
	return f.refusedWait(ctx, chainOf(ctx).refuseCycleFrom(f.to.nid(), f.to.label(), f.method))
}

// outcome returns the outcome to a wait. It must be available.
func (f *future) outcome() (proto.Message, error) {
	f.collect()
	return f.res, f.err
}

// collect marks the outcome as read, and delivers the metadata that completeWith has kept.
func (f *future) collect() {
	f.mu.Lock()
	u, deliver := f.uncollected, f.deliver
	f.deliver = nil
	if deliver != nil {
		deliver()
	}
	f.mu.Unlock()
	if u != nil {
		u.collected.Store(true)
	}
}

// notify makes the future send itself to ch when it completes, or at once if it has. ch must have
// room.
func (f *future) notify(ch chan<- *future) {
	f.mu.Lock()
	if !f.isDone() {
		f.waiting = append(f.waiting, ch)
		f.mu.Unlock()
		return
	}
	f.mu.Unlock()
	ch <- f
}

// forget undoes notify, when the wait has ended, maybe without the outcome.
func (f *future) forget(ch chan<- *future) {
	f.abandon()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.waiting = slices.DeleteFunc(f.waiting, func(other chan<- *future) bool { return other == ch })
}

// Wait blocks until n of the futures are done, or ctx ends. It returns the futures that are done
// and those that are not, each in the order given; done may contain more than n. An n above the
// number of futures means all. If the wait could not end, because too many of the calls need a turn
// which the caller holds, it returns an error at once.
func Wait[T any](ctx context.Context, n int, futures ...*Future[T]) (done, pending []*Future[T], err error) {
	list := untyped(futures)
	stuck := 0
	var refusal error
	for _, f := range list {
		if r := f.refuseWait(ctx); r != nil {
			stuck, refusal = stuck+1, r
		}
	}
	n = min(n, len(futures))
	if n > len(futures)-stuck {
		err = refusal
	} else {
		err = await(ctx, n, list, nil)
	}
	for _, f := range futures {
		if f.f.abandon() {
			pending = append(pending, f)
		} else {
			done = append(done, f)
		}
	}
	return done, pending, err
}

// Gather blocks until all futures are done and returns their results in order. It returns the first
// error as soon as it occurs; the other calls continue.
func Gather[T any](ctx context.Context, futures ...*Future[T]) ([]T, error) {
	list := untyped(futures)
	for _, f := range list {
		if err := f.refuseWait(ctx); err != nil {
			for _, f := range list {
				f.abandon()
			}
			return nil, err
		}
	}
	err := await(ctx, len(list), list, func(f *future) error {
		_, err := f.outcome()
		return err
	})
	if err != nil {
		return nil, err
	}
	out := make([]T, len(list))
	for i, f := range list {
		out[i] = f.res.(T) //nolint:forcetypeassert // the method's table made it
	}
	return out, nil
}

func untyped[T any](futures []*Future[T]) []*future {
	list := make([]*future, len(futures))
	for i, f := range futures {
		list[i] = f.f
	}
	return list
}

// await blocks until n of the futures are done. It calls each, if not nil, for every future as it
// completes; an error from it ends the wait.
func await(ctx context.Context, n int, futures []*future, each func(*future) error) error {
	mayBlock(ctx)
	arrived := make(chan *future, len(futures))
	for _, f := range futures {
		f.notify(arrived)
	}
	defer func() {
		for _, f := range futures {
			f.forget(arrived)
		}
	}()
	for range n {
		var f *future
		select {
		case f = <-arrived:
		default:
			select {
			case f = <-arrived:
			case <-ctx.Done():
				return causeOf(ctx)
			}
		}
		if each == nil {
			continue
		}
		if err := each(f); err != nil {
			return err
		}
	}
	return nil
}
