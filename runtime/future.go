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

	"github.com/raylink/raylink/runtime/tunnel"
)

// Future is the outcome of an async call, which may still be to come. Its methods may be called
// from any goroutine, any number of times; all see the same outcome. An error that nobody collects
// is logged once, when the future is dropped.
type Future[T any] struct{ f *future }

// Get waits for the outcome. If ctx ends first it stops waiting and returns ctx's error; the call
// goes on. A method that holds the very turn which the call waits for is refused at once.
func (f *Future[T]) Get(ctx context.Context) (T, error) {
	var none T
	res, err := f.f.get(ctx)
	if err != nil {
		return none, err
	}
	return res.(T), nil //nolint:forcetypeassert // the method's table made it
}

// Done is closed when the outcome is there.
func (f *Future[T]) Done() <-chan struct{} { return f.f.done }

// Cancel takes the call back. One that still waits in line never runs; one that runs has its
// context canceled. The outcome is then a Canceled error, unless it was there already.
func (f *Future[T]) Cancel() { f.f.abort(context.Canceled) }

// future is what Future is about, without its type.
type future struct {
	// where the call went, for errors and circles.
	method *Method
	target *target

	done chan struct{}
	// verdict is the call where it goes to another process: that has the same deadline, and a
	// moment after it to say how far the call had come. It is set before the call is made, or nil.
	verdict *tunnel.Call

	mu        sync.Mutex // guards all below
	completed bool
	res       proto.Message
	err       error
	// cancel takes the call back; unwatch ends the watch on the call's context.
	cancel  func(error) error
	unwatch func() bool
	// waiting are told of the outcome, see notify and forget.
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
	return &future{method: method, target: t, done: make(chan struct{})}
}

// complete makes err the outcome; only the first outcome counts. It returns whether this one was.
func (f *future) complete(err error) bool { return f.completeWith(nil, err, nil) }

// completeWith sets the outcome, together with what deliver does: show the caller the response's
// metadata.
func (f *future) completeWith(res proto.Message, err error, deliver func()) bool {
	f.mu.Lock()
	if f.completed {
		f.mu.Unlock()
		return false
	}
	f.completed = true
	if deliver != nil {
		deliver() // before anybody can know that the outcome is there
	}
	f.res, f.err = res, err
	unwatch := f.unwatch
	f.cancel, f.unwatch = nil, nil
	if err != nil {
		f.uncollected = &uncollected{err: err, method: f.method.fullName(), log: f.target.logger()}
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
	return true
}

// watch ties the future to its call: cancel takes the call back, when ctx ends too.
func (f *future) watch(ctx context.Context, cancel func(error) error) {
	f.cancelBy(cancel)
	f.follow(ctx)
}

// cancelBy says what takes the call back, and makes its outcome of the cause.
func (f *future) cancelBy(cancel func(error) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.completed {
		f.cancel = cancel
	}
}

// follow takes the call back when ctx ends.
func (f *future) follow(ctx context.Context) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.completed && ctx.Done() != nil {
		f.unwatch = context.AfterFunc(ctx, func() {
			if f.verdict != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
				f.verdict.AwaitVerdict(f.done)
			}
			f.abort(context.Cause(ctx))
		})
	}
}

// abort completes the future because of cause, and takes its call back.
func (f *future) abort(cause error) {
	f.mu.Lock()
	cancel := f.cancel
	f.mu.Unlock()
	err := takenBack(cause)
	if cancel != nil {
		err = cancel(cause)
	}
	if f.complete(err) {
		// Whoever took the call back knows what became of it.
		f.collect()
	}
}

func (f *future) get(ctx context.Context) (proto.Message, error) {
	if err := f.refuseWait(ctx); err != nil {
		return nil, err
	}
	select {
	case <-f.done:
		return f.outcome()
	default:
		waits(ctx)
	}
	select {
	case <-f.done:
		return f.outcome()
	case <-ctx.Done():
	}
	select {
	case <-f.done:
		// Both came at once: the outcome is worth more.
		return f.outcome()
	default:
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
	return chainOf(ctx).circleFrom(f.target.nid, f.target.pathHint(), f.method)
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

// notify makes the future send itself to ch when its outcome is there, at once if it is. ch must
// have room.
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

// forget takes back what notify said, for one that waits no more.
func (f *future) forget(ch chan<- *future) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.waiting = slices.DeleteFunc(f.waiting, func(other chan<- *future) bool { return other == ch })
}

// Wait waits until n of the futures have their outcome, or ctx ends. It returns those that have it
// and those that don't, each in the order given; done may hold more than n. n is bounded by the
// number of futures. A wait that can't end, because too many of the calls wait for a turn which the
// caller holds, is refused at once.
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
		select {
		case <-f.Done():
			done = append(done, f)
		default:
			pending = append(pending, f)
		}
	}
	return done, pending, err
}

// Gather waits for all the futures and returns their results in order. It returns the first error
// that comes up, at once; the other calls go on.
func Gather[T any](ctx context.Context, futures ...*Future[T]) ([]T, error) {
	list := untyped(futures)
	for _, f := range list {
		if err := f.refuseWait(ctx); err != nil {
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

// await waits until n of the futures have their outcome, as they come; each, if given, may end the
// wait with an error.
func await(ctx context.Context, n int, futures []*future, each func(*future) error) error {
	waits(ctx)
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
