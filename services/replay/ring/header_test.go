package ring

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink/services/internal/mapfile"
)

func FuzzParseHeader(f *testing.F) {
	for _, layout := range []Layout{
		testLayout(1), testLayout(1 << 20),
		{Capacity: 7, Columns: []Column{{Name: "x", DType: Bool}}},
		{Capacity: 1 << 40, Columns: []Column{{Name: "ä", DType: Float64, Shape: []uint64{3, 1, 4}}}},
	} {
		h, err := newHeader(layout)
		if err != nil {
			continue
		}
		f.Add(h.encode(), int64(h.geometry.size), true)
	}
	f.Add([]byte(magic), int64(8), false)
	f.Fuzz(func(t *testing.T, b []byte, size int64, fixChecksum bool) {
		if n := len(b); fixChecksum && n >= fixedHeader { // make the checksum pass
			length := min(uint64(binary.LittleEndian.Uint32(b[12:])), uint64(n))
			if length >= 20 {
				binary.LittleEndian.PutUint32(b[16:], checksum(b[20:length]))
			}
		}
		h, err := parseHeader(b, size)
		if err != nil {
			require.ErrorIs(t, err, ErrFormat)
			return
		}
		require.Equal(t, uint64(size), h.geometry.size)
		require.LessOrEqual(t, h.geometry.blocks+blocksOf(h.layout.Capacity)*blockSummary, h.geometry.words)
		require.LessOrEqual(t, h.geometry.words+h.layout.Capacity*wordSize, h.geometry.size)
		for _, c := range h.geometry.columns {
			require.LessOrEqual(t, c.offset+h.layout.Capacity*c.size, h.geometry.size)
			require.Zero(t, c.offset%cacheLine)
		}
		again, err := parseHeader(h.encode(), size)
		require.NoError(t, err)
		require.Equal(t, h, again)
	})
}

func TestOpenRejectsDamagedFiles(t *testing.T) {
	r := newRing(t, testLayout(10))
	whole, err := os.ReadFile(r.Path())
	require.NoError(t, err)
	change := func(at int, by byte) []byte {
		b := append([]byte(nil), whole...)
		b[at] ^= by
		return b
	}
	length := int(headerLength(r.Layout()))
	for name, content := range map[string][]byte{
		"empty":                  nil,
		"magic only":             whole[:8],
		"header only":            whole[:length],
		"one byte missing":       whole[:len(whole)-1],
		"one byte extra":         append(append([]byte(nil), whole...), 0),
		"another magic":          change(0, 1),
		"another version":        change(8, 1),
		"longer header":          change(12, 1),
		"huge header":            change(15, 0xff),
		"changed capacity":       change(56, 1),
		"changed last name byte": change(length-1, 1),
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "ring")
			require.NoError(t, os.WriteFile(path, content, 0o600))
			_, err := Open(path, r.ID())
			require.ErrorIs(t, err, ErrFormat)
			require.ErrorContains(t, err, path)
		})
	}
}

func TestOpenRefusesVersion1WithReason(t *testing.T) {
	r := newRing(t, testLayout(10))
	header := r.head.encode()
	binary.LittleEndian.PutUint32(header[8:], 1)
	_, err := r.file.WriteAt(header, 0)
	require.NoError(t, err)
	_, err = Open(r.Path(), r.ID())
	require.ErrorIs(t, err, ErrFormat)
	require.ErrorContains(t, err, "format version 1, but this program supports only version 2")
}

func TestOpenRejectsFilesAccessibleToOthers(t *testing.T) {
	r := newRing(t, testLayout(10))
	info, err := os.Stat(r.Path())
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode())

	link := filepath.Join(t.TempDir(), "link")
	require.NoError(t, os.Symlink(r.Path(), link))
	_, err = Open(link, r.ID())
	require.Error(t, err, "symbolic links are not followed")

	_, err = Open(filepath.Dir(r.Path()), r.ID())
	require.Error(t, err)

	require.NoError(t, os.Chmod(r.Path(), 0o644))
	_, err = Open(r.Path(), r.ID())
	require.ErrorIs(t, err, mapfile.ErrForeign)
	require.NoError(t, os.Chmod(r.Path(), 0o600))
}

func TestOpenRejectsOtherRing(t *testing.T) {
	r := newRing(t, testLayout(10))
	_, err := Open(r.Path(), ID{1})
	require.ErrorIs(t, err, ErrWrongRing)

	h := r.head
	h.boot[3] ^= 1
	_, err = r.file.WriteAt(h.encode(), 0)
	require.NoError(t, err)
	_, err = Open(r.Path(), r.ID())
	require.ErrorIs(t, err, ErrOtherMachine)

	_, err = Open(filepath.Join(t.TempDir(), "none"), r.ID())
	require.ErrorIs(t, err, os.ErrNotExist)
	_, err = Create(r.Path(), r.Layout())
	require.ErrorIs(t, err, os.ErrExist)
}

func TestParseIDRoundTrip(t *testing.T) {
	id := ID{1, 2, 0xff}
	again, err := ParseID(id.String())
	require.NoError(t, err)
	require.Equal(t, id, again)
	for _, text := range []string{"", "0", "zz", id.String() + "00"} {
		_, err := ParseID(text)
		require.ErrorIs(t, err, ErrFormat, text)
	}
}
