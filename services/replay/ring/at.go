package ring

import (
	"context"
	"fmt"
	"math"
)

// NoRow is a sequence number that no row has.
const NoRow = math.MaxUint64

// At fills a batch with the rows that have the given sequence numbers, in their order. It returns
// the indexes of the rows that can't be read any more, in increasing order: they were overwritten,
// are being overwritten, or do not exist. These rows of the batch are zero, and their sequence
// numbers are [NoRow]. So are those whose number is NoRow, which are not reported. At returns the
// context's error if that ends first.
//
// Each row is checked after it was copied: it is never torn, nor that of another number.
func (h *ReadHead) At(ctx context.Context, sequences []uint64, into *Batch) (lost []int, err error) {
	r := h.ring
	if err := h.prepare(len(sequences), into); err != nil {
		return nil, err
	}
	defer r.unpin()
	capacity := r.head.layout.Capacity
	var drawn [drawnAhead]draw
	for i, sequence := range sequences {
		ahead := i % drawnAhead
		if ahead == 0 {
			if err := ctx.Err(); err != nil {
				return nil, h.truncate(into, i, fmt.Errorf("read %d rows of the ring: after %d: %w", len(sequences), i, err))
			}
			some := sequences[i:min(i+drawnAhead, len(sequences))]
			for k, s := range some {
				drawn[k].slot = s % capacity
				drawn[k].word = word(r.wordAt(r.all, drawn[k].slot).Load())
			}
			h.touch(drawn[:len(some)])
		}
		if sequence <= maxSequence && drawn[ahead].word.holds(sequence) && h.copyDrawn(drawn[ahead], into, i) {
			continue
		}
		for c := range into.columns {
			clear(into.row(c, i))
		}
		into.sequences = append(into.sequences, NoRow)
		if sequence != NoRow {
			lost = append(lost, i)
		}
	}
	return lost, nil
}

// Oldest returns the ring's oldest living sequence number: it is lower than that of the newest row
// by the capacity, less one. Rows with lower numbers were overwritten or are the next to be; some
// may be readable still, because writers skipped them. It is 0 while no row was overwritten.
//
// Oldest copies no rows. It usually visits one word. It returns the context's error if that ends
// first.
func (r *Ring) Oldest(ctx context.Context) (uint64, error) {
	if err := r.pin(); err != nil {
		return 0, err
	}
	defer r.unpin()
	if r.ended() {
		return 0, ErrEnded
	}
	newest, found, err := r.newest(ctx, 1, maxSequence)
	if err != nil {
		return 0, fmt.Errorf("find the oldest row of the ring: %w", err)
	}
	if found == 0 {
		return 0, nil
	}
	next := newest[0].to
	return next - min(next, r.head.layout.Capacity), nil
}
