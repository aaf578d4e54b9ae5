package main

import "math/bits"

// subBuckets is the number of buckets per power of two, which limits the relative error to 1/64.
const (
	subBits    = 6
	subBuckets = 1 << subBits
)

// histogram counts durations in buckets whose width grows with the value, like HDR histograms. It
// is not safe for concurrent use; merge histograms of several goroutines afterwards.
type histogram struct {
	counts [(64 - subBits) * subBuckets]uint64
	total  uint64
}

// record counts a duration in nanoseconds.
func (h *histogram) record(ns int64) {
	h.counts[bucketOf(uint64(max(ns, 0)))]++
	h.total++
}

// merge adds the counts of another histogram.
func (h *histogram) merge(other *histogram) {
	for i, n := range other.counts {
		h.counts[i] += n
	}
	h.total += other.total
}

// quantile returns the q-quantile in nanoseconds, or 0 if the histogram is empty.
func (h *histogram) quantile(q float64) float64 {
	if h.total == 0 {
		return 0
	}
	rank := uint64(q * float64(h.total-1))
	var seen uint64
	for i, n := range h.counts {
		if seen += n; seen > rank {
			low, width := bucketRange(i)
			return float64(low) + float64(width-1)/2
		}
	}
	return 0
}

// bucketOf returns the index of a value's bucket: exact below 64, then 64 buckets per power of two.
func bucketOf(v uint64) int {
	if v < subBuckets {
		return int(v)
	}
	shift := bits.Len64(v) - subBits - 1
	return (shift+1)*subBuckets + int(v>>shift) - subBuckets
}

// bucketRange returns the smallest value of a bucket, and the number of values in it.
func bucketRange(i int) (low, width uint64) {
	if i < subBuckets {
		return uint64(i), 1
	}
	shift := i/subBuckets - 1
	return uint64(i%subBuckets+subBuckets) << shift, 1 << shift
}
