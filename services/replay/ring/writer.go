package ring

import (
	"fmt"
	"runtime"
)

// WriteHead writes rows. It is safe for concurrent use; a head for each goroutine is faster.
type WriteHead struct {
	ring  *Ring
	fence fence
}

// Writer returns a write head. It becomes invalid when the ring is closed.
func (r *Ring) Writer() (*WriteHead, error) {
	if err := r.pinAsParticipant(); err != nil {
		return nil, err
	}
	r.unpin()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, ErrClosed
	}
	if err := r.mapRows(); err != nil {
		return nil, err
	}
	return &WriteHead{ring: r}, nil
}

// Append writes a batch's rows, publishing each as soon as it is written, and returns how many were
// written: all of them if the error is nil. [Batch.Sequences] then returns their sequence numbers,
// which increase and may have gaps.
//
// Append never blocks. It returns a [NoRoomError] if areas or other writers leave no room for the
// batch, and [ErrBatch], [ErrEnded] or [ErrClosed] otherwise. A row that was not written leaves no
// trace.
func (w *WriteHead) Append(b *Batch) (int, error) {
	r := w.ring
	if err := r.pin(); err != nil {
		return 0, err
	}
	defer r.unpin()
	b.sequences = b.sequences[:0]
	if r.ended() {
		return 0, ErrEnded
	}
	if !r.head.layout.SameRows(b.layout) {
		return 0, fmt.Errorf("%w: its columns are %v, the ring's %v", ErrBatch, b.layout.Columns, r.head.layout.Columns)
	}
	if uint64(b.rows) > r.head.layout.Capacity { //nolint:gosec // not negative
		return 0, fmt.Errorf("%w: it has %d rows, and the ring %d", ErrBatch, b.rows, r.head.layout.Capacity)
	}
	if held := r.heldRows(); held > 0 && held+uint64(b.rows) > r.head.layout.Capacity { //nolint:gosec // not negative
		return 0, w.refused(b)
	}
	positions := w.allocate(b.rows)
	for b.rows > len(b.sequences) {
		sequence, ok := positions.next(b.rows - len(b.sequences))
		if !ok {
			return len(b.sequences), w.refused(b)
		}
		w.fill(sequence, b, len(b.sequences))
		w.publish(sequence)
		b.sequences = append(b.sequences, sequence)
	}
	return b.rows, nil
}

// refused counts a failed write and returns its error.
func (w *WriteHead) refused(b *Batch) error {
	r := w.ring
	r.counter(counterRefused).Add(1)
	err := &NoRoomError{
		Rows: b.rows, Written: len(b.sequences), Capacity: r.head.layout.Capacity, Held: r.heldRows(), Holders: r.holders(),
	}
	return fmt.Errorf("append to ring: %w", err)
}

// claim locks the row of a position for this head, or leaves the row unchanged and returns false.
func (w *WriteHead) claim(sequence uint64) bool {
	r := w.ring
	slot := sequence % r.head.layout.Capacity
	at := r.wordAt(r.rows, slot)
	old := word(at.Load())
	if old.sequencePlusOne() > sequence {
		return false // a writer one round ahead was here first
	}
	abandoned := old&writing != 0
	if abandoned && !r.knownDead(old.participant()) {
		return false
	}
	mine := writingWord(sequence, r.self)
	if !at.CompareAndSwap(uint64(old), uint64(mine)) {
		return false
	}
	w.fence.barrier()
	if _, held := r.inArea(slot); held {
		at.CompareAndSwap(uint64(mine), uint64(old))
		return false
	}
	if abandoned {
		r.counter(counterTakenOver).Add(1)
	}
	return true
}

// fill copies a row of a batch into a claimed row.
func (w *WriteHead) fill(sequence uint64, b *Batch, row int) {
	slot := sequence % w.ring.head.layout.Capacity
	for i, c := range w.ring.head.geometry.columns {
		copy(w.ring.rows[c.offset+slot*c.size:][:c.size], b.row(i, row))
	}
}

// publish makes a claimed row readable.
func (w *WriteHead) publish(sequence uint64) {
	r := w.ring
	mine := writingWord(sequence, r.self)
	r.wordAt(r.rows, sequence%r.head.layout.Capacity).Store(uint64(mine.published()))
}

// allocator allocates positions to a writer and claims their rows.
type allocator struct {
	head *WriteHead
	// [from, to) are allocated positions not tried yet.
	from, to uint64
	// budget is how many more rows may be skipped.
	budget uint64
}

// skipBudget is how many rows a writer skips, beyond two rounds, before it gives up. It matters to
// small rings with many writers.
const skipBudget = 1 << 14

func (w *WriteHead) allocate(rows int) allocator {
	return allocator{head: w, budget: 2*w.ring.head.layout.Capacity + uint64(rows) + skipBudget} //nolint:gosec // not negative
}

// next claims a row. wanted is how many rows are still to be written.
func (a *allocator) next(wanted int) (uint64, bool) {
	for {
		for a.from < a.to {
			sequence := a.from
			a.from++
			if a.head.claim(sequence) {
				return sequence, true
			}
			if !a.skip(1) {
				return 0, false
			}
			runtime.Gosched()
		}
		if !a.reserve(uint64(wanted)) { //nolint:gosec // positive
			return 0, false
		}
	}
}

// skip counts skipped rows. It returns false once the budget is exceeded.
func (a *allocator) skip(rows uint64) bool {
	a.head.ring.counter(counterSkipped).Add(rows)
	ok := rows <= a.budget
	a.budget -= min(rows, a.budget)
	return ok
}

// reserve takes positions from the ring: at most as many as are wanted, and none beyond the next
// area. It skips areas.
func (a *allocator) reserve(wanted uint64) bool {
	r := a.head.ring
	position := r.counter(counterHead)
	for ; a.budget > 0; a.budget-- {
		head := position.Load()
		if head > maxSequence-wanted-r.head.layout.Capacity {
			return false
		}
		blocked, free := r.ahead(head % r.head.layout.Capacity)
		if blocked > 0 {
			if position.CompareAndSwap(head, head+blocked) && !a.skip(blocked) {
				return false
			}
			continue
		}
		if n := min(wanted, free); position.CompareAndSwap(head, head+n) {
			a.from, a.to = head, head+n
			return true
		}
	}
	return false
}
