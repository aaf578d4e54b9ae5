package replay

import (
	"bytes"
	"os/signal"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"
)

// limitFiles makes writes beyond a size fail, as on a full disk, until the function that it returns
// is called.
func limitFiles(t *testing.T, size int64) func() {
	t.Helper()
	signal.Ignore(syscall.SIGXFSZ)
	var before syscall.Rlimit
	require.NoError(t, syscall.Getrlimit(syscall.RLIMIT_FSIZE, &before))
	restore := func() { require.NoError(t, syscall.Setrlimit(syscall.RLIMIT_FSIZE, &before)) }
	t.Cleanup(restore)
	require.NoError(t, syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: uint64(size), Max: before.Max}))
	return restore
}

// TestFullDisk fails to save the items.
func TestFullDisk(t *testing.T) {
	config := fileConfig(t, Table("per", FIFO()))
	var log bytes.Buffer
	n := openFileNode(t, config, &log)
	n.file.cancel()
	n.file.saver.Wait()
	write(t, open(t, n), 1, 2, 3)
	createItems(t, n, "per", 0)
	n.file.save()
	limited := limitFiles(t, n.file.log.Size()+20)
	createItems(t, n, "per", 1)
	n.file.save()
	n.file.save()
	require.Equal(t, 1, bytes.Count(log.Bytes(), []byte("the replay's items can't be saved")), log.String())
	res, err := n.Inspect(t.Context(), &replayv1.InspectRequest{})
	require.NoError(t, err)
	require.Contains(t, res.GetFile().GetProblem(), "file too large")
	createItems(t, n, "per", 2)
	limited()
	n.file.save()
	require.Contains(t, log.String(), "saved again")
	res, err = n.Inspect(t.Context(), &replayv1.InspectRequest{})
	require.NoError(t, err)
	require.Empty(t, res.GetFile().GetProblem())
	require.Less(t, time.Duration(res.GetFile().GetSavedNs()), 10*time.Second)
	kill(t, n)
	require.Equal(t, 3, openFileNode(t, config, nil).tables.byName["per"].Inspect().Size)
}
