package ring

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"unsafe" //nolint:depguard // addresses for preloadLines
)

// ReadHead reads rows. It is safe for concurrent use; a head for each goroutine is faster.
type ReadHead struct {
	ring  *Ring
	fence fence
}

// Reader returns a read head. It becomes invalid when the ring is closed.
func (r *Ring) Reader() (*ReadHead, error) {
	if err := r.pin(); err != nil {
		return nil, err
	}
	r.unpin()
	return &ReadHead{ring: r}, nil
}

// sampleTries is how many random slots are tried before the blocks' summaries are used. They are
// only needed if most rows are unreadable.
const sampleTries = 64

// Sample fills a batch with n rows. Each is drawn independently and uniformly from all readable
// rows. It returns [ErrEmpty] if there are none, and the context's error if it ends first: then the
// batch has the rows drawn before.
func (h *ReadHead) Sample(ctx context.Context, rng *rand.Rand, n int, into *Batch) error {
	r := h.ring
	if err := h.prepare(n, into); err != nil {
		return err
	}
	defer r.unpin()
	var drawn [drawnAhead]draw
	var c census
	for i := range n {
		ahead := i % drawnAhead
		if ahead == 0 {
			if ctx.Err() != nil {
				return h.sampled(ctx, into, i)
			}
			h.draw(rng, drawn[:min(drawnAhead, n-i)])
		}
		if c == nil && (h.copyDrawn(drawn[ahead], into, i) || h.sampleAny(rng, into, i)) {
			continue
		}
		if c == nil {
			c = r.census()
		}
		if ctx.Err() != nil || !h.sampleFew(ctx, rng, c, into, i) {
			return h.sampled(ctx, into, i)
		}
	}
	return nil
}

// sampled cuts a batch to the rows that were drawn, and returns why there are no more.
func (h *ReadHead) sampled(ctx context.Context, into *Batch, rows int) error {
	if err := ctx.Err(); err != nil {
		return h.truncate(into, rows, fmt.Errorf("sample rows of the ring: after %d: %w", rows, err))
	}
	return h.truncate(into, rows, ErrEmpty)
}

// drawnAhead is how many rows Sample draws before it copies the first of them, so that the
// processor loads their words at the same time: each usually is in a cache line of its own, that no
// cache has.
const drawnAhead = 16

// draw is a random row, and its word.
type draw struct {
	slot uint64
	word word
}

// draw draws rows without knowledge of which are readable.
func (h *ReadHead) draw(rng *rand.Rand, into []draw) {
	r := h.ring
	begun := min(r.counter(counterHead).Load(), r.head.layout.Capacity)
	for i := range into {
		if into[i] = (draw{}); begun > 0 {
			into[i].slot = rng.Uint64N(begun)
			into[i].word = word(r.wordAt(r.all, into[i].slot).Load())
		}
	}
	h.touch(into)
}

// touch reads a byte of each column of drawn rows, for the same reason: their pages are looked up
// at the same time.
//
//go:noinline
func (h *ReadHead) touch(drawn []draw) (sum byte) { //nolint:unparam // so that the loads are not removed
	for _, c := range h.ring.head.geometry.columns {
		for _, d := range drawn {
			sum += h.ring.all[c.offset+d.slot*c.size]
		}
	}
	return sum
}

const (
	// preloaded is how many rows ahead of the one that is copied are loaded. Those of three rows
	// of 1 KiB are more lines than a processor can wait for at once.
	preloaded = 2
	// maxPreload is the most of a row that is loaded, per column, in bytes: behind it the processor
	// has noticed that lines are read one after the other.
	maxPreload = 2 << 10
)

// preload makes the processor load a row, while others are copied.
func (h *ReadHead) preload(slot uint64) {
	for i := range h.ring.head.geometry.columns {
		c := &h.ring.head.geometry.columns[i]
		lines := (min(c.size, maxPreload) + cacheLine - 1) / cacheLine
		preloadLines(unsafe.Pointer(&h.ring.all[c.offset+slot*c.size]), int(lines)) //nolint:gosec // in bounds
	}
}

// sampleAny tries to copy a random row, without knowledge of which rows are readable.
func (h *ReadHead) sampleAny(rng *rand.Rand, into *Batch, i int) bool {
	begun := min(h.ring.counter(counterHead).Load(), h.ring.head.layout.Capacity)
	if begun == 0 {
		return false
	}
	for range sampleTries {
		if h.copyRow(rng.Uint64N(begun), into, i) {
			return true
		}
	}
	return false
}

