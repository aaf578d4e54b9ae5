package contract

import (
	"context"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	contractv1 "github.com/raylink/raylink/internal/contract/gen/contract/v1"
	"github.com/raylink/raylink/internal/contract/gen/contract/v1/contractv1raylink"
	raylink "github.com/raylink/raylink/runtime"
)

func testHop(t *testing.T, a, b *contractv1raylink.Probe) {
	ctx := raylink.WithMetadata(patient(t), "tenant", "mine")
	res, err := a.Relay(ctx, &contractv1.RelayRequest{Next: b.Ref().NodeRef(), What: "who"})
	require.NoError(t, err)
	assert.Equal(t, a.Ref().Path(), res.GetWho().GetCallerPath())
	assert.Equal(t, a.Ref().NID(), res.GetWho().GetCallerNid())
	assert.Equal(t, b.Ref().Path(), res.GetWho().GetPath())
	assert.Empty(t, res.GetWho().GetMetadata(), "a caller's metadata went further than the call")
}

func testHopError(t *testing.T, a, b *contractv1raylink.Probe) {
	ctx := patient(t)
	fail := &contractv1.FailRequest{Code: uint32(connect.CodeOutOfRange), Message: "too far", Detail: "by a mile"}
	for what, message := range map[string]string{"fail": "too far", "wrap": "the relay could not: out_of_range: too far"} {
		_, err := a.Relay(ctx, &contractv1.RelayRequest{Next: b.Ref().NodeRef(), What: what, Fail: fail})
		require.Equal(t, connect.CodeOutOfRange, connect.CodeOf(err), "%v", err)
		var e *connect.Error
		require.ErrorAs(t, err, &e)
		assert.Equal(t, message, e.Message())
		require.Len(t, e.Details(), 2)
		assert.Equal(t, "contract.v1.Detail", e.Details()[0].Type)
		hops := raylink.Trace(err)
		require.Len(t, hops, 1)
		assert.Equal(t, a.Ref().Path(), hops[0].GetNode())
		assert.Equal(t, "contract.v1.Probe/Relay", hops[0].GetMethod())
	}
}

func testHopDeadline(t *testing.T, a, b *contractv1raylink.Probe) {
	ctx, cancel := context.WithTimeout(patient(t), 10*time.Second)
	defer cancel()
	res, err := a.Relay(ctx, &contractv1.RelayRequest{Next: b.Ref().NodeRef(), What: "who"})
	require.NoError(t, err)
	require.True(t, res.GetWho().GetHasDeadline())
	assert.LessOrEqual(t, res.GetWho().GetRemaining().AsDuration(), 10*time.Second)
}

func testCircle(t *testing.T, a, b *contractv1raylink.Probe) {
	ctx := patient(t)
	_, err := a.Relay(ctx, &contractv1.RelayRequest{Next: b.Ref().NodeRef(), What: "back", Back: a.Ref().NodeRef()})
	require.Equal(t, connect.CodeFailedPrecondition, connect.CodeOf(err), "%v", err)
	for _, part := range []string{"would wait for itself", a.Ref().Path() + " contract.v1.Probe/Relay -> " + b.Ref().Path(), "contract.v1.Probe/Add"} {
		assert.Contains(t, err.Error(), part)
	}
	require.NoError(t, ctx.Err())
}

func testSelf(t *testing.T, a, _ *contractv1raylink.Probe) {
	ctx := patient(t)
	for _, async := range []bool{false, true} {
		_, err := a.Relay(ctx, &contractv1.RelayRequest{Next: a.Ref().NodeRef(), What: "add", Async: async})
		require.Equal(t, connect.CodeFailedPrecondition, connect.CodeOf(err), "async=%v: %v", async, err)
		assert.Contains(t, err.Error(), "would wait for itself")
	}
	require.NoError(t, ctx.Err())
}
