//go:build !linux

package runtime

import (
	"os"

	"golang.org/x/sys/unix"
)

// duplicate makes to another name for what from is.
func duplicate(from, to *os.File) error {
	return os.NewSyscallError("dup2", unix.Dup2(int(from.Fd()), int(to.Fd())))
}
