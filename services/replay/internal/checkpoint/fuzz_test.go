package checkpoint

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"
	"github.com/raylink/raylink/services/replay/internal/table"
	"github.com/raylink/raylink/services/replay/ring"
)

func fuzzLayout() ring.Layout {
	return ring.Layout{Capacity: 100, Columns: []ring.Column{{Name: "n", DType: ring.Int64}, {Name: "xy", DType: ring.Uint8, Shape: []uint64{3}}}}
}

func fuzzStates() []table.State {
	states := []table.State{
		{Slot: 0, Number: 1, Run: table.Run{First: 5, Length: 3}, Priority: 0.5, Sampled: 7, Drawn: true, Epoch: 3},
		{Slot: 1, Number: 9, Run: table.Run{First: 6, Length: 1}, More: []table.Run{{First: 9, Length: 2}, {First: 20, Length: 1}}, Priority: 2},
		{Slot: 300, Number: 1 << 40, Run: table.Run{First: 1 << 45, Length: 1000}, Priority: 1e300, Age: time.Hour},
	}
	return states
}

// written makes a checkpoint, and returns its files by name.
func written(t testing.TB) map[string][]byte {
	t.Helper()
	target := filepath.Join(t.TempDir(), "c")
	w, err := Create(target, 1)
	require.NoError(t, err)
	states := fuzzStates()
	require.NoError(t, w.Items(0, func(into []table.State) (int, error) { return copy(into, states), nil }))
	for _, sequences := range [][]uint64{{5, 6, 7, 9, 10, 20}, {30}, {31, 32, 40}} {
		b, err := ring.NewBatch(fuzzLayout(), len(sequences))
		require.NoError(t, err)
		for i := range b.Bytes(0) {
			b.Bytes(0)[i] = byte(i)
		}
		b.SetSequences(sequences)
		require.NoError(t, w.Rows(b))
	}
	m := &replayv1.CheckpointManifest{
		Version: Version, Made: timestamppb.Now(), Capacity: 100, Next: 50, Rows: 10,
		Tables: []*replayv1.CheckpointManifestTable{{Config: &replayv1.TableConfig{Name: "per"}}},
	}
	m.File, err = w.EndRows()
	require.NoError(t, err)
	table0 := m.GetTables()[0]
	table0.Items, table0.LeftOut, table0.File, err = w.Filter(0, func(*table.State) (bool, error) { return true, nil })
	require.NoError(t, err)
	require.NoError(t, w.Commit(m))
	files := make(map[string][]byte)
	entries, err := os.ReadDir(target)
	require.NoError(t, err)
	for _, e := range entries {
		files[e.Name()], err = os.ReadFile(filepath.Join(target, e.Name()))
		require.NoError(t, err)
	}
	return files
}

// repair makes the checksums of all chunks right, so that a fuzzer gets beyond them.
func repair(b []byte) {
	le := binary.LittleEndian
	for at := magicLength; at+chunkHeader <= len(b); {
		left := uint64(len(b) - at - chunkHeader)
		length := min(le.Uint64(b[at:]), left)
		le.PutUint64(b[at:], length)
		content := b[at+chunkHeader:][:length]
		le.PutUint32(b[at+8:], crc32.Checksum(content, castagnoli))
		le.PutUint32(b[at+12:], crc32.Checksum(b[at:at+12], castagnoli))
		at += chunkHeader + len(content)
	}
}

func chunksOf(b []byte, magic string) *chunks {
	return &chunks{name: "file", from: bufio.NewReaderSize(bytes.NewReader(b), 16), left: uint64(len(b)), magic: magic}
}

// addDamaged adds a file, parts of it, and the file with each of some bytes changed.
func addDamaged(f *testing.F, good []byte) {
	f.Helper()
	f.Add(good, false)
	for size := 0; size < len(good); size += 1 + len(good)/8 {
		f.Add(good[:size], true)
		bad := bytes.Clone(good)
		bad[size] ^= 0x55
		f.Add(bad, true)
		f.Add(bad, false)
	}
}

// FuzzRows reads a file of rows that may be damaged: what is accepted are rows of which there can
// be some, in order, with whole columns.
func FuzzRows(f *testing.F) {
	good := written(f)[rowsName]
	addDamaged(f, good)
	f.Add(good[:magicLength], false)
	layout := fuzzLayout()
	f.Fuzz(func(t *testing.T, b []byte, repaired bool) {
		if repaired {
			repair(b)
		}
		m := &replayv1.CheckpointManifest{Next: 50, Rows: 10}
		next, rows := uint64(0), uint64(0)
		err := chunksOf(b, rowsMagic).rows(t.Context(), layout, m, func(sequences []uint64, columns [][]byte) error {
			require.NotEmpty(t, sequences)
			for _, s := range sequences {
				require.GreaterOrEqual(t, s, next)
				require.Less(t, s, m.GetNext())
				next = s + 1
			}
			rows += uint64(len(sequences))
			require.Len(t, columns, 2)
			require.Len(t, columns[0], 8*len(sequences))
			require.Len(t, columns[1], 3*len(sequences))
			return nil
		})
		if err != nil {
			require.ErrorIs(t, err, ErrDamaged)
			require.ErrorContains(t, err, "file")
			return
		}
		require.Equal(t, m.GetRows(), rows)
	})
}

