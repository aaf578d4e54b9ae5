package runtime

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	storagev1 "github.com/raylink/raylink/gen/raylink/storage/v1"
)

// A sync call to an idle node runs on its caller's goroutine. An async one never does, nor do calls
// that are queued behind the sync one.
func TestInlineRule(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newCounter("a", 1)
		// A Goexit ends the caller's goroutine.
		ended := func(call func()) bool {
			over := make(chan bool)
			go func() {
				returned := false
				defer func() { over <- !returned }()
				call()
				returned = true
			}()
			return <-over
		}
		s.does(func(context.Context) error { runtime.Goexit(); return nil })
		assert.True(t, ended(func() { _ = s.call(t.Context()) }), "an idle node's method ran on another goroutine")
		assert.False(t, ended(func() { _, _ = s.future(t.Context()).Get(t.Context()) }), "FooAsync ran inline")

		// The turn was released after both.
		held := make(chan struct{})
		s.does(func(context.Context) error { <-held; return nil })
		caller := make(chan error, 1)
		go func() { caller <- s.call(t.Context()) }()
		synctest.Wait()
		s.does(func(context.Context) error { return nil })
		queued := make(chan bool, 1)
		go func() { queued <- ended(func() { _ = s.call(t.Context()) }) }()
		f := s.future(t.Context())
		synctest.Wait()
		block := make(chan struct{})
		s.does(func(context.Context) error { <-block; return nil })
		close(held)
		require.NoError(t, <-caller, "the caller waits for calls that were queued behind its own")
		close(block)
		require.False(t, <-queued)
		_, err := f.Get(t.Context())
		require.NoError(t, err)
	})
}

// A queued call whose context ends never runs. A running one has its context ended, and its waiter
// returns at once.
func TestContextEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newCounter("a", 1)
		release := make(chan struct{})
		s.does(func(context.Context) error { <-release; return nil })
		f := s.future(t.Context())
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := s.call(ctx)
		require.Equal(t, connect.CodeDeadlineExceeded, connect.CodeOf(err))
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Zero(t, s.node.mailbox.Stats().Waiting)
		// It ignores its context, and its waiter returns nevertheless.
		f.Cancel()
		_, err = f.Get(t.Context())
		require.Equal(t, connect.CodeCanceled, connect.CodeOf(err))
		close(release)
		synctest.Wait()
		require.Equal(t, uint64(1), s.node.mailbox.Stats().Finished)
	})
}

// A direct cycle is refused where it closes, also through a concurrent method and through Do. With
// two turns it is refused only when both are in it.
func TestCycles(t *testing.T) {
	a, b, two := newCounter("a", 1), newCounter("b", 1), newCounter("two", 2)
	ctx := t.Context()
	refused := func(err error) {
		t.Helper()
		require.Equal(t, connect.CodeFailedPrecondition, connect.CodeOf(err), "%v", err)
		require.ErrorContains(t, err, "would wait for itself")
	}
	a.does(b.callConcurrent)
	b.doesConcurrent(a.call)
	refused(a.call(ctx))

	a.does(func(ctx context.Context) error { return a.node.Do(ctx, func(context.Context) error { return nil }) })
	refused(a.call(ctx))

	a.does(func(context.Context) error { return nil })
	refused(a.node.Do(ctx, a.call))

	depth := 0
	two.does(func(ctx context.Context) error {
		if depth++; depth > 2 {
			return errors.New("a third turn")
		}
		return two.call(ctx)
	})
	refused(two.call(ctx))
	require.Equal(t, 2, depth)

	// A call is part of a cycle only while another call waits for it.
	var f *Future[*storagev1.IncrResponse]
	first := true
	a.does(func(ctx context.Context) error {
		if !first {
			return nil
		}
		first = false
		f = a.future(context.WithoutCancel(ctx))
		_, err := f.Get(ctx)
		refused(err)
		_, _, err = Wait(ctx, 1, f)
		refused(err)
		_, err = Gather(ctx, f)
		refused(err)
		return nil
	})
	require.NoError(t, a.call(ctx))
	_, err := f.Get(ctx)
	require.NoError(t, err)
}

