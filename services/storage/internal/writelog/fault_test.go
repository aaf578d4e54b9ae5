package writelog

import (
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// faults fails write operations of a file system: those from a number on, until the disk is
// repaired.
type faults struct {
	mu   sync.Mutex
	err  error
	from int // -1: none
	seen int
}

// MaybeError implements errorfs.Injector.
func (f *faults) MaybeError(op errorfs.Op) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.from < 0 || op.Kind.ReadOrWrite() != errorfs.OpIsWrite {
		return nil
	}
	f.seen++
	if f.seen > f.from {
		return f.err
	}
	return nil
}

// String implements fmt.Stringer.
func (f *faults) String() string { return "writes" }

// failFrom fails the operations from a number on, and returns how many would have failed so far.
func (f *faults) failFrom(n int) (failed bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	failed = f.from >= 0 && f.seen > f.from
	f.from, f.seen = n, 0
	return failed
}

// TestEveryFailureOfTheDiskIsRepaired fails the write operations from each on in turn. A commit is
// acknowledged or returns an error; after Reopen, the records are those that were acknowledged, and
// so they are if the process ends instead.
func TestEveryFailureOfTheDiskIsRepaired(t *testing.T) {
	for _, mode := range []bool{false, true} {
		failures := 0
		for from := 0; ; from++ {
			disk := &faults{err: unix.EIO, from: -1}
			mem := vfs.NewCrashableMem()
			opts := Options{Dir: "data", FS: errorfs.Wrap(mem, disk), Sync: mode, removeAtOnce: 3}
			l, _ := mustRead(t, opts)
			require.NoError(t, commit(l, 1, 4))
			require.NoError(t, l.Sync())
			disk.failFrom(from)

			last, removed := uint64(4), []uint64(nil)
			var failed error
			for failed == nil && last < 3000 {
				n := 1 + 200*(last%3)
				if failed = commit(l, last+1, last+n, last-2); failed == nil {
					removed = append(removed, last-2)
					last += n
				}
			}
			if failed == nil {
				failed = l.Sync()
			}
			if failed != nil {
				require.ErrorContains(t, failed, "data: ")
				require.ErrorIs(t, failed, unix.EIO)
				require.Error(t, commit(l, last+1, last+1), "a failed log accepts a commit")
				require.Error(t, l.Reopen(last), "the disk still fails")
				require.Error(t, commit(l, last+1, last+1))
			}
			injected := disk.failFrom(-1)
			require.Equal(t, injected, failed != nil, "operation %d", from)
			if !injected {
				require.NoError(t, l.Close())
				break
			}
			failures++
			check := func(fs vfs.FS, exact bool) {
				again, found := mustRead(t, Options{Dir: "data", FS: fs, Sync: mode})
				defer func() { require.NoError(t, again.Close()) }()
				for id, change := range written(1, last, removed...) {
					if found[id] != change {
						t.Fatalf("operation %d lost an acknowledged write: %d", from, id)
					}
				}
				if exact { // up to two removals wait for a third
					require.LessOrEqual(t, len(found), len(written(1, last, removed...))+2)
					require.NotContains(t, found, last+1, "operation %d: a failed group is there", from)
				}
			}
			if mode {
				check(mem.CrashClone(vfs.CrashCloneCfg{}), false)
			}
			check(mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 100, RNG: rand.New(rand.NewPCG(1, 2))}), false)

			require.NoError(t, l.Reopen(last))
			require.NoError(t, commit(l, last+1, last+10))
			last += 10
			require.NoError(t, l.Close())
			check(mem, true)
		}
		require.Greater(t, failures, 20)
	}
}

