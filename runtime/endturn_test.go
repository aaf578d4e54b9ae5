package runtime

import (
	"context"
	"errors"
	"io"
	"runtime"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	storagev1 "github.com/raylink/raylink/gen/raylink/storage/v1"
	"github.com/raylink/raylink/internal/invariants"
)

// Calls behind a method that has given its turn back run in their order while it waits for them,
// whether it runs on its caller's goroutine or was queued.
func TestEndTurn(t *testing.T) {
	for name, call := range map[string]func(*stub, context.Context) error{
		"inline": (*stub).call,
		"queued": func(s *stub, ctx context.Context) error { _, err := s.future(ctx).Get(ctx); return err },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const calls = 5
				s := newCounter("a", 1)
				numbered := func(i int) context.Context { return WithMetadata(t.Context(), "number", strconv.Itoa(i)) }
				began, proceed, all := 0, make(chan struct{}), make(chan struct{})
				s.does(func(ctx context.Context) error {
					assert.Equal(t, strconv.Itoa(began), CallFrom(ctx).Metadata().Get("number"), "the calls are out of order")
					began++
					switch began {
					case 1:
						<-proceed
					case calls:
						close(all)
					}
					s.node.EndTurn(ctx)
					<-all
					return nil
				})
				over := make(chan error, 1)
				go func() { over <- call(s, numbered(0)) }()
				synctest.Wait()
				var futures []*Future[*storagev1.IncrResponse]
				for i := 1; i < calls; i++ {
					futures = append(futures, s.future(numbered(i)))
				}
				synctest.Wait()
				require.Equal(t, 1, began, "two calls had the only turn")
				close(proceed)
				_, err := Gather(t.Context(), futures...)
				require.NoError(t, err)
				require.NoError(t, <-over)
			})
		})
	}
}

// heldTurns is how many calls of the node can hold a turn at once.
func heldTurns(t *testing.T, s *stub) int {
	t.Helper()
	release := make(chan struct{})
	held := 0
	var futures []*Future[*storagev1.IncrResponse]
	for range s.node.mailbox.Turns() + 2 {
		s.does(func(context.Context) error { <-release; return nil })
		futures = append(futures, s.future(t.Context()))
		synctest.Wait()
		held = s.node.mailbox.Stats().Running
	}
	close(release)
	_, err := Gather(t.Context(), futures...)
	require.NoError(t, err)
	synctest.Wait()
	return held
}

// However a method that has given its turn back ends, the node has as many turns as before, and the
// error is that of any method.
func TestEndAfterEndTurn(t *testing.T) {
	for _, turns := range []int{1, 3} {
		synctest.Test(t, func(t *testing.T) {
			s := newCounter("a", turns)
			for _, fn := range []func() error{
				func() error { return nil },
				func() error { return io.ErrUnexpectedEOF },
				func() error { panic("on purpose") },
				func() error { runtime.Goexit(); return nil },
			} {
				for range 3 {
					s.does(func(ctx context.Context) error {
						s.node.EndTurn(ctx)
						s.node.EndTurn(ctx)
						return fn()
					})
					over := make(chan struct{})
					go func() { // an inline call ends its caller's goroutine
						defer close(over)
						_ = s.call(t.Context())
					}()
					<-over
					_, _ = s.future(t.Context()).Get(t.Context())
					synctest.Wait()
				}
				require.Equal(t, turns, heldTurns(t, s))
			}
			s.does(func(ctx context.Context) error { s.node.EndTurn(ctx); panic("on purpose") })
			err := s.call(t.Context())
			require.Equal(t, connect.CodeInternal, connect.CodeOf(err))
			require.ErrorContains(t, err, "on purpose")
		})
	}
}