// The context of a call ends with the caller's, with the node's and with the call. It has the cause
// of the first of these ends, and keeps it.
func TestCauseOfACall(t *testing.T) {
	s := newCounter("a", 1)
	why := errors.New("the user left")
	ctx, cancel := context.WithCancelCause(t.Context())
	var inside, derived context.Context
	s.does(func(ctx context.Context) error {
		inside = ctx //nolint:fatcontext // the test examines it afterwards
		var stop context.CancelFunc
		before := runtime.NumGoroutine()
		derived, stop = context.WithCancel(ctx)
		defer stop()
		assert.Equal(t, before, runtime.NumGoroutine(), "a derived context cost a goroutine")
		require.NoError(t, ctx.Err())
		require.NoError(t, context.Cause(ctx))
		cancel(why)
		<-ctx.Done()
		<-derived.Done()
		require.ErrorIs(t, context.Cause(ctx), why)
		require.ErrorIs(t, context.Cause(derived), why)
		called := make(chan struct{})
		context.AfterFunc(ctx, func() { close(called) })
		<-called
		return nil
	})
	require.ErrorIs(t, s.call(ctx), why, "its caller gets the same error as over any other way")
	require.ErrorIs(t, inside.Err(), context.Canceled)

	// A context whose Done was never called ends with its call, too.
	s.does(func(ctx context.Context) error {
		inside = ctx //nolint:fatcontext // the test examines it afterwards
		return nil
	})
	require.NoError(t, s.call(t.Context()))
	require.ErrorIs(t, inside.Err(), context.Canceled)
	require.ErrorIs(t, context.Cause(inside), context.Canceled)
	<-inside.Done()
	require.Error(t, s.call(inside), "a call was made with the context of an ended call")
}

// The error of a context does not change when another of its ends follows.
func TestContextErrorDoesNotChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newCounter("a", 1)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		var inside context.Context
		s.does(func(ctx context.Context) error {
			inside = ctx //nolint:fatcontext // the test examines it afterwards
			return nil
		})
		require.NoError(t, s.call(ctx))
		require.ErrorIs(t, inside.Err(), context.Canceled)
		<-ctx.Done()
		require.ErrorIs(t, inside.Err(), context.Canceled)
		<-inside.Done()
		require.ErrorIs(t, inside.Err(), context.Canceled)

		deadline, ok := inside.Deadline()
		want, _ := ctx.Deadline()
		require.True(t, ok)
		require.Equal(t, want, deadline)
	})
}

// The end of a node ends its tasks before its OnStop functions. These run in reverse order, each
// whatever the others did.
func TestEndOfANode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newCounter("a", 1)
		n := s.node
		var order []string
		n.OnStop(func(ctx context.Context) error {
			order = append(order, "first")
			require.NoError(t, ctx.Err())
			require.Equal(t, n.path, callContextOf(ctx).node.identity.Path)
			n.OnStop(func(context.Context) error { order = append(order, "given late"); return nil })
			return nil
		})
		n.OnStop(func(context.Context) error { order = append(order, "second"); panic("at the disco") })
		n.Go(func(ctx context.Context) error {
			<-ctx.Done()
			order = append(order, "task")
			return ctx.Err()
		})
		called := make(chan struct{})
		s.does(func(ctx context.Context) error {
			close(called)
			<-time.After(time.Second)
			order = append(order, "call")
			return ctx.Err()
		})
		f := s.future(t.Context())
		<-called
		err := n.drain(t.Context(), errors.New("stopped"))
		require.ErrorContains(t, err, "at the disco")
		require.Equal(t, []string{"call", "task", "second", "first", "given late"}, order)
		_, err = f.Get(t.Context())
		require.NoError(t, err)
		err = s.call(t.Context())
		require.Equal(t, connect.CodeUnavailable, connect.CodeOf(err))
		require.ErrorContains(t, err, "is stopping")
		require.Error(t, n.Context().Err())
		require.Error(t, n.Do(t.Context(), func(context.Context) error { return nil }))
	})
}

// A node that can't be drained in time cancels running calls, refuses queued ones, and calls OnStop
// before the time is over.
func TestNodeThatIsNotDrained(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newCounter("a", 1)
		s.does(func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
		running := s.future(t.Context())
		synctest.Wait()
		waiting := s.future(t.Context())
		forget := make(chan struct{})
		s.node.Go(func(context.Context) error { <-forget; return nil })
		stopped := false
		s.node.OnStop(func(ctx context.Context) error { stopped = true; return ctx.Err() })
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		err := s.node.drain(ctx, errors.New("stopped"))
		require.ErrorContains(t, err, "1 calls were still running and 1 waiting")
		require.ErrorContains(t, err, "1 tasks of node.Go go on")
		require.True(t, stopped)
		for _, f := range []*Future[*storagev1.IncrResponse]{running, waiting} {
			_, err := f.Get(t.Context())
			require.Equal(t, connect.CodeUnavailable, connect.CodeOf(err), "%v", err)
			require.ErrorContains(t, err, "a stopped")
		}
		close(forget)
	})
}

// Concurrent methods and streams may still take turns while their node stops.
func TestDoWhileStopping(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newCounter("a", 1)
		s.doesConcurrent(func(ctx context.Context) error {
			<-time.After(time.Second)
			return s.node.Do(ctx, func(context.Context) error { return nil })
		})
		concurrent := make(chan error, 1)
		go func() { concurrent <- s.callConcurrent(t.Context()) }()
		synctest.Wait()
		require.NoError(t, s.node.drain(t.Context(), io.EOF))
		require.NoError(t, <-concurrent)
	})
}

