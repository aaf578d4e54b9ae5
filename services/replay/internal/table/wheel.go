package table

import "math/bits"

// Sizes of a wheel: one level for each byte of a sequence number.
const (
	levels  = 8
	buckets = 256
)

// wheel finds the items of overwritten rows. It is a hierarchical timing wheel whose time is the
// oldest living sequence number: an item is in the bucket of the highest byte in which the first of
// its rows differs from that. When the time reaches a bucket, its items move to lower levels. So an
// item moves at most seven times, whatever the order in which items were inserted, and nothing
// depends on how far the time advances at once.
type wheel struct {
	oldest uint64
	// heads are the first items of the buckets, plus 1; used has a bit for each bucket with items.
	heads [levels][buckets]uint32
	used  [levels][buckets / 64]uint64
}

// place returns the bucket of an item whose first row is not overwritten. It stays the same until
// the time reaches the bucket.
func (w *wheel) place(first uint64) (level int, bucket byte) {
	level = highest(first ^ w.oldest)
	return level, digit(first, level)
}

// highest returns the index of the highest byte that is not zero, or 0.
func highest(x uint64) int { return (bits.Len64(x|1) - 1) / 8 }

// digit returns a byte of a sequence number.
func digit(x uint64, level int) byte { return byte(x >> (8 * level)) } //nolint:gosec // one of its bytes

func (w *wheel) insert(items chunks[item], slot uint32) {
	it := items.at(slot)
	level, bucket := w.place(it.first)
	head := &w.heads[level][bucket]
	it.prev, it.next = 0, *head
	if *head != 0 {
		items.at(*head - 1).prev = slot + 1
	}
	*head = slot + 1
	w.used[level][bucket/64] |= 1 << (bucket % 64)
}

func (w *wheel) remove(items chunks[item], slot uint32) {
	it := items.at(slot)
	if it.next != 0 {
		items.at(it.next - 1).prev = it.prev
	}
	if it.prev != 0 {
		items.at(it.prev - 1).next = it.next
		return
	}
	level, bucket := w.place(it.first)
	w.heads[level][bucket] = it.next
	if it.next == 0 {
		w.used[level][bucket/64] &^= 1 << (bucket % 64)
	}
}

// take empties a bucket and returns its first item, plus 1.
func (w *wheel) take(level int, bucket byte) uint32 {
	head := w.heads[level][bucket]
	w.heads[level][bucket] = 0
	w.used[level][bucket/64] &^= 1 << (bucket % 64)
	return head
}

// advance sets the time, and calls expire for each item with an older row. These are no longer in
// the wheel.
func (w *wheel) advance(items chunks[item], oldest uint64, expire func(slot uint32)) {
	if oldest <= w.oldest {
		return
	}
	top := highest(oldest ^ w.oldest)
	for level := range top {
		w.expire(items, level, buckets, expire)
	}
	w.expire(items, top, int(digit(oldest, top)), expire)
	w.oldest = oldest
	if top == 0 {
		return
	}
	for head := w.take(top, digit(oldest, top)); head != 0; {
		slot := head - 1
		it := items.at(slot)
		head = it.next
		if it.first < oldest {
			expire(slot)
		} else {
			w.insert(items, slot)
		}
	}
}

// expire empties the buckets of a level below end.
func (w *wheel) expire(items chunks[item], level, end int, expire func(slot uint32)) {
	for word := range w.used[level] {
		for w.used[level][word] != 0 {
			bucket := 64*word + bits.TrailingZeros64(w.used[level][word])
			if bucket >= end {
				return
			}
			for head := w.take(level, byte(bucket)); head != 0; { //nolint:gosec // below buckets
				slot := head - 1
				head = items.at(slot).next
				expire(slot)
			}
		}
	}
}
