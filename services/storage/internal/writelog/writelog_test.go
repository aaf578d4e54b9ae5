package writelog

import (
	"fmt"
	"log/slog"
	"os"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if mode := os.Getenv(childEnv); mode != "" {
		fmt.Fprintln(os.Stderr, commitForever(os.Getenv(childEnv+"_DIR"), mode))
		os.Exit(1)
	}
	goleak.VerifyTestMain(m)
}

// quiet drops Pebble's messages.
var quiet = slog.New(slog.DiscardHandler)

// read opens a log, which is closed at the end of the test, and returns its records.
func read(t *testing.T, opts Options) (*Log, map[uint64]string, error) {
	t.Helper()
	opts.Logger = quiet
	records := make(map[uint64]string)
	l, err := Open(opts, func(r Record) error {
		records[r.ID] = string(r.Change)
		return nil
	})
	if err == nil {
		t.Cleanup(func() { _ = l.Close() })
	}
	return l, records, err
}

func mustRead(t *testing.T, opts Options) (*Log, map[uint64]string) {
	t.Helper()
	l, records, err := read(t, opts)
	require.NoError(t, err)
	return l, records
}

// change is the change of a write.
func change(id uint64) string { return fmt.Sprintf("change %d", id) }

// commit commits the writes from one id to another.
func commit(l *Log, from, to uint64, remove ...uint64) error {
	var records []Record
	for id := from; id <= to; id++ {
		records = append(records, Record{ID: id, Change: []byte(change(id))})
	}
	return l.Commit(records, remove)
}

// written returns the records from one id to another without some.
func written(from, to uint64, without ...uint64) map[uint64]string {
	records := make(map[uint64]string)
	for id := from; id <= to; id++ {
		records[id] = change(id)
	}
	for _, id := range without {
		delete(records, id)
	}
	return records
}

func TestReopenedLogHasWhatWasCommitted(t *testing.T) {
	for _, sync := range []bool{false, true} {
		dir := t.TempDir() + "/data"
		l, records := mustRead(t, Options{Dir: dir, Sync: sync, removeAtOnce: 1})
		require.Empty(t, records)
		require.NoError(t, commit(l, 1, 3))
		require.NoError(t, commit(l, 4, 4, 2))
		require.NoError(t, commit(l, 5, 10, 3, 4))
		require.NoError(t, l.Sync())
		require.NoError(t, l.Close())

		l, records = mustRead(t, Options{Dir: dir, Sync: sync, removeAtOnce: 1})
		require.Equal(t, written(1, 10, 2), records, "the last group's are removed with the next")
		require.NoError(t, commit(l, 11, 30, 3, 4))
		require.NoError(t, commit(l, 31, 31, span(10, 29)...))
		require.NoError(t, commit(l, 32, 32))
		require.NoError(t, l.Close())

		_, records = mustRead(t, Options{Dir: dir, Sync: !sync})
		require.Equal(t, written(1, 32, append(span(10, 29), 2, 3, 4)...), records)
		info, err := os.Stat(dir)
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o700), info.Mode().Perm(), "the directory is accessible to others")
	}
}

// span returns the ids from one to another.
func span(from, to uint64) (ids []uint64) {
	for id := from; id <= to; id++ {
		ids = append(ids, id)
	}
	return ids
}

func TestInvalidIdsChangeNothing(t *testing.T) {
	l, _ := mustRead(t, Options{Dir: "data", FS: vfs.NewMem()})
	require.NoError(t, commit(l, 1, 5))
	require.ErrorContains(t, commit(l, 7, 8), "the record after 5 has the id 7")
	require.ErrorContains(t, commit(l, 6, 6, 6), "the record 6 cannot be removed")
	require.NoError(t, commit(l, 6, 6, 5))
}

func TestReopenKeepsWhatWasCommitted(t *testing.T) {
	l, _ := mustRead(t, Options{Dir: "data", FS: vfs.NewMem()})
	require.NoError(t, commit(l, 1, 5))
	require.NoError(t, commit(l, 6, 9, 2))
	require.ErrorContains(t, l.Reopen(7), "the last write is 9")
	require.NoError(t, l.Reopen(9))
	require.NoError(t, commit(l, 10, 10))
	require.NoError(t, l.Close())
	require.ErrorContains(t, commit(l, 11, 11), "closed")
}
