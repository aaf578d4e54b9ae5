package ring

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"time"
)

// A change overwrites columns of a row that is complete. The changer makes the row's word odd, with
// the row's sequence number and its own participant; checks that no area holds the row, and
// restores the word if one does; copies the columns; and stores an even word that counts one more
// change (word.go). So readers, areas and writers treat the row as one that is being written: a
// reader discards a copy that a change has crossed, an area never has the row of a change in
// progress, and a writer skips the row. If the changer is killed in between, the row is lost, like
// that of a killed writer.
//
// The check of areas needs no epoch: it comes after the word was made odd. Either it sees the area,
// or the area's holder finds the word odd.

// ErrHeld means that rows could not be changed because they are held: see [HeldError].
var ErrHeld = errors.New("rows are held")

// ErrChanged means that a row was changed as often as possible: 4,095 times.
var ErrChanged = errors.New("the row was changed too often")

// RowChange overwrites columns of a row.
type RowChange struct {
	// Sequence is the row's sequence number.
	Sequence uint64
	// Row is the row of a batch that has the new contents.
	Row int
	// Columns are the indexes of the columns that are overwritten.
	Columns []int
}

// HeldError explains why rows could not be changed. It matches [ErrHeld], and the error of the
// context that ended the wait.
type HeldError struct {
	// Rows is the number of rows to change, Done how many of them were: the first ones.
	Rows, Done int
	// Sequence is the number of the row in the way.
	Sequence uint64
	// Holders hold areas, the oldest first; Writers are the ids of processes that began to write or
	// change the row and have not finished.
	Holders []Holder
	Writers []int
	// Waited is how long the change waited.
	Waited time.Duration
	// Cause is the error of the context that ended the wait, or nil if the change did not wait.
	Cause error
}

// Error describes the change and what is in its way.
func (e *HeldError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "row %d is held", e.Sequence)
	if e.Cause != nil {
		fmt.Fprintf(&b, " after waiting %v (%v)", rounded(e.Waited), e.Cause)
	}
	fmt.Fprintf(&b, ": %d of %d rows changed", e.Done, e.Rows)
	if len(e.Writers) > 0 {
		fmt.Fprintf(&b, "; processes %v have begun to change it and not finished", e.Writers)
	} else {
		fmt.Fprintf(&b, "; of those that hold areas, %s", holderText(e.Holders))
	}
	b.WriteString(": wait, or release areas sooner")
	return b.String()
}

// Is reports whether target is [ErrHeld].
func (*HeldError) Is(target error) bool { return target == ErrHeld }

// Unwrap returns the error of the context that ended the wait.
func (e *HeldError) Unwrap() error { return e.Cause }

// Change overwrites columns of existing rows by those of a batch, row by row: no reader sees a part
// of a row's change. It returns the indexes of the changes whose rows do not exist any more, in
// increasing order; they change nothing.
//
// A row that an area holds does not change. Change waits until it is released, or until the context
// ends: the error then is a [HeldError] that says which processes hold areas and how many of the
// rows were changed, and that also matches the context's error. A row can be changed 4,095 times;
// the next change is [ErrChanged]. The other errors are [ErrBatch], [ErrEnded], [ErrClosed], and
// [ErrOrphaned] if the ring's creator dies while Change waits. lost and the error are independent.
func (w *WriteHead) Change(ctx context.Context, changes []RowChange, from *Batch) (lost []int, err error) {
	return w.change(ctx, changes, from, true)
}

// TryChange is Change, except that it does not wait.
func (w *WriteHead) TryChange(changes []RowChange, from *Batch) (lost []int, err error) {
	return w.change(context.Background(), changes, from, false)
}

func (w *WriteHead) change(ctx context.Context, changes []RowChange, from *Batch, wait bool) (lost []int, err error) {
	if err := w.checkChanges(changes, from); err != nil {
		return nil, err
	}
	var waiting *poll // nil unless a row is in the way
	for done := 0; ; {
		if err := ctx.Err(); err != nil && waiting == nil {
			return lost, fmt.Errorf("change %d rows of the ring: after %d: %w", len(changes), done, err)
		}
		some := changes[done:min(done+maxChangesPinned, len(changes))]
		n, more, holder, err := w.changeSome(some, from)
		for _, i := range more {
			lost = append(lost, done+i)
		}
		if n > 0 {
			waiting = nil
		}
		if done += n; done == len(changes) || err != nil {
			return lost, err
		}
		if n == len(some) {
			continue
		}
		if waiting == nil {
			waiting = w.ring.poll()
		}
		if !wait || ctx.Err() != nil {
			return lost, w.held(changes, done, holder, waiting.waited(), ctx.Err())
		}
		if err := waiting.next(ctx); err != nil {
			return lost, fmt.Errorf("change rows of the ring, after waiting %v: %w", waiting.waited().Round(time.Millisecond), err)
		}
	}
}

