package engine

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Home is a temporary directory of a process that may be killed. The process holds a lock in it, so
// that the next one that makes such a directory removes what a killed one has left.
type Home struct {
	// Path is the directory, which is the user's alone.
	Path string

	lock *os.File
}

// homes begins the names of such directories.
const homes = "raylink-run-"

const lockFile = "lock"

// NewHome makes a directory in the system's temporary one. The caller must Remove it.
func NewHome() (*Home, error) {
	left, _ := filepath.Glob(filepath.Join(os.TempDir(), homes+"*"))
	for _, path := range left {
		// One without a lock file is being made.
		if f, err := lockHome(path, 0); err == nil {
			_ = removeHome(path) // the next one tries again
			_ = f.Close()
		}
	}
	path, err := os.MkdirTemp("", homes)
	if err != nil {
		return nil, fmt.Errorf("making a temporary directory: %w", err)
	}
	lock, err := lockHome(path, os.O_CREATE)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("locking a temporary directory: %w", err), os.RemoveAll(path))
	}
	return &Home{path, lock}, nil
}

// Remove removes the directory.
func (h *Home) Remove() error { return errors.Join(removeHome(h.Path), h.lock.Close()) }

// removeHome removes the lock file last: if this process is killed meanwhile, the next one
// continues.
func removeHome(path string) error {
	entries, err := os.ReadDir(path)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if entry.Name() != lockFile {
			err = errors.Join(err, os.RemoveAll(filepath.Join(path, entry.Name())))
		}
	}
	if err != nil {
		return err
	}
	return os.RemoveAll(path)
}

func lockHome(path string, flag int) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(path, lockFile), os.O_RDWR|flag, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}