// Interceptors see every call in order, may change it and respond to it, and can't corrupt it.
func TestInterceptors(t *testing.T) {
	s := newCounter("a", 1)
	var order []string
	named := func(name string) Interceptor {
		return func(next Invoke) Invoke {
			return func(ctx context.Context, in *Invocation) error {
				order = append(order, name)
				require.Same(t, &s.incr.m, CallFrom(ctx).Method())
				return next(ctx, in)
			}
		}
	}
	s.does(func(context.Context) error { order = append(order, "node"); return nil })
	s.intercepted(named("outer"), named("inner"))
	require.NoError(t, s.call(t.Context()))
	require.Equal(t, []string{"outer", "inner", "node"}, order)

	instead := func(fn func(in *Invocation, next func() error) error) {
		s.intercepted(func(next Invoke) Invoke {
			return func(ctx context.Context, in *Invocation) error { return fn(in, func() error { return next(ctx, in) }) }
		})
	}
	instead(func(*Invocation, func() error) error { return nil })
	res, err := s.incr.call(t.Context(), s.ref, nil)
	require.NoError(t, err)
	require.NotNil(t, res, "nil is the empty message")

	instead(func(in *Invocation, _ func() error) error { in.Response = &storagev1.HasResponse{}; return nil })
	require.ErrorContains(t, s.call(t.Context()), "an interceptor made a *storagev1.HasResponse the response of")

	s.take = func(_ context.Context, req *storagev1.IncrRequest) (*storagev1.IncrResponse, error) {
		require.NotNil(t, req)
		return &storagev1.IncrResponse{}, nil
	}
	instead(func(in *Invocation, next func() error) error { in.Request = nil; return next() })
	require.NoError(t, s.call(t.Context()))
	instead(func(in *Invocation, next func() error) error { in.Request = &storagev1.HasRequest{}; return next() })
	require.ErrorContains(t, s.call(t.Context()), "an interceptor made a *storagev1.HasRequest the request of")
	instead(func(*Invocation, func() error) error { panic("no") })
	require.Equal(t, connect.CodeInternal, connect.CodeOf(s.call(t.Context())))
}

// Concurrent methods are bounded, also for async calls.
func TestMaxStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newCounter("a", 1)
		release := make(chan struct{})
		s.doesConcurrent(func(context.Context) error { <-release; return nil })
		f1, f2 := s.has.async(t.Context(), s.ref, nil), s.has.async(t.Context(), s.ref, nil)
		err := s.callConcurrent(t.Context())
		require.Equal(t, connect.CodeResourceExhausted, connect.CodeOf(err))
		require.ErrorContains(t, err, "2 concurrent methods and streams, the most it may (max_streams)")
		close(release)
		_, err = Gather(t.Context(), f1, f2)
		require.NoError(t, err)
	})
}

// loggedEndpoint has a logger of its own.
type loggedEndpoint struct {
	endpoint

	log *slog.Logger
}

func (e loggedEndpoint) host() *Host { return &Host{log: e.log} }

// An error that was not read is logged once. One that was read, or whose call was canceled, is not.
func TestUncollectedErrors(t *testing.T) {
	s := newCounter("a", 1)
	j := &journal{}
	s.does(func(context.Context) error { return io.ErrUnexpectedEOF })
	drop := func(use func(f *Future[*storagev1.IncrResponse])) {
		logged := loggedEndpoint{s.ref.to, slog.New(j)}
		f := &Future[*storagev1.IncrResponse]{f: newFuture(&s.incr.m, logged)}
		require.NoError(t, logged.submit(t.Context(), &s.incr.m, &storagev1.IncrRequest{}, f.f, &outgoing{}))
		<-f.Done()
		use(f)
	}
	drop(func(f *Future[*storagev1.IncrResponse]) { _, _ = f.Get(t.Context()) })
	drop(func(f *Future[*storagev1.IncrResponse]) { _, _ = Gather(t.Context(), f) })
	drop(func(f *Future[*storagev1.IncrResponse]) {
		_, _, _ = Wait(t.Context(), 1, f)
		f.Cancel() // it was over and could not be canceled any more
	})
	drop(func(*Future[*storagev1.IncrResponse]) {})
	require.Eventually(t, func() bool { runtime.GC(); return j.count() >= 2 }, 20*time.Second, time.Millisecond)
	for range 3 {
		runtime.GC()
	}
	require.Equal(t, 2, j.count())
}

// A future that is waited for repeatedly does not retain waiters that have left.
func TestWaitLeavesNothingBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newCounter("a", 1)
		release := make(chan struct{})
		s.does(func(context.Context) error { <-release; return nil })
		slow := s.future(t.Context())
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		for range 100 {
			done, pending, err := Wait(ctx, 1, slow)
			require.Empty(t, done)
			require.Len(t, pending, 1)
			require.ErrorIs(t, err, context.DeadlineExceeded)
		}
		require.Empty(t, slow.f.waiting)
		close(release)
		done, _, err := Wait(t.Context(), 5, slow)
		require.NoError(t, err)
		require.Len(t, done, 1)
	})
}
