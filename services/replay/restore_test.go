package replay

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"
	"github.com/raylink/raylink/services/replay/internal/checkpoint"
	"github.com/raylink/raylink/services/replay/internal/table"
	"github.com/raylink/raylink/services/replay/ring"
)

// restoreBy restores a checkpoint to a replay with a file, with another function in place of the
// loader's Commit.
func restoreBy(t *testing.T, n *node, directory string, commit func(*ring.Loader) error) error {
	t.Helper()
	r, err := checkpoint.Open(directory)
	require.NoError(t, err)
	defer func() { require.NoError(t, r.Close()) }()
	loader, err := n.ring.Load(r.Manifest().GetNext())
	require.NoError(t, err)
	defer func() { require.NoError(t, loader.Abort()) }()
	require.NoError(t, r.Rows(t.Context(), n.ring.Layout(), loader.Put))
	var tables, copies []*table.Table
	for i, saved := range r.Manifest().GetTables() {
		of := n.tables.byName[saved.GetConfig().GetName()]
		rt := &restoring{reader: r, index: i, saved: saved, loader: loader}
		c, _, err := rt.restore(t.Context(), of.Configuration())
		require.NoError(t, err)
		tables, copies = append(tables, of), append(copies, c)
	}
	return n.adopt(tables, copies, func() error { return commit(loader) })
}

// copyFiles copies the files of a replay, as a process that is killed now would leave them.
func copyFiles(t *testing.T, file string) (as string) {
	t.Helper()
	as = filepath.Join(t.TempDir(), "copy")
	found, err := filepath.Glob(file + "*")
	require.NoError(t, err)
	for _, f := range found {
		b, err := os.ReadFile(f)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(as+strings.TrimPrefix(f, file), b, 0o600))
	}
	return as
}

// TestFilesOfARestoreAreWholeAtEachStep looks at the files of a replay at each step of a restore:
// they are those of an empty replay, or have all.
func TestFilesOfARestoreAreWholeAtEachStep(t *testing.T) {
	c := &copying{Rows: 200, Capacity: 300}
	source := c.replay(t.Context(), t, t.TempDir())
	defer func() { require.NoError(t, source.close()) }()
	directory := filepath.Join(t.TempDir(), "c")
	_, err := source.checkpoint(t.Context(), directory, silent)
	require.NoError(t, err)
	file := filepath.Join(t.TempDir(), "kept")
	n, err := openCopy(c.config(file))
	require.NoError(t, err)
	n.file.cancel() // nothing but the restore changes the files
	n.file.saver.Wait()

	steps := map[string]string{}
	refused := errors.New("no")
	err = restoreBy(t, n, directory, func(*ring.Loader) error {
		steps["the items are there"] = copyFiles(t, file)
		return refused
	})
	require.ErrorIs(t, err, refused)
	steps["refused"] = copyFiles(t, file)
	require.False(t, c.requireWhole(t, n))
	require.NoError(t, restoreBy(t, n, directory, func(l *ring.Loader) error {
		defer func() { steps["complete"] = copyFiles(t, file) }()
		return l.Commit()
	}))
	require.True(t, c.requireWhole(t, n))
	size := n.file.log.Size()
	n.file.save()
	require.Equal(t, size, n.file.log.Size(), "the file has the items already")
	_, err = n.SampleItems(t.Context(), &replayv1.SampleItemsRequest{Table: "per", Items: 3})
	require.NoError(t, err)
	n.file.save()
	require.Greater(t, n.file.log.Size(), size)
	steps["used"] = copyFiles(t, file)
	for name, as := range steps {
		next, err := openCopy(c.config(as))
		require.NoError(t, err, name)
		whole := c.requireWhole(t, next)
		require.Equal(t, name == "complete" || name == "used", whole, name)
		if name == "used" {
			require.EqualValues(t, 3, next.tables.byName["per"].Meta().Counts.Sampled)
		}
		if !whole {
			_, err := next.restore(t.Context(), directory)
			require.NoError(t, err, name)
			require.True(t, c.requireWhole(t, next))
		}
		remove(t, next, as)
	}
	require.NoError(t, n.close())
}

// endsAfter is a context that ends when it has been asked a number of times.
type endsAfter struct {
	context.Context //nolint:containedctx // what it is but for its end

	left atomic.Int64
}

func (c *endsAfter) Err() error {
	if c.left.Add(-1) < 0 {
		return context.Canceled
	}
	return nil
}

// opened returns how many files and mappings this process has.
func opened(t *testing.T) (files, mappings int) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0, 0 // not Linux
	}
	text, err := os.ReadFile("/proc/self/maps")
	require.NoError(t, err)
	return len(entries), strings.Count(string(text), ".ring")
}

