//go:build !linux || !(amd64 || arm64 || loong64 || mips64le || ppc64le || riscv64)

package mapfile

import (
	"os"
	"time"

	"golang.org/x/sys/unix"
)

func isTmpfs(*unix.Statfs_t) bool { return false }

// Create returns [ErrUnsupported].
func Create(string, uint64) (*os.File, error) { return nil, ErrUnsupported }

// Open returns [ErrUnsupported].
func Open(string) (*os.File, int64, error) { return nil, 0, ErrUnsupported }

// Map returns [ErrUnsupported].
func Map(*os.File, uint64, Access) ([]byte, error) { return nil, ErrUnsupported }

// InMemory reports false.
func InMemory(*os.File) bool { return false }

// Collapse returns [ErrUnsupported].
func Collapse(*os.File, uint64) error { return ErrUnsupported }

// Window is a part of a file that is mapped for writing.
type Window struct{}

// MapWindow returns [ErrUnsupported].
func MapWindow(*os.File, uint64, uint64) (*Window, error) { return nil, ErrUnsupported }

// Bytes returns nil.
func (*Window) Bytes() []byte { return nil }

// Populate does nothing.
func (*Window) Populate() {}

// Unmap returns [ErrUnsupported].
func (*Window) Unmap() error { return ErrUnsupported }

// MapPopulated returns [ErrUnsupported].
func MapPopulated(*os.File, uint64, Access) ([]byte, error) { return nil, ErrUnsupported }

// Stat returns [ErrUnsupported].
func Stat(*os.File) (Status, error) { return Status{}, ErrUnsupported }

// Resize returns [ErrUnsupported].
func Resize(*os.File, uint64) error { return ErrUnsupported }

// Boottime returns 0.
func Boottime() time.Duration { return 0 }

// Unmap returns [ErrUnsupported].
func Unmap([]byte) error { return ErrUnsupported }

// Lock returns [ErrUnsupported].
func Lock(*os.File, uint64) error { return ErrUnsupported }

// LockShared returns [ErrUnsupported].
func LockShared(*os.File, uint64) error { return ErrUnsupported }

// Unlock returns [ErrUnsupported].
func Unlock(*os.File, uint64) error { return ErrUnsupported }

// Locked returns [ErrUnsupported].
func Locked(*os.File, uint64) (bool, error) { return false, ErrUnsupported }

// BootID returns [ErrUnsupported].
func BootID() ([16]byte, error) { return [16]byte{}, ErrUnsupported }

// HasBarrier reports false.
func HasBarrier() bool { return false }

// Barrier returns [ErrUnsupported].
func Barrier() error { return ErrUnsupported }
