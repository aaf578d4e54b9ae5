package runtime_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	contractv1 "github.com/raylink/raylink/internal/contract/gen/contract/v1"
	"github.com/raylink/raylink/internal/contract/gen/contract/v1/contractv1raylink"
	"github.com/raylink/raylink/runtime"
	"github.com/raylink/raylink/runtime/tunnel"
)

// flaky fails its first calls. Echo is idempotent, Add is not.
type flaky struct {
	contractv1raylink.UnimplementedProbeNode

	errs  []error
	calls int
}

func (f *flaky) next() error {
	f.calls++
	if f.calls > len(f.errs) {
		return nil
	}
	return f.errs[f.calls-1]
}

// Echo implements the node.
func (f *flaky) Echo(_ context.Context, req *contractv1.EchoRequest) (*contractv1.EchoResponse, error) {
	return &contractv1.EchoResponse{Payload: req.GetPayload()}, f.next()
}

// Add implements the node.
func (f *flaky) Add(context.Context, *contractv1.AddRequest) (*contractv1.AddResponse, error) {
	return &contractv1.AddResponse{Sum: 1}, f.next()
}

func unavailable(n int) []error {
	errs := make([]error, n)
	for i := range errs {
		errs[i] = connect.Errorf(connect.CodeUnavailable, "down %d", i+1).WithDetail(&connect.ErrorDetail{Type: "contract.v1.Detail"})
	}
	return errs
}

// retrying makes a handle of a flaky node whose calls are retried.
func retrying(policy runtime.RetryPolicy, errs ...error) (*flaky, *contractv1raylink.Probe) {
	f := &flaky{errs: errs}
	return f, contractv1raylink.NewLocalProbe(f).Intercepted(runtime.Retry(policy))
}

func TestRetryRepeatsIdempotentMethods(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, p := retrying(runtime.RetryPolicy{}, unavailable(3)...)
		began := time.Now()
		res, err := p.Echo(t.Context(), &contractv1.EchoRequest{Payload: []byte("x")})
		require.NoError(t, err)
		assert.Equal(t, "x", string(res.GetPayload()))
		assert.Equal(t, 4, f.calls)
		// Pauses of up to 20, 40 and 80 ms, each at least half of that.
		assert.GreaterOrEqual(t, time.Since(began), 70*time.Millisecond)
		assert.LessOrEqual(t, time.Since(began), 140*time.Millisecond)

		f.calls = 0
		res, err = p.EchoAsync(t.Context(), &contractv1.EchoRequest{Payload: []byte("y")}).Get(t.Context())
		require.NoError(t, err)
		assert.Equal(t, "y", string(res.GetPayload()))
		assert.Equal(t, 4, f.calls)
	})
}

func TestRetryGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, p := retrying(runtime.RetryPolicy{MaxAttempts: 3}, unavailable(9)...)
		_, err := p.Echo(t.Context(), nil)
		assert.Equal(t, 3, f.calls)
		e, ok := errors.AsType[*connect.Error](err)
		require.True(t, ok)
		assert.Equal(t, connect.CodeUnavailable, e.Code())
		assert.Equal(t, "down 3 (after 3 attempts)", e.Message())
		assert.True(t, e.IsRemote())
		assert.Len(t, e.Details(), 1)
	})
}

func TestRetryLeavesOtherCallsAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		f, p := retrying(runtime.RetryPolicy{Codes: []connect.Code{connect.CodeAborted}}, unavailable(9)...)
		_, err := p.Add(t.Context(), nil)
		require.ErrorContains(t, err, "down 1")
		assert.NotContains(t, err.Error(), "attempt")
		assert.Equal(t, 1, f.calls, "Add is not idempotent")

		f, p = retrying(runtime.RetryPolicy{}, connect.NewError(connect.CodeAborted, "no"))
		_, err = p.Echo(t.Context(), nil)
		require.Equal(t, connect.CodeAborted, connect.CodeOf(err))
		assert.Equal(t, 1, f.calls, "the code is not in the policy")

		f, p = retrying(runtime.RetryPolicy{MaxAttempts: 1}, unavailable(9)...)
		_, err = p.Echo(t.Context(), nil)
		require.Error(t, err)
		assert.Equal(t, 1, f.calls)
		assert.Zero(t, time.Since(began), "none of them pauses")

		f, p = retrying(runtime.RetryPolicy{Codes: []connect.Code{connect.CodeAborted}}, connect.NewError(connect.CodeAborted, "no"))
		_, err = p.Echo(t.Context(), nil)
		require.NoError(t, err)
		assert.Equal(t, 2, f.calls)
	})
}

func TestRetryRespectsTheDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, p := retrying(runtime.RetryPolicy{FirstPause: time.Second}, unavailable(9)...)
		ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
		defer cancel()
		began := time.Now()
		_, err := p.Echo(ctx, nil)
		require.Equal(t, connect.CodeUnavailable, connect.CodeOf(err), "%v", err)
		require.ErrorContains(t, err, "down 2 (after 2 attempts; its deadline leaves no time for another)")
		assert.Equal(t, 2, f.calls)
		assert.LessOrEqual(t, time.Since(began), time.Second, "it does not sleep what it knows to be too long")
		require.NoError(t, ctx.Err())
	})
}

func TestRetryEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, p := retrying(runtime.RetryPolicy{FirstPause: time.Hour, MaxPause: time.Hour}, unavailable(9)...)
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Minute, cancel)
		began := time.Now()
		_, err := p.Echo(ctx, nil)
		require.Equal(t, connect.CodeCanceled, connect.CodeOf(err), "%v", err)
		require.ErrorIs(t, err, context.Canceled)
		require.ErrorContains(t, err, "down 1")
		assert.Equal(t, time.Minute, time.Since(began))
		assert.Equal(t, 1, f.calls)

		future := p.EchoAsync(t.Context(), nil)
		synctest.Wait()
		future.Cancel()
		_, err = future.Get(t.Context())
		require.Equal(t, connect.CodeCanceled, connect.CodeOf(err), "%v", err)
		synctest.Wait()
		assert.Equal(t, 2, f.calls)
	})
}

// TestRetryRepeatsWhatWasNotRun repeats a call of a method that is not idempotent, because its
// errors say that it was not run.
func TestRetryRepeatsWhatWasNotRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &flaky{}
		tries := 0
		notRun := func(next runtime.ClientInvoke) runtime.ClientInvoke {
			return func(ctx context.Context, in *runtime.ClientInvocation) error {
				if tries++; tries < 3 {
					return connect.Errorf(connect.CodeUnavailable, "not reached %d", tries).WithCause(tunnel.ErrNotRun)
				}
				return next(ctx, in)
			}
		}
		p := contractv1raylink.NewLocalProbe(f).Intercepted(runtime.Retry(runtime.RetryPolicy{}), notRun)
		_, err := p.Add(t.Context(), nil)
		require.NoError(t, err)
		assert.Equal(t, 1, f.calls)

		// If no attempt has run, the error still reports that; otherwise it does not.
		tries = -9
		_, err = p.Add(t.Context(), nil)
		require.ErrorIs(t, err, tunnel.ErrNotRun)
		tries, f.calls, f.errs = 2, 0, unavailable(1)
		_, err = p.Echo(t.Context(), nil)
		require.NoError(t, err)
		assert.Equal(t, 2, f.calls)

		last := contractv1raylink.NewLocalProbe(f).Intercepted(runtime.Retry(runtime.RetryPolicy{MaxAttempts: 2}),
			func(next runtime.ClientInvoke) runtime.ClientInvoke {
				return func(ctx context.Context, in *runtime.ClientInvocation) error {
					if err := next(ctx, in); err != nil {
						return err
					}
					return fmt.Errorf("late: %w", connect.NewError(connect.CodeUnavailable, "not reached").WithCause(tunnel.ErrNotRun))
				}
			})
		f.calls = 0
		_, err = last.Echo(t.Context(), nil)
		require.ErrorContains(t, err, "not reached (after 2 attempts)")
		require.NotErrorIs(t, err, tunnel.ErrNotRun, "the first attempt ran")
	})
}
