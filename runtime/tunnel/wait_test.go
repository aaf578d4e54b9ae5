package tunnel_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/raylink/raylink/runtime/tunnel"
)

// neverAnswers is a server that does not answer unary calls.
func neverAnswers() handlers { return handlers{unary: func(*tunnel.Incoming) {}, stream: echoStream} }

// cancelAll has n callers wait for calls that are never answered, and cancels them all after a
// time. It returns how long the last caller took to return.
func cancelAll(t *testing.T, n int, after time.Duration) (took time.Duration) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := overMemory(t, tunnel.Config{Keepalive: -1}, tunnel.Config{Keepalive: -1}, neverAnswers())
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var all sync.WaitGroup
		for range n {
			all.Go(func() {
				if err := invoke(ctx, s.client, 16); connect.CodeOf(err) != connect.CodeCanceled {
					t.Error(err)
				}
			})
		}
		<-time.After(after)
		begin := time.Now()
		cancel()
		all.Wait()
		took = time.Since(begin)
	})
	return took
}

func TestWaitingCallerReturnsWhenContextEnds(t *testing.T) {
	for _, c := range []struct {
		what   string
		after  time.Duration
		within time.Duration
	}{
		{"at once", 0, 2 * time.Millisecond},
		{"soon", 3 * time.Millisecond, 2 * time.Millisecond},
		{"late", time.Minute, 0},
	} {
		t.Run(c.what, func(t *testing.T) {
			// A single caller reads its own answer; several callers do not.
			for _, callers := range []int{1, 2, 100} {
				require.LessOrEqual(t, cancelAll(t, callers, c.after), c.within, "%d callers", callers)
			}
		})
	}
}

func TestThousandsOfWaitingCallersReturnWhenContextEnds(t *testing.T) {
	require.LessOrEqual(t, cancelAll(t, 5000, 2*time.Millisecond), 5*time.Millisecond)
	require.Zero(t, cancelAll(t, 5000, time.Minute))
	require.LessOrEqual(t, cancelAll(t, 20_000, 2*time.Millisecond), 10*time.Millisecond)
	require.Zero(t, cancelAll(t, 20_000, 700*time.Millisecond))
}

// TestThousandsOfAsyncCallsAreCanceledOnBothSides: however many calls are open, each ends when its
// context does, and so does its handler.
func TestThousandsOfAsyncCallsAreCanceledOnBothSides(t *testing.T) {
	const calls = 20_000
	for _, after := range []time.Duration{3 * time.Millisecond, 700 * time.Millisecond} {
		t.Run(after.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var caller, served sync.WaitGroup
				caller.Add(calls)
				served.Add(calls)
				s := overMemory(t, tunnel.Config{Keepalive: -1}, tunnel.Config{Keepalive: -1}, handlers{unary: func(in *tunnel.Incoming) {
					context.AfterFunc(in.Context(), served.Done)
				}})
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				for range calls {
					call := &tunnel.Call{Procedure: "/p/P", Request: wrapperspb.Bytes(nil), Done: func(*tunnel.Call) { caller.Done() }}
					call.WatchContext = func() { context.AfterFunc(ctx, func() { call.Cancel(ctx.Err()) }) }
					require.NoError(t, s.client.Start(ctx, call))
				}
				synctest.Wait() // until all of them are being served
				<-time.After(after)
				begin := time.Now()
				cancel()
				caller.Wait()
				served.Wait()
				require.LessOrEqual(t, time.Since(begin), 10*time.Millisecond)
			})
		})
	}
}

// TestCallAfterBurstIsCanceled: the number of calls that a connection has had does not matter.
func TestCallAfterBurstIsCanceled(t *testing.T) {
	const burst = 20_000
	for _, answered := range []bool{true, false} {
		t.Run(fmt.Sprintf("answered=%v", answered), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var held []*tunnel.Incoming
				s := overMemory(t, tunnel.Config{Keepalive: -1}, tunnel.Config{Keepalive: -1}, handlers{unary: func(in *tunnel.Incoming) {
					held = append(held, in)
				}})
				var all sync.WaitGroup
				calls := make([]tunnel.Call, burst)
				for i := range calls {
					all.Add(1)
					calls[i] = tunnel.Call{Procedure: "/p/P", Request: wrapperspb.Bytes(nil), Done: func(*tunnel.Call) { all.Done() }}
					require.NoError(t, s.client.Start(t.Context(), &calls[i]))
				}
				synctest.Wait()
				if !answered {
					for i := range calls {
						calls[i].Cancel(context.Canceled)
					}
				}
				for _, in := range held {
					in.Reply(nil, nil)
				}
				all.Wait()
				<-time.After(200 * time.Millisecond)
				require.LessOrEqual(t, tunnel.Slots(s.client), 1, "the memory of a burst is released")
				for range 2 { // after an asynchronous call, and after a synchronous one
					ctx, cancel := context.WithCancel(t.Context())
					end := make(chan error, 1)
					go func() { end <- invoke(ctx, s.client, 16) }()
					<-time.After(300 * time.Microsecond)
					begin := time.Now()
					cancel()
					require.Equal(t, connect.CodeCanceled, connect.CodeOf(<-end))
					require.LessOrEqual(t, time.Since(begin), 2*time.Millisecond)
					synctest.Wait()
					require.ErrorIs(t, held[len(held)-1].Context().Err(), context.Canceled)
				}
			})
		})
	}
}

