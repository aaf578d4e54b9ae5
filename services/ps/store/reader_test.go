package store

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	psv1 "github.com/raylink/raylink/gen/raylink/ps/v1"
	"github.com/raylink/raylink/services/internal/mapfile"
)

func TestFilesAndMappingsAreReused(t *testing.T) {
	s := newStore(t, Options{Held: 2})
	r := reader(t, s, "w")
	var mapped []string
	var files []os.FileInfo // each of a file that remains open, so that no other gets its identity
	for id := uint64(1); id <= 30; id++ {
		parameters := content(id, 100_000)
		push(t, s, "w", id, parameters)
		if f := openVersion(t, s, "w", id); !slices.ContainsFunc(files, func(g os.FileInfo) bool { return os.SameFile(f, g) }) {
			files = append(files, f)
		}
		require.NoError(t, pull(t, r, id, parameters).Release())
		require.LessOrEqual(t, s.Usage().Files, 3)
		require.LessOrEqual(t, len(r.files), 3)
		if id == 10 {
			mapped = mappedIn(t, s.Directory())
		}
	}
	require.Len(t, mappedIn(t, s.Directory()), len(mapped))
	require.LessOrEqual(t, len(files), 3, "new versions go into the files of old ones")
	for _, m := range r.files {
		require.Zero(t, m.uses)
	}

	// A file of another size is mapped again.
	for id := uint64(31); id <= 40; id++ {
		parameters := content(id, 100_000+int(id%3)*page)
		push(t, s, "w", id, parameters)
		require.NoError(t, pull(t, r, id, parameters).Release())
	}
}

// openVersion opens a version's file until the test ends.
func openVersion(t *testing.T, s *Store, name string, id uint64) os.FileInfo {
	t.Helper()
	f, err := os.Open(versionPath(tagPath(s.Directory(), name), id))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, f.Close()) })
	info, err := f.Stat()
	require.NoError(t, err)
	return info
}

func TestFileOfAnotherTagIsNotRead(t *testing.T) {
	s := newStore(t, Options{})
	push(t, s, "a", 1, content(1, 100))
	push(t, s, "b", 1, content(2, 100))
	path := func(tag string) string { return versionPath(tagPath(s.Directory(), tag), 1) }
	require.NoError(t, os.Rename(path("a"), path("b")))
	_, err := reader(t, s, "b").Pull()
	require.ErrorIs(t, err, ErrFormat)
	require.ErrorContains(t, err, `version 1 of tag "a"`)
}

func TestReadersKeepWhatWasDeleted(t *testing.T) {
	s := newStore(t, Options{})
	r := reader(t, s, "a/b")
	for id := uint64(1); id <= 3; id++ {
		push(t, s, "a/b", id, content(id, 3*page))
	}
	p := pull(t, r, 3, content(3, 3*page))
	require.NoError(t, s.Delete("a/b", 0))
	require.Nil(t, s.Newest("a/b"))
	require.Empty(t, s.Versions())
	require.Equal(t, map[string]uint64{"a/b": 3}, s.Floors())
	usage := s.Usage()
	require.Equal(t, 1, usage.Files)
	require.Equal(t, usage.Bytes, usage.Retired)
	_, err := r.Pull()
	require.ErrorIs(t, err, ErrNoVersion)
	id, err := r.ID()
	require.NoError(t, err)
	require.Zero(t, id)
	require.NoError(t, p.Verify())
	require.NoError(t, p.Release())
	require.NoError(t, s.Sweep())
	require.Zero(t, s.Usage().Bytes)

	stored, err := put(s, 1, 1)
	require.NoError(t, err)
	require.True(t, stored, "another tag")
	require.Equal(t, uint64(3), s.Last("a/b"))
	require.NoError(t, s.Delete("a/b", 8))
	require.Equal(t, uint64(8), s.Last("a/b"))
	require.NoError(t, s.Delete("c", 5), "a tag that others had")
	require.Equal(t, uint64(5), s.Last("c"))
	push(t, s, "a/b", 9, content(9, 10))
	require.NoError(t, pull(t, r, 9, content(9, 10)).Release())
}

func TestReaderThatLoadedAnOldIDRetries(t *testing.T) {
	s := newStore(t, Options{Held: 1})
	r := reader(t, s, "w")
	push(t, s, "w", 1, content(1, 10))
	require.NoError(t, pull(t, r, 1, content(1, 10)).Release())
	push(t, s, "w", 2, content(2, 10))
	d, err := s.Reserve(&psv1.Version{Tag: "w", Size: 10}, "")
	require.NoError(t, err)
	_, err = r.pull(1) // as if the id had been loaded before
	require.ErrorIs(t, err, errRecycled)
	require.NoError(t, write(d, 0, content(3, 10)))
	published, err := s.Publish(d, &psv1.Version{Tag: "w", Id: 3, Size: 10})
	require.NoError(t, err)
	require.True(t, published)
	_, err = r.pull(1)
	require.ErrorIs(t, err, errRecycled)
	require.NoError(t, pull(t, r, 3, content(3, 10)).Release())
	require.NoError(t, s.Delete("w", 0))
	_, err = r.pull(3)
	require.ErrorIs(t, err, errRecycled)
}

