package proctest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// ownMounts is set in a process that has its own mounts.
const ownMounts = "PROCTEST_OWN_MOUNTS"

// WithOwnMounts runs the test again in a process that has its own mounts, as root of a user
// namespace. It returns true in that process. It skips the test where there are no namespaces.
func WithOwnMounts(t *testing.T) bool {
	t.Helper()
	if os.Getenv(ownMounts) != "" {
		return true
	}
	again := exec.CommandContext(t.Context(), os.Args[0], //nolint:gosec // this test
		"-test.run=^"+t.Name()+"$", "-test.v", "-test.count=1")
	again.Env = append(os.Environ(), ownMounts+"=1")
	again.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
	}
	out, err := again.CombinedOutput()
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EINVAL) {
		t.Skipf("skipped: this system allows no user namespaces: %v", err)
	}
	require.NoError(t, err, string(out))
	if strings.Contains(string(out), "--- SKIP") {
		t.Skip("skipped: " + string(out))
	}
	require.Contains(t, string(out), "--- PASS: "+t.Name())
	return false
}

// Mount mounts a tmpfs of a size in bytes until the test ends. The process needs its own mounts.
func Mount(t *testing.T, directory string, size int) {
	t.Helper()
	if err := unix.Mount("tmpfs", directory, "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
		t.Skipf("skipped: mount: %v", err)
	}
	t.Cleanup(func() { require.NoError(t, unix.Unmount(directory, 0)) })
}
