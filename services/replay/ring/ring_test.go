package ring

import (
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestCreateRejectsInvalidLayouts(t *testing.T) {
	scalar := Column{Name: "x", DType: Float32}
	many := make([]Column, maxColumns+1)
	for i := range many {
		many[i] = Column{Name: strings.Repeat("x", i%maxName+1) + string(rune('a'+i/maxName)), DType: Bool}
	}
	for name, layout := range map[string]Layout{
		"no columns":       {Capacity: 1},
		"no rows":          {Columns: []Column{scalar}},
		"too many rows":    {Capacity: math.MaxUint64, Columns: []Column{scalar}},
		"no name":          {Capacity: 1, Columns: []Column{{DType: Float32}}},
		"name too long":    {Capacity: 1, Columns: []Column{{Name: strings.Repeat("x", maxName+1), DType: Float32}}},
		"name not UTF-8":   {Capacity: 1, Columns: []Column{{Name: "\xff", DType: Float32}}},
		"duplicate name":   {Capacity: 1, Columns: []Column{scalar, scalar}},
		"no dtype":         {Capacity: 1, Columns: []Column{{Name: "x"}}},
		"unknown dtype":    {Capacity: 1, Columns: []Column{{Name: "x", DType: BFloat16 + 1}}},
		"empty dimension":  {Capacity: 1, Columns: []Column{{Name: "x", DType: Int8, Shape: []uint64{3, 0}}}},
		"shape overflows":  {Capacity: 1, Columns: []Column{{Name: "x", DType: Int8, Shape: []uint64{1 << 63, 4}}}},
		"too many columns": {Capacity: 1, Columns: many},
		"rank too high":    {Capacity: 1, Columns: []Column{{Name: "x", DType: Int8, Shape: make([]uint64, maxRank+1)}}},
		"file too large":   {Capacity: 1 << 40, Columns: []Column{{Name: "x", DType: Int8, Shape: []uint64{1 << 20}}}},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "ring")
			_, err := Create(path, layout)
			require.ErrorIs(t, err, ErrLayout)
			require.NoFileExists(t, path)
		})
	}
}

func TestCreateWithoutDiskSpaceLeavesNoFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ring")
	_, err := Create(path, Layout{Capacity: 1 << 25, Columns: []Column{{Name: "x", DType: Int8, Shape: []uint64{1 << 20}}}})
	require.ErrorIs(t, err, unix.ENOSPC)
	require.ErrorContains(t, err, filepath.Dir(path))
	require.NoFileExists(t, path)
}

func TestClosedAndEndedRingsReturnTheirErrors(t *testing.T) {
	r := newRing(t, testLayout(10))
	other, err := Open(r.Path(), r.ID())
	require.NoError(t, err)
	w, err := other.Writer()
	require.NoError(t, err)
	h, err := other.Reader()
	require.NoError(t, err)
	b, err := NewBatch(r.Layout(), 1)
	require.NoError(t, err)
	_, err = w.TryAppend(b)
	require.NoError(t, err)

	require.NoError(t, r.End())
	expect := func(want error) {
		_, err := w.TryAppend(b)
		require.ErrorIs(t, err, want)
		require.ErrorIs(t, h.Sample(t.Context(), seeded(), 1, b), want)
		require.ErrorIs(t, h.Newest(t.Context(), 1, b), want)
		_, err = h.Hold(t.Context(), 1)
		require.ErrorIs(t, err, want)
	}
	expect(ErrEnded)
	require.NoError(t, other.Close())
	require.NoError(t, other.Close())
	expect(ErrClosed)
	_, err = other.Writer()
	require.ErrorIs(t, err, ErrClosed)
	_, err = other.Stats()
	require.ErrorIs(t, err, ErrClosed)
	require.NoError(t, r.Remove())
	require.ErrorIs(t, r.Remove(), os.ErrNotExist)
}

func TestAreaOutlivesClosedRing(t *testing.T) {
	r := newRing(t, testLayout(10))
	write(t, r, 10)
	other, err := Open(r.Path(), r.ID())
	require.NoError(t, err)
	h, err := other.Reader()
	require.NoError(t, err)
	area, err := h.Hold(t.Context(), 4)
	require.NoError(t, err)
	require.NoError(t, other.Close())
	write(t, r, 30)
	require.Equal(t, 4, area.Rows())
	for _, span := range area.Spans() {
		require.Zero(t, torn(span))
		require.Equal(t, uint64(6), span.First())
	}
	require.NoError(t, area.Release())
	s, err := r.Stats()
	require.NoError(t, err)
	require.Zero(t, s.Areas)
}

