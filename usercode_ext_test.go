package raylink_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	goruntime "runtime"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink"
	"github.com/raylink/raylink/internal/contract"
	contractv1 "github.com/raylink/raylink/internal/contract/gen/contract/v1"
	"github.com/raylink/raylink/internal/contract/gen/contract/v1/contractv1raylink"
	"github.com/raylink/raylink/runtime"
)

// logged is a log that can be searched.
type logged struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

// Write implements io.Writer.
func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logged) contains(s string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Contains(l.buf.Bytes(), []byte(s))
}

func (l *logged) option() raylink.Option {
	return raylink.WithLogger(slog.New(slog.NewTextHandler(l, nil)))
}

// others is a system with one node of the type Other, which set-up has prepared.
func others(t *testing.T, setUp func(context.Context, *runtime.Node) error, opts ...raylink.Option) *raylink.Runtime {
	t.Helper()
	opts = append(opts, raylink.WithData(t.TempDir()), contractv1raylink.OtherType(
		func(ctx context.Context, n *runtime.Node) (contractv1raylink.OtherNode, error) {
			return contractv1raylink.UnimplementedOtherNode{}, setUp(ctx, n)
		}))
	rt, err := raylink.Start(t.Context(), opts...)
	require.NoError(t, err)
	return rt
}

// TestSetupThatDoesNotReturnFailsItsCreation: in this process, and in one of its own.
func TestSetupThatDoesNotReturnFailsItsCreation(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for word, text := range map[string]string{contract.WordPanic: contract.WordPanic, contract.WordGoexit: "ended its goroutine"} {
		for _, where := range []runtime.CreateOption{runtime.ParentProcess(), runtime.OwnProcess()} {
			_, err := contractv1raylink.CreateProbe(ctx, driver, &contractv1.ProbeConfig{Fail: word}, where, runtime.WithAlias("fragile"))
			require.Equal(t, connect.CodeInternal, connect.CodeOf(err), "%v", err)
			require.ErrorContains(t, err, text)
			require.ErrorContains(t, err, "setting up probe-")
		}
	}
	p, err := contractv1raylink.CreateProbe(ctx, driver, nil, runtime.WithAlias("fragile"))
	require.NoError(t, err, "the alias is free again")
	require.NoError(t, p.Ref().Stop(ctx))
}

// TestSetupThatIgnoresItsContextIsLeftBehind: the creation ends soon after its context, and so does
// all else.
func TestSetupThatIgnoresItsContextIsLeftBehind(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	defer close(release)
	rt := others(t, func(context.Context, *runtime.Node) error { <-release; return nil })
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := contractv1raylink.CreateOther(ctx, rt)
	require.Equal(t, connect.CodeDeadlineExceeded, connect.CodeOf(err), "%v", err)
	require.ErrorContains(t, err, "setting up other-0")
	require.ErrorContains(t, err, "the set-up function had not returned")
	children, err := rt.Children(t.Context())
	require.NoError(t, err)
	for _, c := range children {
		require.NotEqual(t, "other", c.GetType())
	}
	require.NoError(t, rt.Close())
}

// TestStopNamesTheOnStopFunctionThatDoesNotReturn: it ends all the same, and calls the others.
func TestStopNamesTheOnStopFunctionThatDoesNotReturn(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	t.Cleanup(func() { close(release) })
	for text, second := range map[string]func(context.Context) error{
		"OnStop function 2 of 3 has not returned":     func(context.Context) error { <-release; return nil },
		"OnStop function 2 of 3 ended its goroutine":  func(context.Context) error { goruntime.Goexit(); return nil },
		"OnStop function 2 of 3 panicked: on purpose": func(context.Context) error { panic("on purpose") },
		"stopping other-0: its own error":             func(context.Context) error { return errors.New("its own error") },
	} {
		t.Run(text, func(t *testing.T) {
			t.Parallel()
			var log logged
			var called []int
			rt := others(t, func(_ context.Context, n *runtime.Node) error {
				n.OnStop(func(context.Context) error { called = append(called, 1); return nil })
				n.OnStop(second)
				n.OnStop(func(context.Context) error { called = append(called, 3); return nil })
				return nil
			}, runtime.WithDrain(time.Second), log.option())
			n, err := contractv1raylink.CreateOther(t.Context(), rt)
			require.NoError(t, err)
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			err = n.Ref().Stop(ctx)
			require.ErrorContains(t, err, text)
			require.NoError(t, ctx.Err())
			assert.Equal(t, []int{3, 1}, called)
			_, err = contractv1raylink.FindOther(t.Context(), rt, runtime.Path("other-0"))
			require.Equal(t, connect.CodeNotFound, connect.CodeOf(err), "%v", err)
			require.NoError(t, rt.Close())
		})
	}
}

// TestTaskThatEndsItsGoroutineIsItsNodesFailure: as is an error of its own, or a panic.
func TestTaskThatEndsItsGoroutineIsItsNodesFailure(t *testing.T) {
	t.Parallel()
	var log logged
	rt := others(t, func(_ context.Context, n *runtime.Node) error {
		n.Go(func(context.Context) error { goruntime.Goexit(); return nil })
		return nil
	}, log.option())
	n, err := contractv1raylink.CreateOther(t.Context(), rt)
	if err == nil { // else it has failed before it was set up
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		require.NoError(t, n.Ref().Ended(ctx))
	}
	require.True(t, log.contains("a task ended its goroutine"))
	require.NoError(t, rt.Close())
}
