package contract

import (
	"context"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	contractv1 "github.com/raylink/raylink/internal/contract/gen/contract/v1"
	raylink "github.com/raylink/raylink/runtime"
)

func testHop(t *testing.T, way Way, a, b Peer) {
	ctx := patient(t)
	res, err := a.Relay(ctx, &contractv1.RelayRequest{Next: b.Reach, What: "who"})
	require.NoError(t, err)
	assert.Equal(t, b.Path, res.GetWho().GetPath())
	assert.Equal(t, string(way.Name), res.GetWho().GetWay())
	if way.Foreign {
		// Where ways may differ: what a plain client claims about itself is not believed.
		assert.Empty(t, res.GetWho().GetCallerPath())
		assert.Empty(t, res.GetWho().GetCallerNid())
		return
	}
	assert.Equal(t, a.Path, res.GetWho().GetCallerPath())
	assert.Equal(t, a.NID, res.GetWho().GetCallerNid())
}

func testHopMetadata(t *testing.T, _ Way, a, b Peer) {
	ctx, info := connect.NewClientContext(raylink.WithMetadata(patient(t), "tenant", "mine"))
	who := &contractv1.WhoRequest{Key: "tenant", Header: "h", Trailer: "t"}
	res, err := a.Relay(ctx, &contractv1.RelayRequest{Next: b.Reach, What: "who", Who: who})
	require.NoError(t, err)
	assert.Empty(t, res.GetWho().GetMetadata(), "a caller's metadata was passed on to a further call")
	assert.Empty(t, info.ResponseHeader().Get("probe-header"), "a node's headers were passed on to a further caller")
	assert.Empty(t, info.ResponseTrailer().Get("probe-trailer"), "a node's trailers were passed on to a further caller")
}

// detailName is the type of the detail of errors of the Probe.
var detailName = string((&contractv1.Detail{}).ProtoReflect().Descriptor().FullName())

func testHopError(t *testing.T, _ Way, a, b Peer) {
	ctx := patient(t)
	fail := &contractv1.FailRequest{Code: uint32(connect.CodeOutOfRange), Message: "too far", Detail: "by a mile"}
	for what, message := range map[string]string{"fail": "too far", "wrap": "the relay could not: out_of_range: too far"} {
		_, err := a.Relay(ctx, &contractv1.RelayRequest{Next: b.Reach, What: what, Fail: fail})
		require.Equal(t, connect.CodeOutOfRange, connect.CodeOf(err), "%v", err)
		var e *connect.Error
		require.ErrorAs(t, err, &e)
		assert.Equal(t, message, e.Message())
		require.Len(t, e.Details(), 2)
		assert.Equal(t, detailName, e.Details()[0].Type)
		hops := raylink.Trace(err)
		require.Len(t, hops, 1)
		assert.Equal(t, a.Path, hops[0].GetNode())
		assert.Equal(t, "contract.v1.Probe/Relay", hops[0].GetMethod())
	}
}

func testHopDeadline(t *testing.T, _ Way, a, b Peer) {
	ctx, cancel := context.WithTimeout(patient(t), 10*time.Second)
	defer cancel()
	res, err := a.Relay(ctx, &contractv1.RelayRequest{Next: b.Reach, What: "who"})
	require.NoError(t, err)
	require.True(t, res.GetWho().GetHasDeadline())
	assert.LessOrEqual(t, res.GetWho().GetRemaining().AsDuration(), 10*time.Second)
}

func testHopOverdue(t *testing.T, _ Way, a, b Peer) {
	ctx, cancel := context.WithTimeout(patient(t), 200*time.Millisecond)
	defer cancel()
	_, err := a.Relay(ctx, &contractv1.RelayRequest{Next: b.Reach, What: "block", Block: &contractv1.BlockRequest{Name: "far"}})
	require.Equal(t, connect.CodeDeadlineExceeded, connect.CodeOf(err), "%v", err)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	bothFree(t, a, b)
}

func testHopCancel(t *testing.T, _ Way, a, b Peer) {
	f := a.RelayAsync(patient(t), &contractv1.RelayRequest{Next: b.Reach, What: "block", Block: &contractv1.BlockRequest{Name: "far"}})
	eventually(t, b.Probe, "it did not begin", blocked("far"))
	f.Cancel()
	_, err := f.Get(patient(t))
	require.Equal(t, connect.CodeCanceled, connect.CodeOf(err), "%v", err)
	eventually(t, b.Probe, "the far method's context did not end", cancelled("far"))
	bothFree(t, a, b)
}

