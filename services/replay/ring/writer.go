package ring

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"sync/atomic"
	"time"
)

// WriteHead writes rows. It is safe for concurrent use; a head for each goroutine is faster.
type WriteHead struct {
	ring  *Ring
	fence fence
	// surveyed is what this head last found out about areas; see area.go.
	surveyed atomic.Pointer[survey]
}

// Writer returns a write head. It becomes invalid when the ring is closed.
func (r *Ring) Writer() (*WriteHead, error) {
	if err := r.pinAsParticipant(); err != nil {
		return nil, err
	}
	r.unpin()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed.Load() {
		return nil, ErrClosed
	}
	if err := r.mapRows(); err != nil {
		return nil, err
	}
	return &WriteHead{ring: r}, nil
}

// costlyWait is how often Append tries again where an attempt uses up sequence numbers, unless the
// row in its way changes.
const costlyWait = 250 * time.Millisecond

// Append writes a batch's rows, publishing each as soon as it is written, and returns how many were
// written: all of them if the error is nil. [Batch.Sequences] then returns their sequence numbers,
// which increase and may have gaps. No row of the batch overwrites another one.
//
// Where areas or other writers leave no room for the batch, Append waits until they do, or until
// the context ends. The error then is a [NoRoomError] that says which processes are in the way and
// for how long, and that also matches the context's error. A context that has already ended makes
// Append refuse immediately, as TryAppend does. If the ring's creator dies while Append waits, the
// error is [ErrOrphaned]. Otherwise it is [ErrBatch], [ErrEnded] or [ErrClosed].
//
// A row that was not written leaves no trace. After an error, [Batch.Sequences] has the numbers of
// the rows that were written: the first ones.
func (w *WriteHead) Append(ctx context.Context, b *Batch) (int, error) {
	b.sequences = b.sequences[:0]
	obstacle, err := b.writeBy(w)
	if obstacle != nil {
		err = w.wait(ctx, b, obstacle)
	}
	return len(b.sequences), err
}

// TryAppend is Append, except that it does not wait: it returns a [NoRoomError] if there is no room
// for the batch now.
func (w *WriteHead) TryAppend(b *Batch) (int, error) {
	b.sequences = b.sequences[:0]
	obstacle, err := b.writeBy(w)
	if obstacle != nil {
		err = w.refused(b, obstacle, 0, nil)
	}
	return len(b.sequences), err
}

// pending is a write that may take several attempts: of a [Batch], or of [InPlace].
type pending interface {
	// writeBy makes an attempt. It returns what was in its way if there is no room.
	writeBy(w *WriteHead) (*obstacle, error)
	// progress returns how many rows there are, and how many of them were written.
	progress() (rows, written int)
}

func (b *Batch) progress() (rows, written int) { return b.rows, len(b.sequences) }

// wait tries again until all rows are written.
func (w *WriteHead) wait(ctx context.Context, p pending, obstacle *obstacle) error {
	waiting := w.ring.poll()
	tried := waiting.begin
	for {
		if err := waiting.next(ctx); err != nil {
			return fmt.Errorf("append to ring, after waiting %v for room: %w", waiting.waited().Round(time.Millisecond), err)
		}
		if err := ctx.Err(); err != nil {
			return w.refused(p, obstacle, waiting.waited(), err)
		}
		now := time.Now()
		if obstacle.costly && now.Sub(tried) < costlyWait {
			if changed, err := w.changed(obstacle); err != nil {
				return err
			} else if !changed {
				continue
			}
		}
		tried = now
		next, err := p.writeBy(w)
		if err != nil || next == nil {
			return err
		}
		obstacle = next
	}
}

// changed reports whether the row that was in a writer's way has changed.
func (w *WriteHead) changed(o *obstacle) (bool, error) {
	r := w.ring
	if err := r.pin(); err != nil {
		return false, err
	}
	defer r.unpin()
	return r.ended() || word(r.wordAt(r.all, o.slot).Load()) != o.word, nil
}

// obstacle is why an attempt to write found no room.
type obstacle struct {
	// costly means that the attempt used up sequence numbers, by skipping rows.
	costly bool
	// writers are participants that were writing the rows that it skipped; slot and word are those
	// of the last one.
	writers []int
	slot    uint64
	word    word
}

// maxWriters bounds the writers that an error names.
const maxWriters = 8

// note remembers a row that a writer could not claim.
func (o *obstacle) note(r *Ring, slot uint64) {
	o.costly = true
	seen := word(r.wordAt(r.all, slot).Load())
	if seen&writing == 0 {
		return
	}
	o.slot, o.word = slot, seen
	if p := seen.participant(); p != noParticipant && len(o.writers) < maxWriters && !slices.Contains(o.writers, p) {
		o.writers = append(o.writers, p)
	}
}

