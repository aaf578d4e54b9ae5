package machine

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"runtime"
	"strconv"
	"strings"
	"syscall"
)

// Source is where a Linux machine's description is read from. [Detect] reads that of this machine;
// tests make others.
type Source struct {
	// Root is the root of the file system, of which files in /proc, /sys and /dev are read.
	Root fs.FS
	// LookupEnv looks up a variable of the environment, as os.LookupEnv does.
	LookupEnv func(name string) (value string, ok bool)
	// Hostname is the name of the machine.
	Hostname string
	// Affinity is the number of CPUs that the threads of this process may run on.
	Affinity int
}

// Detect returns the machine's description. It reads files, and does not block on anything else.
//
// A file that does not exist sets no limit: cgroups may be absent. One that can't be read or has
// another form than the kernel's is an error that names it; then there is no description, for it
// could be larger than what the process may use.
func (s Source) Detect() (Description, error) {
	limits, err := readLimits(s.Root)
	if err != nil {
		return Description{}, err
	}
	memory, err := totalMemory(s.Root)
	if err != nil {
		return Description{}, err
	}
	installed, err := installedGPUs(s.Root)
	if err != nil {
		return Description{}, err
	}
	if visible, ok := s.LookupEnv(VisibleDevices); ok {
		installed = installed.visible(visible)
	}
	return Description{
		Hostname: s.Hostname,
		GOOS:     runtime.GOOS,
		GOARCH:   runtime.GOARCH,
		CPUs:     max(1, min(Unit*int64(s.Affinity), limits.cpus)),
		Memory:   min(memory, limits.memory),
		GPUs:     installed,
	}, nil
}

// totalMemory returns the memory of the whole machine in bytes: MemTotal of /proc/meminfo.
func totalMemory(root fs.FS) (int64, error) {
	const name = "proc/meminfo"
	content, err := fs.ReadFile(root, name)
	if err != nil {
		return 0, fmt.Errorf("machine: the size of the memory can't be read: %w", err)
	}
	for line := range bytes.Lines(content) {
		// The kernel's kB are 1024 bytes.
		if fields := strings.Fields(string(line)); len(fields) == 3 && fields[0] == "MemTotal:" && fields[2] == "kB" {
			if kib, err := strconv.ParseUint(fields[1], 10, 53); err == nil {
				return int64(kib) << 10, nil
			}
		}
	}
	return 0, fmt.Errorf("machine: /%s has no valid MemTotal", name)
}

// readIfPresent returns a file's content, and whether it exists.
func readIfPresent(root fs.FS, name string) (content string, ok bool, err error) {
	data, err := fs.ReadFile(root, name)
	if isAbsent(err) {
		return "", false, nil
	}
	if err != nil {
		return "", false, fmt.Errorf("machine: %w", err)
	}
	return string(data), true, nil
}

// isAbsent reports whether err means that a file does not exist, or is one of a cgroup that has
// been removed in the meantime.
func isAbsent(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENODEV)
}