// sampleFew copies a random row of a ring of which few rows are readable. As a last resort it lists
// them. It returns false if there are none, or if the context has ended.
func (h *ReadHead) sampleFew(ctx context.Context, rng *rand.Rand, c census, into *Batch, i int) bool {
	if c.total() == 0 {
		return false
	}
	for range sampleTries {
		if slot, ok := c.find(h.ring, rng.Uint64N(c.total())); ok && h.copyRow(slot, into, i) {
			return true
		}
	}
	for range sampleTries {
		if ctx.Err() != nil {
			return false
		}
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

const (
	// newestTries is how often Newest searches for newer rows to replace those overwritten
	// meanwhile.
	newestTries = 4
	// emptyTries is how often Newest and Hold search if they found none, though there are some:
	// writers overwrote all rows since they began to look for the newest.
	emptyTries = 16
)

// Newest fills a batch with the newest n rows, oldest first, or with fewer if fewer are readable.
// It returns [ErrEmpty] if there are none, and the context's error if it ends first. Rows that are
// overwritten while they are being read are replaced by newer ones.
func (h *ReadHead) Newest(ctx context.Context, n int, into *Batch) error {
	return h.NewestBefore(ctx, maxSequence, n, into)
}

// NewestBefore is Newest for the rows with sequence numbers below a limit.
func (h *ReadHead) NewestBefore(ctx context.Context, before uint64, n int, into *Batch) error {
	r := h.ring
	if n > 0 {
		n = int(min(uint64(n), r.head.layout.Capacity)) //nolint:gosec // not more than n
	}
	if err := h.prepare(n, into); err != nil {
		return err
	}
	defer r.unpin()
	rows := 0
	var done uint64
	for try := 0; try < newestTries || try < emptyTries && rows == 0; try++ {
		if rows == 0 {
			done = 0
		}
		ranges, found, err := r.newest(ctx, uint64(n-rows), before)
		copied := uint64(0)
		for _, piece := range slices.Backward(ranges) {
			for p := max(piece.from, done); p < piece.to && err == nil; p++ {
				if p%drawnAhead == 0 {
					err = ctx.Err()
				}
				slot := p % r.head.layout.Capacity
				w := word(r.wordAt(r.all, slot).Load())
				if w.holds(p) && h.copyDrawn(draw{slot, w}, into, rows) { // of p, and not of a later round
					rows++
					copied++
				}
			}
			done = max(done, piece.to)
		}
		if err != nil {
			return h.truncate(into, rows, fmt.Errorf("read the newest %d rows of the ring: %w", n, err))
		}
		overtaken := rows == 0 && before == maxSequence && r.filledRows() > 0
		if rows == n || copied == found && !overtaken {
			break
		}
	}
	if rows == 0 && n > 0 {
		return h.truncate(into, 0, ErrEmpty)
	}
	return h.truncate(into, rows, nil)
}

// prepare sizes a batch for n rows and pins the ring.
func (h *ReadHead) prepare(n int, into *Batch) error {
	r := h.ring
	if err := r.pin(); err != nil {
		return err
	}
	err := h.check(n, into)
	if err != nil {
		r.unpin()
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

// truncate cuts a batch to the rows that were read, and returns the reason.
func (h *ReadHead) truncate(into *Batch, rows int, reason error) error {
	sequences := into.sequences[:rows]
	if err := into.Resize(rows); err != nil {
		return err
	}
	into.sequences = sequences
	return reason
}

// copyRow copies a row into a batch. It returns false if the row was incomplete, or was overwritten
// meanwhile.
func (h *ReadHead) copyRow(slot uint64, into *Batch, i int) bool {
	return h.copyDrawn(draw{slot, word(h.ring.wordAt(h.ring.all, slot).Load())}, into, i)
}

// copyDrawn is copyRow of a row whose word was loaded before.
func (h *ReadHead) copyDrawn(d draw, into *Batch, i int) bool {
	r := h.ring
	slot, before := d.slot, d.word
	at := r.wordAt(r.all, slot)
	if !before.readable() {
		return false
	}
	for c, column := range r.head.geometry.columns {
		copy(into.row(c, i), r.all[column.offset+slot*column.size:][:column.size])
	}
	h.fence.barrier()
	if after := word(at.Load()); after != before {
		return false
	}
	into.sequences = append(into.sequences, before.sequence())
	return true
}
