package writelog

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
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
	if op.Kind == errorfs.OpRemove && errors.Is(f.err, unix.ENOSPC) {
		return nil // a full disk refuses no removal
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

// TestFailedGroupIsDroppedIfTheProcessEnds fails what a commit does after the operating system has
// its records, and ends the process before Reopen. The callers have got an error.
func TestFailedGroupIsDroppedIfTheProcessEnds(t *testing.T) {
	for _, mode := range []bool{false, true} {
		for last := range uint64(3) {
			disk := &faults{err: unix.EIO, from: -1}
			mem := vfs.NewCrashableMem()
			opts := Options{Dir: "data", FS: errorfs.Wrap(mem, disk), Sync: mode, boot: "one"}
			l, _ := mustRead(t, opts)
			if last > 0 {
				require.NoError(t, commit(l, 1, last))
			}
			l.session.apply(func(batch *pebble.Batch) error {
				return put(batch, Record{ID: last + 1, Change: []byte("failed")}, true, tally{count: last + 1, sum: (last + 1) * (last + 2) / 2})
			})
			left := mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 100, RNG: rand.New(rand.NewPCG(1, 2))})
			opts.FS = left
			for range 2 {
				l, found := mustRead(t, opts)
				require.Equal(t, written(1, last), found, "a write that failed is there")
				require.Equal(t, last, l.Last())
				require.NoError(t, l.Close())
			}
			l, _ = mustRead(t, opts)
			require.NoError(t, commit(l, last+1, last+2))
			require.NoError(t, l.Close())
			_, found := mustRead(t, opts)
			require.Equal(t, written(1, last+2), found)
		}
	}
}

// TestIdsContinueAfterAKill ends the process, which loses nothing, so that no watcher's id is lost.
func TestIdsContinueAfterAKill(t *testing.T) {
	mem := vfs.NewCrashableMem()
	all := vfs.CrashCloneCfg{UnsyncedDataPercent: 100, RNG: rand.New(rand.NewPCG(1, 2))}
	l, _ := mustRead(t, Options{Dir: "data", FS: mem, boot: "one"})
	require.NoError(t, commit(l, 1, 3))

	killed := mem.CrashClone(all)
	l, found := mustRead(t, Options{Dir: "data", FS: killed, boot: "one"})
	require.Len(t, found, 3)
	require.EqualValues(t, 3, l.Last())

	// The machine stops, and what the log finds is whole: it cannot know.
	stopped := killed.CrashClone(all)
	l, found = mustRead(t, Options{Dir: "data", FS: stopped, boot: "two"})
	require.Len(t, found, 3)
	require.Equal(t, uint64(3+reserveAtOnce+1), l.Last())

	// It is killed before it has committed anything, and after.
	killed = stopped.CrashClone(all)
	l, _ = mustRead(t, Options{Dir: "data", FS: killed, boot: "two"})
	last := l.Last()
	require.Equal(t, uint64(3+reserveAtOnce+1), last)
	require.NoError(t, commit(l, last+1, last+2))
	killed = killed.CrashClone(all)
	l, found = mustRead(t, Options{Dir: "data", FS: killed, boot: "two"})
	require.Equal(t, last+2, l.Last())
	require.Len(t, found, 5)
	require.NoError(t, l.Close())
	l, _ = mustRead(t, Options{Dir: "data", FS: killed, boot: "three"})
	require.Equal(t, last+2, l.Last(), "it was closed")
}

// TestCommitWaitsForItsReservation commits more than is reserved, on a disk that loses all that is
// not synced.
func TestCommitWaitsForItsReservation(t *testing.T) {
	mem := vfs.NewCrashableMem()
	l, _ := mustRead(t, Options{Dir: "data", FS: mem, reserveAtOnce: 10})
	require.NoError(t, commit(l, 1, 10))
	require.EqualValues(t, 10, l.reserved.Load(), "ten were reserved at opening")
	require.NoError(t, commit(l, 11, 500))
	require.GreaterOrEqual(t, l.reserved.Load(), uint64(500))
	again, _ := mustRead(t, Options{Dir: "data", FS: mem.CrashClone(vfs.CrashCloneCfg{})})
	require.Greater(t, again.Last(), uint64(500), "ids would be given again")
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

// TestFailedAttemptsTakeNoSpace fails the attempts to reopen the log at each of their operations.
func TestFailedAttemptsTakeNoSpace(t *testing.T) {
	disk := &faults{err: unix.ENOSPC, from: -1}
	mem := vfs.NewMem()
	l, _ := mustRead(t, Options{Dir: "data", FS: errorfs.Wrap(mem, disk)})
	require.NoError(t, commit(l, 1, 2000))
	tables := func() (n int) {
		names, err := mem.List("data")
		require.NoError(t, err)
		for _, name := range names {
			if strings.HasSuffix(name, ".sst") {
				n++
			}
		}
		return n
	}
	disk.failFrom(0)
	require.Error(t, commit(l, 2001, 2001))
	for from := range 1000 {
		disk.failFrom(from)
		before := tables()
		for range 4 {
			disk.failFrom(from)
			if l.Reopen(2000) == nil {
				require.Greater(t, from, 5)
				require.NoError(t, commit(l, 2001, 2001))
				return
			}
		}
		require.LessOrEqual(t, tables(), before+1, "each attempt to reopen leaves a table when operation %d fails", from)
	}
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
