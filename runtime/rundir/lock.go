package rundir

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Lock is a lock on a file, held by this process. The kernel releases it when the process dies.
type Lock struct {
	path string
	fd   int // bare, for the same reason as in dirLock

	releasing sync.Once
	err       error // the result of Release
}

// TryLock locks the file at path, without waiting, and creates it if it does not exist. If the lock
// is held, by this process or another, the error is [ErrLocked].
func TryLock(path string) (*Lock, error) {
	lock, err := tryLock(path)
	if err != nil {
		return nil, fmt.Errorf("rundir: locking %s: %w", path, err)
	}
	return lock, nil
}

// The timing of AcquireLock.
const (
	// A holder's death is announced shortly before its lock is released, so a waiter retries a few
	// times after that.
	retryFirst = time.Millisecond
	retryLast  = 128 * time.Millisecond
	// How often the lock is tried if the file cannot be watched, and if it can: some file systems
	// (network, overlay) do not announce every event.
	pollUnwatched = 250 * time.Millisecond
	pollWatched   = time.Second
)

// AcquireLock locks the file at path, and creates it if it does not exist. It blocks until the lock
// is free or ctx ends. On Linux the kernel wakes it when the holder closes the file or dies; on
// other systems, or if the user has too many watches, it polls four times a second. There is no
// order among waiters.
func AcquireLock(ctx context.Context, path string) (*Lock, error) {
	lock, err := acquire(ctx, path, watchFile)
	if err != nil {
		return nil, fmt.Errorf("rundir: waiting for the lock on %s: %w", path, err)
	}
	return lock, nil
}

// watch waits for events of a file.
type watch interface {
	// wait returns when an event may have happened, the time has passed, or ctx has ended.
	wait(ctx context.Context, limit time.Duration)
	close() error
}

func acquire(ctx context.Context, path string, watcher func(path string) (watch, error)) (*Lock, error) {
	for {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		fd, err := openLock(path)
		if err != nil {
			return nil, err
		}
		switch err := await(ctx, path, fd, watcher); {
		case err != nil:
			return nil, errors.Join(err, unix.Close(fd))
		case sameFile(fd, path):
			return &Lock{path: path, fd: fd}, nil
		}
		// The file was removed meanwhile, and the next process to lock creates another one.
		if err := unix.Close(fd); err != nil {
			return nil, err
		}
	}
}

// await blocks until the lock on fd, the file at path, is acquired, or the file no longer exists.
func await(ctx context.Context, path string, fd int, watcher func(path string) (watch, error)) error {
	if err := flock(fd, unix.LOCK_EX); !errors.Is(err, ErrLocked) {
		return err
	}
	// Watch before the next attempt, so that no event after that is missed.
	var watched watch = timer{}
	poll := pollUnwatched
	if w, err := watcher(path); err == nil {
		watched, poll = w, pollWatched
	}
	defer func() { _ = watched.close() }() // only read
	retry := retryLast
	for {
		if err := flock(fd, unix.LOCK_EX); !errors.Is(err, ErrLocked) {
			return err
		}
		if !sameFile(fd, path) {
			return nil
		}
		if retry < retryLast {
			timer{}.wait(ctx, retry)
			retry *= 2
		} else {
			watched.wait(ctx, poll)
			retry = retryFirst
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
}

func tryLock(path string) (*Lock, error) {
	fd, err := openLock(path)
	if err != nil {
		return nil, err
	}
	if err := flock(fd, unix.LOCK_EX); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	if !sameFile(fd, path) {
		return nil, errors.Join(fmt.Errorf("it was removed at the same moment: %w", ErrLocked), unix.Close(fd))
	}
	return &Lock{path: path, fd: fd}, nil
}

func openLock(path string) (int, error) {
	fd, err := open(path, unix.O_RDWR|unix.O_CREAT|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY)
	if err != nil {
		return -1, err
	}
	var stat unix.Stat_t
	err = unix.Fstat(fd, &stat)
	if err == nil && stat.Mode&unix.S_IFMT != unix.S_IFREG {
		err = errors.New("it is not a regular file")
	}
	if err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

// Path is the path of the locked file.
func (l *Lock) Path() string { return l.path }

// Release releases the lock. The file stays: if it were removed, two processes could each lock a
// file of that name. Further calls return the same result.
func (l *Lock) Release() error {
	l.releasing.Do(func() {
		if err := unlock(l.fd); err != nil {
			l.err = fmt.Errorf("rundir: releasing the lock on %s: %w", l.path, err)
		}
	})
	return l.err
}

// timer is a watch without events.
type timer struct{}

func (timer) wait(ctx context.Context, limit time.Duration) {
	passed := time.NewTimer(limit)
	defer passed.Stop()
	select {
	case <-passed.C:
	case <-ctx.Done():
	}
}

func (timer) close() error { return nil }
