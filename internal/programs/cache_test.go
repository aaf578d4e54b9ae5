package programs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink/internal/proctest"
)

func TestProgramIsFetchedOnce(t *testing.T) {
	dir := cacheDir(t)
	p := makeProgram("cartpole", 3*ChunkSize+5)
	c := open(t, dir, 1<<30)
	first := get(t, c, p, p.source())
	second := get(t, c, p, refuses(t))
	require.Equal(t, first.Path(), second.Path())
	require.Equal(t, filepath.Join(dir, fmt.Sprintf("%x", p.id.SHA256)), first.Path())
	first.Release()
	first.Release()
	c.Close()
	get(t, open(t, dir, 1<<30), p, refuses(t))
	require.Equal(t, []string{p.complete()}, files(t, dir))
	_, err := c.Get(t.Context(), p.id, refuses(t))
	require.ErrorIs(t, err, ErrClosed)
	require.EqualError(t, err, "the program cartpole from head: the cache is closed")
}

// waitFor waits until callers wait for a program, from any source.
func (c *Cache) waitFor(t *testing.T, callers int) {
	t.Helper()
	require.Eventually(t, func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		waiting := 0
		for _, f := range c.flights {
			waiting += int(f.waiting)
		}
		return waiting == callers
	}, proctest.Patience, proctest.Poll)
}

func TestConcurrentGetsShareATransfer(t *testing.T) {
	for name, sources := range map[string]int{"one source": 1, "many sources": 5} {
		t.Run(name, func(t *testing.T) {
			const callers = 200
			p := makeProgram("cartpole", 1000)
			dir := cacheDir(t)
			c := open(t, dir, 1<<30)
			release := make(chan struct{})
			var transfers atomic.Int32
			var all sync.WaitGroup
			for i := range callers {
				all.Go(func() {
					s := Source{Name: fmt.Sprint("head-", i%sources), Fetch: func(ctx context.Context, offset int64, into io.Writer) error {
						transfers.Add(1)
						<-release
						return p.source().Fetch(ctx, offset, into)
					}}
					use, err := c.Get(t.Context(), p.id, s)
					if assert.NoError(t, err) {
						content, err := os.ReadFile(use.Path())
						assert.NoError(t, err)
						assert.Equal(t, p.content, content)
						use.Release()
					}
				})
			}
			c.waitFor(t, callers)
			close(release)
			all.Wait()
			require.EqualValues(t, 1, transfers.Load(), "one transfer for all")
			require.Equal(t, []string{p.complete()}, files(t, dir))
		})
	}
}

func TestLastCallerEndsTheTransfer(t *testing.T) {
	p := makeProgram("cartpole", 1000)
	dir := cacheDir(t)
	c := open(t, dir, 1<<30)
	fetching, ended := make(chan struct{}), make(chan struct{})
	source := Source{Name: "head", Fetch: func(ctx context.Context, _ int64, into io.Writer) error {
		_, err := into.Write(p.content[:100])
		close(fetching)
		<-ctx.Done()
		close(ended)
		return errors.Join(err, ctx.Err())
	}}
	canceled := errors.New("the user has gone")
	first, cancelFirst := context.WithCancelCause(t.Context())
	second, cancelSecond := context.WithCancelCause(t.Context())
	results := make(chan error)
	for _, ctx := range []context.Context{first, second} {
		go func() {
			_, err := c.Get(ctx, p.id, source)
			results <- err
		}()
	}
	<-fetching
	c.waitFor(t, 2)
	cancelFirst(canceled)
	require.ErrorIs(t, <-results, canceled)
	select {
	case <-ended:
		require.Fail(t, "the transfer has ended for a caller that has gone")
	case <-time.After(20 * time.Millisecond):
	}
	cancelSecond(canceled)
	require.EqualError(t, <-results, "the program cartpole from head: the user has gone")
	<-ended
	// The next caller does not get the end of the one before, and continues.
	get(t, c, p, Source{Name: "head", Fetch: func(ctx context.Context, offset int64, into io.Writer) error {
		assert.EqualValues(t, 100, offset)
		return p.source().Fetch(ctx, offset, into)
	}})
}

func TestCloseEndsTransfers(t *testing.T) {
	p := makeProgram("cartpole", 1000)
	dir := cacheDir(t)
	c := open(t, dir, 1<<30)
	result := make(chan error)
	fetching := make(chan struct{})
	go func() {
		_, err := c.Get(t.Context(), p.id, Source{Name: "head", Fetch: func(ctx context.Context, _ int64, into io.Writer) error {
			_, err := into.Write(p.content[:7])
			close(fetching)
			<-ctx.Done()
			return err
		}})
		result <- err
	}()
	<-fetching
	go c.Close()
	require.EqualError(t, <-result, "the program cartpole from head: interrupted after 7 of 1000 bytes: the cache is closed")
	require.Equal(t, []string{p.partial()}, files(t, dir))
}

