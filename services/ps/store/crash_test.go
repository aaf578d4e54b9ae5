package store

import (
	"encoding/binary"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	psv1 "github.com/raylink/raylink/gen/raylink/ps/v1"
	"github.com/raylink/raylink/services/internal/mapfile"
)

// kill kills a subprocess, and waits for its end.
func (p *process) kill() {
	p.t.Helper()
	require.NoError(p.t, p.cmd.Process.Kill())
	require.Error(p.t, p.cmd.Wait())
}

func TestOfficersKilledAtRandomMomentsLoseNoVersion(t *testing.T) {
	directory := filepath.Join(t.TempDir(), "parameters")
	openStore(t, directory, Options{})
	require.NoError(t, os.RemoveAll(directory))
	r, err := NewReader(directory, "w")
	require.NoError(t, err)
	stalling := start(t, task{Name: "stalling reader", Directory: directory})
	var acknowledged, shown uint64
	for range 15 {
		officer := start(t, task{Name: "publisher", Directory: directory, Size: 3 * ChunkSize})
		require.GreaterOrEqual(t, officer.next().Last, acknowledged, "acknowledged versions are lost")
		deadline := time.Now().Add(time.Duration(rand.IntN(60)) * time.Millisecond)
		var deleted uint64
		for o := (result{}); officer.out.Decode(&o) == nil; o = (result{}) {
			require.Empty(t, o.Error)
			require.GreaterOrEqual(t, o.Last, acknowledged)
			acknowledged = o.Last
			if o.Deleted {
				deleted = o.Last
			}
			p, err := r.Pull()
			require.NoError(t, err)
			id := p.Version().GetId()
			require.GreaterOrEqual(t, id, max(shown, acknowledged))
			shown = id
			require.NoError(t, p.Verify())
			require.NoError(t, p.Release())
			if time.Now().After(deadline) {
				break
			}
		}
		officer.kill()
		s, err := Open(directory, Options{Held: 1})
		require.NoError(t, err)
		newest := s.Newest("w")
		require.GreaterOrEqual(t, newest.GetId(), max(shown, acknowledged), "acknowledged or shown versions are lost")
		require.NoError(t, pull(t, r, newest.GetId(), content(newest.GetId(), int(newest.GetSize()))).Release())
		require.Zero(t, s.Usage().Drafts)
		require.LessOrEqual(t, s.Newest("deleted").GetId(), s.Last("deleted"))
		if id := s.Newest("deleted").GetId(); id != 0 {
			require.Greater(t, id, deleted, "a deleted version came back")
		}
		require.GreaterOrEqual(t, s.Last("deleted"), acknowledged, "ids of a deleted tag go back")
		shown = newest.GetId()
		require.NoError(t, s.Close())
	}
	require.NoError(t, stalling.in.Close())
	o := stalling.end()
	require.Zero(t, o.Torn, "torn versions")
	require.Zero(t, o.Back, "versions that go back")
	require.NoError(t, r.Close())
}

