//go:build linux && (amd64 || arm64 || loong64 || mips64le || ppc64le || riscv64)

package mapfile

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Commands of membarrier(2).
const (
	membarrierQuery    = 0
	membarrierBarrier  = 1 << 3 // PRIVATE_EXPEDITED
	membarrierRegister = 1 << 4 // REGISTER_PRIVATE_EXPEDITED
)

// HasBarrier reports whether the kernel has [Barrier].
func HasBarrier() bool {
	commands, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, membarrierQuery, 0, 0)
	const needed = membarrierBarrier | membarrierRegister
	return errno == 0 && commands&needed == needed
}

// Barrier is a full memory barrier on all threads of this process, at some point of their
// execution between the begin and the end of the call. So a thread that stores a mark and then
// loads a flag, while another one stores the flag, calls Barrier and loads the mark, needs no
// barrier of its own: at least one of them sees what the other one stored.
//
// The first call of a process takes some milliseconds.
func Barrier() error {
	for _, command := range []uintptr{membarrierRegister, membarrierBarrier} {
		if _, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, command, 0, 0); errno != 0 {
			return fmt.Errorf("membarrier: %w", errno)
		}
	}
	return nil
}
