package raylink_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink"
	"github.com/raylink/raylink/internal/contract"
	contractv1 "github.com/raylink/raylink/internal/contract/gen/contract/v1"
	"github.com/raylink/raylink/runtime"
)

// TestShutdownIsBoundedByItsContext shuts a runtime down while a call runs that does not end, with a
// drain of an hour, and shows what other goroutines see of it.
func TestShutdownIsBoundedByItsContext(t *testing.T) {
	t.Parallel()
	opts := append(contract.Types(), raylink.WithData(t.TempDir()), raylink.WithDrain(time.Hour))
	rt, err := raylink.Start(patient(t), opts...)
	require.NoError(t, err)
	p := create(t, rt)
	p.BlockAsync(patient(t), &contractv1.BlockRequest{Name: "call"})
	require.Eventually(t, func() bool {
		log, err := p.Log(patient(t), nil)
		return err == nil && slices.Contains(log.GetBlocked(), "call")
	}, patience, time.Millisecond)
	require.NoError(t, rt.Err())
	select {
	case <-rt.Done():
		t.Fatal("Done is closed while the runtime runs")
	default:
	}
	ctx, cancel := context.WithCancel(t.Context())
	first := make(chan error, 1)
	go func() { first <- rt.Shutdown(ctx) }()
	late, expired := context.WithCancel(t.Context())
	expired()
	require.Eventually(t, func() bool {
		_, err := p.Log(patient(t), nil)
		return err != nil
	}, patience, time.Millisecond, "the node is not being stopped")
	require.ErrorIs(t, rt.Shutdown(late), context.Canceled, "a further Shutdown waits beyond its context")
	select {
	case err := <-first:
		t.Fatalf("Shutdown returned %v while a call runs and its context has not ended", err)
	default:
	}
	cancel()
	select {
	case <-rt.Done():
	case <-time.After(patience):
		t.Fatal("the runtime does not end")
	}
	err = <-first
	require.ErrorIs(t, err, context.Canceled)
	require.ErrorContains(t, err, p.Ref().Path()+" is still stopping")
	assert.Equal(t, err, rt.Close(), "a further Close returns the first one's error")
	require.ErrorIs(t, rt.Err(), runtime.ErrClosed)
}