// TestTakeoverAfterEachStep builds what an officer leaves that dies between two steps.
func TestTakeoverAfterEachStep(t *testing.T) {
	setWord := func(path string, at int, value uint64) {
		file, _, err := mapfile.Open(path)
		require.NoError(t, err)
		_, err = file.WriteAt(binary.LittleEndian.AppendUint64(nil, value), int64(at))
		require.NoError(t, err)
		require.NoError(t, file.Close())
	}
	for name, c := range map[string]struct {
		// leave changes the files of a tag with the versions 1 to 3.
		leave        func(directory, index string)
		newest, last uint64
	}{
		"reserved": {func(d, _ string) {
			require.NoError(t, os.Rename(versionPath(d, 1), draftPath(d, "x")))
			setWord(draftPath(d, "x"), stateAt, 0)
		}, 3, 3},
		"recycling: not renamed": {func(d, _ string) { setWord(versionPath(d, 1), stateAt, 0) }, 3, 3},
		"publishing: not renamed": {func(d, x string) {
			require.NoError(t, os.Rename(versionPath(d, 3), draftPath(d, "x")))
			setWord(x, newestAt, 2)
			setWord(x, lastAt, 2)
		}, 2, 2},
		"publishing: not in the index": {func(_, x string) {
			setWord(x, newestAt, 2)
			setWord(x, lastAt, 2)
		}, 3, 3},
		"publishing: newest, not last": {func(_, x string) { setWord(x, lastAt, 2) }, 3, 3},
		"deleting: not newest":         {func(_, x string) { setWord(x, lastAt, 9) }, 3, 9},
		"deleting: not removed":        {func(_, x string) { setWord(x, newestAt, 0) }, 0, 3},
		"removing the tag":             {func(_, x string) { setWord(x, newestAt, removed) }, 0, 0},
		"removing the store":           {func(_, x string) { require.NoError(t, os.Remove(x)) }, 3, 3},
		"lost":                         {func(d, _ string) { require.NoError(t, os.Truncate(versionPath(d, 3), page)) }, 0, 3},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t, Options{})
			for id := uint64(1); id <= 3; id++ {
				push(t, s, "w", id, content(id, 1000))
			}
			require.NoError(t, s.Close())
			directory := tagPath(s.Directory(), "w")
			c.leave(directory, filepath.Join(directory, indexName))
			for range 2 { // the second takes over what the first made of it
				again, err := Open(s.Directory(), Options{})
				require.NoError(t, err)
				require.Equal(t, c.newest, again.Newest("w").GetId())
				require.Equal(t, c.last, again.Last("w"))
				usage := again.Usage()
				require.Zero(t, usage.Drafts+int(usage.Retired))
				files, err := filepath.Glob(filepath.Join(again.Directory(), "tag-*", "*.*"))
				require.NoError(t, err)
				require.Len(t, files, usage.Files)
				r := reader(t, again, "w")
				if c.newest == 0 {
					_, err := r.Pull()
					require.ErrorIs(t, err, ErrNoVersion)
				} else {
					require.NoError(t, pull(t, r, c.newest, content(c.newest, 1000)).Release())
				}
				if name == "lost" {
					require.Equal(t, map[string]uint64{"w": 3}, again.Floors())
				}
				require.NoError(t, again.Close())
			}
			again, err := Open(s.Directory(), Options{})
			require.NoError(t, err)
			if name == "lost" {
				push(t, again, "w", 3, content(3, 1000)) // from a neighbour that has it
				require.Empty(t, again.Floors())
			}
			stored, err := put(again, c.last, 10)
			require.True(t, err != nil || !stored, "an id is reused")
			push(t, again, "w", c.last+1, content(c.last+1, 1000))
			require.NoError(t, again.Close())
		})
	}
}

func TestPusherKilledWhileItFillsADraft(t *testing.T) {
	s := newStore(t, Options{})
	const size = 64 << 20
	d, err := s.Reserve(&psv1.Version{Tag: "w", Size: size}, "")
	require.NoError(t, err)
	require.NoError(t, d.Lend())
	pusher := start(t, task{Name: "filler", Path: d.Path(), Until: 1, Size: size})
	require.True(t, pusher.next().Ready)
	stopped := stopWhileFilling(t, d, pusher)
	require.ErrorIs(t, d.Reclaim(0), ErrBusy)

	// The draft goes at once, its memory when it can't be written anymore.
	require.NoError(t, d.Discard())
	require.NoFileExists(t, d.Path())
	require.GreaterOrEqual(t, s.Usage().Retired, uint64(size))
	require.NoError(t, s.Sweep())
	require.GreaterOrEqual(t, s.Usage().Retired, uint64(size))
	parameters := content(2, 2*ChunkSize)
	push(t, s, "w", 1, parameters)
	if stopped {
		require.NoError(t, pusher.cmd.Process.Signal(syscall.SIGCONT))
	}
	pusher.kill()
	require.NoError(t, s.Sweep())
	require.Zero(t, s.Usage().Retired)
	require.NoError(t, pull(t, reader(t, s, "w"), 1, parameters).Release())
}

// stopWhileFilling stops a process while it fills a draft.
func stopWhileFilling(t *testing.T, d *Draft, pusher *process) bool {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); {
		require.NoError(t, pusher.cmd.Process.Signal(syscall.SIGSTOP))
		var status syscall.WaitStatus
		_, err := syscall.Wait4(pusher.cmd.Process.Pid, &status, syscall.WUNTRACED, nil)
		require.NoError(t, err)
		require.True(t, status.Stopped())
		locked, err := mapfile.Locked(d.file.handle, fillLock)
		require.NoError(t, err)
		if locked {
			return true
		}
		require.NoError(t, pusher.cmd.Process.Signal(syscall.SIGCONT))
	}
	t.Fatal("the process does not fill the draft")
	return false
}

func TestStallingReadersNeverSeeARecycledFile(t *testing.T) {
	s := newStore(t, Options{Held: 1})
	const versions = 400
	readers := make([]*process, 4)
	for i := range readers {
		readers[i] = start(t, task{Name: "stalling reader", Directory: s.Directory(), Until: versions})
	}
	for id := uint64(1); id <= versions; id++ {
		push(t, s, "w", id, content(id, int(id%4)*3*page+100))
	}
	for _, r := range readers {
		require.NoError(t, r.in.Close())
		o := r.end()
		require.Positive(t, o.Pulled)
		require.Zero(t, o.Torn, "torn versions")
		require.Zero(t, o.Back, "versions that go back")
	}
	require.NoError(t, s.Sweep())
	require.Equal(t, 2, s.Usage().Files)
}