// TestGroupThatFailedAfterItWasWrittenIsRemoved fails what a commit does after the operating system
// has its records.
func TestGroupThatFailedAfterItWasWrittenIsRemoved(t *testing.T) {
	disk := &faults{err: unix.EIO, from: -1}
	mem := vfs.NewMem()
	opts := Options{Dir: "data", FS: errorfs.Wrap(mem, disk)}
	l, _ := mustRead(t, opts)
	require.NoError(t, commit(l, 1, 5))
	require.NoError(t, l.Sync())
	l.session.fail(unix.EIO)
	l.session.apply(func(batch *pebble.Batch) error {
		return put(batch, Record{ID: 6, Change: []byte("failed")}, true, tally{count: 6, sum: 21})
	})
	require.ErrorIs(t, commit(l, 6, 6), unix.EIO)
	require.NoError(t, l.Reopen(5))
	require.NoError(t, l.Close())
	l, found := mustRead(t, opts)
	require.Equal(t, written(1, 5), found)
	require.NoError(t, commit(l, 6, 7))
	require.NoError(t, l.Close())
	_, found = mustRead(t, opts)
	require.Equal(t, written(1, 7), found)
}

func TestFullDiskIsReportedUntilThereIsSpace(t *testing.T) {
	leaked := goleak.IgnoreCurrent()
	files := openFiles(t)
	disk := &faults{err: &os.PathError{Op: "write", Path: "x", Err: unix.ENOSPC}, from: -1}
	dir := t.TempDir()
	l, _ := mustRead(t, Options{Dir: dir, FS: errorfs.Wrap(vfs.Default, disk)})
	last := uint64(0)
	for range 3 {
		require.NoError(t, commit(l, last+1, last+100))
		last += 100
		disk.failFrom(rand.IntN(10))
		var err error
		for err == nil {
			if err = commit(l, last+1, last+100); err == nil {
				last += 100
			}
		}
		for range 3 {
			var full *FullError
			require.ErrorAs(t, err, &full)
			require.ErrorContains(t, err, dir)
			err = l.Reopen(last)
		}
		disk.failFrom(-1)
		require.NoError(t, l.Reopen(last))
	}
	require.NoError(t, l.Close())
	goleak.VerifyNone(t, leaked)
	require.Equal(t, files, openFiles(t))
	_, found := mustRead(t, Options{Dir: dir})
	require.Equal(t, written(1, last), found)
}

func TestDirectoryInUseByThisProcessIsRefused(t *testing.T) {
	dir := t.TempDir()
	first, _ := mustRead(t, Options{Dir: dir})
	for range 2 { // the refusal must not release the lock
		_, _, err := read(t, Options{Dir: dir})
		var inUse *InUseError
		require.ErrorAs(t, err, &inUse)
		require.Equal(t, os.Getpid(), inUse.PID)
		require.ErrorContains(t, err, dir)
	}
	require.NoError(t, first.Reopen(0), "it keeps the lock")
	require.NoError(t, first.Close())
	mustRead(t, Options{Dir: dir})
}

func TestDirectoryOfANewerVersionIsRefused(t *testing.T) {
	fs := vfs.NewMem()
	l, _ := mustRead(t, Options{Dir: "data", FS: fs})
	require.NoError(t, l.mark.set(func(m *marks) { m.format = format + 1 }))
	require.NoError(t, l.Close())
	_, _, err := read(t, Options{Dir: "data", FS: fs})
	var newer *FormatError
	require.ErrorAs(t, err, &newer)
	require.EqualValues(t, format+1, newer.Format)
	require.ErrorContains(t, err, "newer version")
}

func TestReplaysErrorIsReturnedWithTheId(t *testing.T) {
	leaked := goleak.IgnoreCurrent()
	fs := vfs.NewMem()
	l, _ := mustRead(t, Options{Dir: "data", FS: fs})
	require.NoError(t, commit(l, 1, 3))
	require.NoError(t, l.Close())
	_, err := Open(Options{Dir: "data", FS: fs, Logger: quiet}, func(Record) error { return fmt.Errorf("no: %w", unix.EINVAL) })
	require.ErrorIs(t, err, unix.EINVAL)
	require.ErrorContains(t, err, "the write 1")
	goleak.VerifyNone(t, leaked)
	_, found := mustRead(t, Options{Dir: "data", FS: fs})
	require.Equal(t, written(1, 3), found)
}
