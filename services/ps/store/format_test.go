package store

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	psv1 "github.com/raylink/raylink/gen/raylink/ps/v1"
)

func FuzzParseVersion(f *testing.F) {
	for _, v := range []*psv1.Version{{Tag: "w", Id: 1}, {Tag: "w", Id: 2, Size: 3, Info: map[string]string{"a": "b"}}} {
		l := layoutOf(v)
		fixed, description, err := header(l, v)
		require.NoError(f, err)
		b := make([]byte, l.file())
		copy(b, fixed)
		copy(b[fixedHeader:], description)
		f.Add(b, l.file())
	}
	f.Fuzz(func(t *testing.T, b []byte, size uint64) {
		version, l, err := parseVersion(b, size)
		if err != nil {
			require.ErrorIs(t, err, ErrFormat)
			return
		}
		require.Equal(t, version.GetSize(), l.size)
		require.Equal(t, size, l.parameters()+l.size)
		require.LessOrEqual(t, l.table()+4*uint64(l.chunks()), l.parameters())
		require.LessOrEqual(t, uint64(fixedHeader+l.description), l.table())
	})
}

func FuzzCheckPage(f *testing.F) {
	directory := f.TempDir()
	for name, magic := range map[string]string{"index": indexMagic, "status": statusMagic} {
		path := filepath.Join(directory, name)
		mapping, err := createPage(path, magic, map[int]uint64{newestAt: 1})
		if err != nil {
			f.Skip(err)
		}
		f.Add(append([]byte(nil), mapping...), magic)
	}
	f.Fuzz(func(t *testing.T, b []byte, magic string) {
		if len(magic) != 8 {
			return
		}
		if err := checkPage(b, magic); err == nil {
			require.Len(t, b, page)
			require.Equal(t, magic, string(b[:8]))
		} else {
			require.True(t, damagedPage(err), err)
		}
	})
}

func FuzzTable(f *testing.F) {
	f.Add([]byte{1, 2, 3, 4, 5, 6, 7, 8}, uint64(ChunkSize+1))
	f.Fuzz(func(t *testing.T, b []byte, size uint64) {
		table := decodeTable(b)
		require.Equal(t, b[:len(b)/4*4], append([]byte{}, encodeTable(table)...))
		l := layout{size: size % maxSize}
		if len(table) == l.chunks() {
			combine(table, l.size)
		}
	})
}

// FuzzTakeover changes a byte of a file that an officer left. The next officer either has a version
// as it was pushed, or none; a reader never gets anything else.
func FuzzTakeover(f *testing.F) {
	for file := range uint8(5) {
		for _, at := range []uint16{0, 8, 16, 24, 28, 32, 64, 70, 72, 80, 96, 130, 150, 300, 4096, 4200} {
			f.Add(file, at, byte(255))
		}
	}
	f.Fuzz(func(t *testing.T, which uint8, at uint16, flip byte) {
		s := newStore(t, Options{})
		for id := uint64(1); id <= 2; id++ {
			push(t, s, "w", id, content(id, ChunkSize+10))
		}
		require.NoError(t, s.Close())
		directory := tagPath(s.Directory(), "w")
		path := []string{
			versionPath(directory, 2), versionPath(directory, 1), filepath.Join(directory, indexName), filepath.Join(s.Directory(), statusName),
			filepath.Join(s.Directory(), lockName),
		}[which%5]
		damage(t, path, at, flip)
		r := reader(t, s, "w")
		check := func() {
			p, err := r.Pull()
			if err != nil {
				return
			}
			if id := p.Version().GetId(); p.Verify() == nil {
				require.Equal(t, content(id, ChunkSize+10), p.Bytes())
			}
			require.NoError(t, p.Release())
		}
		check()
		again, err := Open(s.Directory(), Options{})
		require.NoError(t, err)
		if v := again.Newest("w"); v != nil {
			x, err := again.SourceOf("w")
			require.NoError(t, err)
			require.Equal(t, content(v.GetId(), ChunkSize+10), x.Bytes())
			require.NoError(t, x.Release())
		}
		check()
		if last := again.Last("w"); last < removed-1 {
			push(t, again, "w", last+1, content(last+1, 10))
			require.NoError(t, pull(t, reader(t, again, "w"), last+1, content(last+1, 10)).Release())
		}
		require.NoError(t, again.Remove())
	})
}

func damage(t *testing.T, path string, at uint16, flip byte) {
	t.Helper()
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	require.NoError(t, err)
	b := make([]byte, 1)
	if _, err := file.ReadAt(b, int64(at)); err == nil {
		b[0] ^= flip
		_, err = file.WriteAt(b, int64(at))
		require.NoError(t, err)
	}
	require.NoError(t, file.Close())
}
