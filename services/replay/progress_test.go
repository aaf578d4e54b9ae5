package replay

import (
	"context"
	"testing"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"
	"github.com/raylink/raylink/gen/raylink/replay/v1/replayv1raylink"
)

// reporting is a node that reports any progress.
type reporting struct {
	replayv1raylink.UnimplementedReplayNode

	responses []*replayv1.CheckpointResponse
	err       error
}

func (r *reporting) Checkpoint(_ context.Context, _ *replayv1.CheckpointRequest, stream replayv1raylink.ReplayCheckpointServerStream) error {
	for _, res := range r.responses {
		if err := stream.Send(res); err != nil {
			return err
		}
	}
	return r.err
}

// responsesOf returns messages that are preceded by their length each.
func responsesOf(b []byte) (responses []*replayv1.CheckpointResponse) {
	for len(b) > 0 && len(responses) < 100 {
		text, n := protowire.ConsumeBytes(b)
		if n < 0 {
			return responses
		}
		res := &replayv1.CheckpointResponse{}
		if proto.Unmarshal(text, res) == nil {
			responses = append(responses, res)
		}
		b = b[n:]
	}
	return responses
}

func progressOf(t testing.TB, responses ...*replayv1.CheckpointResponse) (b []byte) {
	t.Helper()
	for _, res := range responses {
		text, err := proto.Marshal(res)
		require.NoError(t, err)
		b = protowire.AppendBytes(b, text)
	}
	return b
}

// FuzzProgress gets progress from a node that may end at any time: a checkpoint is reported only if
// the node's last response says that it is complete.
func FuzzProgress(f *testing.F) {
	some, done := &replayv1.CheckpointResponse{Rows: 3, Total: 9, Bytes: 100}, &replayv1.CheckpointResponse{
		Rows: 9, Total: 9, Bytes: 300, Done: true, Lost: 1, Tables: []*replayv1.CheckpointedTable{{Name: "per", Items: 4, LeftOut: 1}},
	}
	f.Add(progressOf(f, some, some, done), false)
	f.Add(progressOf(f, some), false)
	f.Add(progressOf(f, some, done), true)
	f.Add(progressOf(f, done, some), false)
	f.Add([]byte{}, false)
	n := &reporting{}
	c := &Client{}
	c.handle.Store(replayv1raylink.NewLocalReplay(n))
	refused := connect.Errorf(connect.CodeAborted, "no")
	f.Fuzz(func(t *testing.T, b []byte, fails bool) {
		n.responses, n.err = responsesOf(b), nil
		if fails {
			n.err = refused
		}
		reported := 0
		res, err := c.Checkpoint(t.Context(), "/c", func(res *replayv1.CheckpointResponse) {
			require.False(t, res.GetDone())
			reported++
		})
		last := len(n.responses) - 1
		switch {
		case fails:
			require.Equal(t, connect.CodeAborted, connect.CodeOf(err), "%v", err)
		case last >= 0 && n.responses[last].GetDone():
			require.NoError(t, err)
			require.True(t, proto.Equal(n.responses[last], res))
		default:
			require.ErrorContains(t, err, "the node ended the call after")
		}
		require.True(t, err == nil || res == nil)
		require.LessOrEqual(t, reported, len(n.responses))
		require.NotErrorIs(t, err, context.Canceled)
	})
}
