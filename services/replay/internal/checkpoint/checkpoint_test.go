package checkpoint

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/timestamppb"

	replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"
	"github.com/raylink/raylink/services/replay/internal/table"
)

func ignoreRows([]uint64, [][]byte) error { return nil }

func ignoreItem(*table.State) error { return nil }

// TestDamagedChunksAreRefused changes each byte of the files, and does not rely on the checksum of
// the whole file.
func TestDamagedChunksAreRefused(t *testing.T) {
	files := written(t)
	readRows := func(b []byte) error {
		return chunksOf(b, rowsMagic).rows(t.Context(), fuzzLayout(), &replayv1.CheckpointManifest{Next: 50, Rows: 10}, ignoreRows)
	}
	readItems := func(b []byte) error { return chunksOf(b, itemsMagic).items(time.Now(), ignoreItem) }
	for name, read := range map[string]func([]byte) error{rowsName: readRows, tableName(0): readItems} {
		require.NoError(t, read(files[name]))
		for i := range files[name] {
			bad := bytes.Clone(files[name])
			bad[i] ^= 1 << (i % 8)
			require.ErrorIs(t, read(bad), ErrDamaged, "byte %d of %s", i, name)
		}
	}
}

// TestRowsThatCannotBeAreRefused reads rows whose checksums are right.
func TestRowsThatCannotBeAreRefused(t *testing.T) {
	file := func(chunks ...[]uint64) []byte { // of numbers: those of runs and lengths
		b := []byte(rowsMagic)
		for _, numbers := range chunks {
			rows, content := uint64(0), binary.AppendUvarint(nil, uint64(len(numbers)/2))
			for i, n := range numbers {
				content = binary.AppendUvarint(content, n)
				rows += n * uint64(i%2)
			}
			content = append(content, make([]byte, 11*rows)...)
			b = binary.LittleEndian.AppendUint64(b, uint64(len(content)))
			b = append(append(b, make([]byte, 8)...), content...)
		}
		repair(b)
		return b
	}
	for name, c := range map[string]struct {
		file []byte
		rows uint64
		says string
	}{
		"good":                    {file([]uint64{1, 2, 5, 1}, []uint64{6, 3}), 6, ""},
		"fewer rows":              {file([]uint64{1, 2}), 3, "it has 2 rows instead of 3"},
		"more rows":               {file([]uint64{1, 2}), 1, "it has 2 rows instead of 1"},
		"chunks in another order": {file([]uint64{6, 2}, []uint64{1, 2}), 4, "it has rows 1 to 2, and those from 8 to 50 are possible"},
		"a row twice":             {file([]uint64{6, 2}, []uint64{7, 1}), 3, "those from 8"},
		"runs in another order":   {file([]uint64{6, 2, 1, 2}), 4, "its sequence numbers"},
		"an empty run":            {file([]uint64{1, 2, 5, 0}), 2, "its sequence numbers"},
		"behind the last number":  {file([]uint64{49, 2}), 2, "it has rows 49 to 50"},
		"no rows":                 {file([]uint64{}), 0, "it has 0 rows"},
		"too many rows":           {file([]uint64{0, maxChunkRows + 1}), maxChunkRows + 1, ""},
	} {
		m := &replayv1.CheckpointManifest{Next: 50, Rows: c.rows}
		err := chunksOf(c.file, rowsMagic).rows(t.Context(), fuzzLayout(), m, ignoreRows)
		if name == "good" {
			require.NoError(t, err)
			continue
		}
		require.ErrorIs(t, err, ErrDamaged, name)
		require.ErrorContains(t, err, c.says, name)
	}
}

// TestItemsThatCannotBeAreRefused reads items whose checksums are right.
func TestItemsThatCannotBeAreRefused(t *testing.T) {
	now := time.Now()
	good, _ := appendItems(nil, fuzzStates(), now)
	free, _ := appendItems(nil, []table.State{{Slot: 3}, {Slot: 4}, {Slot: 5}}, now)
	require.NoError(t, parseItems(good, now, ignoreItem))
	for name, content := range map[string][]byte{
		"a free slot": append(free, make([]byte, 100)...), "more bytes": append(bytes.Clone(good), 0), "fewer bytes": good[:len(good)-1], "none": nil,
	} {
		require.ErrorIs(t, parseItems(content, now, ignoreItem), errItems, name)
	}
	require.ErrorContains(t, parseItems(append(free, make([]byte, 100)...), now, ignoreItem), "a free slot")
}

