//go:build !linux

package runtime

import (
	"os"

	"golang.org/x/sys/unix"
)

// duplicate makes the descriptor to refer to the same file as from.
func duplicate(from, to *os.File) error {
	return os.NewSyscallError("dup2", unix.Dup2(int(from.Fd()), int(to.Fd())))
}