// A source that fails does so for its own callers. Those that wait for another one continue there.
func TestFailureIsOfItsSource(t *testing.T) {
	p := makeProgram("cartpole", 1000)
	c := open(t, cacheDir(t), 1<<30)
	release := make(chan struct{})
	bad := Source{Name: "bad", Fetch: func(ctx context.Context, offset int64, into io.Writer) error {
		<-release
		return p.source().cut(600).Fetch(ctx, offset, into)
	}}
	failed := make(chan error)
	for range 3 {
		go func() {
			_, err := c.Get(t.Context(), p.id, bad)
			failed <- err
		}()
	}
	c.waitFor(t, 3)
	succeeded := make(chan error)
	go func() {
		use, err := c.Get(t.Context(), p.id, Source{Name: "good", Fetch: func(ctx context.Context, offset int64, into io.Writer) error {
			assert.EqualValues(t, 600, offset)
			return p.source().Fetch(ctx, offset, into)
		}})
		if err == nil {
			use.Release()
		}
		succeeded <- err
	}()
	c.waitFor(t, 4)
	close(release)
	for range 3 {
		require.EqualError(t, <-failed, "the program cartpole from bad: interrupted after 600 of 1000 bytes: the link was cut")
	}
	require.NoError(t, <-succeeded)
}

func TestWrongBytesAreRefused(t *testing.T) {
	p, other := makeProgram("cartpole", 1000), makeProgram("other", 1000)
	dir := cacheDir(t)
	c := open(t, dir, 1<<30)
	_, err := c.Get(t.Context(), p.id, sends("gpu1", other.content))
	var wrong *HashError
	require.ErrorAs(t, err, &wrong)
	require.EqualError(t, err, fmt.Sprintf("the program cartpole from gpu1: what came from gpu1 has the SHA-256 %x, and not %x: it was removed",
		other.id.SHA256, p.id.SHA256))
	require.Empty(t, files(t, dir))

	_, err = c.Get(t.Context(), p.id, sends("gpu1", append(p.content, 0)))
	require.EqualError(t, err, "the program cartpole from gpu1: it sent more than the program has, 1000 bytes: what came was removed")
	require.Empty(t, files(t, dir))

	_, err = c.Get(t.Context(), p.id, sends("gpu1", p.content[:400]))
	require.EqualError(t, err, "the program cartpole from gpu1: interrupted after 400 of 1000 bytes: unexpected EOF")
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	_, err = c.Get(t.Context(), p.id, p.source().cut(0))
	require.EqualError(t, err, "the program cartpole from head: interrupted after 400 of 1000 bytes: the link was cut")
	require.Equal(t, []string{p.partial()}, files(t, dir))

	// What there is may be wrong, and what comes now right.
	tamper(t, filepath.Join(dir, p.partial()))
	get(t, c, p, p.source())
}

func TestImpossibleProgramsAreRefused(t *testing.T) {
	dir := cacheDir(t)
	c := open(t, dir, 1000)
	p := makeProgram("cartpole", 1001)
	_, err := c.Get(t.Context(), p.id, refuses(t))
	require.EqualError(t, err, "the program cartpole from head: 1001 bytes are needed, and the whole cache in "+dir+" has 1000 available")
	p.id.Size = -1
	_, err = c.Get(t.Context(), p.id, refuses(t))
	require.EqualError(t, err, "the program cartpole from head: no program has -1 bytes")
	p.id.GOOS, p.id.GOARCH = "plan9", "amd64"
	_, err = c.Get(t.Context(), p.id, refuses(t))
	var platform *PlatformError
	require.ErrorAs(t, err, &platform)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	p = makeProgram("cartpole", 1000)
	_, err = c.Get(ctx, p.id, refuses(t))
	require.ErrorIs(t, err, context.Canceled)
	require.Empty(t, files(t, dir))
}

func TestDamagedProgramIsNeverRun(t *testing.T) {
	dir := cacheDir(t)
	p := makeProgram("cartpole", 1000)
	fetched := 0
	source := Source{Name: "head", Fetch: func(ctx context.Context, offset int64, into io.Writer) error {
		fetched++
		return p.source().Fetch(ctx, offset, into)
	}}
	c := open(t, dir, 1<<30)
	path := get(t, c, p, source).Path()
	steps := map[string]func(){
		"changed":   func() { tamper(t, path) },
		"truncated": func() { require.NoError(t, os.Chmod(path, 0o700)); require.NoError(t, os.Truncate(path, 10)) },
		"removed":   func() { require.NoError(t, os.Remove(path)) },
		"replaced":  func() { require.NoError(t, os.Rename(copyOf(t, path), path)); tamper(t, path) },
	}
	for name, damage := range steps {
		for _, reopened := range []bool{false, true} {
			before := fetched
			damage()
			if reopened {
				c.Close()
				c = open(t, dir, 1<<30)
			}
			get(t, c, p, source)
			require.Equal(t, before+1, fetched, "%s, reopened: %v", name, reopened)
			require.Equal(t, []string{p.complete()}, files(t, dir))
		}
	}
	// Without the mode that shows a complete transfer it is verified again, and then has it.
	require.NoError(t, os.Chmod(path, 0o600))
	get(t, c, p, refuses(t))
}

