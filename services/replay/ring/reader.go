package ring

import (
	"fmt"
	"math/rand/v2"
	"slices"
)

// ReadHead reads rows. It may be used from several goroutines; a head for each is faster.
type ReadHead struct {
	ring  *Ring
	fence fence
}

// Reader makes a read head. Close of the ring ends it.
func (r *Ring) Reader() (*ReadHead, error) {
	if err := r.use(); err != nil {
		return nil, err
	}
	r.done()
	return &ReadHead{ring: r}, nil
}

// sampleTries is how many rows are drawn for one before the readable ones are listed. It is only needed where most can't be read.
const sampleTries = 64

// Sample fills a batch with n rows, each drawn from all readable ones with the same probability, whatever was drawn before.
// [ErrEmpty] says that there are none.
func (h *ReadHead) Sample(rng *rand.Rand, n int, into *Batch) error {
	r := h.ring
	if err := h.begin(n, into); err != nil {
		return err
	}
	defer r.done()
	for i := range n {
		if !h.draw(rng, into, i) {
			return h.cut(into, i)
		}
	}
	return nil
}

// draw copies one random row.
func (h *ReadHead) draw(rng *rand.Rand, into *Batch, i int) bool {
	begun := min(h.ring.counter(counterHead).Load(), h.ring.head.layout.Capacity)
	if begun == 0 {
		return false
	}
	for range sampleTries {
		if h.copyRow(rng.Uint64N(begun), into, i) {
			return true
		}
	}
	for range sampleTries {
		slots := h.ring.readableSlots()
		if len(slots) == 0 {
			return false
		}
		if h.copyRow(slots[rng.IntN(len(slots))], into, i) {
			return true
		}
	}
	return false
}

func (r *Ring) readableSlots() []uint64 {
	var slots []uint64
	for slot := range r.head.layout.Capacity {
		if word(r.wordAt(r.all, slot).Load()).readable() {
			slots = append(slots, slot)
		}
	}
	return slots
}

// newestTries is how often Newest looks for newer rows in place of those that were overwritten under its hands.
const newestTries = 4

// Newest fills a batch with the newest n rows, oldest of them first: fewer where there are fewer. [ErrEmpty] says that there
// are none. Rows that are overwritten while they are being read are replaced by newer ones.
func (h *ReadHead) Newest(n int, into *Batch) error {
	r := h.ring
	if err := h.begin(n, into); err != nil {
		return err
	}
	defer r.done()
	rows := 0
	var done uint64
	for range newestTries {
		ranges, _ := r.newest(uint64(n - rows)) //nolint:gosec // not negative
		for _, piece := range slices.Backward(ranges) {
			for p := max(piece.from, done); p < piece.to; p++ {
				slot := p % r.head.layout.Capacity
				if word(r.wordAt(r.all, slot).Load()).holds(p) && h.copyRow(slot, into, rows) {
					rows++
				}
			}
			done = max(done, piece.to)
		}
		if rows == n {
			break
		}
	}
	if rows == 0 && n > 0 {
		return h.cut(into, 0)
	}
	sequences := into.sequences
	if err := into.Resize(rows); err != nil {
		return err
	}
	into.sequences = sequences
	return nil
}

// begin prepares a batch for n rows, and the ring for being read.
func (h *ReadHead) begin(n int, into *Batch) error {
	r := h.ring
	if err := r.use(); err != nil {
		return err
	}
	err := h.check(n, into)
	if err != nil {
		r.done()
	}
	return err
}

func (h *ReadHead) check(n int, into *Batch) error {
	if h.ring.ended() {
		return ErrEnded
	}
	if !h.ring.head.layout.SameRows(into.layout) {
		return fmt.Errorf("%w: its columns are %v, the ring's %v", ErrBatch, into.layout.Columns, h.ring.head.layout.Columns)
	}
	return into.Resize(n)
}

// cut leaves a batch with the rows that it has.
func (h *ReadHead) cut(into *Batch, rows int) error {
	sequences := into.sequences[:rows]
	if err := into.Resize(rows); err != nil {
		return err
	}
	into.sequences = sequences
	return ErrEmpty
}

// copyRow copies a row into a batch, if it is whole before and after.
func (h *ReadHead) copyRow(slot uint64, into *Batch, i int) bool {
	r := h.ring
	at := r.wordAt(r.all, slot)
	before := word(at.Load())
	if !before.readable() {
		return false
	}
	for c, column := range r.head.geometry.columns {
		copy(into.row(c, i), r.all[column.offset+slot*column.size:][:column.size])
	}
	h.fence.full()
	if after := word(at.Load()); after != before && guarded {
		return false
	}
	into.sequences = append(into.sequences, before.sequence())
	return true
}