// TestCopiesEndWithTheirContext ends the context of a checkpoint, and of a restore, each time that
// they look at it: nothing is left, and the replay goes on.
func TestCopiesEndWithTheirContext(t *testing.T) {
	c := &copying{Rows: 9000, Capacity: 10_000}
	n := c.replay(t.Context(), t, t.TempDir())
	defer func() { require.NoError(t, n.close()) }()
	directory := t.TempDir()
	target := filepath.Join(directory, "parent", "c")
	_, err := n.checkpoint(t.Context(), target, silent) // whatever is opened once
	require.NoError(t, err)
	require.NoError(t, os.RemoveAll(filepath.Dir(target)))
	files, mappings := opened(t)
	same := func(what string) {
		t.Helper()
		after, mapped := opened(t)
		require.Equal(t, [2]int{files, mappings}, [2]int{after, mapped}, what)
	}
	ended := 0
	for asked := int64(0); ; asked++ {
		ctx := &endsAfter{Context: t.Context()}
		ctx.left.Store(asked)
		if _, err = n.checkpoint(ctx, target, silent); err == nil {
			require.GreaterOrEqual(t, ctx.left.Load(), int64(0), "it goes on though its context has ended")
			break
		}
		ended++
		require.ErrorIs(t, err, context.Canceled)
		entries, err := os.ReadDir(directory)
		require.NoError(t, err)
		require.Empty(t, entries)
		if asked%16 == 0 {
			same(fmt.Sprint("files and mappings after ", asked))
		}
		if asked > 300 {
			asked += asked / 2
		}
	}
	require.Greater(t, ended, 20, "it looks at its context often")
	c.requireCheckpoint(t, target)

	again := emptyNode(t, t.TempDir(), c.config(""))
	defer func() { require.NoError(t, again.close()) }()
	files, mappings = opened(t)
	ended = 0
	for asked := int64(0); ; asked++ {
		ctx := &endsAfter{Context: t.Context()}
		ctx.left.Store(asked)
		if _, err = again.restore(ctx, target); err == nil {
			require.GreaterOrEqual(t, ctx.left.Load(), int64(0), "it goes on though its context has ended")
			break
		}
		ended++
		require.ErrorIs(t, err, context.Canceled)
		require.False(t, c.requireWhole(t, again))
		same(fmt.Sprint("files and mappings after ", asked))
	}
	require.Greater(t, ended, 2)
	require.True(t, c.requireWhole(t, again))
}

// TestCheckpointEndsWithItsCaller ends the context of a call while the node copies.
func TestCheckpointEndsWithItsCaller(t *testing.T) {
	config := testConfig(1_500_000)
	bothWays(t, config, func(t *testing.T, c, holder *Client) {
		batch, err := holder.NewBatch(1_000_000)
		require.NoError(t, err)
		_, err = holder.Writer().Append(t.Context(), batch)
		require.NoError(t, err)
		directory := t.TempDir()
		ctx, cancel := context.WithCancel(t.Context())
		result := make(chan error, 1)
		go func() {
			_, err := c.Checkpoint(ctx, filepath.Join(directory, "c"), nil)
			result <- err
		}()
		require.Eventually(t, func() bool {
			found, err := filepath.Glob(filepath.Join(directory, ".c.part", "rows"))
			return err == nil && len(found) == 1
		}, 20*time.Second, 100*time.Microsecond, "it has begun")
		cancel()
		select {
		case err := <-result:
			if err == nil {
				return // it was complete before
			}
			require.ErrorIs(t, err, context.Canceled)
		case <-time.After(20 * time.Second):
			require.Fail(t, "the call does not end")
		}
		require.Eventually(t, func() bool {
			entries, err := os.ReadDir(directory)
			return err == nil && len(entries) == 0
		}, 20*time.Second, time.Millisecond, "the node removes what it has written")
		_, err = c.Checkpoint(t.Context(), filepath.Join(directory, "c"), nil)
		require.NoError(t, err)
	})
}

// TestCopiesTakeLittleMemory measures what a checkpoint and a restore of 64 MiB allocate in all.
func TestCopiesTakeLittleMemory(t *testing.T) {
	config := &replayv1.ReplayConfig{Capacity: 1 << 14, Columns: testConfig(1).GetColumns()}
	config.Columns = append(config.Columns, Column[uint8]("data", 4096))
	n := testNode(t, config)
	b, err := ring.NewBatch(n.ring.Layout(), 1<<10)
	require.NoError(t, err)
	for range 16 {
		_, err := n.writer.TryAppend(b)
		require.NoError(t, err)
	}
	allocated := func(f func()) uint64 {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		f()
		runtime.ReadMemStats(&after)
		return after.TotalAlloc - before.TotalAlloc
	}
	directory := filepath.Join(t.TempDir(), "c")
	size := n.ring.Size()
	written := allocated(func() {
		_, err := n.checkpoint(t.Context(), directory, silent)
		require.NoError(t, err)
	})
	again := testNode(t, config)
	read := allocated(func() {
		_, err := again.restore(t.Context(), directory)
		require.NoError(t, err)
	})
	t.Logf("of %d bytes: a checkpoint allocates %d (1/%d), a restore %d (1/%d)", size, written, size/written, read, size/read)
	require.Less(t, written, size/5)
	require.Less(t, read, size/5)
}
