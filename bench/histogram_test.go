package main

import (
	"math"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// TestBuckets checks that buckets contain their values, and are contiguous.
func TestBuckets(t *testing.T) {
	next := uint64(0)
	last := bucketOf(math.MaxInt64)
	require.Less(t, last, len(new(histogram).counts))
	for i := range last + 1 {
		low, width := bucketRange(i)
		require.Equal(t, next, low, "bucket %d", i)
		require.Equal(t, i, bucketOf(low))
		require.Equal(t, i, bucketOf(low+width-1))
		require.LessOrEqual(t, width, max(1, low/subBuckets), "bucket %d is too wide", i)
		next = low + width
	}
	assert.Greater(t, next, uint64(math.MaxInt64))
}

// TestQuantiles compares a merged histogram's quantiles with those of the sorted values.
func TestQuantiles(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		values := rapid.SliceOfN(rapid.Int64Range(0, math.MaxInt64), 1, 300).Draw(t, "durations")
		var parts [3]histogram
		for i, v := range values {
			parts[i%len(parts)].record(v)
		}
		var h histogram
		for i := range parts {
			h.merge(&parts[i])
		}
		require.Equal(t, uint64(len(values)), h.total)
		slices.Sort(values)
		for _, q := range []float64{0, 0.5, 0.9, 0.99, 1} {
			want := float64(values[int(q*float64(len(values)-1))])
			require.InDelta(t, want, h.quantile(q), want/subBuckets+1, "quantile %g", q)
		}
	})
}

func TestEmptyHistogram(t *testing.T) {
	var h histogram
	assert.Zero(t, h.quantile(0.5))
	h.record(-1) // a clock that went backwards
	assert.Zero(t, h.quantile(0.5))
	assert.Equal(t, uint64(1), h.total)
}
