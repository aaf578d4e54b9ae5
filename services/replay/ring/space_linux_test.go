package ring

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// ownMounts is set in a process that has its own mounts.
const ownMounts = "RAYLINK_RING_TEST_OWN_MOUNTS"

// withOwnMounts runs the test again in a process that has its own mounts, as root of a user
// namespace. It returns true in that process.
func withOwnMounts(t *testing.T) bool {
	t.Helper()
	if os.Getenv(ownMounts) != "" {
		return true
	}
	again := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
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

// mount mounts a tmpfs of a size in bytes.
func mount(t *testing.T, directory string, size int) {
	t.Helper()
	if err := unix.Mount("tmpfs", directory, "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
		t.Skipf("skipped: mount: %v", err)
	}
	t.Cleanup(func() { require.NoError(t, unix.Unmount(directory, 0)) })
}

// createWithoutSpace creates a ring of about 2 MB, for which there is no space.
func createWithoutSpace(t *testing.T, directory string) string {
	t.Helper()
	before, err := os.ReadDir(directory)
	require.NoError(t, err)
	path := filepath.Join(directory, "ring")
	layout := testLayout(1000)
	g, err := newGeometry(layout)
	require.NoError(t, err)
	_, err = Create(path, layout)
	require.ErrorIs(t, err, unix.ENOSPC)
	after, readErr := os.ReadDir(directory)
	require.NoError(t, readErr)
	require.Equal(t, before, after, "nothing is left behind")
	require.ErrorContains(t, err, path)
	require.ErrorContains(t, err, fmt.Sprintf("reserve %d bytes", g.size))
	return err.Error()
}

func TestCreateOnSmallTmpfs(t *testing.T) {
	if !withOwnMounts(t) {
		return
	}
	directory := t.TempDir()
	mount(t, directory, 1<<20)
	text := createWithoutSpace(t, directory)
	require.Contains(t, text, fmt.Sprintf("the tmpfs of 1048576 bytes at %s, of which 1048576 are available", directory))
}

func TestCreateOnFullTmpfs(t *testing.T) {
	if !withOwnMounts(t) {
		return
	}
	directory := t.TempDir()
	mount(t, directory, 8<<20)
	require.NoError(t, os.WriteFile(filepath.Join(directory, "other"), make([]byte, 8<<20), 0o600))
	text := createWithoutSpace(t, directory)
	require.Contains(t, text, fmt.Sprintf("the tmpfs of 8388608 bytes at %s, of which 0 are available", directory))
	require.NoError(t, os.Remove(filepath.Join(directory, "other")))
	newRingIn(t, directory)
}

// TestCreateInContainer has the /dev/shm that containers get by default.
func TestCreateInContainer(t *testing.T) {
	if !withOwnMounts(t) {
		return
	}
	mount(t, "/dev/shm", 64<<20)
	require.NoError(t, os.WriteFile("/dev/shm/other", make([]byte, 63<<20), 0o600))
	text := createWithoutSpace(t, "/dev/shm")
	require.Contains(t, text, "--shm-size")
	require.Contains(t, text, "1048576 are available")
	require.NoError(t, os.Remove("/dev/shm/other"))
	newRingIn(t, "/dev/shm")
}

// newRingIn makes a ring for which there is space, and removes it.
func newRingIn(t *testing.T, directory string) {
	t.Helper()
	r, err := Create(filepath.Join(directory, "ring"), testLayout(1000))
	require.NoError(t, err)
	write(t, r, 1000)
	require.NoError(t, r.Remove())
	require.NoError(t, r.Close())
}
