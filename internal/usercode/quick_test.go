package usercode_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink/internal/usercode"
)

// countingContext counts calls of Done.
type countingContext struct {
	context.Context //nolint:containedctx // it wraps one

	calls int
}

func (w *countingContext) Done() <-chan struct{} {
	w.calls++
	return w.Context.Done()
}

// TestQuickCodeDoesNotCallDone shows that Await leaves the context alone while the code is quick:
// after Done a context keeps some 300 bytes, for each of ten thousand nodes, long after its set-up.
func TestQuickCodeDoesNotCallDone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := &countingContext{Context: t.Context()}
		why := errors.New("why")
		over, err := usercode.Await(ctx, time.Second, func() error { return why })
		require.True(t, over)
		require.ErrorIs(t, err, why)
		require.Zero(t, ctx.calls)
	})
}

// TestSlowCodeIsAbandonedAfterItsContext shows that Await waits for slow code until its context has
// ended, and for the given duration after that.
func TestSlowCodeIsAbandonedAfterItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		begun, release := time.Now(), make(chan struct{})
		over, err := usercode.Await(ctx, time.Second, func() error {
			<-release
			return nil
		})
		require.False(t, over)
		require.NoError(t, err)
		require.Equal(t, time.Minute+time.Second, time.Since(begun))
		close(release)
	})
}
