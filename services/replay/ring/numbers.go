package ring

import (
	"context"
	"fmt"
)

// Oldest returns the ring's oldest living sequence number: it is lower than that of the newest row
// by the capacity, less one. Rows with lower numbers were overwritten or are the next to be; some
// may be readable still, because writers skipped them. It is 0 while no row was overwritten.
//
// Oldest copies no rows. It usually visits one word. It returns the context's error if that ends
// first.
func (r *Ring) Oldest(ctx context.Context) (uint64, error) {
	next, err := r.Next(ctx)
	if err != nil {
		return 0, err
	}
	return next - min(next, r.head.layout.Capacity), nil
}

// Next returns one more than the sequence number of the newest complete row; 0 if there is none. It
// costs as much as Oldest.
func (r *Ring) Next(ctx context.Context) (uint64, error) {
	if err := r.pin(); err != nil {
		return 0, err
	}
	defer r.unpin()
	if r.ended() {
		return 0, ErrEnded
	}
	newest, found, err := r.newest(ctx, 1, maxSequence)
	if err != nil {
		return 0, fmt.Errorf("find the newest row of the ring: %w", err)
	}
	if found == 0 {
		return 0, nil
	}
	return newest[0].to, nil
}

// Between fills a batch with the complete rows of the sequence numbers [from, to), in increasing
// order, of which there may be at most as many as the ring's capacity. It leaves out rows that are
// being written or do not exist, and those that were overwritten or are being overwritten, whose
// number it returns. It returns the context's error if that ends first.
func (h *ReadHead) Between(ctx context.Context, from, to uint64, into *Batch) (overwritten uint64, err error) {
	r := h.ring
	if from > to || to > maxSequence || to-from > r.head.layout.Capacity {
		return 0, fmt.Errorf("%w: rows %d to %d", ErrBatch, from, to)
	}
	if err := h.prepare(int(to-from), into); err != nil {
		return 0, err
	}
	defer r.unpin()
	rows := 0
	for s := from; s < to; s++ {
		if s%drawnAhead == 0 {
			if err := ctx.Err(); err != nil {
				return 0, h.truncate(into, rows, fmt.Errorf("read rows %d to %d of the ring: at %d: %w", from, to, s, err))
			}
		}
		slot := s % r.head.layout.Capacity
		w := word(r.wordAt(r.all, slot).Load())
		switch {
		case w.holds(s) && h.copyDrawn(draw{slot, w}, into, rows):
			rows++
		case word(r.wordAt(r.all, slot).Load()).sequencePlusOne() > s+1:
			overwritten++
		}
	}
	return overwritten, h.truncate(into, rows, nil)
}