// FuzzItems reads a file of items that may be damaged. What is accepted can be written again.
func FuzzItems(f *testing.F) {
	addDamaged(f, written(f)[tableName(0)])
	now := time.Now()
	f.Fuzz(func(t *testing.T, b []byte, repaired bool) {
		if repaired {
			repair(b)
		}
		var states []table.State
		err := chunksOf(b, itemsMagic).items(now, func(s *table.State) error {
			require.NotZero(t, s.Number)
			states = append(states, *s)
			return nil
		})
		if err != nil {
			require.ErrorIs(t, err, ErrDamaged)
			require.ErrorContains(t, err, "file")
			return
		}
		for len(states) > 0 {
			part := states[:min(len(states), itemsPerChunk)]
			states = states[len(part):]
			content, rest := appendItems(nil, part, now)
			require.Empty(t, rest)
			i := 0
			require.NoError(t, parseItems(content, now, func(s *table.State) error {
				if !math.IsNaN(part[i].Priority) {
					require.Equal(t, part[i], *s)
				}
				i++
				return nil
			}))
		}
	})
}

// FuzzManifest reads a manifest that may be damaged. What is accepted names no file but those of a
// checkpoint, and has counts that can be.
func FuzzManifest(f *testing.F) {
	good := written(f)[manifestName]
	addDamaged(f, good)
	content := good[len(manifestBegin)+hexDigits+len(manifestMiddle) : len(good)-len(manifestEnd)]
	f.Add(sealManifest(bytes.ReplaceAll(content, []byte(`"rows"`), []byte(`"../x"`))), false)
	f.Add(sealManifest([]byte(`{"version": 1, "file": {"name": "rows"}, "rows": "3", "next": "9", "capacity": "4"}`)), true)
	f.Fuzz(func(t *testing.T, b []byte, repaired bool) {
		if begin := len(manifestBegin) + hexDigits + len(manifestMiddle); repaired && len(b) >= begin+len(manifestEnd) {
			b = sealManifest(b[begin : len(b)-len(manifestEnd)])
		}
		m, err := parseManifest(b)
		if err != nil {
			require.ErrorIs(t, err, ErrDamaged)
			return
		}
		require.Equal(t, rowsName, m.GetFile().GetName())
		require.LessOrEqual(t, m.GetRows(), min(m.GetCapacity(), m.GetNext()))
		for i, described := range m.GetTables() {
			require.Equal(t, tableName(i), described.GetFile().GetName())
		}
		again, err := encodeManifest(m)
		require.NoError(t, err)
		same, err := parseManifest(again)
		require.NoError(t, err)
		require.True(t, proto.Equal(m, same))
	})
}

// TestDamagedFilesTakeLittleMemory reads files that say that they are large.
func TestDamagedFilesTakeLittleMemory(t *testing.T) {
	files := written(t)
	large := func(name string) []byte {
		b := bytes.Clone(files[name])
		binary.LittleEndian.PutUint64(b[magicLength:], 1<<30)
		binary.LittleEndian.PutUint32(b[magicLength+12:], crc32.Checksum(b[magicLength:magicLength+12], castagnoli))
		return b
	}
	many := append([]byte(itemsMagic), make([]byte, chunkHeader)...)
	many = binary.AppendUvarint(many, math.MaxUint64)
	runs := append([]byte(rowsMagic), make([]byte, chunkHeader)...)
	runs = binary.AppendUvarint(binary.AppendUvarint(binary.AppendUvarint(runs, 1), 0), maxChunkRows)
	repair(many)
	repair(runs)
	var before, after runtime.MemStats
	for name, read := range map[string]func() error{
		"a long chunk of items": func() error {
			c := chunksOf(large(tableName(0)), itemsMagic)
			c.left = math.MaxInt64 // as though the file had it
			return c.items(time.Now(), nil)
		},
		"a long chunk of rows": func() error {
			c := chunksOf(large(rowsName), rowsMagic)
			c.left = math.MaxInt64
			return c.rows(t.Context(), fuzzLayout(), &replayv1.CheckpointManifest{}, nil)
		},
		"many items": func() error { return chunksOf(many, itemsMagic).items(time.Now(), nil) },
		"many rows": func() error {
			return chunksOf(runs, rowsMagic).rows(t.Context(), fuzzLayout(), &replayv1.CheckpointManifest{}, nil)
		},
	} {
		runtime.ReadMemStats(&before)
		err := read()
		runtime.ReadMemStats(&after)
		require.ErrorIs(t, err, ErrDamaged, name)
		require.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(4<<20), name)
	}
}

// TestItemsOfManyRuns writes items that do not fit into one chunk.
func TestItemsOfManyRuns(t *testing.T) {
	var states []table.State
	for i := range uint64(100) {
		s := table.State{Slot: uint32(i), Number: i + 1, Run: table.Run{First: 1, Length: 1}}
		for k := range uint64(20_000) {
			s.More = append(s.More, table.Run{First: 10 + 3*k, Length: 1})
		}
		states = append(states, s)
	}
	chunks, left := 0, states
	for now := time.Now(); len(left) > 0; chunks++ {
		var b []byte
		before := left
		b, left = appendItems(nil, left, now)
		require.Less(t, len(b), 2*itemBytes)
		i := 0
		require.NoError(t, parseItems(b, now, func(s *table.State) error {
			require.Equal(t, before[i], *s)
			i++
			return nil
		}))
		require.Equal(t, len(before)-len(left), i)
	}
	require.Greater(t, chunks, 2)
}
