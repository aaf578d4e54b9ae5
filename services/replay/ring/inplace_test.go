package ring

import (
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

func inPlaceHead(t *testing.T, r *Ring) *InPlace {
	t.Helper()
	p, err := r.InPlace()
	require.NoError(t, err)
	return p
}

// fillColumns writes checksummed rows of testLayout.
func fillColumns(rng *rand.Rand) func(columns [][]byte) {
	return func(columns [][]byte) {
		fill := byte(rng.Uint32())
		for i := range columns[0] {
			columns[0][i] = fill + byte(i/2000)
		}
		sums := rawRows(columns)
		for i := range len(columns[1]) / 4 {
			binary.LittleEndian.PutUint32(columns[1][4*i:], rng.Uint32())
			binary.LittleEndian.PutUint32(columns[2][4*i:], rowSum(sums, i))
		}
	}
}

// rawRows are the columns of rows of testLayout.
type rawRows [][]byte

func (r rawRows) Layout() Layout          { return testLayout(1) }
func (r rawRows) Bytes(column int) []byte { return r[column] }

// isMapped reports whether columns are those of the ring's mapping.
func isMapped(r *Ring, columns [][]byte) bool {
	c := r.head.geometry.columns[0]
	first := &columns[0][0]
	for slot := range r.head.layout.Capacity {
		if &r.rows[c.offset+slot*c.size] == first {
			return true
		}
	}
	return false
}

func TestRowsAreWrittenInPlaceWhereTheyAreContiguous(t *testing.T) {
	r := newRing(t, testLayout(10))
	p, rng := inPlaceHead(t, r), seeded()
	var mapped bool
	fill := func(columns [][]byte) {
		mapped = isMapped(r, columns)
		fillColumns(rng)(columns)
	}
	for _, step := range []struct {
		rows   int
		mapped bool
		first  uint64
	}{{4, true, 0}, {6, true, 4}, {7, true, 10}, {4, false, 17}, {9, true, 21}, {1, true, 30}, {10, false, 31}} {
		require.NoError(t, p.TryAppend(step.rows, fill))
		require.Equal(t, step.mapped, mapped)
		require.Len(t, p.Sequences(), step.rows)
		require.Equal(t, step.first, p.Sequences()[0])
	}
	h, err := r.Reader()
	require.NoError(t, err)
	b, err := NewBatch(r.Layout(), 0)
	require.NoError(t, err)
	require.NoError(t, h.Newest(t.Context(), 10, b))
	require.Zero(t, torn(b))
	require.Equal(t, p.Sequences(), b.Sequences())
	// An area in the middle of the rows.
	area, err := h.Hold(t.Context(), 3)
	require.NoError(t, err)
	require.NoError(t, p.TryAppend(5, fill)) // slots 1 to 5; 8, 9 and 0 are held
	require.True(t, mapped)
	require.NoError(t, p.TryAppend(5, fill)) // slots 6, 7, 1, 2 and 3
	require.False(t, mapped)
	require.Equal(t, []uint64{46, 47, 51, 52, 53}, p.Sequences())
	var refused *NoRoomError
	require.ErrorAs(t, p.TryAppend(8, fill), &refused)
	require.Equal(t, 0, refused.Written)
	require.NoError(t, area.Release())
	require.NoError(t, h.Newest(t.Context(), 10, b))
	require.Zero(t, torn(b))
	require.Len(t, b.Sequences(), 10)
	require.ErrorIs(t, p.TryAppend(11, fill), ErrBatch)
}

func TestRowsAroundAnAreaAreNotContiguous(t *testing.T) {
	r := newRing(t, testLayout(10))
	p, rng := inPlaceHead(t, r), seeded()
	h, err := r.Reader()
	require.NoError(t, err)
	require.NoError(t, p.TryAppend(5, fillColumns(rng)))
	area, err := h.Hold(t.Context(), 1) // row 4
	require.NoError(t, err)
	write(t, r, 7)
	require.NoError(t, p.TryAppend(4, func(columns [][]byte) {
		require.False(t, isMapped(r, columns))
		fillColumns(rng)(columns)
	}))
	require.Equal(t, []uint64{12, 13, 15, 16}, p.Sequences())
	require.Zero(t, torn(area.Spans()[0]), "the area is unchanged")
	require.NoError(t, area.Release())
	b, err := NewBatch(r.Layout(), 0)
	require.NoError(t, err)
	require.NoError(t, h.Newest(t.Context(), 10, b))
	require.Zero(t, torn(b))
}

func TestRowsAbandonedInPlace(t *testing.T) {
	r := newRing(t, testLayout(10))
	p, rng := inPlaceHead(t, r), seeded()
	require.NoError(t, p.TryAppend(10, fillColumns(rng)))
	h, err := r.Reader()
	require.NoError(t, err)
	b, err := NewBatch(r.Layout(), 0)
	require.NoError(t, err)
	panics := func(n int) {
		require.PanicsWithValue(t, "boom", func() {
			_ = p.TryAppend(n, func(columns [][]byte) {
				clear(columns[2])
				panic("boom")
			})
		})
	}
	panics(4) // in place
	require.NoError(t, h.Newest(t.Context(), 10, b))
	require.Equal(t, []uint64{4, 5, 6, 7, 8, 9}, b.Sequences())
	panics(7) // around the end
	require.NoError(t, h.Newest(t.Context(), 10, b))
	require.Equal(t, []uint64{4, 5, 6, 7, 8, 9}, b.Sequences(), "the rows were not written to")
	require.Zero(t, torn(b))
	s, err := r.Stats()
	require.NoError(t, err)
	require.Equal(t, []uint64{10, 6}, []uint64{s.Written, s.Readable})
	require.NoError(t, p.TryAppend(10, fillColumns(rng)))
	require.NoError(t, h.Newest(t.Context(), 10, b))
	require.Zero(t, torn(b))
	require.Len(t, b.Sequences(), 10)
	s, err = r.Stats()
	require.NoError(t, err)
	require.Equal(t, []uint64{20, 10}, []uint64{s.Written, s.Readable})
}

func TestRefusedWriteInPlaceRestoresRows(t *testing.T) {
	r := newRing(t, testLayout(10))
	write(t, r, 10)
	// Another writer is in the middle of rows 3 and 4, so that not all ten can be locked.
	other, p := inPlaceHead(t, r), inPlaceHead(t, r)
	write(t, r, 3)
	require.NoError(t, other.TryAppend(2, func(columns [][]byte) {
		var refused *NoRoomError
		require.ErrorAs(t, p.TryAppend(10, func([][]byte) { require.Fail(t, "called") }), &refused)
		require.Equal(t, 0, refused.Written)
		require.NotEmpty(t, refused.Writers)
		require.Equal(t, uint64(8), readable(t, r), "the rows that were locked are readable again")
		fillColumns(seeded())(columns)
	}))
	require.Equal(t, uint64(10), readable(t, r))
	h, err := r.Reader()
	require.NoError(t, err)
	b, err := NewBatch(r.Layout(), 0)
	require.NoError(t, err)
	require.NoError(t, h.Newest(t.Context(), 10, b))
	require.Zero(t, torn(b))
	require.NoError(t, p.TryAppend(10, fillColumns(seeded())))
}

func TestAreaHeldAfterRowsWereReserved(t *testing.T) {
	r := newRing(t, testLayout(10))
	write(t, r, 10)
	p := inPlaceHead(t, r)
	h, err := r.Reader()
	require.NoError(t, err)
	p.rows = 4
	positions := p.head.allocate(4)
	require.True(t, positions.reserve(4))
	area, err := h.Hold(t.Context(), 8) // rows 2 to 9
	require.NoError(t, err)
	require.True(t, p.lockRun(&positions))
	require.Equal(t, []uint64{10, 11}, p.sequences, "it backs out of the area")
	require.Equal(t, uint64(8), readable(t, r))
	p.abandon(false)
	require.Equal(t, uint64(10), readable(t, r))
	require.Equal(t, 8, area.Rows())
	require.NoError(t, area.Release())
}

func TestRingClosedWhileRowsAreWritten(t *testing.T) {
	for name, before := range map[string]int{"first write": 0, "later write": 20} {
		t.Run(name, func(t *testing.T) { testRingClosedWhileRowsAreWritten(t, before) })
	}
}

func testRingClosedWhileRowsAreWritten(t *testing.T, before int) {
	r := newRing(t, testLayout(10))
	other, err := Open(r.Path(), r.ID())
	require.NoError(t, err)
	p := inPlaceHead(t, other)
	for range before {
		require.NoError(t, p.TryAppend(1, fillColumns(seeded())))
	}
	require.NoError(t, p.Append(t.Context(), 3, func(columns [][]byte) {
		require.NoError(t, other.Close())
		fillColumns(seeded())(columns)
	}))
	require.Nil(t, other.all, "the mapping is gone")
	require.ErrorIs(t, p.TryAppend(1, func([][]byte) {}), ErrClosed)
	h, err := r.Reader()
	require.NoError(t, err)
	b, err := NewBatch(r.Layout(), 0)
	require.NoError(t, err)
	require.NoError(t, h.Newest(t.Context(), 10, b))
	require.Len(t, b.Sequences(), min(before+3, 10))
	require.Zero(t, torn(b))
}

// TestRingClosedBetweenWrites closes a ring at any moment: its mapping is removed exactly once, by
// the last write or by Close.
func TestRingClosedBetweenWrites(t *testing.T) {
	r := newRing(t, testLayout(50))
	for range 20 {
		other, err := Open(r.Path(), r.ID())
		require.NoError(t, err)
		var writers sync.WaitGroup
		wrote := make(chan struct{}, 3)
		for seed := range uint64(3) {
			p := inPlaceHead(t, other)
			writers.Go(func() {
				fill := fillColumns(rand.New(rand.NewPCG(seed, 3)))
				for i := 0; ; i++ {
					if err := p.Append(context.Background(), 1, fill); err != nil {
						if !errors.Is(err, ErrClosed) {
							t.Error(err)
						}
						return
					}
					if i == 2 {
						wrote <- struct{}{}
					}
				}
			})
		}
		for range 3 {
			<-wrote
		}
		require.NoError(t, other.Close())
		writers.Wait()
		require.Nil(t, other.all)
		require.Zero(t, other.held.Load())
	}
	require.NoError(t, inPlaceHead(t, r).TryAppend(50, fillColumns(seeded())))
	require.Equal(t, uint64(50), readable(t, r))
}

// TestConcurrentWritersInPlace writes runs of rows whose text is the same in all rows of a run: a
// reader never finds part of a run by a writer that has not finished it.
func TestConcurrentWritersInPlace(t *testing.T) {
	r := newRing(t, testLayout(64))
	ctx, cancel := context.WithCancel(t.Context())
	var writers, readers sync.WaitGroup
	for seed := range uint64(3) {
		p := inPlaceHead(t, r)
		writers.Go(func() {
			rng := rand.New(rand.NewPCG(seed, 1))
			for i := range 400 {
				panics := i%11 == 0
				func() {
					defer func() { _ = recover() }()
					err := p.Append(t.Context(), 1+rng.IntN(20), func(columns [][]byte) {
						clear(columns[2])
						runtime.Gosched()
						if panics {
							panic("boom")
						}
						fillColumns(rng)(columns)
					})
					if err != nil {
						t.Error(err)
					}
				}()
			}
		})
	}
	readers.Go(func() {
		h, err := r.Reader()
		if err != nil {
			t.Error(err)
			return
		}
		b, err := NewBatch(r.Layout(), 0)
		if err != nil {
			t.Error(err)
			return
		}
		for rng := seeded(); ctx.Err() == nil; runtime.Gosched() {
			if err := h.Sample(t.Context(), rng, 16, b); err == nil && torn(b) > 0 {
				t.Error("a torn row")
				return
			}
			if area, err := h.Hold(ctx, 5); err == nil {
				for _, s := range area.Spans() {
					if torn(s) > 0 {
						t.Error("a torn row in an area")
					}
				}
				if err := area.Release(); err != nil {
					t.Error(err)
				}
			}
		}
	})
	writers.Wait()
	cancel()
	readers.Wait()
	p := inPlaceHead(t, r)
	require.NoError(t, p.TryAppend(64, fillColumns(seeded())))
	s, err := r.Stats()
	require.NoError(t, err)
	require.Equal(t, []uint64{64, 0}, []uint64{s.Readable, s.Held})
	require.Equal(t, uint64(64), readable(t, r))
}

func TestFitted(t *testing.T) {
	for _, size := range []uint64{1 << 20, 1<<20 + 4096, 123456789, 1 << 33} {
		layout, err := testLayout(0).Fitted(size)
		require.NoError(t, err)
		g, err := newGeometry(layout)
		require.NoError(t, err)
		require.LessOrEqual(t, g.size, size)
		layout.Capacity++
		g, err = newGeometry(layout)
		require.NoError(t, err)
		require.Greater(t, g.size, size)
	}
	_, err := testLayout(0).Fitted(1000)
	require.ErrorIs(t, err, ErrLayout)
	layout, err := testLayout(0).Fitted(1<<64 - 1)
	require.NoError(t, err)
	require.NoError(t, layout.Validate())
}

func TestWriterKilledWhileItWritesInPlace(t *testing.T) {
	r := newRing(t, testLayout(10))
	write(t, r, 12)
	writer := start(t, r, task{Name: "stop in place", Rows: 5})
	require.True(t, writer.next().Ready)
	require.Equal(t, uint64(5), readable(t, r), "no row is visible before the function has returned")
	writer.kill()
	require.Equal(t, uint64(5), readable(t, r))
	h, err := r.Reader()
	require.NoError(t, err)
	b, err := NewBatch(r.Layout(), 0)
	require.NoError(t, err)
	require.NoError(t, h.Newest(t.Context(), 10, b))
	require.Zero(t, torn(b))
	require.Equal(t, []uint64{7, 8, 9, 10, 11}, b.Sequences())

	p := inPlaceHead(t, r)
	old, ok := p.head.lock(22)
	require.True(t, ok)
	p.head.unlock(22, old)
	require.Equal(t, noParticipant, word(r.wordAt(r.all, 2).Load()).participant(), "its index may be another participant's")
	require.NoError(t, p.TryAppend(10, fillColumns(seeded())), "the rows are taken over")
	require.NoError(t, h.Newest(t.Context(), 10, b))
	require.Zero(t, torn(b))
	require.Equal(t, p.Sequences(), b.Sequences())
	s, err := r.Stats()
	require.NoError(t, err)
	require.Equal(t, uint64(6), s.TakenOver)
	require.Equal(t, uint64(10), s.Readable)
}

// TestRowsCountedAfterManyDeaths: however often writers are killed, the number of readable rows
// stays exact once all rows were written again.
func TestRowsCountedAfterManyDeaths(t *testing.T) {
	r := newRing(t, testLayout(20))
	for range 3 {
		writer := start(t, r, task{Name: "stop in place", Rows: 7})
		require.True(t, writer.next().Ready)
		writer.kill()
	}
	// One index is reused, whose next holder disowns the rows.
	other, err := Open(r.Path(), r.ID())
	require.NoError(t, err)
	require.NoError(t, other.claimIndex(ownerIndex+1))
	s, err := r.Stats()
	require.NoError(t, err)
	require.Equal(t, uint64(14), s.Readable)
	require.NoError(t, other.Close())
	p := inPlaceHead(t, r)
	require.NoError(t, p.TryAppend(5, fillColumns(seeded())))
	require.NoError(t, p.TryAppend(15, fillColumns(seeded())))
	require.Equal(t, uint64(20), r.filledRows())
	var filled uint64
	for block := range blocksOf(20) {
		filled += r.blockFilled(block).Load()
	}
	require.Equal(t, uint64(20), filled, "each row counts once")
}

// TestKilledWritersInPlaceLeaveNoTornRow kills writers at any moment, and starts others.
func TestKilledWritersInPlaceLeaveNoTornRow(t *testing.T) {
	t.Run("of runs", func(t *testing.T) { killWritersInPlace(t, 250, 30) })
	t.Run("with reserved positions", func(t *testing.T) { killWritersInPlace(t, 5000, 1) })
}

func killWritersInPlace(t *testing.T, capacity uint64, most int) {
	r := newRing(t, testLayout(capacity))
	fill := func() {
		p := inPlaceHead(t, r)
		for range capacity / 250 {
			require.NoError(t, p.TryAppend(250, fillColumns(seeded())), "no row stays locked")
		}
	}
	fill()
	h, err := r.Reader()
	require.NoError(t, err)
	b, err := NewBatch(r.Layout(), 0)
	require.NoError(t, err)
	rng := seeded()
	writers := make([]*process, 3)
	for i := range writers {
		writers[i] = start(t, r, task{Name: "write in place", Seed: uint64(i), Rows: 1 << 30, Batch: most})
		require.True(t, writers[i].next().Ready)
	}
	for i := range 12 {
		for range 1 + rng.IntN(40) {
			require.NoError(t, h.Sample(t.Context(), rng, 20, b))
			require.Zero(t, torn(b), "torn rows")
			require.NoError(t, h.Newest(t.Context(), 30, b))
			require.Zero(t, torn(b), "torn rows")
		}
		writers[i%3].kill()
		writers[i%3] = start(t, r, task{Name: "write in place", Seed: uint64(i + 3), Rows: 1 << 30, Batch: most})
		require.True(t, writers[i%3].next().Ready)
	}
	for _, w := range writers {
		w.kill()
	}
	fill()
	require.Equal(t, capacity, readable(t, r))
	require.NoError(t, h.Newest(t.Context(), int(capacity), b))
	require.Len(t, b.Sequences(), int(capacity))
	require.Zero(t, torn(b))
}
