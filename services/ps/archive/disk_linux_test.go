package archive

import (
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// isolate gives a process its own mounts, as root of a user namespace.
func isolate(command *exec.Cmd) bool {
	command.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
	}
	return true
}

// mount mounts a file system of a size in bytes.
func mount(t *testing.T, directory string, size int) {
	t.Helper()
	if err := unix.Mount("tmpfs", directory, "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
		t.Skipf("skipped: mount: %v", err)
	}
	t.Cleanup(func() { require.NoError(t, unix.Unmount(directory, 0)) })
}
