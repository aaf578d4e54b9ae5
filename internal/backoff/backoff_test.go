package backoff

import (
	"context"
	"errors"
	"math"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestPausesGrowWithinTheirBounds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := Backoff{
			First: time.Duration(rapid.Int64Range(1, int64(time.Hour)).Draw(t, "first")),
			Max:   time.Duration(rapid.Int64Range(1, math.MaxInt64).Draw(t, "max")),
		}
		bound := min(b.First, b.Max)
		for n := range 80 {
			pause := b.Next()
			if pause < bound/2 || pause > bound {
				t.Fatalf("pause %d is %v, not between %v and %v", n, pause, bound/2, bound)
			}
			if bound > b.Max/2 {
				bound = b.Max
			} else {
				bound *= 2
			}
		}
		b.Reset()
		if pause := b.Next(); pause > min(b.First, b.Max) {
			t.Fatalf("the first pause after Reset is %v", pause)
		}
	})
}

func TestPausesAreJittered(t *testing.T) {
	seen := make(map[time.Duration]struct{})
	for range 100 {
		var b Backoff
		seen[b.Next()] = struct{}{}
	}
	require.Greater(t, len(seen), 50)
}

func TestWaitEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, cause := Backoff{First: time.Hour, Max: time.Hour}, errors.New("closed")
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Second, func() { cancel(cause) })
		start := time.Now()
		require.ErrorIs(t, b.Wait(ctx), cause)
		require.Equal(t, time.Second, time.Since(start))
		require.NoError(t, b.Wait(t.Context()))
		require.GreaterOrEqual(t, time.Since(start), time.Second+time.Hour/2)
	})
}

func TestWaitEndsWithItsEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, event := Backoff{First: time.Hour, Max: time.Hour}, make(chan struct{})
		time.AfterFunc(time.Second, func() { close(event) })
		start := time.Now()
		require.NoError(t, b.WaitOr(t.Context(), event))
		require.Equal(t, time.Second, time.Since(start))
	})
}
