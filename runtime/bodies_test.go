package runtime

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/require"
)

func body(t *testing.T, b *bodies) *heldBody {
	t.Helper()
	return &heldBody{of: b, ctx: t.Context()}
}

func TestOneMessageOfTheLargestSizeFindsRoomAlone(t *testing.T) {
	if !guarded {
		t.Skip("nothing is counted: TestHostile shows that this is noticed")
	}
	b := newBodies("requests", 1<<20)
	one := body(t, b)
	require.NoError(t, one.take(1<<20))
	require.NoError(t, body(t, b).take(100))
	one.end()
	require.Equal(t, bodyFactor*100, b.held)
	require.Error(t, one.take(1), "the call is over")
	require.Equal(t, bodyFactor*100, b.held)
}

// TestMessagesThatDoNotEndLeaveRoomForSmallOnes takes all that large ones can get, and then calls for little.
func TestMessagesThatDoNotEndLeaveRoomForSmallOnes(t *testing.T) {
	if !guarded {
		t.Skip("nothing is counted: TestHostile shows that this is noticed")
	}
	synctest.Test(t, func(t *testing.T) {
		b := newBodies("requests that come", 1<<20)
		var all []*heldBody
		refused := 0
		for range 20 {
			one := body(t, b)
			all = append(all, one)
			for range 1 << 4 {
				if err := one.take(1 << 16); err != nil {
					require.Equal(t, connect.CodeResourceExhausted, connect.CodeOf(err))
					require.ErrorContains(t, err, "requests that come over HTTP")
					refused++
					break
				}
			}
		}
		require.Greater(t, refused, 15)
		require.LessOrEqual(t, b.held, b.limit)
		small := body(t, b)
		require.NoError(t, small.take(10))
		small.end()
		for _, one := range all {
			one.end()
		}
		require.Zero(t, b.held)
	})
}

func TestAMessageWaitsForRoomAndEndsWithItsCall(t *testing.T) {
	if !guarded {
		t.Skip("nothing is counted: TestHostile shows that this is noticed")
	}
	synctest.Test(t, func(t *testing.T) {
		b := newBodies("requests", 1<<20)
		first := body(t, b)
		require.NoError(t, first.take(1<<20))
		ctx, cancel := context.WithCancel(t.Context())
		second, third := body(t, b), &heldBody{of: b, ctx: ctx}
		ends := make(chan error, 2)
		go func() { ends <- second.take(1 << 20) }()
		go func() { ends <- third.take(1 << 20) }()
		<-time.After(bodyPatience / 2)
		cancel()
		require.Equal(t, connect.CodeCanceled, connect.CodeOf(<-ends))
		first.release()
		require.NoError(t, <-ends)
		second.end()
		require.Zero(t, b.held)
	})
}
