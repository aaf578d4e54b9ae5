package machine

import (
	"fmt"
	"math"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// Detect describes this machine: all its CPUs and memory, and no GPUs.
func Detect() (Description, error) {
	hostname, err := os.Hostname()
	if err != nil {
		return Description{}, fmt.Errorf("machine: %w", err)
	}
	const name = "hw.memsize"
	memory, err := unix.SysctlUint64(name)
	if err != nil {
		return Description{}, fmt.Errorf("machine: the size of the memory can't be read: sysctl %s: %w", name, err)
	}
	return Description{
		Hostname: hostname,
		GOOS:     runtime.GOOS,
		GOARCH:   runtime.GOARCH,
		CPUs:     Unit * int64(runtime.NumCPU()),
		Memory:   int64(min(memory, math.MaxInt64)),
	}, nil
}
