package store

import (
	"errors"
	"os"
	"path/filepath"

	"github.com/raylink/raylink/services/internal/mapfile"
)

// Chunks returns how many chunks parameters of a size in bytes have.
func Chunks(size uint64) int { return layout{size: size}.chunks() }

// Served reports whether the store in a directory has an officer that is alive. Any process of the
// machine may call it.
func Served(directory string) bool {
	lock, err := os.Open(filepath.Join(directory, lockName))
	if err != nil {
		return false
	}
	defer func() { _ = lock.Close() }()
	locked, err := mapfile.Locked(lock, 0)
	return err == nil && locked
}

// RemoveOrphan deletes the directory of a store whose officer has died. It returns [ErrInUse] if
// the officer is alive.
func RemoveOrphan(directory string) error {
	if _, err := os.Stat(filepath.Join(directory, lockName)); errors.Is(err, os.ErrNotExist) {
		return nil // it is no store
	}
	s := &Store{directory: directory, closed: true}
	return s.Remove()
}
