package rundir

import (
	"context"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestLockOfAKilledProcessIsTakenOver(t *testing.T) {
	path, err := LockPath(shortDir(t), "officer")
	require.NoError(t, err)
	holder := begin(t, "lock "+path)
	require.Equal(t, "locked "+path, holder.line())
	_, err = TryLock(path)
	require.ErrorIs(t, err, ErrLocked)

	waiters := []*another{begin(t, "lock "+path), begin(t, "lock "+path)}
	locked := make(chan *another)
	for _, p := range waiters {
		go func() {
			p.said.Scan()
			locked <- p
		}()
	}
	// In whatever order, each one gets it when the one before it has died.
	holder.kill()
	for range waiters {
		select {
		case next := <-locked:
			require.Equal(t, "locked "+path, next.said.Text())
			_, err = TryLock(path)
			require.ErrorIs(t, err, ErrLocked)
			next.kill()
		case <-within(t).Done():
			require.FailNow(t, "no process took the lock over")
		}
	}
	lock, err := AcquireLock(within(t), path)
	require.NoError(t, err)
	require.NoError(t, lock.Release())
}

func TestLockIsHeldByOneAtATime(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	var holders, turns atomic.Int32
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 20 {
				lock, err := AcquireLock(within(t), path)
				if err != nil {
					t.Error(err)
					return
				}
				assert.EqualValues(t, 1, holders.Add(1))
				turns.Add(1)
				holders.Add(-1)
				assert.NoError(t, lock.Release())
			}
		})
	}
	all.Wait()
	assert.EqualValues(t, 160, turns.Load())
}

// A process that this one starts has copies of its descriptors until it runs its program.
func TestReleasedLockIsFreeWhileAProcessIsBeingStarted(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	lock, err := AcquireLock(within(t), path)
	require.NoError(t, err)
	copied, err := syscall.Dup(lock.fd)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, syscall.Close(copied)) })
	require.NoError(t, lock.Release())
	lock, err = AcquireLock(within(t), path)
	require.NoError(t, err)
	require.NoError(t, lock.Release())
}

func TestLockIsTakenOverWhereFilesCannotBeWatched(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	lock, err := TryLock(path)
	require.NoError(t, err)
	waiting := make(chan struct{})
	got := make(chan error)
	go func() {
		lock, err := acquire(within(t), path, func(string) (watch, error) {
			close(waiting)
			return nil, syscall.EMFILE
		})
		if err == nil {
			err = lock.Release()
		}
		got <- err
	}()
	<-waiting
	require.NoError(t, lock.Release())
	require.NoError(t, <-got)
}

func TestWaitingForALockEndsWithItsContext(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	lock, err := TryLock(path)
	require.NoError(t, err)
	assert.Equal(t, path, lock.Path())
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	_, err = AcquireLock(ctx, path)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	_, err = AcquireLock(ctx, filepath.Join(t.TempDir(), "free"))
	require.ErrorIs(t, err, context.DeadlineExceeded, "an ended context gets no lock, free or not")
	require.NoError(t, lock.Release())
	require.NoError(t, lock.Release(), "releasing twice is no error")
	lock, err = AcquireLock(within(t), path)
	require.NoError(t, err)
	require.NoError(t, lock.Release())
}

func TestLockOnARemovedFileCountsForNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	old, err := TryLock(path)
	require.NoError(t, err)
	var holders atomic.Int32
	var waiters sync.WaitGroup
	for range 4 {
		waiters.Go(func() {
			lock, err := AcquireLock(within(t), path)
			if err != nil {
				t.Error(err)
				return
			}
			assert.EqualValues(t, 1, holders.Add(1))
			assert.True(t, sameFile(lock.fd, path), "its lock is on a file that is not there")
			holders.Add(-1)
			assert.NoError(t, lock.Release())
		})
	}
	require.NoError(t, os.Remove(path)) // not permitted, but possible
	waiters.Wait()                      // they notice that their file is gone, although its lock is still held
	require.NoError(t, old.Release())
}

func TestLocksAreRegularFiles(t *testing.T) {
	dir := t.TempDir()
	pipe, link, folder := filepath.Join(dir, "pipe"), filepath.Join(dir, "link"), filepath.Join(dir, "folder")
	require.NoError(t, syscall.Mkfifo(pipe, 0o600))
	require.NoError(t, os.Symlink(filepath.Join(dir, "target"), link))
	require.NoError(t, os.Mkdir(folder, 0o700))
	for _, path := range []string{pipe, link, folder, filepath.Join(dir, "no", "such", "folder")} {
		_, err := AcquireLock(within(t), path)
		require.Error(t, err, path)
		_, err = TryLock(path)
		require.Error(t, err, path)
	}
	require.NoFileExists(t, filepath.Join(dir, "target"))
	for _, name := range []string{"", ".", "..", "a/b", "/a"} {
		_, err := LockPath(dir, name)
		require.ErrorContains(t, err, "no name for a lock", name)
	}
}
