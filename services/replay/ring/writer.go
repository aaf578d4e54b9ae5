package ring

import (
	"fmt"
	"runtime"
)

// WriteHead writes rows. It may be used from several goroutines; a head for each is faster.
type WriteHead struct {
	ring  *Ring
	fence fence
}

// Writer makes a write head. Close of the ring ends it.
func (r *Ring) Writer() (*WriteHead, error) {
	if err := r.useAsParticipant(); err != nil {
		return nil, err
	}
	r.done()
	r.life.Lock()
	defer r.life.Unlock()
	if r.closed {
		return nil, ErrClosed
	}
	if err := r.mapRows(); err != nil {
		return nil, err
	}
	return &WriteHead{ring: r}, nil
}

// Append writes a batch's rows, each as soon as there is a place for it, and says how many were written. All were, if there is
// no error. The rows' sequence numbers are then the batch's [Batch.Sequences]; they grow, and may have gaps.
//
// It never waits for anybody, and so may be refused: with a [NoRoomError] where areas, or others who are writing, leave no
// place for the batch; with [ErrBatch], [ErrEnded] or [ErrClosed]. A refused row leaves nothing behind.
func (w *WriteHead) Append(b *Batch) (int, error) {
	r := w.ring
	if err := r.use(); err != nil {
		return 0, err
	}
	defer r.done()
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
	places := w.places(b.rows)
	for b.rows > len(b.sequences) {
		sequence, ok := places.next(b.rows - len(b.sequences))
		if !ok {
			return len(b.sequences), w.refused(b)
		}
		w.fill(sequence, b, len(b.sequences))
		w.publish(sequence)
		b.sequences = append(b.sequences, sequence)
	}
	return b.rows, nil
}

// refused counts a refused write and says why it was.
func (w *WriteHead) refused(b *Batch) error {
	r := w.ring
	r.counter(counterRefused).Add(1)
	err := &NoRoomError{
		Rows: b.rows, Written: len(b.sequences), Capacity: r.head.layout.Capacity, Held: r.heldRows(), Holders: r.holders(),
	}
	return fmt.Errorf("append to ring: %w", err)
}

// claim makes the row of a position the head's own, or leaves it as it is.
func (w *WriteHead) claim(sequence uint64) bool {
	r := w.ring
	slot := sequence % r.head.layout.Capacity
	at := r.wordAt(r.rows, slot)
	old := word(at.Load())
	if old.begun() > sequence {
		return false // somebody a round ahead has been here
	}
	abandoned := old&writing != 0
	if abandoned && !r.dead(old.participant()) {
		return false
	}
	mine := writingWord(sequence, r.self)
	if !at.CompareAndSwap(uint64(old), uint64(mine)) {
		return false
	}
	w.fence.full()
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

// publish lets readers have a claimed row.
func (w *WriteHead) publish(sequence uint64) {
	r := w.ring
	mine := writingWord(sequence, r.self)
	r.wordAt(r.rows, sequence%r.head.layout.Capacity).Store(uint64(mine.published()))
}

// places gives a writer positions whose rows it has claimed.
type places struct {
	head *WriteHead
	// next positions to try, taken from the ring.
	from, to uint64
	// left is how many rows may still be passed by.
	left uint64
}

// patience is how many rows a writer passes by, beyond two rounds, before it gives up: for small rings with many writers.
const patience = 1 << 14

func (w *WriteHead) places(rows int) places {
	return places{head: w, left: 2*w.ring.head.layout.Capacity + uint64(rows) + patience} //nolint:gosec // not negative
}

// next claims a row. wanted is how many are still to be written.
func (p *places) next(wanted int) (uint64, bool) {
	for {
		for p.from < p.to {
			sequence := p.from
			p.from++
			if p.head.claim(sequence) {
				return sequence, true
			}
			if !p.pass(1) {
				return 0, false
			}
			runtime.Gosched()
		}
		if !p.take(uint64(wanted)) { //nolint:gosec // positive
			return 0, false
		}
	}
}

// pass counts rows that the writer went around.
func (p *places) pass(rows uint64) bool {
	p.head.ring.counter(counterSkipped).Add(rows)
	ok := rows <= p.left
	p.left -= min(rows, p.left)
	return ok
}

// take takes positions from the ring: not more than are wanted, and only as far as the next area. Areas it jumps over.
func (p *places) take(wanted uint64) bool {
	r := p.head.ring
	position := r.counter(counterHead)
	for ; p.left > 0; p.left-- {
		head := position.Load()
		if head > maxSequence-wanted-r.head.layout.Capacity {
			return false
		}
		blocked, free := r.ahead(head % r.head.layout.Capacity)
		if blocked > 0 {
			if position.CompareAndSwap(head, head+blocked) && !p.pass(blocked) {
				return false
			}
			continue
		}
		if n := min(wanted, free); position.CompareAndSwap(head, head+n) {
			p.from, p.to = head, head+n
			return true
		}
	}
	return false
}
