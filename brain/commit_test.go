package brain

import (
	"log/slog"
	"testing"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink/brain/internal/tree"
	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
)

// TestAChangeThatCannotBeEncodedFailsAlone has one change in a group that can't be encoded; the
// service's checks normally exclude such changes.
func TestAChangeThatCannotBeEncodedFailsAlone(t *testing.T) {
	b, err := Open(Options{Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	defer func() { require.NoError(t, b.Close()) }()
	register := func(service string) *change {
		return &change{done: make(chan error, 1), run: func(x *tree.Txn) error {
			_, err := x.Register(&brainv1.RegisterRequest{Type: "worker", Service: service})
			return err
		}}
	}
	group := []*change{register("first"), register("caf\xe9"), register("last")}
	// While the loop is busy with one change, the others are queued and form a group.
	begun, goOn := make(chan struct{}), make(chan struct{})
	busy := &change{done: make(chan error, 1), run: func(*tree.Txn) error {
		close(begun)
		<-goOn
		return nil
	}}
	b.changes <- busy
	<-begun
	for _, c := range group {
		b.changes <- c
	}
	close(goOn)
	require.NoError(t, <-busy.done)
	require.NoError(t, <-group[0].done)
	require.Equal(t, connect.CodeInvalidArgument, connect.CodeOf(<-group[1].done))
	require.NoError(t, <-group[2].done)
	require.NoError(t, b.Err())
	select {
	case <-b.Failed():
		t.Fatal("Brain refuses all changes because of one that it could not encode")
	default:
	}
	res, err := b.Service().List(t.Context(), &brainv1.ListRequest{})
	require.NoError(t, err)
	require.Len(t, res.GetNodes(), 2)
}
