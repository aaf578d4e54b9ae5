package brain_test

import (
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink/brain"
	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
)

// A keeper that is going to end reports it: from the response on nothing is placed on its machine,
// what waits looks elsewhere, and its lease and nodes go on.
func TestNothingIsPlacedOnAMachineThatLeaves(t *testing.T) {
	s := start(t, brain.Options{Grace: 20 * time.Millisecond})
	at, other := machineHost(1), machineHost(2)
	stream := s.keep(t, at, machineOf(at, 4, 2))
	s.keep(t, other, machineOf(other, 4, 1))
	there, err := s.place(t.Context(), 2, needs(1))
	require.NoError(t, err)
	require.Equal(t, "id-1", there.GetNodes()[0].GetAllocation().GetMachine())
	impossible := make(chan error, 1)
	go func() {
		_, err := s.place(t.Context(), 1, needs(2))
		impossible <- err
	}()
	s.allWait(t, 1)

	require.NoError(t, stream.Send(&brainv1.AttachRequest{Leaving: true}))
	res, err := stream.Receive()
	require.NoError(t, err)
	require.True(t, res.GetLeaving())
	require.Len(t, s.machines(t, ""), 1)
	err = <-impossible
	require.Equal(t, connect.CodeFailedPrecondition, connect.CodeOf(err), "only the machine that has left could serve it: %v", err)
	s.remove(t, there.GetNodes()...)
	again, err := s.place(t.Context(), 1, needs(1))
	require.NoError(t, err)
	require.Equal(t, "id-2", again.GetNodes()[0].GetAllocation().GetMachine())

	// The lease goes on.
	require.NoError(t, stream.Send(&brainv1.AttachRequest{}))
	res, err = stream.Receive()
	require.NoError(t, err)
	require.False(t, res.GetLeaving())
}