func TestBatchesThatDoNotFitAreRejected(t *testing.T) {
	r := newRing(t, testLayout(10))
	w, err := r.Writer()
	require.NoError(t, err)
	long, err := NewBatch(r.Layout(), 11)
	require.NoError(t, err)
	_, err = w.TryAppend(long)
	require.ErrorIs(t, err, ErrBatch)
	other, err := NewBatch(Layout{Columns: []Column{{Name: "x", DType: Int8}}}, 1)
	require.NoError(t, err)
	_, err = w.TryAppend(other)
	require.ErrorIs(t, err, ErrBatch)
	h, err := r.Reader()
	require.NoError(t, err)
	require.ErrorIs(t, h.Newest(t.Context(), 1, other), ErrBatch)
	require.ErrorIs(t, h.Sample(t.Context(), seeded(), -1, long), ErrBatch)
	require.ErrorIs(t, h.Sample(t.Context(), seeded(), math.MaxInt, long), ErrBatch)
	require.ErrorIs(t, h.Newest(t.Context(), 1, long), ErrEmpty)
	require.ErrorIs(t, h.Sample(t.Context(), seeded(), 1, long), ErrEmpty)
}

func TestValuesShareMemoryAndCheckTypes(t *testing.T) {
	b, err := NewBatch(testLayout(1), 3)
	require.NoError(t, err)
	scale, err := Values[float32](b, "scale")
	require.NoError(t, err)
	scale[1] = 2.5
	again, err := Values[float32](b, "scale")
	require.NoError(t, err)
	require.Equal(t, []float32{0, 2.5, 0}, again)
	_, err = Values[float64](b, "scale")
	require.ErrorContains(t, err, "float32")
	_, err = Values[float32](b, "scales")
	require.ErrorContains(t, err, "scale")
	require.NoError(t, b.Resize(1))
	require.NoError(t, b.Resize(2))
	again, err = Values[float32](b, "scale")
	require.NoError(t, err)
	require.Equal(t, []float32{0, 0}, again, "rows added by resizing are zero")
}

func TestSamplingIsUniform(t *testing.T) {
	const capacity, draws = 20, 20000
	r := newRing(t, Layout{Capacity: capacity, Columns: []Column{{Name: "x", DType: Int64}}})
	write := func(n int) {
		w, err := r.Writer()
		require.NoError(t, err)
		b, err := NewBatch(r.Layout(), n)
		require.NoError(t, err)
		_, err = w.TryAppend(b)
		require.NoError(t, err)
	}
	h, err := r.Reader()
	require.NoError(t, err)
	for _, readable := range []int{13, 20, 20} {
		if s, err := r.Stats(); err == nil && s.Readable < 13 {
			write(13)
		} else {
			write(9)
		}
		b, err := NewBatch(r.Layout(), 0)
		require.NoError(t, err)
		require.NoError(t, h.Sample(t.Context(), seeded(), draws, b))
		seen := make(map[uint64]int)
		for _, s := range b.Sequences() {
			seen[s]++
		}
		require.Len(t, seen, readable)
		// Pearson's chi-squared; 50 is beyond the 99.99th percentile for 19 degrees of freedom.
		mean, chi := float64(draws)/float64(readable), 0.0
		for _, n := range seen {
			chi += (float64(n) - mean) * (float64(n) - mean) / mean
		}
		require.Less(t, chi, 50.0)
	}
}

func TestMappingIsSafeForConcurrentUse(t *testing.T) {
	r := newRing(t, testLayout(30))
	write(t, r, 30)
	other, err := Open(r.Path(), r.ID())
	require.NoError(t, err)
	var group sync.WaitGroup
	for i := range 2 {
		group.Go(func() {
			o, err := writeRows(other, task{Seed: uint64(i), Rows: 500, Batch: 3})
			require.NoError(t, err)
			require.GreaterOrEqual(t, o.Rows, 500)
		})
		group.Go(func() {
			o, err := sampleRows(other, task{Seed: uint64(i), Rows: 500, Batch: 3})
			require.NoError(t, err)
			require.Zero(t, o.Torn)
		})
		group.Go(func() {
			o, err := holdRows(other, task{Rows: 500, Batch: 10})
			require.NoError(t, err)
			require.Zero(t, o.Torn)
		})
	}
	group.Wait()
	require.NoError(t, other.Close())
}
