//go:build !linux || !(amd64 || arm64 || loong64 || mips64le || ppc64le || riscv64)

package ring

import "os"

// Elsewhere a ring is refused when it is created or opened, and nothing below is reached.

func createFile(string, uint64) (*os.File, error) { return nil, ErrUnsupported }
func openFile(string) (*os.File, int64, error)    { return nil, 0, ErrUnsupported }
func bootID() ([16]byte, error)                   { return [16]byte{}, ErrUnsupported }
func (r *Ring) mapFile() error                    { return ErrUnsupported }
func (r *Ring) mapRows() error                    { return ErrUnsupported }
func (r *Ring) unmapFile() error                  { return r.leave() }
func lockByte(*os.File, uint64) error             { return ErrUnsupported }
func unlockByte(*os.File, uint64) error           { return ErrUnsupported }
func byteLocked(*os.File, uint64) (bool, error)   { return false, ErrUnsupported }
func isLocked(error) bool                         { return false }