// writeBy writes the rows of a batch that have no sequence number yet. It returns what was in its
// way if there is no room.
func (b *Batch) writeBy(w *WriteHead) (*obstacle, error) {
	r := w.ring
	if err := r.pin(); err != nil {
		return nil, err
	}
	defer r.unpin()
	if r.ended() {
		return nil, ErrEnded
	}
	if !r.head.layout.SameRows(b.layout) {
		return nil, fmt.Errorf("%w: its columns are %v, the ring's %v", ErrBatch, b.layout.Columns, r.head.layout.Columns)
	}
	if uint64(b.rows) > r.head.layout.Capacity { //nolint:gosec // not negative
		return nil, fmt.Errorf("%w: it has %d rows, and the ring %d", ErrBatch, b.rows, r.head.layout.Capacity)
	}
	if !w.fits(uint64(b.rows)) { //nolint:gosec // not negative
		return &obstacle{}, nil
	}
	positions := w.allocate(b.rows)
	begin := len(b.sequences)
	defer func() { positions.count(len(b.sequences) - begin) }()
	for b.rows > len(b.sequences) {
		positions.written = b.sequences
		sequence, ok := positions.next(b.rows - len(b.sequences))
		if !ok {
			found := positions.obstacle // a copy, so that the allocator stays on the stack
			return &found, nil
		}
		w.fill(sequence, b, len(b.sequences))
		w.publish(sequence)
		b.sequences = append(b.sequences, sequence)
		if positions.from == positions.to {
			positions.count(len(b.sequences) - begin)
			begin = len(b.sequences)
		}
	}
	return nil, nil //nolint:nilnil // no obstacle, no error
}

// fits reports whether areas leave room for a number of rows. It asks whether their holders are
// alive only if they do not.
func (w *WriteHead) fits(rows uint64) bool {
	r := w.ring
	s := w.surveyed.Load()
	if s == nil || s.epoch != r.epoch() {
		s, _ = r.survey(r.counter(counterHead).Load())
	}
	if s.held == 0 || s.held+rows <= r.head.layout.Capacity {
		return true
	}
	exact := *s
	if exact.held = r.heldRows(); exact.held > 0 && exact.held+rows > r.head.layout.Capacity {
		exact.held = r.heldBy(r.reclaimDead())
	}
	w.surveyed.CompareAndSwap(s, &exact)
	return exact.held == 0 || exact.held+rows <= r.head.layout.Capacity
}

// refused counts a failed write and returns its error.
func (w *WriteHead) refused(p pending, o *obstacle, waited time.Duration, cause error) error {
	r := w.ring
	if err := r.pin(); err != nil {
		return err
	}
	defer r.unpin()
	r.counter(counterRefused).Add(1)
	rows, written := p.progress()
	err := &NoRoomError{
		Rows: rows, Written: written, Capacity: r.head.layout.Capacity, Held: r.heldRows(), Holders: r.holders(),
		Waited: waited, Cause: cause,
	}
	for _, participant := range o.writers {
		if pid := r.processID(participant); pid != 0 && !slices.Contains(err.Writers, pid) {
			err.Writers = append(err.Writers, pid)
		}
	}
	return fmt.Errorf("append to ring: %w", err)
}

// claim locks the row of a position for this head, or leaves the row unchanged and returns false.
// The position was not in an area at the given epoch.
func (w *WriteHead) claim(sequence, epoch uint64) bool {
	old, ok := w.lock(sequence)
	if !ok {
		return false
	}
	w.fence.barrier()
	r := w.ring
	if r.epoch() != epoch && r.inArea(sequence%r.head.layout.Capacity) {
		w.unlock(sequence, old)
		return false
	}
	return true
}

// lock makes the word of a position's row this head's, and returns the word that it replaced. It
// returns false, and changes nothing, if the row is being written or was overwritten. Before the
// row is written to, there must be a barrier, and then a check that no area holds it.
func (w *WriteHead) lock(sequence uint64) (old word, ok bool) {
	return w.lockSlot(sequence, sequence%w.ring.head.layout.Capacity)
}

// lockSlot is lock for a position whose slot is known.
func (w *WriteHead) lockSlot(sequence, slot uint64) (old word, ok bool) {
	r := w.ring
	at := r.wordAt(r.rows, slot)
	old = word(at.Load())
	if old.sequencePlusOne() > sequence {
		return old, false // a writer one round ahead was here first
	}
	abandoned := old&writing != 0
	if abandoned && !r.knownDead(old.participant()) {
		return old, false
	}
	if !old.counted() {
		r.blockFilled(slot >> blockShift).Add(1)
	}
	if !at.CompareAndSwap(uint64(old), uint64(writingWord(sequence, r.self))) {
		if !old.counted() {
			r.blockFilled(slot >> blockShift).Add(^uint64(0))
		}
		return old, false
	}
	if abandoned {
		r.counter(counterTakenOver).Add(1)
	}
	return old, true
}

// unlock restores the word of a row that was locked and not written to. A row that a dead
// participant left stays taken over from it: its index may belong to another one by now.
func (w *WriteHead) unlock(sequence uint64, old word) {
	r := w.ring
	slot := sequence % r.head.layout.Capacity
	if old&writing != 0 {
		old = old.disowned()
	}
	r.wordAt(r.rows, slot).Store(uint64(old))
	if !old.counted() {
		r.blockFilled(slot >> blockShift).Add(^uint64(0))
	}
}