func TestMemoryOfRemovedFilesIsFreed(t *testing.T) {
	s := newStore(t, Options{})
	r := reader(t, s, "w")
	const size = 100 * page
	push(t, s, "w", 1, content(1, size))
	require.NoError(t, pull(t, r, 1, content(1, size)).Release())
	require.NoError(t, s.Delete("w", 0))
	for _, m := range r.files {
		status, err := mapfile.Stat(m.handle)
		require.NoError(t, err)
		require.Equal(t, uint64(page), status.Size, "an idle reader keeps the memory of a deleted version")
	}
	push(t, s, "w", 2, content(2, size))
	require.NoError(t, pull(t, r, 2, content(2, size)).Release())
	require.Len(t, r.files, 1)
}

// logs collects what is logged.
type logs struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logs) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func TestForgottenParametersAreReleasedAndLoggedOnce(t *testing.T) {
	l := new(logs)
	before := slog.Default()
	slog.SetDefault(slog.New(slog.NewTextHandler(l, nil)))
	t.Cleanup(func() { slog.SetDefault(before) })
	s := newStore(t, Options{Held: 1})
	r := reader(t, s, "w")
	for id := uint64(1); id <= 4; id++ {
		push(t, s, "w", id, content(id, 10))
		pull(t, r, id, content(id, 10))
	}
	require.Eventually(t, func() bool {
		runtime.GC()
		require.NoError(t, s.Sweep())
		usage := s.Usage()
		return usage.Files == 2 && usage.Tags[0].Held == 0
	}, 20*time.Second, time.Millisecond)
	require.Equal(t, 1, strings.Count(l.String(), "without being released"), l.String())
	require.Contains(t, l.String(), "tag=w")
	p := pull(t, r, 4, content(4, 10))
	require.NoError(t, p.Release())
	runtime.GC()
	require.NoError(t, pull(t, r, 4, content(4, 10)).Release())
}

func TestReadersSeeHowFarTheyAreBehind(t *testing.T) {
	s := newStore(t, Options{})
	r := reader(t, s, "w")
	state, err := r.State()
	require.NoError(t, err)
	require.Equal(t, State{Unconfirmed: state.Unconfirmed}, state)
	require.NoError(t, s.Announce("w", 2))
	behind := func() State {
		state, err := r.State()
		require.NoError(t, err)
		return state
	}
	require.Eventually(t, func() bool { return behind().Behind > 2*time.Millisecond }, time.Minute, time.Millisecond)
	require.Equal(t, uint64(2), behind().Announced)
	require.Zero(t, behind().ID)
	push(t, s, "w", 1, content(1, 10))
	require.Greater(t, behind().Behind, 2*time.Millisecond, "still behind")
	push(t, s, "w", 2, content(2, 10))
	require.Zero(t, behind().Behind)
	require.Equal(t, uint64(2), behind().ID)
	require.NoError(t, s.Announce("w", 3))
	require.Less(t, behind().Behind, time.Minute)
	require.NoError(t, s.Delete("w", 3))
	require.Zero(t, behind().Announced)
	require.Zero(t, behind().Behind, "a reader of a deleted tag is not behind")
	require.NoError(t, s.Announce("w", 5))

	require.Eventually(t, func() bool { return behind().Unconfirmed > 5*time.Millisecond }, time.Minute, time.Millisecond)
	unconfirmed := behind().Unconfirmed
	require.NoError(t, s.Close())
	again, err := Open(s.Directory(), Options{})
	require.NoError(t, err)
	require.GreaterOrEqual(t, behind().Unconfirmed, unconfirmed, "another officer is no word of the captain")
	require.Equal(t, uint64(5), behind().Announced)
	again.Confirm()
	require.Less(t, behind().Unconfirmed, unconfirmed+time.Minute)
	require.NoError(t, again.Close())
}

// TestConcurrentReaders pulls in several goroutines with one reader, while versions are pushed.
func TestConcurrentReaders(t *testing.T) {
	s := newStore(t, Options{Held: 1})
	push(t, s, "w", 1, content(1, 2*page))
	r := reader(t, s, "w")
	ctx, cancel := context.WithCancel(t.Context())
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			var last uint64
			for ctx.Err() == nil {
				p, err := r.Pull()
				if err != nil || p.Version().GetId() < last || p.Verify() != nil {
					t.Errorf("pull after version %d: %v", last, err)
					return
				}
				last = p.Version().GetId()
				if err := p.Release(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for id := uint64(2); id < 200; id++ {
		push(t, s, "w", id, content(id, int(id%3)*page))
	}
	cancel()
	readers.Wait()
	require.NoError(t, r.Close())
	require.NoError(t, s.Close())
	goleak.VerifyNone(t)
}
