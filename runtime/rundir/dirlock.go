package rundir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A directory is in use while a process holds a lock (flock) on the directory itself: exclusive for
// a host directory, shared for a run directory. The kernel releases the lock when the process dies,
// and systemd-tmpfiles, which cleans up /tmp, leaves a locked directory alone. There is no lock
// file that could be missing.
//
// A directory is created under a hidden name, locked and filled there, and renamed last. So one
// with its final name was locked before it got that, and if it is not locked now, it will not be
// used again. Only hidden ones, between creation and locking, may be in use and not locked; sweeps
// spare these for a minute, and if their creator was suspended for longer, it detects that and
// creates another.

// dirLock is an open and locked directory. It is a bare file descriptor, because an *os.File that
// is no longer referenced is closed by the garbage collector, which would release the lock.
type dirLock struct{ fd int }

type lockMode int

const (
	exclusive lockMode = unix.LOCK_EX
	shared    lockMode = unix.LOCK_SH
)

const (
	hiddenPrefix  = ".new-"
	birthAttempts = 10
	// birthTime is the age up to which a hidden directory without a lock counts as being created.
	birthTime = time.Minute
)

// ErrLocked is the error for a lock that another holder has.
var ErrLocked = errors.New("another process holds the lock")

// errNoLocks is the error for a file system that cannot lock directories, as some network file
// systems. The directory is then used without a lock, and sweeps leave it alone.
var errNoLocks = errors.New("the file system has no locks for directories")

// lockDir opens and locks the directory, without waiting for the lock. It does not follow a
// symbolic link.
func lockDir(path string, mode lockMode) (dirLock, error) {
	fd, err := open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if err != nil {
		return dirLock{}, err
	}
	if err := flock(fd, int(mode)); err != nil {
		if unlockable(err) {
			err = errNoLocks
		}
		return dirLock{}, errors.Join(&fs.PathError{Op: "lock", Path: path, Err: err}, unix.Close(fd))
	}
	return dirLock{fd: fd}, nil
}

// useDir is lockDir for a directory that will be used even if it cannot be locked.
func useDir(path string, mode lockMode) (dirLock, error) {
	lock, err := lockDir(path, mode)
	if !errors.Is(err, errNoLocks) {
		return lock, err
	}
	fd, err := open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	return dirLock{fd: fd}, err
}

func unlockable(err error) bool {
	return errors.Is(err, unix.EBADF) || errors.Is(err, unix.ENOLCK) || errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.EINVAL)
}

func (l dirLock) release() error {
	if err := unlock(l.fd); err != nil {
		return fmt.Errorf("rundir: releasing a directory: %w", err)
	}
	return nil
}

// isAt reports whether the locked directory is the one at path.
func (l dirLock) isAt(path string) bool { return sameFile(l.fd, path) }

// birth creates a directory with a new name, locks it, and fills it with fill.
func birth(parent string, newName func() string, mode lockMode, fill func(path string) error) (string, dirLock, error) {
	var err error
	for range birthAttempts {
		var path string
		var lock dirLock
		if path, lock, err = tryBirth(parent, newName(), mode, fill); err == nil {
			return path, lock, nil
		}
		// A sweep removed it, or, once in a trillion, the name was in use.
		if !lostRace(err) {
			break
		}
	}
	return "", dirLock{}, err
}

func lostRace(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrExist) || errors.Is(err, ErrLocked) || errors.Is(err, unix.ENOTEMPTY)
}

func tryBirth(parent, name string, mode lockMode, fill func(path string) error) (string, dirLock, error) {
	hidden, path := filepath.Join(parent, hiddenPrefix+name), filepath.Join(parent, name)
	if err := os.Mkdir(hidden, privateDir); err != nil {
		return "", dirLock{}, err
	}
	lock, err := useDir(hidden, mode)
	if err != nil {
		return "", dirLock{}, err // if it still exists, a sweep will remove it
	}
	if err = fill(hidden); err == nil {
		err = os.Rename(hidden, path)
	}
	if err == nil && !lock.isAt(path) {
		err = &fs.PathError{Op: "make", Path: path, Err: fs.ErrNotExist}
	}
	if err != nil {
		return "", dirLock{}, errors.Join(err, os.RemoveAll(hidden), lock.release())
	}
	return path, lock, nil
}

// sweep processes all directories in parent that belong to dead processes: those whose name ours
// accepts are passed to remove, hidden ones are removed. Concurrent sweeps are safe.
func sweep(parent string, ours func(name string) bool, remove func(path string) error) error {
	entries, err := os.ReadDir(parent)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	errs := []error{err}
	for _, entry := range entries {
		path, remove := filepath.Join(parent, entry.Name()), remove
		if strings.HasPrefix(entry.Name(), hiddenPrefix) {
			info, err := entry.Info()
			if err != nil || time.Since(info.ModTime()) < birthTime {
				continue // it has its final name by now, or is about to get it
			}
			remove = os.RemoveAll
		} else if !ours(entry.Name()) {
			continue
		}
		if entry.IsDir() {
			errs = append(errs, sweepOne(path, remove))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("rundir: sweeping %s: %w", parent, err)
	}
	return nil
}

func sweepOne(path string, remove func(path string) error) error {
	lock, err := lockDir(path, exclusive)
	switch {
	case errors.Is(err, ErrLocked), errors.Is(err, errNoLocks):
		return nil // in use, or being swept, or unknown
	case errors.Is(err, fs.ErrNotExist):
		return nil // another sweep was faster
	case err != nil:
		return err
	}
	if lock.isAt(path) {
		err = remove(path)
	}
	return errors.Join(err, lock.release())
}

// open opens a file as a bare descriptor that children do not inherit.
func open(path string, flags int) (int, error) {
	for {
		fd, err := unix.Open(path, flags|unix.O_CLOEXEC, privateFile)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return -1, &fs.PathError{Op: "open", Path: path, Err: err}
		}
		return fd, nil
	}
}

// flock locks without waiting; the error is ErrLocked if another holder has the lock.
func flock(fd, how int) error {
	for {
		err := unix.Flock(fd, how|unix.LOCK_NB)
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EWOULDBLOCK):
			return ErrLocked
		default:
			return err
		}
	}
}

// unlock releases a lock, if the descriptor has one, and closes the descriptor. A process that is
// being started has a copy of it until it runs its program, so that closing alone would not release
// the lock at once.
func unlock(fd int) error {
	_ = unix.Flock(fd, unix.LOCK_UN) // fails where the file system has no locks
	return unix.Close(fd)
}

// sameFile reports whether fd is the file at path, without following a symbolic link there.
func sameFile(fd int, path string) bool {
	var held, there unix.Stat_t
	return unix.Fstat(fd, &held) == nil && unix.Lstat(path, &there) == nil && held.Dev == there.Dev && held.Ino == there.Ino
}
