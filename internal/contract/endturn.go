package contract

import (
	"context"
	"fmt"
	"testing"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	contractv1 "github.com/raylink/raylink/internal/contract/gen/contract/v1"
	"github.com/raylink/raylink/internal/contract/gen/contract/v1/contractv1raylink"
	raylink "github.com/raylink/raylink/runtime"
)

// endTurn is the action of calls of Block, Relay and Spawn that give their turn back.
const endTurn = "end turn"

func mayEndTurn(ctx context.Context) {
	if raylink.CallFrom(ctx).Metadata().Get(actionKey) == endTurn {
		raylink.NodeFrom(ctx).EndTurn(ctx)
	}
}

// testEndTurn has a method give its turn back and wait, while later calls of the node get turns.
func testEndTurn(t *testing.T, way Way, p Peer) {
	ctx := patient(t)
	ending := raylink.WithMetadata(ctx, actionKey, endTurn)
	// A plain client's handle sends its next call when the last one has returned.
	later := p.Probe
	if way.Foreign {
		later = p.Near
	}
	takeTurn := func() error { return takesTurn(ctx, p.Probe, later) }
	async := func(req *contractv1.BlockRequest) error {
		_, err := p.BlockAsync(ending, req).Get(ctx)
		return err
	}
	sync := func(req *contractv1.BlockRequest) error {
		_, err := p.Block(ending, req)
		return err
	}
	warmUp := func(*testing.T) {}
	for name, way := range map[string]struct {
		before func(t *testing.T)
		call   func(*contractv1.BlockRequest) error
	}{
		"sync":  {warmUp, sync}, // on its caller's goroutine, where that is possible
		"async": {warmUp, async},
		// It may run on the goroutine that reads the connection.
		"a quick method": {func(t *testing.T) {
			t.Helper()
			_, err := p.Release(ctx, &contractv1.ReleaseRequest{Name: "quick"})
			require.NoError(t, err)
			for range 100 {
				_, err := p.Block(ctx, &contractv1.BlockRequest{Name: "quick"})
				require.NoError(t, err)
			}
		}, sync},
		"concurrent": {warmUp, func(req *contractv1.BlockRequest) error { // it has none to give back
			_, err := p.BlockBeside(ending, req)
			return err
		}},
	} {
		t.Run(name, func(t *testing.T) {
			way.before(t)
			over := make(chan error, 1)
			go func() { over <- way.call(&contractv1.BlockRequest{Name: name}) }()
			eventually(t, p.Probe, "it did not begin", blocked(name))
			for range 3 {
				require.NoError(t, takeTurn(), "the turn was not given back")
			}
			require.Empty(t, over, "it did not wait for its release")
			_, err := p.Release(ctx, &contractv1.ReleaseRequest{Name: name})
			require.NoError(t, err)
			require.NoError(t, <-over)
			require.NoError(t, takeTurn())
		})
	}
}

// takesTurn makes a call of later that takes a turn, or, if that is nil, a stream of p that does so
// by Do.
func takesTurn(ctx context.Context, p, later *contractv1raylink.Probe) error {
	if later != nil {
		_, err := later.Add(ctx, nil)
		return err
	}
	s, err := p.Sum(ctx)
	if err != nil {
		return err
	}
	_, err = s.CloseAndReceive()
	return err
}

// testCreateAfterTurn has a method that has given its turn back create nodes: it has none to
// suspend.
func testCreateAfterTurn(t *testing.T, p Peer) {
	if p.Near == nil {
		return // a stub has no children
	}
	ctx := patient(t)
	spawn := &contractv1.SpawnRequest{InProcess: true, Config: &contractv1.ProbeConfig{}}
	_, err := p.Spawn(raylink.WithMetadata(ctx, actionKey, endTurn), spawn)
	require.NoError(t, err)
	_, err = p.Add(ctx, nil)
	require.NoError(t, err)
}

// testHopEndsTurn has a called node call its caller, which has given its turn back: that is no
// cycle.
func testHopEndsTurn(t *testing.T, way Way, a, b Peer) {
	if way.Foreign && a.Near == nil {
		return // the nodes share their handles, and a plain client's handle waits for the call
	}
	ctx := raylink.WithMetadata(patient(t), actionKey, endTurn)
	_, err := a.Relay(ctx, &contractv1.RelayRequest{Next: b.Reach, What: "back", Back: a.Reach})
	require.NoError(t, err)
	bothFree(t, a, b)
}

// testTurnlessBound has calls that have given their turn back, or whose answers are held, count
// towards max_pending, which is 64.
func testTurnlessBound(t *testing.T, p *contractv1raylink.Probe, action string) {
	ctx := patient(t)
	ending := raylink.WithMetadata(ctx, actionKey, action)
	futures := make([]*raylink.Future[*contractv1.BlockResponse], 64)
	for i := range futures {
		futures[i] = p.BlockAsync(ending, &contractv1.BlockRequest{Name: "gate"})
	}
	eventually(t, p, "they did not begin", func(l *contractv1.LogResponse) bool { return len(l.GetBlocked()) == len(futures) })
	for _, call := range []func() error{
		func() error { _, err := p.Add(ctx, nil); return err },
		func() error { _, err := p.AddAsync(ctx, nil).Get(ctx); return err },
	} {
		err := call()
		require.Equal(t, connect.CodeResourceExhausted, connect.CodeOf(err), "%v", err)
		require.Contains(t, err.Error(), fmt.Sprintf("%d have given their turn back", len(futures)))
		require.Contains(t, err.Error(), "the oldest is Block")
	}
	sum, err := p.Sum(ctx) // the node's own code still gets turns
	require.NoError(t, err)
	_, err = sum.CloseAndReceive()
	require.NoError(t, err)
	_, err = p.Release(ctx, &contractv1.ReleaseRequest{Name: "gate"})
	require.NoError(t, err)
	_, err = raylink.Gather(ctx, futures...)
	require.NoError(t, err)
	_, err = p.Add(ctx, nil)
	assert.NoError(t, err)
}
