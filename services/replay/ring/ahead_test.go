package ring

import (
	"context"
	"encoding/binary"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// writeNumber writes rows of one column, whose numbers are next and those after it.
func writeNumber(next *uint64) func(columns [][]byte) {
	return func(columns [][]byte) {
		for i := range len(columns[0]) / 8 {
			binary.LittleEndian.PutUint64(columns[0][8*i:], *next)
			*next++
		}
	}
}

// appendRow writes a row as TryAppend does, or as the caller of Begin does.
type appendRow func(p *InPlace, write func(columns [][]byte)) error

// eachWay runs a test with both ways to write a row.
func eachWay(t *testing.T, test func(t *testing.T, write appendRow)) {
	t.Helper()
	t.Run("append", func(t *testing.T) {
		test(t, func(p *InPlace, write func(columns [][]byte)) error { return p.TryAppend(1, write) })
	})
	t.Run("begin", func(t *testing.T) {
		begun := 0
		test(t, func(p *InPlace, write func(columns [][]byte)) error {
			columns := p.Begin(1)
			if columns == nil {
				return p.TryAppend(1, write)
			}
			begun++
			write(columns)
			return p.End(true)
		})
		require.Positive(t, begun)
	})
}

func TestRowsOfOneWriterLieTogether(t *testing.T) {
	r := newRing(t, oneColumn(1<<12))
	ws := []*InPlace{inPlaceHead(t, r), inPlaceHead(t, r)}
	var number uint64
	var last [2]uint64
	apart := 0
	for i := range 1 << 13 {
		require.NoError(t, ws[i%2].TryAppend(1, writeNumber(&number)))
		if s := ws[i%2].Sequences()[0]; s != last[i%2]+1 {
			apart++
		}
		last[i%2] = ws[i%2].Sequences()[0]
	}
	require.Less(t, apart, 1<<13/32)
	s, err := r.Stats()
	require.NoError(t, err)
	require.Equal(t, uint64(1<<13), s.Written)
	require.Equal(t, uint64(1<<12), s.Readable)
}

// TestReservedPositionsDoNotGetOld has writers of any speeds, and areas.
func TestReservedPositionsDoNotGetOld(t *testing.T) {
	newRing(t, testLayout(1)) // skips the test where rings are unsupported
	directory, count := t.TempDir(), 0
	rapid.Check(t, func(t *rapid.T) {
		count++
		r, err := Create(filepath.Join(directory, strconv.Itoa(count)), oneColumn(rapid.Uint64Range(100, 3000).Draw(t, "capacity")))
		require.NoError(t, err)
		defer func() { require.NoError(t, r.Remove()) }()
		defer func() { require.NoError(t, r.Close()) }()
		other, err := Open(r.Path(), r.ID())
		require.NoError(t, err)
		defer func() { require.NoError(t, other.Close()) }()
		var ws []*InPlace
		for _, of := range []*Ring{r, r, other} {
			w, err := of.InPlace()
			require.NoError(t, err)
			ws = append(ws, w)
		}
		h, err := r.Reader()
		require.NoError(t, err)
		into, err := NewBatch(r.Layout(), 0)
		require.NoError(t, err)
		capacity := r.Layout().Capacity
		lag := min(maxLag, capacity/16) + maxAhead
		var number, newest uint64 // the number of rows, and of positions that were seen
		var area *Area
		numbers := make(map[uint64]uint64) // by position
		inArea := func(s uint64) bool {
			if area == nil {
				return false
			}
			for _, span := range area.Spans() {
				for i := range span.Rows() {
					if (span.First()+uint64(i))%capacity == s%capacity {
						return true
					}
				}
			}
			return false
		}
		after := make([]uint64, len(ws)) // the last position of each writer, plus one
		check := func(numberIn []byte, s uint64) {
			if n := binary.LittleEndian.Uint64(numberIn); n != numbers[s] {
				t.Fatalf("position %d has number %d instead of %d", s, n, numbers[s])
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"write": func(t *rapid.T) {
				i, n := rapid.IntRange(0, len(ws)-1).Draw(t, "writer"), rapid.IntRange(1, 3).Draw(t, "rows")
				begin := func(*InPlace, int) [][]byte { return nil }
				if rapid.Bool().Draw(t, "begin") {
					begin = (*InPlace).Begin
				}
				for range rapid.IntRange(1, 400).Draw(t, "writes") {
					first := number
					if columns := begin(ws[i], n); columns != nil {
						writeNumber(&number)(columns)
						require.NoError(t, ws[i].End(true))
					} else {
						require.NoError(t, ws[i].TryAppend(n, writeNumber(&number)))
					}
					for j, s := range ws[i].Sequences() {
						if _, twice := numbers[s]; twice || inArea(s) || s+1 <= after[i] || s+lag < newest {
							t.Fatalf("position %d: twice %v, in an area %v, after %d, the newest is %d", s, twice, inArea(s), after[i], newest)
						}
						numbers[s] = first + uint64(j)
						after[i] = s + 1
					}
					newest = max(newest, ws[i].Sequences()[n-1])
				}
			},
			"hold": func(t *rapid.T) {
				if area != nil || number == 0 {
					t.Skip("there is one, or there are no rows")
				}
				area, err = h.Hold(context.Background(), rapid.IntRange(1, int(capacity/2)).Draw(t, "rows"))
				require.NoError(t, err)
			},
			"release": func(t *rapid.T) {
				if area == nil {
					t.Skip("there is none")
				}
				require.NoError(t, area.Release())
				area = nil
			},
			"": func(t *rapid.T) {
				s, err := r.Stats()
				require.NoError(t, err)
				require.Equal(t, number, s.Written)
				if number == 0 {
					return
				}
				require.NoError(t, h.Newest(context.Background(), int(capacity), into))
				require.Equal(t, s.Readable, uint64(len(into.Sequences())))
				for i, s := range into.Sequences() {
					check(into.Bytes(0)[8*i:], s)
				}
				if area == nil {
					return
				}
				for _, span := range area.Spans() {
					for i := range span.Rows() {
						check(span.Bytes(0)[8*i:], span.First()+uint64(i))
					}
				}
			},
		})
		if area != nil {
			require.NoError(t, area.Release())
		}
	})
}
