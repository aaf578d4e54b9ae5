package tunnel_test

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/raylink/raylink/runtime/tunnel"
)

// neverAnswers is a server that keeps all calls.
func neverAnswers() handlers { return handlers{unary: func(*tunnel.Incoming) {}, stream: echoStream} }

// givenUp has n callers wait for calls that are never answered, and gives them all up after a while. It says how long the last of them took to
// notice.
func givenUp(t *testing.T, n int, after time.Duration) (took time.Duration) {
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

func TestWhoWaitsHearsOfTheEndOfItsContext(t *testing.T) {
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
			// One caller reads its own answer, and several don't.
			for _, callers := range []int{1, 2, 100} {
				require.LessOrEqual(t, givenUp(t, callers, c.after), c.within, "%d callers", callers)
			}
		})
	}
}

func TestThousandsWhoWaitHearOfTheEndOfTheirContext(t *testing.T) {
	require.LessOrEqual(t, givenUp(t, 5000, 2*time.Millisecond), 5*time.Millisecond)
	require.Zero(t, givenUp(t, 5000, time.Minute))
}

// TestACallIsFollowedOnce: one that nobody waits for is to be watched when it has been open for some time, or when its context has ended.
func TestACallIsFollowedOnce(t *testing.T) {
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
				followed := make(chan time.Duration, 2)
				call := &tunnel.Call{
					Procedure: "/p/P", Request: wrapperspb.Bytes(nil), Done: func(*tunnel.Call) {},
					Follow: func() { followed <- time.Since(begin) },
				}
				require.NoError(t, s.client.Start(ctx, call))
				require.LessOrEqual(t, <-followed, c.within)
				<-time.After(time.Minute)
				require.Empty(t, followed)
			})
		})
	}
}

// TestAnAnsweredCallIsNotFollowed: a context that ends after its call is nobody's business.
func TestAnAnsweredCallIsNotFollowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := overMemory(t, tunnel.Config{}, tunnel.Config{}, echo())
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		require.NoError(t, s.client.Start(ctx, &tunnel.Call{
			Procedure: "/p/P", Request: wrapperspb.Bytes(nil), Done: func(*tunnel.Call) { close(done) },
			Follow: func() { t.Error("it was followed") },
		}))
		<-done
		cancel()
		<-time.After(time.Minute)
	})
}

func TestAfterEndIsCalledWhenTheConnectionHasEnded(t *testing.T) {
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