// A method that has given its turn back is like a concurrent one: those that it calls may call the
// node, and it may take turns, which it can give back too.
func TestCallsAfterEndTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newCounter("a", 1), newCounter("b", 1)
		nested := false
		b.does(a.call)
		a.does(func(ctx context.Context) error {
			if nested {
				return nil
			}
			nested = true
			err := a.node.Do(ctx, func(context.Context) error { return nil })
			require.Equal(t, connect.CodeFailedPrecondition, connect.CodeOf(err), "it has the turn: %v", err)
			a.node.EndTurn(ctx)
			require.NoError(t, b.call(ctx))
			_, err = a.future(ctx).Get(ctx)
			require.NoError(t, err)
			return a.node.Do(ctx, func(inner context.Context) error {
				a.node.EndTurn(ctx) // not that of this Do
				err := a.call(inner)
				require.Equal(t, connect.CodeFailedPrecondition, connect.CodeOf(err), "Do has the turn: %v", err)
				a.node.EndTurn(inner)
				return a.call(inner)
			})
		})
		require.NoError(t, a.call(t.Context()))
		require.Equal(t, 1, heldTurns(t, a))
	})
}

// Without a turn of the node EndTurn does nothing.
func TestEndTurnWithoutTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, other := newCounter("a", 1), newCounter("b", 1)
		s.node.EndTurn(t.Context())
		s.node.EndTurn(s.node.Context())
		task := make(chan struct{})
		s.node.Go(func(ctx context.Context) error { s.node.EndTurn(ctx); close(task); return nil })
		<-task
		s.doesConcurrent(func(ctx context.Context) error { s.node.EndTurn(ctx); return nil })
		require.NoError(t, s.callConcurrent(t.Context()))
		var ended context.Context
		s.does(func(ctx context.Context) error {
			ended = ctx //nolint:fatcontext // it is used afterwards
			other.node.EndTurn(ctx)
			err := s.call(ctx)
			require.Equal(t, connect.CodeFailedPrecondition, connect.CodeOf(err), "another node's EndTurn ended the turn: %v", err)
			return nil
		})
		require.NoError(t, s.call(t.Context()))
		s.node.EndTurn(ended)
		require.Equal(t, 1, heldTurns(t, s))
	})
}

// The end of a node waits for methods that have given their turn back, names them, and ends their
// contexts when its time is up.
func TestStopAfterEndTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newCounter("a", 1)
		turns := 0
		s.does(func(ctx context.Context) error {
			s.node.EndTurn(ctx)
			<-time.After(time.Second)
			return s.node.Do(ctx, func(context.Context) error { turns++; return nil })
		})
		f := []*Future[*storagev1.IncrResponse]{s.future(t.Context()), s.future(t.Context())}
		synctest.Wait()
		require.NoError(t, s.node.drain(t.Context(), errors.New("stopped")))
		require.Equal(t, 2, turns)
		_, err := Gather(t.Context(), f...)
		require.NoError(t, err)
	})
	synctest.Test(t, func(t *testing.T) {
		s := newCounter("a", 1)
		s.does(func(ctx context.Context) error { s.node.EndTurn(ctx); <-ctx.Done(); return ctx.Err() })
		f := []*Future[*storagev1.IncrResponse]{s.future(t.Context()), s.future(t.Context())}
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		err := s.node.drain(ctx, errors.New("stopped"))
		require.ErrorContains(t, err, "2 calls were still running and 0 waiting")
		require.ErrorContains(t, err, "Incr 2 times")
		for _, f := range f {
			_, err := f.Get(t.Context())
			require.Equal(t, connect.CodeUnavailable, connect.CodeOf(err), "%v", err)
		}
	})
}

// To give a turn back costs no allocation, and no goroutine if no call waits.
func TestEndTurnAllocates(t *testing.T) {
	if invariants.Messages {
		t.Skip("messages are hashed")
	}
	s := quickThatEndsTurns()
	req := &storagev1.IncrRequest{}
	var err error
	n := testing.AllocsPerRun(100, func() { _, err = s.incr.call(t.Context(), s.ref, req) })
	require.NoError(t, err)
	require.LessOrEqual(t, n, 1.0)
}