// TestForgedManifestsAreRefused changes what a manifest says, and makes its checksum right.
func TestForgedManifestsAreRefused(t *testing.T) {
	for name, c := range map[string]struct {
		change func(m *replayv1.CheckpointManifest)
		says   string
	}{
		"another version":    {func(m *replayv1.CheckpointManifest) { m.Version = 2 }, "version 2, and this program reads version 1"},
		"more rows than fit": {func(m *replayv1.CheckpointManifest) { m.Capacity = 9 }, "there are 10 rows below 50, and room for 9"},
		"more than numbers":  {func(m *replayv1.CheckpointManifest) { m.Next = 9 }, "there are 10 rows below 9"},
		"another file":       {func(m *replayv1.CheckpointManifest) { m.File.Name = "../rows" }, `"../rows" instead of "rows"`},
		"another table": {func(m *replayv1.CheckpointManifest) {
			m.Tables[0].File.Name = "/etc/passwd"
		}, `"/etc/passwd" instead of "table-0"`},
		"no time":      {func(m *replayv1.CheckpointManifest) { m.Made = nil }, "the time is invalid"},
		"before time":  {func(m *replayv1.CheckpointManifest) { m.Made = &timestamppb.Timestamp{Seconds: -9} }, "the time is invalid"},
		"another size": {func(m *replayv1.CheckpointManifest) { m.File.Size++ }, "the file rows has "},
		"another sum":  {func(m *replayv1.CheckpointManifest) { m.File.Crc32C++ }, "it is that of another checkpoint"},
		"fewer items":  {func(m *replayv1.CheckpointManifest) { m.Tables[0].Items-- }, "the file table-0 has 3 items instead of 2"},
		"more rows":    {func(m *replayv1.CheckpointManifest) { m.Rows++ }, "it has 10 rows instead of 11"},
		"two such table": {func(m *replayv1.CheckpointManifest) {
			second := &replayv1.CheckpointManifestTable{Config: m.GetTables()[0].GetConfig(), File: &replayv1.CheckpointFile{Name: tableName(1)}}
			m.Tables = append(m.Tables, second)
		}, `there are two tables "per"`},
		"nothing": {func(*replayv1.CheckpointManifest) {}, ""},
	} {
		directory := t.TempDir()
		for file, content := range written(t) {
			if file == manifestName {
				m, err := parseManifest(content)
				require.NoError(t, err)
				c.change(m)
				content, err = encodeManifest(m)
				require.NoError(t, err)
			}
			require.NoError(t, os.WriteFile(filepath.Join(directory, file), content, filePermissions))
		}
		r, err := Open(directory)
		if err == nil {
			if err = r.Rows(t.Context(), fuzzLayout(), ignoreRows); err == nil {
				err = r.Items(t.Context(), 0, ignoreItem)
			}
			require.NoError(t, r.Close())
		}
		if c.says == "" {
			require.NoError(t, err)
			continue
		}
		require.ErrorIs(t, err, ErrDamaged, name)
		require.ErrorContains(t, err, c.says, name)
		require.ErrorContains(t, err, directory, name)
	}
}

// TestTwoWritersOfOneDirectory begins a checkpoint where another one is being written.
func TestTwoWritersOfOneDirectory(t *testing.T) {
	target := filepath.Join(t.TempDir(), "c")
	first, err := Create(target, 1)
	require.NoError(t, err)
	_, err = Create(target, 1)
	require.ErrorIs(t, err, ErrDirectory)
	require.ErrorContains(t, err, "another checkpoint is being written there")
	require.NoError(t, first.Abort())
	require.NoError(t, first.Abort())
	second, err := Create(target, 1)
	require.NoError(t, err)
	require.NoError(t, os.MkdirAll(filepath.Join(target, "other"), folderPermissions))
	require.NoError(t, second.rows.end())
	err = second.Commit(&replayv1.CheckpointManifest{})
	require.ErrorIs(t, err, ErrDirectory)
	require.ErrorContains(t, err, "another program has made it meanwhile")
	entries, err := os.ReadDir(filepath.Dir(target))
	require.NoError(t, err)
	require.Len(t, entries, 1, "that of the other program")
}
