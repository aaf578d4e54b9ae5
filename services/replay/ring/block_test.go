package ring

import (
	"context"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// TestNewestOfManyBlocksMatchesList compares the search for the newest rows, which visits as few
// blocks as possible, with a list of all rows.
func TestNewestOfManyBlocksMatchesList(t *testing.T) {
	newRing(t, testLayout(1)) // skips the test where rings are unsupported
	directory, count := t.TempDir(), 0
	rapid.Check(t, func(t *rapid.T) {
		count++
		capacity := rapid.Uint64Range(1, 3*blockRows+100).Draw(t, "capacity")
		path := filepath.Join(directory, rapid.StringMatching(`[a-z]{8}`).Draw(t, "name")+string(rune('a'+count%26)))
		r, err := Create(path, oneColumn(capacity))
		require.NoError(t, err)
		defer func() {
			require.NoError(t, r.Remove())
			require.NoError(t, r.Close())
		}()
		w, err := r.Writer()
		require.NoError(t, err)
		h, err := r.Reader()
		require.NoError(t, err)
		var areas []*Area
		ctx := context.Background()
		for range rapid.IntRange(1, 20).Draw(t, "steps") {
			switch rapid.IntRange(0, 4).Draw(t, "step") {
			case 0, 1: // writes, or is refused
				b, err := NewBatch(r.Layout(), int(rapid.Uint64Range(1, capacity).Draw(t, "rows")))
				require.NoError(t, err)
				if _, err := w.TryAppend(b); err != nil {
					require.ErrorIs(t, err, ErrNoRoom)
				}
			case 2: // loses positions, as if a writer had been killed
				if r.heldRows() == capacity {
					continue
				}
				positions := w.allocate(1)
				positions.reserve(rapid.Uint64Range(1, 2*capacity).Draw(t, "lost"))
			case 3:
				area, err := h.Hold(ctx, int(rapid.Uint64Range(1, capacity).Draw(t, "held")))
				if err == nil {
					areas = append(areas, area)
				}
			case 4:
				if len(areas) > 0 {
					require.NoError(t, areas[0].Release())
					areas = areas[1:]
				}
			}
			compareNewest(t, r, h)
		}
		for _, area := range areas {
			require.NoError(t, area.Release())
		}
	})
}

func compareNewest(t *rapid.T, r *Ring, h *ReadHead) {
	var all []uint64
	for _, slot := range r.readableSlots() {
		all = append(all, word(r.wordAt(r.all, slot).Load()).sequence())
	}
	slices.Sort(all)
	s, err := r.Stats()
	require.NoError(t, err)
	require.Equal(t, uint64(len(all)), s.Readable)
	n := rapid.IntRange(1, len(all)+5).Draw(t, "n")
	before := rapid.Uint64Range(0, r.counter(counterHead).Load()+1).Draw(t, "before")
	end, _ := slices.BinarySearch(all, before)
	want := all[max(0, end-n):end]
	into, err := NewBatch(r.Layout(), 0)
	require.NoError(t, err)
	err = h.NewestBefore(context.Background(), before, n, into)
	if len(want) == 0 {
		require.ErrorIs(t, err, ErrEmpty)
		return
	}
	require.NoError(t, err)
	require.Equal(t, want, into.Sequences())
}

func TestSamplingFewRowsOfManyBlocksIsUniform(t *testing.T) {
	const draws, capacity = 20000, 5*blockRows + 7
	r := newRing(t, oneColumn(capacity))
	w, b := writerOf(t, r, 1)
	// Rows at the ends of blocks, and several in one of them.
	positions := []uint64{0, 1, 2, 3, 4, blockRows - 1, blockRows, 2*blockRows - 1, 4 * blockRows, 5*blockRows + 6}
	for _, position := range positions {
		r.counter(counterHead).Store(position)
		_, err := w.TryAppend(b)
		require.NoError(t, err)
		require.Equal(t, []uint64{position}, b.Sequences())
	}
	r.counter(counterHead).Store(capacity)
	h, err := r.Reader()
	require.NoError(t, err)
	require.NoError(t, h.Sample(t.Context(), seeded(), draws, b))
	seen := make(map[uint64]float64)
	for _, s := range b.Sequences() {
		seen[s]++
	}
	require.Len(t, seen, len(positions))
	mean, chi := float64(draws)/float64(len(positions)), 0.0
	for _, n := range seen {
		chi += (n - mean) * (n - mean) / mean
	}
	require.Less(t, chi, 33.7) // the 99.99th percentile for 9 degrees of freedom
}

// TestMergedSlotsContainAllRows checks that no row is left out, and that no other choice of pieces
// contains fewer rows.
func TestMergedSlotsContainAllRows(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		capacity := rapid.Uint64Range(1, 40).Draw(t, "capacity")
		r := &Ring{head: header{layout: Layout{Capacity: capacity}}}
		taken := make([]bool, capacity)
		var ranges []positions
		for slot := range capacity {
			if rapid.Bool().Draw(t, "row") {
				taken[slot] = true
				p := slot + capacity*rapid.Uint64Range(0, 3).Draw(t, "round")
				ranges = append(ranges, positions{p, p + 1})
			}
		}
		if len(ranges) == 0 {
			t.Skip("no row")
		}
		n := rapid.IntRange(1, 5).Draw(t, "n")
		pieces := r.mergeSlots(ranges, n)
		if len(ranges) <= n {
			require.Len(t, pieces, len(ranges))
			return
		}
		require.Len(t, pieces, n)
		held := make([]bool, capacity)
		var sum uint64
		for _, piece := range pieces {
			sum += piece.count
			for i := range piece.count {
				held[(piece.first+i)%capacity] = true
			}
		}
		var gaps []uint64 // between rows, around the ring's end
		last, first := -1, -1
		for slot, is := range taken {
			if !is {
				continue
			}
			require.True(t, held[slot])
			if last >= 0 {
				gaps = append(gaps, uint64(slot-last-1))
			} else {
				first = slot
			}
			last = slot
		}
		gaps = append(gaps, capacity-uint64(last)-1+uint64(first))
		slices.Sort(gaps)
		want := capacity
		for _, gap := range gaps[len(gaps)-n:] {
			want -= gap
		}
		require.Equal(t, want, sum)
	})
}
