package ring

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/raylink/raylink/internal/proctest"
)

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
	require.ErrorIs(t, err, ErrSpace)
	after, readErr := os.ReadDir(directory)
	require.NoError(t, readErr)
	require.Equal(t, before, after, "nothing is left behind")
	require.ErrorContains(t, err, path)
	require.ErrorContains(t, err, fmt.Sprintf("reserve %d bytes", g.size))
	return err.Error()
}

func TestCreateOnSmallTmpfs(t *testing.T) {
	if !proctest.WithOwnMounts(t) {
		return
	}
	directory := t.TempDir()
	proctest.Mount(t, directory, 1<<20)
	text := createWithoutSpace(t, directory)
	require.Contains(t, text, fmt.Sprintf("the tmpfs of 1048576 bytes at %s, of which 1048576 are available", directory))
}

func TestCreateOnFullTmpfs(t *testing.T) {
	if !proctest.WithOwnMounts(t) {
		return
	}
	directory := t.TempDir()
	proctest.Mount(t, directory, 8<<20)
	require.NoError(t, os.WriteFile(filepath.Join(directory, "other"), make([]byte, 8<<20), 0o600))
	text := createWithoutSpace(t, directory)
	require.Contains(t, text, fmt.Sprintf("the tmpfs of 8388608 bytes at %s, of which 0 are available", directory))
	require.NoError(t, os.Remove(filepath.Join(directory, "other")))
	newRingIn(t, directory)
}

// TestCreateInContainer has the /dev/shm that containers get by default.
func TestCreateInContainer(t *testing.T) {
	if !proctest.WithOwnMounts(t) {
		return
	}
	proctest.Mount(t, "/dev/shm", 64<<20)
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
