package store

import (
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	psv1 "github.com/raylink/raylink/gen/raylink/ps/v1"
	"github.com/raylink/raylink/internal/proctest"
	"github.com/raylink/raylink/services/internal/mapfile"
)

// TestFullDisk runs itself in a process that has a file system of its own, of 2 MiB.
func TestFullDisk(t *testing.T) {
	newStore(t, Options{}) // skips the test where stores are unsupported
	if !proctest.WithOwnMounts(t) {
		return
	}
	directory := t.TempDir()
	proctest.Mount(t, directory, 2<<20)
	fillDisk(t, directory)
}

func fillDisk(t *testing.T, directory string) {
	t.Helper()
	s, err := Open(filepath.Join(directory, "parameters"), Options{Held: 9})
	require.NoError(t, err)
	const size = 400 << 10
	r := reader(t, s, "w")
	for id := uint64(1); id <= 20; id++ { // held versions go
		push(t, s, "w", id, content(id, size))
		require.NoError(t, pull(t, r, id, content(id, size)).Release())
	}
	p := pull(t, r, 20, content(20, size))
	require.NoError(t, s.Delete("w", 0))
	push(t, s, "v", 1, content(1, 3*size))
	_, err = s.Reserve(&psv1.Version{Tag: "u", Size: 2 * size}, "")
	var refused *RoomError
	require.ErrorAs(t, err, &refused)
	require.Equal(t, boundDisk, refused.Bound)
	require.ErrorIs(t, err, syscall.ENOSPC)
	require.ErrorContains(t, err, `by tag "v" (1 versions, 0 in use, 0 drafts)`)
	require.ErrorContains(t, err, "by deleted versions in use")
	require.Zero(t, s.Usage().Drafts)
	require.Len(t, s.Versions(), 1)
	require.True(t, bytesEqual(p, content(20, size)))
	require.NoError(t, p.Release())
	push(t, s, "u", 1, content(1, size)) // what was released is freed at once
	require.NoError(t, s.Delete("v", 0))
	push(t, s, "u", 2, content(2, 3*size)) // a recycled file that must grow
	require.NoError(t, s.Delete("u", 0))
	push(t, s, "v", 2, content(2, 4*page))

	// Not even the index of a new tag fits.
	junk := filepath.Join(directory, "junk")
	require.NoError(t, os.Mkdir(junk, 0o700))
	for i := 0; ; i++ {
		file, err := mapfile.Create(filepath.Join(junk, strconv.Itoa(i)), page)
		if err != nil {
			break
		}
		require.NoError(t, file.Close())
	}
	_, err = s.Reserve(&psv1.Version{Tag: "new"}, "")
	require.ErrorAs(t, err, &refused)
	require.NoDirExists(t, tagPath(s.Directory(), "new"))
	require.NoError(t, pull(t, reader(t, s, "v"), 2, content(2, 4*page)).Release())
	require.NoError(t, s.Delete("v", 0))
	push(t, s, "new", 1, nil)
	require.NoError(t, os.RemoveAll(junk))
	require.NoError(t, s.Remove())
	entries, err := os.ReadDir(directory)
	require.NoError(t, err)
	require.Empty(t, entries)
}

func bytesEqual(p *Parameters, expected []byte) bool { return string(p.Bytes()) == string(expected) }
