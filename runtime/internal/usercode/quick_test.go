package usercode_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink/runtime/internal/usercode"
)

// watched counts how often its Done is asked for.
type watched struct {
	context.Context //nolint:containedctx // it wraps one

	asked int
}

func (w *watched) Done() <-chan struct{} {
	w.asked++
	return w.Context.Done()
}

// TestQuickCodeLeavesNothingAtItsContext: a context keeps what it has made for a Done, so ten
// thousand nodes would each keep some 300 bytes for set-ups that are long over.
func TestQuickCodeLeavesNothingAtItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := &watched{Context: t.Context()}
		why := errors.New("why")
		over, err := usercode.Await(ctx, time.Second, func() error { return why })
		require.True(t, over)
		require.ErrorIs(t, err, why)
		require.Zero(t, ctx.asked)
	})
}

// TestSlowCodeIsLeftBehindAfterItsContext: code that is not quick is waited for until its context
// has ended, and a given time longer.
func TestSlowCodeIsLeftBehindAfterItsContext(t *testing.T) {
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
