package ring

import (
	"context"
	"encoding/binary"
	"maps"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// model is the reference implementation: rows by slot, and the slots that areas hold.
type model struct {
	capacity uint64
	head     uint64
	// rows maps slots to sequence numbers, values maps sequence numbers to what was written.
	rows   map[uint64]uint64
	values map[uint64]int64
	areas  []*modelArea
}

type modelArea struct {
	area      *Area
	sequences []uint64
	// slots are those that writers skip: those of the rows, and if the rows consist of many pieces,
	// some between them.
	slots []uint64
}

func (m *model) held() map[uint64]bool {
	held := make(map[uint64]bool)
	for _, a := range m.areas {
		for _, p := range a.slots {
			held[p] = true
		}
	}
	return held
}

// newest returns the sequence numbers of the newest n rows.
func (m *model) newest(n int) []uint64 {
	all := make([]uint64, 0, len(m.rows))
	for _, s := range m.rows {
		all = append(all, s)
	}
	slices.Sort(all)
	return all[max(0, len(all)-n):]
}

func (m *model) append(values []int64) ([]uint64, bool) {
	held := m.held()
	if len(held) > 0 && len(held)+len(values) > int(m.capacity) {
		return nil, false
	}
	var sequences []uint64
	for _, v := range values {
		for held[m.head%m.capacity] {
			m.head++
		}
		m.rows[m.head%m.capacity], m.values[m.head] = m.head, v
		sequences = append(sequences, m.head)
		m.head++
	}
	return sequences, true
}

func TestRingMatchesModel(t *testing.T) {
	newRing(t, testLayout(1)) // skips the test where rings are unsupported
	layout := Layout{Columns: []Column{{Name: "value", DType: Int64}, {Name: "twice", DType: Int64, Shape: []uint64{2}}}}
	directory := t.TempDir()
	count := 0
	rapid.Check(t, func(t *rapid.T) {
		count++
		layout.Capacity = rapid.Uint64Range(1, 12).Draw(t, "capacity")
		first, err := Create(filepath.Join(directory, string(rune('a'+count%26))+rapid.StringMatching(`[a-z]{8}`).Draw(t, "name")), layout)
		require.NoError(t, err)
		defer func() { require.NoError(t, first.Remove()) }()
		second, err := Open(first.Path(), first.ID())
		require.NoError(t, err)
		run(t, []*Ring{first, second})
		require.NoError(t, second.Close())
		require.NoError(t, first.Close())
	})
}

// run performs random operations through two mappings of a ring, and compares the results with the
// model.
func run(t *rapid.T, rings []*Ring) {
	m := &model{capacity: rings[0].Layout().Capacity, rows: map[uint64]uint64{}, values: map[uint64]int64{}}
	writers, readers := make([]*WriteHead, len(rings)), make([]*ReadHead, len(rings))
	for i, r := range rings {
		w, err := r.Writer()
		require.NoError(t, err)
		h, err := r.Reader()
		require.NoError(t, err)
		writers[i], readers[i] = w, h
	}
	inPlace := make([]*InPlace, len(rings))
	for i, w := range writers {
		inPlace[i] = w.InPlace()
	}
	which := rapid.IntRange(0, 1)
	batch, err := NewBatch(rings[0].Layout(), 0)
	require.NoError(t, err)

	t.Repeat(map[string]func(*rapid.T){
		"append": func(t *rapid.T) {
			values := rapid.SliceOfN(rapid.Int64(), 0, int(m.capacity)).Draw(t, "values")
			require.NoError(t, batch.Resize(len(values)))
			value, err := Values[int64](batch, "value")
			require.NoError(t, err)
			twice, err := Values[int64](batch, "twice")
			require.NoError(t, err)
			for i, v := range values {
				value[i], twice[2*i], twice[2*i+1] = v, v, v
			}
			n, err := writers[which.Draw(t, "writer")].TryAppend(batch)
			sequences, ok := m.append(values)
			if !ok {
				require.ErrorIs(t, err, ErrNoRoom)
				require.Zero(t, n)
				return
			}
			require.NoError(t, err)
			require.Equal(t, len(values), n)
			require.Len(t, batch.Sequences(), len(sequences))
			if len(sequences) > 0 {
				require.Equal(t, sequences, batch.Sequences())
			}
		},
		"write in place": func(t *rapid.T) {
			values := rapid.SliceOfN(rapid.Int64(), 1, int(m.capacity)).Draw(t, "values")
			panics := rapid.Bool().Draw(t, "panics")
			p := inPlace[which.Draw(t, "writer")]
			before := maps.Clone(m.rows)
			overwritten := maps.Clone(m.values)
			sequences, ok := m.append(values)
			if !ok {
				require.ErrorIs(t, p.TryAppend(len(values), func([][]byte) { panic("called") }), ErrNoRoom)
				require.Empty(t, p.Sequences())
				return
			}
			fill := func(columns [][]byte) {
				for i, v := range values {
					for j := range 3 {
						at := columns[min(j, 1)][8*(i+i*min(j, 1)+max(0, j-1)):]
						binary.LittleEndian.PutUint64(at, uint64(v))
					}
				}
				if panics {
					panic("boom")
				}
			}
			if !panics {
				require.NoError(t, p.TryAppend(len(values), fill))
				require.Equal(t, sequences, p.Sequences())
				return
			}
			require.Panics(t, func() { _ = p.TryAppend(len(values), fill) })
			m.rows, m.values = before, overwritten
			last := sequences[len(sequences)-1]
			if last-sequences[0] == uint64(len(values)-1) && sequences[0]%m.capacity <= last%m.capacity {
				for _, s := range sequences { // they were written to in place
					delete(m.rows, s%m.capacity)
				}
			}
		},
		"change": func(t *rapid.T) {
			sequences := rapid.SliceOfN(rapid.Uint64Range(m.head-min(m.head, m.capacity+2), m.head+1), 1, 5).Draw(t, "sequences")
			require.NoError(t, batch.Resize(len(sequences)))
			value, err := Values[int64](batch, "value")
			require.NoError(t, err)
			twice, err := Values[int64](batch, "twice")
			require.NoError(t, err)
			held := m.held()
			var changes []RowChange
			var want []int
			done := -1
			for i, s := range sequences {
				value[i] = rapid.Int64().Draw(t, "value")
				twice[2*i], twice[2*i+1] = value[i], value[i]
				changes = append(changes, RowChange{Sequence: s, Row: i, Columns: []int{0, 1}})
				switch row, ok := m.rows[s%m.capacity]; {
				case done >= 0:
				case !ok || row != s:
					want = append(want, i)
				case held[s%m.capacity]:
					done = i
				default:
					m.values[s] = value[i]
				}
			}
			lost, err := writers[which.Draw(t, "writer")].TryChange(changes, batch)
			require.Equal(t, want, lost)
			if done < 0 {
				require.NoError(t, err)
				return
			}
			var blocked *HeldError
			require.ErrorAs(t, err, &blocked)
			require.Equal(t, []int{done, len(changes)}, []int{blocked.Done, blocked.Rows})
		},
		"read": func(t *rapid.T) {
			sequences := rapid.SliceOfN(rapid.Uint64Range(m.head-min(m.head, m.capacity+2), m.head+1), 1, 9).Draw(t, "sequences")
			if rapid.Bool().Draw(t, "consecutive") {
				for i := range sequences {
					sequences[i] = sequences[0] + uint64(i)
				}
			}
			lost, err := readers[which.Draw(t, "reader")].At(context.Background(), sequences, batch)
			require.NoError(t, err)
			require.Equal(t, len(sequences), batch.Rows())
			require.Len(t, batch.Sequences(), len(sequences))
			for i, s := range sequences {
				row, ok := m.rows[s%m.capacity]
				require.Equal(t, !ok || row != s, slices.Contains(lost, i))
				one, err := batch.Slice(i, i+1)
				require.NoError(t, err)
				if slices.Contains(lost, i) {
					require.Equal(t, uint64(NoRow), batch.Sequences()[i])
					require.Equal(t, make([]byte, 16), one.Bytes(1))
					continue
				}
				require.Equal(t, s, batch.Sequences()[i])
				check(t, m, one, []uint64{s})
			}
		},
		"sample": func(t *rapid.T) {
			err := readers[which.Draw(t, "reader")].Sample(context.Background(), seeded(), 5, batch)
			if len(m.rows) == 0 {
				require.ErrorIs(t, err, ErrEmpty)
				return
			}
			require.NoError(t, err)
			for _, s := range batch.Sequences() {
				require.Equal(t, m.rows[s%m.capacity], s)
			}
			check(t, m, batch, batch.Sequences())
		},
		"newest": func(t *rapid.T) {
			n := rapid.IntRange(1, int(m.capacity)+2).Draw(t, "n")
			err := readers[which.Draw(t, "reader")].Newest(context.Background(), n, batch)
			want := m.newest(n)
			if len(want) == 0 {
				require.ErrorIs(t, err, ErrEmpty)
				return
			}
			require.NoError(t, err)
			require.Equal(t, want, batch.Sequences())
			check(t, m, batch, want)
		},
		"hold": func(t *rapid.T) {
			n := rapid.IntRange(1, int(m.capacity)+2).Draw(t, "n")
			area, err := readers[which.Draw(t, "reader")].Hold(context.Background(), n)
			want := m.newest(n)
			switch {
			case len(want) == 0:
				require.ErrorIs(t, err, ErrEmpty)
			case err == nil:
				m.areas = append(m.areas, &modelArea{area: area, sequences: want, slots: slotsOf(t, m, area, want)})
			default:
				require.ErrorIs(t, err, ErrTooManyAreas)
				require.GreaterOrEqual(t, len(m.areas), maxAreas/maxPieces)
			}
		},
		"release": func(t *rapid.T) {
			if len(m.areas) == 0 {
				t.Skip("no area")
			}
			i := rapid.IntRange(0, len(m.areas)-1).Draw(t, "area")
			require.NoError(t, m.areas[i].area.Release())
			m.areas = slices.Delete(m.areas, i, i+1)
		},
		"": func(t *rapid.T) {
			for _, a := range m.areas {
				var sequences []uint64
				for _, span := range a.area.Spans() {
					var here []uint64
					for i := range span.Rows() {
						here = append(here, span.First()+uint64(i))
					}
					check(t, m, span, here)
					sequences = append(sequences, here...)
				}
				require.Equal(t, a.sequences, sequences)
			}
			s, err := rings[which.Draw(t, "ring")].Stats()
			require.NoError(t, err)
			require.Equal(t, uint64(len(m.values)), s.Written)
			require.Equal(t, uint64(len(m.rows)), s.Readable)
			require.Equal(t, uint64(len(m.held())), s.Held)
		},
	})
	for _, a := range m.areas {
		require.NoError(t, a.area.Release())
	}
}

// check compares rows with the values that were written.
func check(t *rapid.T, m *model, rows Rows, sequences []uint64) {
	value, err := Values[int64](rows, "value")
	require.NoError(t, err)
	twice, err := Values[int64](rows, "twice")
	require.NoError(t, err)
	require.Len(t, value, len(sequences))
	for i, s := range sequences {
		require.Equal(t, m.values[s], value[i])
		require.Equal(t, []int64{value[i], value[i]}, twice[2*i:2*i+2])
	}
}

// slotsOf returns the slots that an area holds.
func slotsOf(t *rapid.T, m *model, area *Area, sequences []uint64) []uint64 {
	held := make(map[uint64]bool)
	for _, entry := range area.entries {
		for i := range area.ring.areaCount(entry).Load() {
			held[(area.ring.areaFirst(entry).Load()+i)%m.capacity] = true
		}
	}
	pieces := 1
	for i, s := range sequences {
		require.True(t, held[s%m.capacity])
		if i > 0 && s != sequences[i-1]+1 {
			pieces++
		}
	}
	if pieces <= maxPieces && len(area.entries) == pieces {
		require.Len(t, held, len(sequences))
	}
	return slices.Collect(maps.Keys(held))
}
