package runtime

import (
	"strconv"
	"testing"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/require"

	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
)

// TestAnErrorThatIsPassedOnOftenStaysSmall passes an error on a thousand times.
func TestAnErrorThatIsPassedOnOftenStaysSmall(t *testing.T) {
	s := newCounter("a", 1)
	var err error = connect.NewError(connect.CodeAborted, "text").
		WithDetail(&connect.ErrorDetail{Type: "some.Detail", Value: []byte("kept")}).WithRemote()
	for range 1000 {
		var e *connect.Error
		require.ErrorAs(t, err, &e)
		err = s.node.passOn(&s.incr.m, e.WithRemote(), e)
	}
	require.Len(t, Trace(err), maxHops)
	var e *connect.Error
	require.ErrorAs(t, err, &e)
	require.Len(t, e.Details(), 2)
	require.Equal(t, "some.Detail", e.Details()[0].Type)
}

func TestALongTraceKeepsItsBeginningAndItsEnd(t *testing.T) {
	var hops []*nodev1.Hop
	for i := range 3 * maxHops {
		hops = append(hops, &nodev1.Hop{Node: strconv.Itoa(i)})
	}
	hops = withHop(hops, &nodev1.Hop{Node: "last"})
	require.Len(t, hops, maxHops)
	require.Equal(t, "0", hops[0].GetNode())
	require.Equal(t, strconv.Itoa(maxHops/2-1), hops[maxHops/2-1].GetNode())
	require.Equal(t, strconv.Itoa(3*maxHops-1), hops[maxHops-2].GetNode())
	require.Equal(t, "last", hops[maxHops-1].GetNode())
}