// bothFree checks that both nodes have released their turns.
func bothFree(t *testing.T, a, b Peer) {
	t.Helper()
	for _, p := range []Peer{a, b} {
		_, err := p.Add(patient(t), nil)
		require.NoError(t, err)
	}
}

func testHopStreams(t *testing.T, _ Way, a, b Peer) {
	res, err := a.Relay(patient(t), &contractv1.RelayRequest{Next: b.Reach, What: "streams"})
	require.NoError(t, err)
	assert.Equal(t, int64(5050), res.GetSum())
}

func testCycle(t *testing.T, _ Way, a, b Peer) {
	ctx := patient(t)
	_, err := a.Relay(ctx, &contractv1.RelayRequest{Next: b.Reach, What: "back", Back: a.Reach})
	require.Equal(t, connect.CodeFailedPrecondition, connect.CodeOf(err), "%v", err)
	for _, part := range []string{"would wait for itself", a.Path + " contract.v1.Probe/Relay -> " + b.Path, "contract.v1.Probe/Add"} {
		assert.Contains(t, err.Error(), part)
	}
	require.NoError(t, ctx.Err())
}

// testCycleOverdue has a cycle that can't be detected: the calls do not carry the chain of waiting
// turns.
func testCycleOverdue(t *testing.T, _ Way, a, b Peer) {
	ctx, cancel := context.WithTimeout(patient(t), 200*time.Millisecond)
	defer cancel()
	_, err := a.Relay(ctx, &contractv1.RelayRequest{Next: b.Reach, What: "back", Back: a.Reach})
	require.Equal(t, connect.CodeDeadlineExceeded, connect.CodeOf(err), "%v", err)
	bothFree(t, a, b)
}

func testSelf(t *testing.T, _ Way, a, _ Peer) {
	ctx := patient(t)
	for _, async := range []bool{false, true} {
		_, err := a.Relay(ctx, &contractv1.RelayRequest{Next: a.Reach, What: "add", Async: async})
		require.Equal(t, connect.CodeFailedPrecondition, connect.CodeOf(err), "async=%v: %v", async, err)
		assert.Contains(t, err.Error(), "would wait for itself")
	}
	require.NoError(t, ctx.Err())
}

// testHandles calls a busy node by two handles alternately.
func testHandles(t *testing.T, way Way, p Peer) {
	if p.Again == nil {
		return
	}
	ctx := patient(t)
	first, second := p.Probe, p.Again(t)
	busy := first.BlockAsync(ctx, &contractv1.BlockRequest{Name: "busy"})
	eventually(t, p.Near, "it did not begin", blocked("busy"))
	var calls []*raylink.Future[*contractv1.AddResponse]
	for i := range int64(6) {
		handle := first
		if i%2 == 1 {
			handle = second
		}
		calls = append(calls, handle.AddAsync(ctx, &contractv1.AddRequest{By: i}))
	}
	if way.Foreign {
		// Where ways may differ: each handle sends its next call when the last one has returned,
		// independently of the other. So the first call of the second handle is queued before those
		// that the first handle has not sent yet.
		require.Eventually(t, func() bool {
			info, err := p.Near.Ref().Info(ctx)
			return err == nil && info.GetPendingCalls() == 2 // the running call and the queued one
		}, Patience, 2*time.Millisecond)
	}
	_, err := p.Near.Release(ctx, &contractv1.ReleaseRequest{Name: "busy"})
	require.NoError(t, err)
	_, err = raylink.Gather(ctx, calls...)
	require.NoError(t, err)
	_, err = busy.Get(ctx)
	require.NoError(t, err)
	log, err := p.Near.Log(ctx, nil)
	require.NoError(t, err)
	added := log.GetAdded()
	require.Len(t, added, 6)
	if !way.Foreign {
		assert.Equal(t, []int64{0, 1, 2, 3, 4, 5}, added)
		return
	}
	assert.Equal(t, int64(1), added[0], "%v", added)
	for handle := range int64(2) {
		var of []int64
		for _, by := range added {
			if by%2 == handle {
				of = append(of, by)
			}
		}
		assert.Equal(t, []int64{handle, handle + 2, handle + 4}, of, "the calls of one handle")
	}
}
