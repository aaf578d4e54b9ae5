//go:build !linux || !(amd64 || arm64 || loong64 || mips64le || ppc64le || riscv64)

package mapfile

import "os"

// Create is refused here.
func Create(string, uint64) (*os.File, error) { return nil, ErrUnsupported }

// Open is refused here.
func Open(string) (*os.File, int64, error) { return nil, 0, ErrUnsupported }

// Map is refused here.
func Map(*os.File, uint64, Access) ([]byte, error) { return nil, ErrUnsupported }

// Unmap is refused here.
func Unmap([]byte) error { return ErrUnsupported }

// Lock is refused here.
func Lock(*os.File, uint64) error { return ErrUnsupported }

// Unlock is refused here.
func Unlock(*os.File, uint64) error { return ErrUnsupported }

// Locked is refused here.
func Locked(*os.File, uint64) (bool, error) { return false, ErrUnsupported }

// BootID is refused here.
func BootID() ([16]byte, error) { return [16]byte{}, ErrUnsupported }
