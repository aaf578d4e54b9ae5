package storage

import (
	"context"
	"encoding/binary"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	storagev1 "github.com/raylink/raylink/gen/raylink/storage/v1"
)

// openOn starts a node on a directory.
func openOn(t *testing.T, config *storagev1.StorageConfig) *running {
	t.Helper()
	r := start(t, config, nil)
	require.NoError(t, r.node.open())
	ctx, stop := context.WithCancel(context.Background())
	endTasks := r.stop
	r.stop = func() { endTasks(); stop() }
	r.tasks.Go(func() { _ = r.node.commit(ctx) })
	return r
}

// restartMachine makes a copy of a directory look as if the machine had been started again since:
// the watermark has the boot id of another start. See writelog/watermark.go.
func restartMachine(t *testing.T, dir string) {
	t.Helper()
	name := filepath.Join(dir, "WATERMARK")
	data, err := os.ReadFile(name)
	require.NoError(t, err)
	for _, slot := range [][]byte{data[:96], data[4096 : 4096+96]} {
		copy(slot[56:92], strings.Repeat("0", 36))
		binary.BigEndian.PutUint32(slot[92:], crc32.Checksum(slot[:92], crc32.MakeTable(crc32.Castagnoli)))
	}
	require.NoError(t, os.WriteFile(name, data, 0o600))
}

// A loss of power takes writes that others have seen. The ids that they compare with must not come
// again, and a watcher that resumes from one must get an error.
func TestIdsOfLostWritesAreNotGivenAgain(t *testing.T) {
	ctx := t.Context()
	before := t.TempDir() + "/before"
	r := openOn(t, &storagev1.StorageConfig{Durability: async, Directory: t.TempDir() + "/data"})
	id, err := Put(ctx, r.Client, "k", 1, Sync())
	require.NoError(t, err)
	require.EqualValues(t, 1, id)
	require.NoError(t, os.CopyFS(before, os.DirFS(r.node.directory))) // what is left of it
	id, err = Put(ctx, r.Client, "k", 2)
	require.NoError(t, err)
	require.EqualValues(t, 2, id)
	r.end()
	require.NoError(t, r.node.close())

	restartMachine(t, before)
	r = openOn(t, &storagev1.StorageConfig{Durability: async, Directory: before})
	defer func() { r.end(); require.NoError(t, r.node.close()) }()
	value, err := Get[int](ctx, r.Client, "k")
	require.NoError(t, err)
	require.Equal(t, 1, value)
	for _, again := range []bool{false, true} {
		for _, err := range r.Watch(ctx, "", Since(id)) {
			var lost *HistoryLostError
			require.ErrorAs(t, err, &lost, "after another write: %t", again)
			require.Equal(t, id, lost.Since)
			require.Greater(t, lost.Oldest, id)
		}
		next, err := Put(ctx, r.Client, "k", 3)
		require.NoError(t, err)
		require.Greater(t, next, id+1, "an id was given twice")
	}
}