func TestKilledReaderLetsGo(t *testing.T) {
	s := newStore(t, Options{Held: 1})
	push(t, s, "w", 1, content(1, 1000))
	slow := start(t, task{Name: "slow reader", Directory: s.Directory()})
	require.True(t, slow.next().Ready)
	for id := uint64(2); id < 9; id++ {
		push(t, s, "w", id, content(id, 1000))
	}
	require.NoError(t, s.Sweep())
	usage := s.Usage()
	require.Equal(t, []TagUsage{{Tag: "w", Versions: 3, Held: 1, Bytes: usage.Bytes}}, usage.Tags)

	// The next officer knows of the reader too.
	require.NoError(t, s.Close())
	again, err := Open(s.Directory(), Options{Held: 1})
	require.NoError(t, err)
	push(t, again, "w", 9, content(9, 1000))
	require.NoError(t, again.Sweep())
	require.Equal(t, 3, again.Usage().Files)
	slow.kill()
	require.NoError(t, again.Sweep())
	require.Equal(t, 2, again.Usage().Files)
	require.NoError(t, again.Close())
}

func TestFilesOfAnotherBootAreDropped(t *testing.T) {
	s := newStore(t, Options{})
	push(t, s, "w", 7, content(1, 1000))
	require.NoError(t, s.Close())
	path := filepath.Join(s.Directory(), statusName)
	status, err := os.ReadFile(path)
	require.NoError(t, err)
	status[pageBootAt]++
	require.NoError(t, os.WriteFile(path, status, 0o600))
	again, err := Open(s.Directory(), Options{})
	require.NoError(t, err)
	require.Empty(t, again.Versions())
	require.Zero(t, again.Last("w"))
	require.Zero(t, again.Usage().Bytes)
	push(t, again, "w", 1, content(1, 10))
	require.NoError(t, again.Close())
}

func TestOrphanIsRemoved(t *testing.T) {
	newStore(t, Options{}) // skips the test where stores are unsupported
	directory := filepath.Join(t.TempDir(), "parameters")
	require.NoError(t, RemoveOrphan(directory), "no store")
	require.False(t, Served(directory))
	officer := start(t, task{Name: "officer", Directory: directory, Until: 7, Size: 5000})
	require.True(t, officer.next().Ready)
	r, err := NewReader(directory, "w")
	require.NoError(t, err)
	p := pull(t, r, 7, weights(7, 5000))
	require.True(t, Served(directory))
	require.ErrorIs(t, RemoveOrphan(directory), ErrInUse)
	require.NoError(t, p.Verify())
	officer.kill()
	require.False(t, Served(directory))
	require.NoError(t, RemoveOrphan(directory))
	require.NoDirExists(t, directory)
	require.NoError(t, p.Verify(), "what a reader holds remains")
	require.NoError(t, p.Release())
	require.NoError(t, r.Close())
	require.Empty(t, openIn(t, directory))
}

func TestRemovedStoreIsOpenedAgain(t *testing.T) {
	s := newStore(t, Options{})
	push(t, s, "w", 7, content(7, 1000))
	r := reader(t, s, "w")
	held := pull(t, r, 7, content(7, 1000))
	served, err := r.Served()
	require.NoError(t, err)
	require.True(t, served)
	require.NoError(t, s.Remove())
	require.NoDirExists(t, s.Directory())
	require.NoError(t, held.Verify(), "what a reader holds remains")
	id, err := r.ID()
	require.NoError(t, err)
	require.Zero(t, id)
	served, err = r.Served()
	require.NoError(t, err)
	require.False(t, served)
	require.NoError(t, s.Remove(), "again")

	again, err := Open(s.Directory(), Options{})
	require.NoError(t, err)
	push(t, again, "w", 8, content(8, 1000))
	served, err = r.Served()
	require.NoError(t, err)
	require.True(t, served)
	require.NoError(t, pull(t, r, 8, content(8, 1000)).Release())
	require.ErrorIs(t, s.Remove(), ErrInUse, "another officer's store")
	require.NoError(t, pull(t, r, 8, content(8, 1000)).Release())
	require.NoError(t, held.Release())
	require.NoError(t, again.Remove())
}

// A process that this one starts has copies of its descriptors until it runs its program.
func TestClosedStoreIsOpenedWhileAProcessIsBeingStarted(t *testing.T) {
	s := newStore(t, Options{})
	push(t, s, "w", 7, content(7, 1000))
	copied, err := unix.Dup(int(s.lock.Fd()))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, unix.Close(copied)) })
	require.NoError(t, s.Close())
	again, err := Open(s.Directory(), Options{})
	require.NoError(t, err)
	require.NoError(t, again.Remove())
}