// TestThousandsOfWindowWaitersEnd: callers that wait for the send window return when their contexts
// end, in any order, and the others are admitted in FIFO order.
func TestThousandsOfWindowWaitersEnd(t *testing.T) {
	const waiters = 20_000
	synctest.Test(t, func(t *testing.T) {
		var order []string
		var held *tunnel.Incoming
		s := overMemory(t, tunnel.Config{Keepalive: -1}, tunnel.Config{Keepalive: -1, MaxCalls: 1}, handlers{unary: func(in *tunnel.Incoming) {
			if held == nil {
				held = in
				return
			}
			order = append(order, in.Target)
			in.Reply(nil, nil)
		}})
		_, first, err := start(t.Context(), s.client, "/p/P", 1)
		require.NoError(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var gone, served sync.WaitGroup
		var want []string
		for i := range waiters {
			wait, done := ctx, &gone
			if i%1000 == 0 {
				wait, done = t.Context(), &served
				want = append(want, strconv.Itoa(i))
			}
			done.Go(func() {
				over := make(chan struct{})
				err := s.client.Start(wait, &tunnel.Call{Target: strconv.Itoa(i), Procedure: "/p/P", Done: func(*tunnel.Call) { close(over) }})
				if wait == ctx {
					if !errors.Is(err, tunnel.ErrNotRun) || connect.CodeOf(err) != connect.CodeCanceled {
						t.Error(err)
					}
					return
				}
				if err != nil {
					t.Error(err)
					return
				}
				<-over
			})
			if i%1000 == 0 {
				synctest.Wait() // so that the order is deterministic
			}
		}
		synctest.Wait()
		begin := time.Now()
		cancel()
		gone.Wait()
		require.Zero(t, time.Since(begin))
		held.Reply(nil, nil)
		require.NoError(t, <-first)
		served.Wait()
		require.Equal(t, want, order)
	})
}

// TestWatchContextIsCalledOnce, when an asynchronous call has been open for some time, or when its
// context has ended.
func TestWatchContextIsCalledOnce(t *testing.T) {
	for _, c := range []struct {
		what   string
		cancel time.Duration
		within time.Duration
	}{
		{"a context that ends", 1500 * time.Microsecond, 4 * time.Millisecond},
		{"a call that takes long", time.Hour, 20 * time.Millisecond},
	} {
		t.Run(c.what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := overMemory(t, tunnel.Config{Keepalive: -1}, tunnel.Config{Keepalive: -1}, neverAnswers())
				ctx, cancel := context.WithTimeout(t.Context(), c.cancel)
				defer cancel()
				begin := time.Now()
				watched := make(chan time.Duration, 2)
				call := &tunnel.Call{
					Procedure: "/p/P", Request: wrapperspb.Bytes(nil), Done: func(*tunnel.Call) {},
					WatchContext: func() { watched <- time.Since(begin) },
				}
				require.NoError(t, s.client.Start(ctx, call))
				require.LessOrEqual(t, <-watched, c.within)
				<-time.After(time.Minute)
				require.Empty(t, watched)
			})
		})
	}
}

// TestWatchContextIsNotCalledAfterAnswer, even if the context ends then.
func TestWatchContextIsNotCalledAfterAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := overMemory(t, tunnel.Config{}, tunnel.Config{}, echo())
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		require.NoError(t, s.client.Start(ctx, &tunnel.Call{
			Procedure: "/p/P", Request: wrapperspb.Bytes(nil), Done: func(*tunnel.Call) { close(done) },
			WatchContext: func() { t.Error("WatchContext was called") },
		}))
		<-done
		cancel()
		<-time.After(time.Minute)
	})
}

func TestAfterEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := overMemory(t, tunnel.Config{}, tunnel.Config{}, echo())
		ended := make(chan error, 2)
		s.client.AfterEnd(func() { ended <- s.client.Err() })
		synctest.Wait()
		require.Empty(t, ended)
		require.NoError(t, s.client.Close())
		require.Error(t, <-ended)
		s.client.AfterEnd(func() { ended <- s.client.Err() })
		require.Error(t, <-ended)
	})
}
