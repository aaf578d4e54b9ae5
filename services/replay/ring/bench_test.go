package ring

import (
	"path/filepath"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
)

// benchRing makes a ring of rows of the given size.
func benchRing(b *testing.B, capacity, row uint64) *Ring {
	b.Helper()
	layout := Layout{Capacity: capacity, Columns: []Column{{Name: "x", DType: Uint8, Shape: []uint64{row}}}}
	r, err := Create(filepath.Join(b.TempDir(), "ring"), layout)
	require.NoError(b, err)
	b.Cleanup(func() { require.NoError(b, r.Close()) })
	return r
}

// BenchmarkAppendWithHeldAreas measures rows of 1 KiB while another process holds areas.
func BenchmarkAppendWithHeldAreas(b *testing.B) {
	for _, areas := range []int{0, 1, 16, 60} {
		b.Run(strconv.Itoa(areas), func(b *testing.B) {
			const capacity = 1 << 14
			r := benchRing(b, capacity, 1024)
			w, err := r.Writer()
			require.NoError(b, err)
			batch, err := NewBatch(r.Layout(), 1)
			require.NoError(b, err)
			for range capacity {
				_, err := w.TryAppend(batch)
				require.NoError(b, err)
			}
			if areas > 0 {
				holder := start(b, r, task{Name: "stop with areas", Rows: areas, Batch: 1, Every: capacity / areas / 2})
				require.True(b, holder.next().Ready)
				defer holder.kill()
			}
			b.ResetTimer()
			for b.Loop() {
				if _, err := w.TryAppend(batch); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkHoldRowsOfDifferentAge holds rows between which whole rounds have passed.
func BenchmarkHoldRowsOfDifferentAge(b *testing.B) {
	for _, rounds := range []uint64{1, 1000, 100_000} {
		b.Run(strconv.FormatUint(rounds, 10), func(b *testing.B) {
			r := benchRing(b, 100, 8)
			ageRows(b, r, rounds)
			h, err := r.Reader()
			require.NoError(b, err)
			for b.Loop() {
				area, err := h.Hold(b.Context(), 100)
				if err != nil {
					b.Fatal(err)
				}
				if err := area.Release(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkSampleFewReadableRows samples 16 rows of a ring of which ten rows are readable.
func BenchmarkSampleFewReadableRows(b *testing.B) {
	for _, capacity := range []uint64{10_000, 10_000_000} {
		b.Run(strconv.FormatUint(capacity, 10), func(b *testing.B) {
			r := benchRing(b, capacity, 8)
			loseRows(b, r, 10)
			h, err := r.Reader()
			require.NoError(b, err)
			into, err := NewBatch(r.Layout(), 0)
			require.NoError(b, err)
			for b.Loop() {
				if err := h.Sample(b.Context(), seeded(), 16, into); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkStats measures what describing a ring of ten million rows costs.
func BenchmarkStats(b *testing.B) {
	r := benchRing(b, 10_000_000, 8)
	for b.Loop() {
		if _, err := r.Stats(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkAppendSmallRows measures runs of 64 rows of 64 bytes.
func BenchmarkAppendSmallRows(b *testing.B) {
	r := benchRing(b, 1<<16, 64)
	w, err := r.Writer()
	require.NoError(b, err)
	batch, err := NewBatch(r.Layout(), 64)
	require.NoError(b, err)
	for b.Loop() {
		if _, err := w.TryAppend(batch); err != nil {
			b.Fatal(err)
		}
	}
}
