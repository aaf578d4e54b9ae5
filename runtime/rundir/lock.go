package rundir

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Lock is a lock on a file that this process holds. The kernel lets go of it when the process dies.
type Lock struct {
	path string
	fd   int // bare, for the reason that dirLock gives

	releasing sync.Once
	err       error // of releasing
}

// TryLock takes the lock on the file at path, which is made if it isn't there. If somebody else
// holds it, also in this process, the error is [ErrLocked].
func TryLock(path string) (*Lock, error) {
	lock, err := tryLock(path)
	if err != nil {
		return nil, fmt.Errorf("rundir: locking %s: %w", path, err)
	}
	return lock, nil
}

// How a lock is waited for. See AcquireLock.
const (
	// A holder's death is announced a moment before its lock is free, so that a waiter tries a few
	// times more.
	retryFirst = time.Millisecond
	retryLast  = 128 * time.Millisecond
	// Where the file can't be watched: how often it is tried. Where it can, some file systems don't
	// announce all (network, overlay).
	pollUnwatched = 250 * time.Millisecond
	pollWatched   = time.Second
)

// AcquireLock takes the lock on the file at path, which is made if it isn't there, and waits until
// it is free or ctx ends. On Linux it is woken by the kernel when the holder closes the file or
// dies; elsewhere, or if the user has too many watches, it looks four times a second. Among several
// who wait, any one gets it.
func AcquireLock(ctx context.Context, path string) (*Lock, error) {
	lock, err := acquire(ctx, path, watchFile)
	if err != nil {
		return nil, fmt.Errorf("rundir: waiting for the lock on %s: %w", path, err)
	}
	return lock, nil
}

// watch tells of things that happen to a file.
type watch interface {
	// wait returns when something may have happened, the time has passed, or ctx has ended.
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
		// The file was removed meanwhile. Whoever comes now makes another one.
		if err := unix.Close(fd); err != nil {
			return nil, err
		}
	}
}

// await waits until the lock on fd, the file at path, is ours, or the file isn't there any more.
func await(ctx context.Context, path string, fd int, watcher func(path string) (watch, error)) error {
	if err := flock(fd, unix.LOCK_EX); !errors.Is(err, ErrLocked) {
		return err
	}
	// Watched from here on, so that whatever happens after the next try is seen.
	var watched watch = timer{}
	poll := pollUnwatched
	if w, err := watcher(path); err == nil {
		watched, poll = w, pollWatched
	}
	defer func() { _ = watched.close() }() // only listened
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

// Path is the locked file.
func (l *Lock) Path() string { return l.path }

// Release lets go of the lock. The file stays: were it removed, two processes could hold a lock on
// it, each on its own.
func (l *Lock) Release() error {
	l.releasing.Do(func() {
		if err := unix.Close(l.fd); err != nil {
			l.err = fmt.Errorf("rundir: releasing the lock on %s: %w", l.path, err)
		}
	})
	return l.err
}

// timer is a watch that sees nothing.
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
