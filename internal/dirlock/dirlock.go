// Package dirlock locks the directories of Pebble databases, and finds the process that has one
// locked.
package dirlock

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"
)

// HeldError is the error for a directory that another process, or another part of this one, has
// locked.
type HeldError struct {
	Dir string
	// PID is the process, 0 if it is not known.
	PID int
	err error
}

// Error implements error.
func (e *HeldError) Error() string {
	if e.PID != 0 {
		return fmt.Sprintf("the directory %s is locked by the process %d", e.Dir, e.PID)
	}
	return fmt.Sprintf("the directory %s is locked by another process", e.Dir)
}

// Unwrap returns the file system's error.
func (e *HeldError) Unwrap() error { return e.err }

// Lock locks a directory that exists, for [pebble.Options.Lock]. It does not wait. The lock ends
// with the process at the latest; the caller must Close it after the database. The error is a
// [*HeldError] if the directory is locked already; any other says why it cannot be locked at all.
func Lock(fs vfs.FS, dir string) (*pebble.Lock, error) {
	lock, err := pebble.LockDirectory(dir, fs)
	if err != nil {
		return nil, refusal(dir, err)
	}
	return lock, nil
}

// refusal distinguishes a directory that is locked from one that cannot be locked.
func refusal(dir string, err error) error {
	var failed *fs.PathError
	switch {
	case errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) && !errors.As(err, &failed):
		return &HeldError{Dir: dir, PID: holder(dir), err: err}
	case errors.As(err, &failed) || errors.As(err, new(unix.Errno)):
		return err
	default:
		// Pebble's own list of the locks of this process. The lock file must not be opened in this
		// case: closing it would release the lock, because POSIX record locks belong to the
		// process, not to the open file.
		return &HeldError{Dir: dir, PID: os.Getpid(), err: err}
	}
}

// holder returns the process that holds Pebble's lock file, or 0.
func holder(dir string) int {
	file, err := os.OpenFile(filepath.Join(dir, "LOCK"), os.O_RDWR, 0) //nolint:gosec // the caller chooses the directory
	if err != nil {
		return 0
	}
	defer file.Close() //nolint:errcheck // nothing was written
	who := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart}
	if err := unix.FcntlFlock(file.Fd(), unix.F_GETLK, &who); err != nil || who.Type == unix.F_UNLCK {
		return 0
	}
	return int(who.Pid)
}
