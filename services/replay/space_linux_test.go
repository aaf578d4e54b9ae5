package replay

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/raylink/raylink/internal/proctest"
	"github.com/raylink/raylink/services/internal/mapfile"
)

// onceAsked is a context that does something when it is asked first.
type onceAsked struct {
	context.Context //nolint:containedctx // what it is otherwise

	once sync.Once
	do   func()
}

func (c *onceAsked) Err() error {
	c.once.Do(c.do)
	return nil
}

// requireNoSpace checks an error, also as another process gets it.
func requireNoSpace(t *testing.T, err error, total, available uint64) {
	t.Helper()
	var space *mapfile.SpaceError
	require.ErrorAs(t, err, &space)
	require.ErrorIs(t, err, ErrNoSpace)
	require.ErrorIs(t, err, unix.ENOSPC)
	require.Equal(t, total, space.Total)
	require.LessOrEqual(t, space.Available, available)
	require.Greater(t, space.Needed, space.Available)
	require.ErrorContains(t, err, fmt.Sprintf("%d bytes are needed: the tmpfs of %d bytes at ", space.Needed, space.Total))
	require.ErrorContains(t, err, fmt.Sprintf("of which %d are available", space.Available))
	remote := ringError(encoded(t, connectError(err)))
	require.ErrorIs(t, remote, ErrNoSpace)
	require.ErrorContains(t, remote, err.Error())
}

// fill fills a file system, but for some bytes.
func fill(t *testing.T, directory string, but int) (empty func()) {
	t.Helper()
	path := filepath.Join(directory, "filler")
	f, err := os.Create(path)
	require.NoError(t, err)
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	require.ErrorIs(t, err, unix.ENOSPC)
	info, err := f.Stat()
	require.NoError(t, err)
	require.NoError(t, f.Truncate(info.Size()-int64(but)))
	require.NoError(t, f.Close())
	return func() { require.NoError(t, os.Remove(path)) }
}

func requireEmptyDirectory(t *testing.T, directory string, names ...string) {
	t.Helper()
	entries, err := os.ReadDir(directory)
	require.NoError(t, err)
	found := []string{}
	for _, e := range entries {
		found = append(found, e.Name())
	}
	require.Equal(t, append([]string{}, names...), found)
}

// TestCheckpointsOnSmallFileSystems writes checkpoints for which there is no space: none at all,
// too little for the rows, or, because of what others write meanwhile, too little for the rest.
func TestCheckpointsOnSmallFileSystems(t *testing.T) {
	if !proctest.WithOwnMounts(t) {
		return
	}
	c := &copying{Rows: 100_000, Capacity: 100_000}
	n := c.replay(t.Context(), t, t.TempDir())
	defer func() { require.NoError(t, n.close()) }()
	usable := func() {
		t.Helper()
		require.True(t, c.requireWhole(t, n))
	}
	disk := t.TempDir()
	proctest.Mount(t, disk, 1<<20)
	for _, target := range []string{filepath.Join(disk, "c"), filepath.Join(disk, "new", "c")} {
		_, err := n.checkpoint(t.Context(), target, silent)
		requireNoSpace(t, err, 1<<20, 1<<20)
		requireEmptyDirectory(t, disk)
		usable()
	}
	empty := fill(t, disk, 0)
	_, err := n.checkpoint(t.Context(), filepath.Join(disk, "c"), silent)
	requireNoSpace(t, err, 1<<20, 0)
	requireEmptyDirectory(t, disk, "filler")
	small := &copying{Rows: 100, Capacity: 1000}
	other := small.replay(t.Context(), t, t.TempDir())
	defer func() { require.NoError(t, other.close()) }()
	_, err = other.checkpoint(t.Context(), filepath.Join(disk, "new", "c"), silent)
	requireNoSpace(t, err, 1<<20, 0)
	requireEmptyDirectory(t, disk, "filler")
	empty()
	_, err = other.checkpoint(t.Context(), filepath.Join(disk, "new", "c"), silent)
	require.NoError(t, err)
	small.requireCheckpoint(t, filepath.Join(disk, "new", "c"))

	// Others use the space after the checkpoint has begun. Whatever does not fit, nothing is left.
	large := t.TempDir()
	proctest.Mount(t, large, 8<<20)
	target := filepath.Join(large, "c")
	lacked := 0
	for left := 0; ; left += 64 << 10 {
		var empty func()
		ctx := &onceAsked{Context: t.Context(), do: func() { empty = fill(t, large, left) }}
		_, err := n.checkpoint(ctx, target, silent)
		empty()
		if err == nil {
			break
		}
		lacked++
		requireNoSpace(t, err, 8<<20, 8<<20)
		requireEmptyDirectory(t, large)
	}
	require.Greater(t, lacked, 10)
	c.requireCheckpoint(t, target)
	usable()
}

// TestRestoreOnSmallFileSystems restores a checkpoint to a replay whose file of items has no space.
func TestRestoreOnSmallFileSystems(t *testing.T) {
	if !proctest.WithOwnMounts(t) {
		return
	}
	c := &copying{Rows: 20_000, Capacity: 20_000}
	source := c.replay(t.Context(), t, t.TempDir())
	defer func() { require.NoError(t, source.close()) }()
	checkpoint := filepath.Join(t.TempDir(), "c")
	_, err := source.checkpoint(t.Context(), checkpoint, silent)
	require.NoError(t, err)

	// Not even the ring has space.
	disk := t.TempDir()
	proctest.Mount(t, disk, 1<<20)
	large := &copying{Rows: 1, Capacity: 1 << 20}
	_, err = openCopy(large.config(filepath.Join(disk, "kept")))
	var file *FileError
	require.ErrorAs(t, err, &file)
	require.ErrorIs(t, err, ErrNoSpace)
	require.ErrorContains(t, err, "bytes are needed: the tmpfs of 1048576 bytes at "+disk)
	requireEmptyDirectory(t, disk)

	path := filepath.Join(disk, "kept")
	n, err := openCopy(c.config(path))
	require.NoError(t, err)
	lacked := 0
	for left := 0; ; left += 8 << 10 {
		empty := fill(t, disk, left)
		_, err := n.restore(t.Context(), checkpoint)
		empty()
		if err == nil {
			break
		}
		lacked++
		requireNoSpace(t, err, 1<<20, 1<<20)
		require.ErrorContains(t, err, path+itemsSuffix)
		requireEmptyDirectory(t, disk, "kept", "kept.items", "kept.node")
		require.False(t, c.requireWhole(t, n))
	}
	require.Greater(t, lacked, 5)
	require.True(t, c.requireWhole(t, n))
	kill(t, n)
	n, err = openCopy(c.config(path))
	require.NoError(t, err)
	require.True(t, c.requireWhole(t, n))
	remove(t, n, path)
}

// TestReplaysThatDoNotFitAreRefused has the /dev/shm that containers get by default.
func TestReplaysThatDoNotFitAreRefused(t *testing.T) {
	if !proctest.WithOwnMounts(t) {
		return
	}
	proctest.Mount(t, "/dev/shm", 64<<20)
	for _, file := range []bool{false, true} {
		config := testConfig(8 << 20)
		requireRefused(t, config, "/dev/shm", file, ErrNoSpace, []string{
			"/dev/shm/", " bytes are needed: ", "64 MiB that a container gets", "--shm-size", "67108864 are available",
		})
	}
}
