package writelog

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// lockError distinguishes a directory that is in use from one that cannot be locked at all, and
// finds the process that uses it.
func lockError(dir string, err error) error {
	var failed *fs.PathError
	switch {
	case errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) && !errors.As(err, &failed):
		return &InUseError{Dir: dir, PID: lockHolder(dir), err: err}
	case errors.As(err, &failed) || errors.As(err, new(unix.Errno)):
		return failure(dir, "lock", err)
	default:
		// Pebble's own list of the locks of this process. The lock file must not be opened in this
		// case: closing it would release the lock, because POSIX record locks belong to the
		// process, not to the open file.
		return &InUseError{Dir: dir, PID: os.Getpid(), err: err}
	}
}

// lockHolder returns the process that holds Pebble's lock file, or 0.
func lockHolder(dir string) int {
	file, err := os.OpenFile(filepath.Join(dir, "LOCK"), os.O_RDWR, 0)
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

// bootID identifies the time since the operating system was started: what it was given to write
// before is in the files, even if it was not synced. Empty if it is not known.
func bootID() string {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil || len(id) < bootSize {
		return ""
	}
	return string(id[:bootSize])
}

// describe names a file of a directory.
func describe(name, what string) string { return fmt.Sprintf("the file %s %s", name, what) }
