package storage

import (
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestSavingToAFullDisk shows that the old file is there as before.
func TestSavingToAFullDisk(t *testing.T) {
	directory := t.TempDir()
	if err := unix.Mount("storage-test", directory, "tmpfs", 0, "size=64k"); err != nil {
		t.Skipf("skipped: it needs a file system of its own: %v", err)
	}
	defer func() { require.NoError(t, unix.Unmount(directory, 0)) }()
	c, ctx := newClient(t, nil), t.Context()
	_, err := Put(ctx, c, "small", 1)
	require.NoError(t, err)
	_, err = c.Save(ctx, directory)
	require.NoError(t, err)
	_, err = Put(ctx, c, "large", strings.Repeat("x", 100_000))
	require.NoError(t, err)
	_, err = c.Save(ctx, directory)
	require.ErrorIs(t, err, unix.ENOSPC)
	require.ErrorContains(t, err, directory)
	to := newClient(t, nil)
	_, err = to.Load(ctx, directory)
	require.NoError(t, err)
	require.Len(t, contents(t, to), 1)
	entries, err := os.ReadDir(directory)
	require.NoError(t, err)
	require.Len(t, entries, 1)
}
