package store

import (
	"bytes"
	"log/slog"
	"os"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/raylink/raylink/brain/internal/tree"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t *testing.T, dir string, fs vfs.FS) *Store {
	t.Helper()
	s, err := Open(Options{Dir: dir, FS: fs, Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return s
}

func entries(t *testing.T, s *Store) map[string]string {
	t.Helper()
	all := make(map[string]string)
	for w, err := range s.Entries() {
		require.NoError(t, err)
		all[w.Key] = string(w.Value)
	}
	return all
}

func TestReopenedStoreHasWhatWasCommitted(t *testing.T) {
	dir := t.TempDir() + "/data"
	s := open(t, dir, nil)
	require.NoError(t, s.Commit([]tree.Write{{Key: "a", Value: []byte("1")}, {Key: "b", Value: []byte("2")}}))
	require.NoError(t, s.Commit([]tree.Write{{Key: "a"}, {Key: "c", Value: []byte{}}}))
	require.NoError(t, s.Commit(nil))
	require.NoError(t, s.SetMeta("id", []byte("me")))
	require.NoError(t, s.Close())
	require.ErrorContains(t, s.Commit([]tree.Write{{Key: "d", Value: []byte("3")}}), "is closed")

	s = open(t, dir, nil)
	require.Equal(t, map[string]string{"b": "2", "c": ""}, entries(t, s))
	id, err := s.Meta("id")
	require.NoError(t, err)
	require.Equal(t, "me", string(id))
	none, err := s.Meta("nothing")
	require.NoError(t, err)
	require.Nil(t, none)
	info, err := os.Stat(dir)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o700), info.Mode().Perm(), "the directory is accessible to others")
}

func TestDirectoryInUseByThisProcessIsRefused(t *testing.T) {
	dir := t.TempDir()
	first := open(t, dir, nil)
	for range 2 { // the refusal must not release the lock
		_, err := Open(Options{Dir: dir, Logger: slog.New(slog.DiscardHandler)})
		var inUse *InUseError
		require.ErrorAs(t, err, &inUse)
		require.Equal(t, os.Getpid(), inUse.PID)
		require.ErrorContains(t, err, dir)
	}
	require.NoError(t, first.Close())
	open(t, dir, nil)
}

func TestDirectoryOfANewerVersionIsRefused(t *testing.T) {
	fs := vfs.NewMem()
	s := open(t, "data", fs)
	require.NoError(t, s.SetMeta("format", []byte{format + 1}))
	require.NoError(t, s.Close())
	_, err := Open(Options{Dir: "data", FS: fs, Logger: slog.New(slog.DiscardHandler)})
	var newer *FormatError
	require.ErrorAs(t, err, &newer)
	require.EqualValues(t, format+1, newer.Format)
	require.ErrorContains(t, err, "newer version")
	open(t, "other", fs)
}

func TestErrorNamesADirectoryThatCannotBeMade(t *testing.T) {
	file := t.TempDir() + "/file"
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	_, err := Open(Options{Dir: file + "/data", Logger: slog.New(slog.DiscardHandler)})
	require.ErrorContains(t, err, file+"/data")
}

// TestEveryFailureOfTheDiskIsReported fails each write to the file system in turn, once the store
// is open, until a run has fewer of them. A commit is either on disk or returns an error, and after
// an error all further commits fail.
func TestEveryFailureOfTheDiskIsReported(t *testing.T) {
	failures := 0
	for index := int32(0); ; index++ {
		fs := vfs.NewCrashableMem()
		writes := &writesOnly{at: -1}
		s, err := Open(Options{Dir: "data", FS: errorfs.Wrap(fs, writes), Logger: slog.New(slog.DiscardHandler)})
		require.NoError(t, err)
		writes.at = index
		kept := make(map[string]string)
		failed := false
		for i := range 5 {
			key, value := string(rune('a'+i)), bytes.Repeat([]byte{byte('0' + i)}, 100)
			err := s.Commit([]tree.Write{{Key: key, Value: value}})
			if err != nil {
				failed = true
				require.Error(t, s.Err())
				continue
			}
			require.False(t, failed, "a store accepted a commit after it had failed")
			kept[key] = string(value)
		}
		injected := writes.seen > index
		require.Equal(t, injected, failed, "operation %d", index)
		writes.at = -1
		_ = s.Close() // of a store that has failed
		if !injected {
			break
		}
		failures++

		again := open(t, "data", fs.CrashClone(vfs.CrashCloneCfg{}))
		found := entries(t, again)
		for key, value := range kept {
			require.Equal(t, value, found[key], "the failure of operation %d lost an acknowledged entry", index)
		}
	}
	require.Greater(t, failures, 4)
}