// disown gives up a row that was locked and may have been written to in part.
func (w *WriteHead) disown(sequence uint64) {
	r := w.ring
	slot := sequence % r.head.layout.Capacity
	r.wordAt(r.rows, slot).Store(uint64(writingWord(sequence, noParticipant)))
	r.blockFilled(slot >> blockShift).Add(^uint64(0))
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
	storeRelease(r.wordAt(r.rows, sequence%r.head.layout.Capacity), uint64(mine.published()))
}

// allocator allocates positions to a writer and claims their rows.
type allocator struct {
	head *WriteHead
	// [from, to) are allocated positions not tried yet; none of them was in an area at epoch.
	from, to, epoch uint64
	// budget is how many more rows may be skipped.
	budget uint64
	// written are the sequence numbers that the same batch already has.
	written  []uint64
	obstacle obstacle
}

const (
	// skipBudget is how many rows a writer skips, beyond two rounds, before it gives up. It matters
	// to small rings with many writers.
	skipBudget = 1 << 14
	// maxRun and maxRunBytes bound the positions allocated at once: those that a writer leaves
	// unused when it is killed, and the rows that Written then misses.
	maxRun      = 256
	maxRunBytes = 1 << 20
)

func (w *WriteHead) allocate(rows int) allocator {
	return allocator{head: w, budget: 2*w.ring.head.layout.Capacity + uint64(rows) + skipBudget} //nolint:gosec // not negative
}

// count adds rows to those that were written.
func (a *allocator) count(rows int) {
	if rows > 0 {
		a.head.ring.participantWritten(a.head.ring.self, 0).Add(uint64(rows))
	}
}

// next claims a row. wanted is how many rows are still to be written.
func (a *allocator) next(wanted int) (uint64, bool) {
	r := a.head.ring
	for {
		for a.from < a.to {
			sequence := a.from
			a.from++
			if a.own(sequence) == 0 && a.head.claim(sequence, a.epoch) {
				return sequence, true
			}
			a.obstacle.note(r, sequence%r.head.layout.Capacity)
			if !a.skip(1) {
				return 0, false
			}
			runtime.Gosched()
		}
		if !a.reserve(min(uint64(wanted), r.run)) { //nolint:gosec // positive
			return 0, false
		}
	}
}

// own returns for how many positions from the given one on the rows belong to the batch that is
// being written: the batch has gone once around the ring.
func (a *allocator) own(position uint64) uint64 {
	r := a.head.ring
	capacity := r.head.layout.Capacity
	if len(a.written) == 0 || position < a.written[0]+capacity {
		return 0
	}
	w := word(r.wordAt(r.all, position%capacity).Load())
	if w == 0 {
		return 0
	}
	i, found := slices.BinarySearch(a.written, w.sequence())
	if !found {
		return 0
	}
	last := i
	for last+1 < len(a.written) && a.written[last+1] == a.written[last]+1 {
		last++
	}
	return uint64(last - i + 1) //nolint:gosec // positive
}

// skip counts skipped rows. It returns false once the budget is exceeded.
func (a *allocator) skip(rows uint64) bool {
	a.head.ring.counter(counterSkipped).Add(rows)
	ok := rows <= a.budget
	a.budget -= min(rows, a.budget)
	return ok
}

// reserve takes positions from the ring: at most as many as are wanted, and none beyond the next
// area. It skips areas, and rows of the same batch.
func (a *allocator) reserve(wanted uint64) bool {
	r := a.head.ring
	position := r.counter(counterHead)
	for ; a.budget > 0; a.budget-- {
		head := position.Load()
		if head > maxSequence-wanted-r.head.layout.Capacity {
			return false
		}
		s, blocked := a.survey(head)
		if blocked == 0 {
			blocked = a.own(head)
		}
		if blocked > 0 {
			a.obstacle.costly = true
			if r.loading() != 0 {
				return false // the numbers are the loader's
			}
			if position.CompareAndSwap(head, head+blocked) && !a.skip(blocked) {
				return false
			}
			continue
		}
		if n := min(wanted, s.to-head); position.CompareAndSwap(head, head+n) {
			a.from, a.to, a.epoch = head, head+n, s.epoch
			r.enter(head, head+n)
			return true
		}
	}
	return false
}

// survey returns what is known about areas from a position on, or for how many positions an area
// blocks it.
func (a *allocator) survey(position uint64) (s *survey, blocked uint64) {
	r := a.head.ring
	s = a.head.surveyed.Load()
	if s != nil && s.epoch == r.epoch() && s.from <= position && position < s.to {
		return s, 0
	}
	if s, blocked = r.survey(position); blocked > 0 {
		r.sweep()
		return s, blocked
	}
	a.head.surveyed.Store(s)
	return s, 0
}
