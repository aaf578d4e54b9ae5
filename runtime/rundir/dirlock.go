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
// a host's, shared for a run's. The kernel lets go of it when the process dies, and
// systemd-tmpfiles, which cleans up /tmp, leaves a locked directory alone. There is no file that
// could be missing.
//
// A directory is born under a hidden name, locked and filled there, and gets its name last. So one
// with a name has been locked since before it had that, and if it isn't locked, nobody will use it
// again. Only the hidden ones, between their making and their locking, might be alive and not
// locked; these are spared for a minute, and if their maker slept for longer, it finds out and
// makes another.

// dirLock is an open and locked directory. It is a bare file descriptor: an *os.File that is
// forgotten is closed by the garbage collector, and the lock would be gone.
type dirLock struct{ fd int }

type lockMode int

const (
	exclusive lockMode = unix.LOCK_EX
	shared    lockMode = unix.LOCK_SH
)

const (
	hiddenPrefix  = ".new-"
	birthAttempts = 10
	// birthTime is how long a hidden directory without a lock is taken for one that is being made.
	birthTime = time.Minute
)

// ErrLocked says that somebody else holds the lock.
var ErrLocked = errors.New("somebody else holds the lock")

// errNoLocks says that the file system can't lock the directory; some network file systems can't.
// Then it is used without, and no sweep touches it.
var errNoLocks = errors.New("the file system has no locks for directories")

// lockDir opens and locks the directory, without waiting. It doesn't follow a symbolic link.
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

// useDir is lockDir for somebody who will use the directory even where it can't be locked.
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
	if err := unix.Close(l.fd); err != nil {
		return fmt.Errorf("rundir: releasing a directory: %w", err)
	}
	return nil
}

// isAt says whether the locked directory is the one at path.
func (l dirLock) isAt(path string) bool { return sameFile(l.fd, path) }

// birth makes a directory with a new name and locks it. fill makes what is in it.
func birth(parent string, newName func() string, mode lockMode, fill func(path string) error) (string, dirLock, error) {
	var err error
	for range birthAttempts {
		var path string
		var lock dirLock
		if path, lock, err = tryBirth(parent, newName(), mode, fill); err == nil {
			return path, lock, nil
		}
		// A sweeper took it for a dead one, or, once in a trillion, the name was taken.
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
		return "", dirLock{}, err // and if it is still there, it is for a sweeper
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

// sweep deals with all directories of parent that belong to a dead process: those that are ours by
// name are passed to bury, the hidden ones are removed. Several may sweep at once.
func sweep(parent string, ours func(name string) bool, bury func(path string) error) error {
	entries, err := os.ReadDir(parent)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	errs := []error{err}
	for _, entry := range entries {
		path, remove := filepath.Join(parent, entry.Name()), bury
		if strings.HasPrefix(entry.Name(), hiddenPrefix) {
			info, err := entry.Info()
			if err != nil || time.Since(info.ModTime()) < birthTime {
				continue // it has got its name meanwhile, or is about to
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
		if guarded {
			return nil // it is alive, or another sweeper is at it, or who knows
		}
		return remove(path)
	case errors.Is(err, fs.ErrNotExist):
		return nil // another sweeper was faster
	case err != nil:
		return err
	}
	if lock.isAt(path) {
		err = remove(path)
	}
	return errors.Join(err, lock.release())
}

// open opens a file as a bare descriptor that no child inherits.
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

// flock locks without waiting; a lock that somebody else holds is ErrLocked.
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

// sameFile says whether fd is the file at path, which is not followed if it is a symbolic link.
func sameFile(fd int, path string) bool {
	var held, there unix.Stat_t
	return unix.Fstat(fd, &held) == nil && unix.Lstat(path, &there) == nil && held.Dev == there.Dev && held.Ino == there.Ino
}