// copyOf returns the path of a copy with the same times and mode.
func copyOf(t *testing.T, path string) string {
	t.Helper()
	content, err := os.ReadFile(path)
	require.NoError(t, err)
	info, err := os.Stat(path)
	require.NoError(t, err)
	name := filepath.Join(filepath.Dir(filepath.Dir(path)), "copy")
	require.NoError(t, os.WriteFile(name, content, info.Mode()))
	require.NoError(t, os.Chtimes(name, info.ModTime(), info.ModTime()))
	return name
}

func TestProgramsInUseStay(t *testing.T) {
	dir := cacheDir(t)
	a, b, large := makeProgram("a", 400), makeProgram("b", 500), makeProgram("large", 700)
	c, another := open(t, dir, 1000), open(t, dir, 1000)
	useA := get(t, c, a, a.source())
	useB := get(t, another, b, b.source())
	useB.Release()
	_, err := c.Get(t.Context(), large.id, refuses(t))
	require.EqualError(t, err, "the program large from head: 700 bytes are needed, and the cache of 1000 bytes in "+dir+
		", without what is in use, has 600 available")
	require.ElementsMatch(t, []string{a.complete(), b.complete()}, files(t, dir), "nothing is removed if it is not enough")
	useA.Release()
	get(t, another, large, large.source())
	require.Equal(t, []string{large.complete()}, files(t, dir))
}

// Two transfers must not have the same room.
func TestTransfersInProgressCount(t *testing.T) {
	dir := cacheDir(t)
	a, b := makeProgram("a", 600), makeProgram("b", 600)
	c, another := open(t, dir, 1000), open(t, dir, 1000)
	fetching, release := make(chan struct{}), make(chan struct{})
	done := make(chan error, 1)
	go func() {
		use, err := c.Get(t.Context(), a.id, Source{Name: "head", Fetch: func(ctx context.Context, offset int64, into io.Writer) error {
			close(fetching)
			select {
			case <-release:
			case <-ctx.Done():
			}
			return a.source().Fetch(ctx, offset, into)
		}})
		if err == nil {
			use.Release()
		}
		done <- err
	}()
	<-fetching
	_, err := another.Get(t.Context(), b.id, refuses(t))
	require.ErrorContains(t, err, "600 bytes are needed, and the cache of 1000 bytes in "+dir+", without what is in use, has 400 available")
	close(release)
	require.NoError(t, <-done)
	get(t, another, b, b.source())
	require.Equal(t, []string{b.complete()}, files(t, dir))
}

func TestAbandonedPartialFilesLeave(t *testing.T) {
	dir := cacheDir(t)
	a, b := makeProgram("a", 400), makeProgram("b", 400)
	c := open(t, dir, 1<<30)
	for _, p := range []program{a, b} {
		_, err := c.Get(t.Context(), p.id, p.source().cut(10))
		require.ErrorIs(t, err, errCut)
	}
	stale := transferName(makeProgram("c", 5).id) + lockSuffix
	require.NoError(t, os.WriteFile(filepath.Join(dir, stale), nil, 0o600))
	foreign := "0123-note"
	require.NoError(t, os.WriteFile(filepath.Join(dir, foreign), nil, 0o600))
	long := time.Now().Add(-partialLife - time.Minute)
	for _, name := range []string{a.partial(), stale, foreign} {
		require.NoError(t, os.Chtimes(filepath.Join(dir, name), long, long))
	}
	open(t, dir, 1<<30)
	require.ElementsMatch(t, []string{foreign, b.partial()}, files(t, dir))
	open(t, dir, 399)
	require.Equal(t, []string{foreign}, files(t, dir), "the bound is lower now")
}

func TestDirectoryMustBePrivate(t *testing.T) {
	base := t.TempDir()
	file, shared, link := filepath.Join(base, "file"), filepath.Join(base, "shared"), filepath.Join(base, "link")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	require.NoError(t, os.Mkdir(shared, 0o700))
	require.NoError(t, os.Chmod(shared, 0o777))
	require.NoError(t, os.Symlink(base, link))
	for path, text := range map[string]string{
		file:                            "not a directory",
		shared:                          "its mode is 0777, so that others can access it; run: chmod 700 " + shared,
		link:                            "it is not a directory",
		filepath.Join(shared, "nested"): "others can rename it: " + shared + " belongs to user",
	} {
		_, err := Open(t.Context(), path, 1)
		require.ErrorContains(t, err, "the cache of programs in "+path+": ")
		require.ErrorContains(t, err, text)
	}
	_, err := Open(t.Context(), filepath.Join(base, "new"), 0)
	require.ErrorContains(t, err, "its bound must be positive")
	require.NoDirExists(t, filepath.Join(base, "new"))
}