func (w *WriteHead) checkChanges(changes []RowChange, from *Batch) error {
	layout := w.ring.head.layout
	if !layout.SameRows(from.layout) {
		return fmt.Errorf("%w: its columns are %v, the ring's %v", ErrBatch, from.layout.Columns, layout.Columns)
	}
	for i, c := range changes {
		if c.Row < 0 || c.Row >= from.rows {
			return fmt.Errorf("%w: change %d has row %d of the batch's %d", ErrBatch, i, c.Row, from.rows)
		}
		for _, column := range c.Columns {
			if column < 0 || column >= len(layout.Columns) {
				return fmt.Errorf("%w: change %d has column %d; there are %v", ErrBatch, i, column, layout.names())
			}
		}
	}
	return nil
}

// maxChangesPinned is how many rows are changed before the context is checked, and a ring that is
// being closed gets its turn.
const maxChangesPinned = 256

// changeSome changes rows until one is in the way. It returns how many it has dealt with, which of
// these are lost, and the participant that is changing the next one, or noParticipant.
func (w *WriteHead) changeSome(changes []RowChange, from *Batch) (done int, lost []int, holder int, err error) {
	r := w.ring
	if err := r.pin(); err != nil {
		return 0, nil, noParticipant, err
	}
	defer r.unpin()
	if r.ended() {
		return 0, nil, noParticipant, ErrEnded
	}
	for i := range changes {
		switch result, holder := w.changeRow(&changes[i], from); result {
		case rowChanged:
		case rowLost:
			lost = append(lost, i)
		case rowHeld:
			return i, lost, holder, nil
		case rowWorn:
			return i, lost, noParticipant, fmt.Errorf("change row %d of the ring: %w: %d times", changes[i].Sequence, ErrChanged, maxChanges)
		}
	}
	return len(changes), lost, noParticipant, nil
}

type changeResult int

const (
	rowChanged changeResult = iota
	rowLost
	rowHeld
	rowWorn
)

// changeRow changes a row. If it is held by another change or write, it returns the participant.
func (w *WriteHead) changeRow(c *RowChange, from *Batch) (changeResult, int) {
	r := w.ring
	if c.Sequence > maxSequence {
		return rowLost, noParticipant
	}
	slot := c.Sequence % r.head.layout.Capacity
	at := r.wordAt(r.rows, slot)
	for {
		old := word(at.Load())
		switch {
		case old.unfinished(c.Sequence):
			if r.knownDead(old.participant()) {
				return rowLost, noParticipant
			}
			return rowHeld, old.participant()
		case !old.holds(c.Sequence):
			return rowLost, noParticipant
		case old.changes() == maxChanges:
			return rowWorn, noParticipant
		case len(c.Columns) == 0:
			return rowChanged, noParticipant
		}
		if !at.CompareAndSwap(uint64(old), uint64(writingWord(c.Sequence, r.self))) {
			runtime.Gosched()
			continue
		}
		w.fence.barrier()
		if r.inArea(slot) {
			at.Store(uint64(old))
			return rowHeld, noParticipant
		}
		for _, i := range c.Columns {
			column := r.head.geometry.columns[i]
			copy(r.rows[column.offset+slot*column.size:][:column.size], from.row(i, c.Row))
		}
		at.Store(uint64(old.changed()))
		return rowChanged, noParticipant
	}
}

// held returns the error of rows that are in the way of a change.
func (w *WriteHead) held(changes []RowChange, done, holder int, waited time.Duration, cause error) error {
	r := w.ring
	if err := r.pin(); err != nil {
		return err
	}
	defer r.unpin()
	err := &HeldError{
		Rows: len(changes), Done: done, Sequence: changes[done].Sequence, Holders: r.holders(), Waited: waited, Cause: cause,
	}
	if pid := r.processID(holder); pid != 0 && !slices.Contains(err.Writers, pid) {
		err.Writers = append(err.Writers, pid)
	}
	return fmt.Errorf("change rows of the ring: %w", err)
}
