package mapfile

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestSpaceHintNamesSmallSharedMemory(t *testing.T) {
	require.Contains(t, spaceHint("/dev/shm/ring", "/dev/shm", true, 64<<20), "--shm-size")
	require.NotContains(t, spaceHint("/dev/shm/ring", "/dev/shm", true, 65<<20), "--shm-size")
	require.Contains(t, spaceHint("/data/rings/a", "/data/rings", false, 64<<20), "/data/rings")
}

// Collapsing changes neither the content of a file, nor what a mapping of it shows.
func TestCollapsedFileKeepsItsContent(t *testing.T) {
	directory, err := os.MkdirTemp("/dev/shm", "mapfile") //nolint:usetesting // it has to be on a tmpfs
	if err != nil {
		t.Skip("there is no /dev/shm:", err)
	}
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(directory)) })
	const size = 3*hugePage + 4096
	file, err := Create(filepath.Join(directory, "file"), size)
	require.NoError(t, err)
	defer file.Close() //nolint:errcheck // a test's file
	if !InMemory(file) {
		t.Skip("/dev/shm is no tmpfs")
	}
	content := make([]byte, size)
	for i := range content {
		content[i] = byte(i * 7 / 4096)
	}
	_, err = file.WriteAt(content, 0)
	require.NoError(t, err)
	mapping, err := MapPopulated(file, size, ReadOnly)
	require.NoError(t, err)
	defer Unmap(mapping) //nolint:errcheck // a test's mapping
	if err := Collapse(file, size); err != nil {
		t.Skip("this kernel collapses no pages of a tmpfs:", err)
	}
	require.True(t, bytes.Equal(content, mapping))
	window, err := MapWindow(file, hugePage, hugePage)
	require.NoError(t, err)
	window.Populate()
	window.Bytes()[0] ^= 1
	require.NoError(t, window.Unmap())
	require.Equal(t, content[hugePage]^1, mapping[hugePage])
	require.NoError(t, Collapse(file, 100), "a small file stays as it is")
}
