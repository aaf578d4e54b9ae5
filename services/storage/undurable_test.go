package storage

import (
	"log/slog"
	"testing"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/require"

	storagev1 "github.com/raylink/raylink/gen/raylink/storage/v1"
	"github.com/raylink/raylink/services/storage/internal/changelog"
)

// A program that does not link the log refuses to host a durable storage, and says what to import.
func TestProgramWithoutTheLog(t *testing.T) {
	open := changelog.Open
	changelog.Open = nil
	t.Cleanup(func() { changelog.Open = open })
	config := &storagev1.StorageConfig{Durability: storagev1.Durability_DURABILITY_ASYNC, Directory: t.TempDir()}
	n, err := newNode(config, 1<<20, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	err = withCode(n.open())
	require.Equal(t, connect.CodeFailedPrecondition, connect.CodeOf(err))
	require.ErrorContains(t, err, "services/storage/durable")
}
