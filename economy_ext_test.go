package raylink_test

import (
	"context"
	goruntime "runtime"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink"
	contractv1 "github.com/raylink/raylink/internal/contract/gen/contract/v1"
	"github.com/raylink/raylink/internal/contract/gen/contract/v1/contractv1raylink"
	"github.com/raylink/raylink/internal/invariants"
	"github.com/raylink/raylink/runtime"
)

// TestAllocationsOfARemoteCall counts the allocations of both sides, as a user has them: the
// context with its deadline (four) and the response; on the node's side the call's state, the
// request and the response. docs/speed.md promises twelve with messages that have bytes fields,
// which these don't.
func TestAllocationsOfARemoteCall(t *testing.T) {
	far := farProbe(t)
	req := &contractv1.AddRequest{By: 1}
	fewest := fewestAllocations(t, func(ctx context.Context) {
		_, err := far.Add(ctx, req)
		require.NoError(t, err)
	})
	require.LessOrEqual(t, fewest, 7.0)
}

// TestAllocationsOfARemoteAsyncCall is the same for an async call, which has a future as well, and
// the functions that complete and cancel it.
func TestAllocationsOfARemoteAsyncCall(t *testing.T) {
	far := farProbe(t)
	req := &contractv1.AddRequest{By: 1}
	fewest := fewestAllocations(t, func(ctx context.Context) {
		_, err := far.AddAsync(ctx, req).Get(ctx)
		require.NoError(t, err)
	})
	require.LessOrEqual(t, fewest, 14.0)
}

// farProbe is another runtime's handle of a node in this process: its calls go through a tunnel.
func farProbe(t *testing.T) *contractv1raylink.Probe {
	t.Helper()
	if invariants.RaceEnabled {
		t.Skip("the race detector allocates, too: `make test-economy` runs this test without it")
	}
	ctx := patient(t)
	rt := system(t)
	other := joined(t, rt)
	probe, err := contractv1raylink.CreateProbe(ctx, rt, nil, runtime.ParentProcess())
	require.NoError(t, err)
	far, err := contractv1raylink.FindProbe(ctx, other, runtime.Path(probe.Ref().Path()))
	require.NoError(t, err)
	return far
}

// fewestAllocations counts the allocations of a call with a deadline of its own, which takes four.
func fewestAllocations(t *testing.T, call func(context.Context)) float64 {
	t.Helper()
	ctx := patient(t)
	bounded := func() {
		ctx, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		call(ctx)
	}
	for range 200 {
		bounded() // until the connection is open and the pools are filled
	}
	fewest := 1000.0
	for range 5 { // other goroutines in this process allocate sometimes
		fewest = min(fewest, testing.AllocsPerRun(500, bounded))
	}
	return fewest
}

// heavy is a node whose collection by the garbage collector a test observes.
type heavy struct {
	contractv1raylink.UnimplementedProbeNode

	sum int64
}

func (h *heavy) Add(_ context.Context, req *contractv1.AddRequest) (*contractv1.AddResponse, error) {
	h.sum += req.GetBy()
	return &contractv1.AddResponse{Sum: h.sum}, nil
}

// TestAStoppedNodeIsCollected shows that connections, which remember what was called through them,
// do not retain the node.
func TestAStoppedNodeIsCollected(t *testing.T) {
	freed := make(chan struct{})
	setUp := func(context.Context, *runtime.Node, *contractv1.ProbeConfig) (contractv1raylink.ProbeNode, error) {
		h := &heavy{}
		goruntime.AddCleanup(h, func(freed chan struct{}) { close(freed) }, freed)
		return h, nil
	}
	ctx := patient(t)
	rt, err := raylink.Start(ctx, raylink.WithData(t.TempDir()), contractv1raylink.ProbeType(setUp))
	require.NoError(t, err)
	defer func() { require.NoError(t, rt.Close()) }()
	other := joined(t, rt)
	near, err := contractv1raylink.CreateProbe(ctx, rt, nil)
	require.NoError(t, err)
	far, err := contractv1raylink.FindProbe(ctx, other, runtime.Path(near.Ref().Path()))
	require.NoError(t, err)
	for range 3 {
		_, err = far.Add(ctx, &contractv1.AddRequest{By: 1})
		require.NoError(t, err)
	}
	require.NoError(t, near.Ref().Stop(ctx))
	_, err = far.Add(ctx, &contractv1.AddRequest{By: 1})
	require.Equal(t, connect.CodeUnavailable, connect.CodeOf(err))
	goruntime.KeepAlive(near) // the handle of a node in this process is the node
	near = nil
	require.Eventually(t, func() bool {
		goruntime.GC()
		select {
		case <-freed:
			return true
		default:
			return false
		}
	}, patience, time.Millisecond)
}
