package services_test

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"
	"github.com/raylink/raylink/gen/raylink/replay/v1/replayv1raylink"
	"github.com/raylink/raylink/services/replay"
	"github.com/raylink/raylink/services/replay/ring"
)

// newestCounts returns the newest rows of a replay.
func newestCounts(t *testing.T, steps *replay.Typed[countColumns]) []int64 {
	t.Helper()
	b, err := steps.NewBatch(0)
	require.NoError(t, err)
	require.NoError(t, steps.Reader(nil).Newest(t.Context(), 100, b))
	return append([]int64{}, b.Columns.N...)
}

// appendCounts appends rows, and an item of all of them.
func appendCounts(t *testing.T, steps *replay.Typed[countColumns], counts ...int64) {
	t.Helper()
	ctx := t.Context()
	w, err := steps.Writer(replay.History(len(counts)))
	require.NoError(t, err)
	require.NoError(t, w.Append(ctx, len(counts), func(rows *countColumns) { copy(rows.N, counts) }))
	_, err = w.Item(ctx, "per", len(counts), 1)
	require.NoError(t, err)
	require.NoError(t, w.Flush(ctx))
}

// TestReplayWithFileBeginsWithACheckpoint creates replays with both restore and file: the first one
// restores the checkpoint, and after its process was killed, the next one goes on with the file,
// which is newer.
func TestReplayWithFileBeginsWithACheckpoint(t *testing.T) {
	ctx := t.Context()
	config := &replayv1.ReplayConfig{
		Capacity: 1000, Columns: countRow().Columns(), Tables: []*replayv1.TableConfig{replay.Table("per", replay.Prioritized(1))},
	}
	create := func(config *replayv1.ReplayConfig) (*replayv1raylink.Replay, *replay.Typed[countColumns]) {
		t.Helper()
		handle, err := replayv1raylink.CreateReplay(ctx, driver, config)
		require.NoError(t, err)
		steps, err := replay.Open(ctx, handle, countRow())
		require.NoError(t, err)
		return handle, steps
	}
	items := func(steps *replay.Typed[countColumns]) int {
		t.Helper()
		n := 0
		for _, err := range steps.Client().Items(ctx, "per") {
			require.NoError(t, err)
			n++
		}
		return n
	}
	source, steps := create(config)
	appendCounts(t, steps, 1, 2, 3)
	t.Chdir(t.TempDir())
	done, err := steps.Client().Checkpoint(ctx, "step-1", nil)
	require.NoError(t, err)
	require.EqualValues(t, 3, done.GetRows())
	require.NoError(t, steps.Close())
	require.NoError(t, source.Ref().Stop(ctx))

	both := proto.CloneOf(config)
	both.File, both.Restore = "kept", "step-1" // of this directory, and not of the node's
	first, steps := create(both)
	require.Equal(t, []int64{1, 2, 3}, newestCounts(t, steps))
	require.Equal(t, 1, items(steps))
	described, err := first.Describe(ctx, &replayv1.DescribeRequest{})
	require.NoError(t, err)
	require.EqualValues(t, 3, described.GetRestored().GetRows())
	appendCounts(t, steps, 4)
	require.Eventually(t, func() bool {
		res, err := first.Inspect(ctx, &replayv1.InspectRequest{})
		require.NoError(t, err)
		// Two saves later, it has the item.
		return res.GetFile().GetProblem() == "" && res.GetFile().GetSavedNs() > 0 && saved(t, "kept.items")
	}, 20*time.Second, 20*time.Millisecond)
	id := described.GetRingId()
	pid := pidOf(t, first.Ref())
	require.NoError(t, steps.Close())
	require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))

	var second *replayv1raylink.Replay
	require.Eventually(t, func() bool { // the kernel may not have ended the process
		var err error
		second, err = replayv1raylink.CreateReplay(ctx, driver, both)
		if err != nil {
			require.ErrorIs(t, replay.CreateError(err), ring.ErrInUse)
		}
		return err == nil
	}, 20*time.Second, 10*time.Millisecond)
	described, err = second.Describe(ctx, &replayv1.DescribeRequest{})
	require.NoError(t, err)
	require.Equal(t, id, described.GetRingId())
	require.Nil(t, described.GetRestored(), "the file is newer than the checkpoint")
	steps, err = replay.Open(ctx, second, countRow())
	require.NoError(t, err)
	require.Equal(t, []int64{1, 2, 3, 4}, newestCounts(t, steps))
	require.Equal(t, 2, items(steps))
	require.NoError(t, steps.Close())
	require.NoError(t, second.Ref().Stop(ctx))

	// What can't be restored leaves no file.
	both.File, both.Restore = "other", "step-2"
	_, err = replayv1raylink.CreateReplay(ctx, driver, both)
	require.ErrorContains(t, err, "there is no such directory")
	require.ErrorContains(t, err, "has the checkpoints step-1")
	left, err := filepath.Glob("other*")
	require.NoError(t, err)
	require.Empty(t, left)
}

// saved waits until a file of items has not changed for two saves.
func saved(t *testing.T, path string) bool {
	t.Helper()
	info, err := os.Stat(path)
	require.NoError(t, err)
	return time.Since(info.ModTime()) > 600*time.Millisecond
}
