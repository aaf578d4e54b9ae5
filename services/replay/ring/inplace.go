package ring

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync/atomic"
	"unsafe" //nolint:depguard // addresses for prefetching
)

// InPlace writes rows where they are to lie. It is not safe for concurrent use; any number of them
// may write to one ring.
//
// All rows of one write become readable together, after the function that writes them has returned:
// until then no reader sees any of them. A process that is killed in between leaves all of them
// unreadable, until other writers reach them.
type InPlace struct {
	head *WriteHead
	// seat is nil if the head has none, and usual is not set then; unseated is the number of writes
	// without a seat. See seat.go.
	seat     *seat
	usual    usual
	unseated uint64
	// most is the maximum number of rows of one write.
	most int
	// prefetched is how many cache lines of each column are prefetched at once.
	prefetched uint64
	// rows is how many rows are being written; 0 between writes.
	rows int
	// The rows locked so far are run or, if that is empty, sequences, in increasing order; replaced
	// has the words that they had before.
	run       positions
	sequences []uint64
	replaced  []word
	// slot is that of the first of them.
	slot uint64
	// columns are those of the rows, in the mapping or in apart. A few lie in this object.
	columns [][]byte
	few     [fewColumns][]byte
	// apart has the rows if they are not contiguous in the mapping.
	apart *Batch
	// ahead are positions for the next writes.
	ahead ahead
}

// usual is what a head with a seat uses for each write, ready for use: looking it up in the ring
// takes longer than using it. Besides, it is in the same pages of memory as the rest of an
// [InPlace]: a processor that loads from a dozen others between two rows loses track of the copies
// of both, and copies a row of 28 KiB 10 % slower. The pointers into the mappings are valid only
// between enter and leave.
type usual struct {
	ring                          *Ring
	fence                         *fence
	words                         []atomic.Uint64
	ended, epoch, newest, written *atomic.Uint64
	closed                        *atomic.Bool
	self                          int
	// rows is the mapping, and blocks are the places of columns in it.
	rows   []byte
	blocks []block
	few    [fewColumns]block
}

// fewColumns is how many columns are looked up in the head itself.
const fewColumns = 4

// prepare sets what the head uses from now on, with one of the participant's counts. The caller
// must hold the ring's mu, and the ring must not be closed.
func (u *usual) prepare(w *WriteHead, count int) {
	r := w.ring
	*u = usual{
		ring: r, fence: &w.fence, words: r.words(r.rows), self: r.self, closed: &r.closed, written: r.participantWritten(r.self, count),
		ended: r.counter(counterEnded), epoch: r.counter(counterEpoch), newest: r.counter(counterHead), rows: r.rows,
	}
	u.blocks = append(u.few[:0], r.head.geometry.columns...)
}

// InPlace returns a head that writes in place. It becomes invalid when the ring is closed.
func (r *Ring) InPlace() (*InPlace, error) {
	w, err := r.Writer()
	if err != nil {
		return nil, err
	}
	return w.InPlace(), nil
}

// InPlace returns a head that writes in place, which uses this one.
func (w *WriteHead) InPlace() *InPlace {
	r := w.ring
	columns := len(r.head.geometry.columns)
	p := &InPlace{head: w, most: r.head.layout.MaxTogether(), ahead: r.newAhead(), prefetched: max(1, prefetched/uint64(columns))}
	p.columns = append(p.few[:0], make([][]byte, columns)...)
	return p
}

// MaxTogether returns the maximum number of rows of one write of an [InPlace]: 256, or as many as
// have 1 MiB, at least one, and at most the ring's capacity. A writer that is killed leaves no more
// rows unreadable.
func (l Layout) MaxTogether() int {
	sizes, err := l.sizes()
	if err != nil {
		return 0
	}
	var row uint64
	for _, size := range sizes {
		row += size
	}
	return int(min(l.Capacity, runOf(row))) //nolint:gosec // at most maxRun
}

// Append reserves n rows and calls write once with their columns, each with the n rows back to
// back. It then makes them readable together. Either all rows are written or none.
//
// The columns are in the mapping, and have what the rows that are being overwritten had. Where the
// reserved rows are not contiguous, because the ring ends among them, or an area or another writer
// is in between, the columns are memory of this head instead, with anything in it, and are copied
// afterwards. Either way they must not be used after write has returned.
//
// If write panics or ends its goroutine, no row becomes readable, and the panic goes on. The rows
// that were overwritten in place are lost then.
//
// Append waits for room as [WriteHead.Append] does, and returns the same errors, all of them before
// it calls write. While write runs, other writers skip the rows, and areas do not include them; so
// it should not block. It may use the ring: closing the ring meanwhile is safe, and the rows are
// written still.
func (p *InPlace) Append(ctx context.Context, n int, write func(columns [][]byte)) error {
	return p.append(n, write, func(o *obstacle) error { return p.head.wait(ctx, p, o) })
}

// TryAppend is Append, except that it does not wait: it returns a [NoRoomError] if there is no room
// for the rows now.
func (p *InPlace) TryAppend(n int, write func(columns [][]byte)) error {
	return p.append(n, write, func(o *obstacle) error { return p.head.refused(p, o, 0, nil) })
}

// Sequences returns the sequence numbers of the rows of the last write, in increasing order; none
// if it failed. They are valid until the next write.
func (p *InPlace) Sequences() []uint64 {
	if len(p.sequences) == 0 {
		for sequence := p.run.from; sequence < p.run.to; sequence++ {
			p.sequences = append(p.sequences, sequence)
		}
	}
	return p.sequences
}

// Begin begins a write of n rows in the usual case of a head that writes repeatedly: it can write
// rows that it reserved earlier, and they lie together in the mapping. It returns their columns as
// [InPlace.Append] does, and the caller calls [InPlace.End] when it has written them. Otherwise
// Begin returns nil and has done nothing: Append may succeed then, or says why it does not.
//
// For a row of 1 KiB, Append takes a fourth longer than these two.
func (p *InPlace) Begin(n int) [][]byte {
	if n == 1 && p.lockOne() {
		return p.columns
	}
	if p.seat == nil || p.rows > 0 || n <= 0 || n > p.most || p.enter() != nil {
		return nil
	}
	p.rows, p.run, p.sequences = n, positions{}, p.sequences[:0]
	if p.head.ring.ended() || !p.lockAhead() {
		p.rows = 0
		_ = p.leave() // if it fails, so does Append
		return nil
	}
	p.viewMapping()
	return p.columns
}

// lockOne is Begin for one row, with no call in the usual case but to prefetch. It does what enter,
// lockAhead and viewMapping do. If it returns false, the row is unchanged, but the head's mark may
// be set: enter has to be called next.
func (p *InPlace) lockOne() bool {
	k, u := &p.ahead, &p.usual
	if p.seat == nil || p.rows > 0 || k.left == 0 {
		return false
	}
	storeRelease(&p.seat.busy, 1) // as in enter
	if u.closed.Load() || u.ended.Load() != 0 || u.newest.Load()-k.to > k.lag {
		return false
	}
	slot, mine := k.slot, writingWord(k.from, u.self)
	at := &u.words[slot]
	old := word(at.Load())
	// It must be older. Words increase with their sequence numbers.
	if !old.readable() || old >= mine.published() || !at.CompareAndSwap(uint64(old), uint64(mine)) {
		return false
	}
	u.fence.barrier()
	if u.epoch.Load() != k.epoch {
		p.head.unlock(k.from, old)
		return false
	}
	p.rows, p.run, p.slot, p.sequences = 1, positions{k.from, k.from + 1}, slot, p.sequences[:0]
	for i := range u.blocks {
		c := &u.blocks[i]
		column := u.rows[c.offset+slot*c.size:][:c.size:c.size]
		p.columns[i] = column
		prefetchLines(unsafe.Pointer(unsafe.SliceData(column)), int(min(p.prefetched, c.size/cacheLine+1))) //nolint:gosec // at most prefetched
	}
	k.advanceOne(u.ring)
	return true
}

// End ends what Begin has begun. The rows become readable if they were written; otherwise they are
// lost, because they may have been written in part. It is to be called also where writing panics.
func (p *InPlace) End(written bool) error {
	if written && p.rows == 1 { // finish and leave, without calling them
		u := &p.usual
		storeRelease(&u.words[p.slot], uint64(writingWord(p.run.from, u.self).published()))
		storeRelease(u.written, u.written.Load()+1)
		p.rows = 0
		storeRelease(&p.seat.busy, 0)
		if !u.closed.Load() {
			return nil
		}
		return p.leave()
	}
	if written {
		p.finish()
	} else {
		p.abandon(true)
	}
	p.rows = 0
	return p.leave()
}

func (p *InPlace) append(n int, write func(columns [][]byte), blocked func(*obstacle) error) error {
	if p.rows > 0 {
		return fmt.Errorf("%w: the function that writes rows in place appends others with the same head", ErrBatch)
	}
	p.run, p.sequences, p.replaced = positions{}, p.sequences[:0], p.replaced[:0]
	if n < 0 || n > p.most {
		return fmt.Errorf("%w: %d rows to write in place, and at most %d are possible", ErrBatch, n, p.most)
	}
	if n == 0 {
		return nil
	}
	if p.seat == nil {
		p.sit()
	}
	p.rows = n
	obstacle, err := p.writeBy(p.head)
	if obstacle != nil && err == nil {
		err = blocked(obstacle)
	}
	if err != nil {
		p.rows = 0
		return err
	}
	return p.fill(write)
}

// fill writes the rows, which are locked, and makes them readable.
func (p *InPlace) fill(write func(columns [][]byte)) (err error) {
	inPlace := p.contiguous()
	written := false
	defer func() {
		if !written {
			p.abandon(inPlace)
		}
		p.rows = 0
		if e := p.leave(); err == nil {
			err = e
		}
	}()
	if inPlace {
		p.viewMapping()
	} else if err := p.viewApart(); err != nil {
		return err
	}
	write(p.columns)
	if !inPlace {
		for i, sequence := range p.sequences {
			p.head.fill(sequence, p.apart, i)
		}
	}
	p.finish()
	written = true
	return nil
}

// finish makes the rows readable, and counts them.
func (p *InPlace) finish() {
	p.publish()
	p.wrote(uint64(p.rows)) //nolint:gosec // positive
}

// prefetch makes the processor load the beginning of rows, while other code runs.
func (p *InPlace) prefetch(slot, rows uint64) {
	r := p.head.ring
	for i := range r.head.geometry.columns {
		c := &r.head.geometry.columns[i]
		lines := min(p.prefetched, rows*c.size/cacheLine+1)
		prefetchLines(unsafe.Pointer(&r.rows[c.offset+slot*c.size]), int(lines)) //nolint:gosec // in bounds
	}
}

// prefetched is how many cache lines of the columns are prefetched together, and of how many rows
// at most: about as many as a processor can wait for at once.
const prefetched = 16

func (p *InPlace) progress() (rows, written int) { return p.rows, 0 }

// writeBy locks all rows, or none, in which case it returns what was in its way. It holds the
// mapping if it succeeds.
func (p *InPlace) writeBy(w *WriteHead) (*obstacle, error) {
	r := w.ring
	if err := p.enter(); err != nil {
		return nil, err
	}
	if r.ended() {
		return nil, errors.Join(ErrEnded, p.leave())
	}
	if p.lockAhead() {
		return nil, nil //nolint:nilnil // no obstacle, no error
	}
	return p.lock(w)
}

// lock is writeBy where lockAhead fails. The mapping is held.
func (p *InPlace) lock(w *WriteHead) (*obstacle, error) {
	if !w.fits(uint64(p.rows)) { //nolint:gosec // positive
		return &obstacle{}, p.leave()
	}
	positions := w.allocate(p.rows)
	p.ahead.resume(&positions, uint64(p.rows)) //nolint:gosec // positive
	for len(p.sequences) < p.rows {
		positions.written = p.sequences
		missing, together := uint64(p.rows-len(p.sequences)), len(p.sequences) == 0 //nolint:gosec // positive
		if positions.from == positions.to && !p.ahead.reserve(&positions, missing, together) || !p.lockRun(&positions) {
			p.abandon(false)
			p.ahead.drop()
			found := positions.obstacle // a copy, so that the allocator stays on the stack
			return &found, p.leave()
		}
	}
	p.ahead.keep(&positions)
	return nil, nil //nolint:nilnil // no obstacle, no error
}

// lockAhead locks the rows of the next positions in the usual case: there are enough of them, they
// lie together, no area was activated since they were reserved, and all rows are complete and
// older. Otherwise it leaves the rows unchanged and returns false, and lock finds out more.
func (p *InPlace) lockAhead() bool {
	k, r, rows := &p.ahead, p.head.ring, uint64(p.rows) //nolint:gosec // positive
	if k.from == k.to && !k.refill(p.head, rows) || !k.ready(r, rows) {
		return false
	}
	if uint64(cap(p.replaced)) < rows {
		p.replaced = make([]word, rows)
	}
	words, replaced := r.words(r.rows)[k.slot:][:rows], p.replaced[:rows]
	mine := writingWord(k.from, r.self)
	for i := range words {
		if i%prefetched == 0 {
			p.prefetch(k.slot+uint64(i), min(prefetched, rows-uint64(i)))
		}
		old := word(words[i].Load())
		if !old.readable() || old.sequencePlusOne() > mine.sequence() || !words[i].CompareAndSwap(uint64(old), uint64(mine)) {
			return p.unlockAhead(i)
		}
		replaced[i] = old
		mine += 1 << sequenceShift
	}
	// As in lockRun.
	p.head.fence.barrier()
	if r.epoch() != k.epoch {
		return p.unlockAhead(len(words))
	}
	p.run, p.slot, p.replaced = positions{k.from, k.from + rows}, k.slot, replaced
	k.advance(r, rows)
	return true
}

// unlockAhead restores the words of n rows. It returns false.
func (p *InPlace) unlockAhead(n int) bool {
	for i, old := range p.replaced[:n] {
		p.head.unlock(p.ahead.from+uint64(i), old)
	}
	return false
}

// lockRun locks the rows of the positions that were reserved, as far as possible, until there are
// enough. It returns false once too many had to be skipped.
func (p *InPlace) lockRun(a *allocator) bool {
	w, r := p.head, p.head.ring
	capacity, words := r.head.layout.Capacity, r.words(r.rows)
	begin, slot := len(p.sequences), a.from%capacity
	around := begin > 0 && a.to > p.sequences[0]+capacity // so that some may be the same rows again
	for ; a.from < a.to && len(p.sequences) < p.rows; a.from, slot = a.from+1, slot+1 {
		if slot == capacity {
			slot = 0
		}
		var old word
		ok := !around || a.own(a.from) == 0
		if ok {
			// The usual case first: a complete row that is older.
			old = word(words[slot].Load())
			if !old.readable() || old.sequencePlusOne() > a.from ||
				!words[slot].CompareAndSwap(uint64(old), uint64(writingWord(a.from, r.self))) {
				old, ok = w.lockSlot(a.from, slot)
			}
		}
		if ok {
			if len(p.sequences) == 0 {
				p.slot = slot
			}
			p.sequences, p.replaced = append(p.sequences, a.from), append(p.replaced, old)
			continue
		}
		a.obstacle.note(r, slot)
		if !a.skip(1) {
			return false
		}
		runtime.Gosched()
	}
	// One barrier for all: it is after each of the words and before all of the rows.
	w.fence.barrier()
	if r.epoch() == a.epoch {
		return true
	}
	kept := begin
	for i := begin; i < len(p.sequences); i++ {
		sequence, old := p.sequences[i], p.replaced[i]
		if slot := sequence % r.head.layout.Capacity; r.inArea(slot) {
			w.unlock(sequence, old)
			a.obstacle.note(r, slot)
			if !a.skip(1) {
				p.sequences, p.replaced = slices.Delete(p.sequences, kept, i+1), slices.Delete(p.replaced, kept, i+1)
				return false
			}
			continue
		}
		p.sequences[kept], p.replaced[kept] = sequence, old
		kept++
	}
	if kept > 0 {
		p.slot = p.sequences[0] % capacity
	}
	p.sequences, p.replaced = p.sequences[:kept], p.replaced[:kept]
	return true
}

// publish makes the rows readable.
func (p *InPlace) publish() {
	r := p.head.ring
	words := r.words(r.rows)
	if p.run.from < p.run.to {
		mine := writingWord(p.run.from, r.self).published()
		words = words[p.slot:][:p.rows]
		for i := range words {
			storeRelease(&words[i], uint64(mine))
			mine += 1 << sequenceShift
		}
		return
	}
	slot, next := p.slot, p.sequences[0]
	for _, sequence := range p.sequences {
		if sequence != next || slot == uint64(len(words)) {
			slot = sequence % uint64(len(words))
		}
		storeRelease(&words[slot], uint64(writingWord(sequence, r.self).published()))
		slot, next = slot+1, sequence+1
	}
}

// abandon gives up all locked rows. Those that may have been written to become unreadable.
func (p *InPlace) abandon(writtenTo bool) {
	for i, sequence := range p.Sequences() {
		if writtenTo {
			p.head.disown(sequence)
		} else {
			p.head.unlock(sequence, p.replaced[i])
		}
	}
	p.run, p.sequences, p.replaced = positions{}, p.sequences[:0], p.replaced[:0]
}

// contiguous reports whether the locked rows lie back to back.
func (p *InPlace) contiguous() bool {
	if p.run.from < p.run.to {
		return true
	}
	first, n := p.sequences[0], uint64(p.rows) //nolint:gosec // positive
	return p.sequences[n-1]-first == n-1 && p.slot+n <= p.head.ring.head.layout.Capacity
}

// viewMapping makes the columns those of the mapping.
func (p *InPlace) viewMapping() {
	r, n := p.head.ring, uint64(p.rows) //nolint:gosec // positive
	for i, c := range r.head.geometry.columns {
		from, to := c.offset+p.slot*c.size, c.offset+(p.slot+n)*c.size
		p.columns[i] = r.rows[from:to:to]
	}
}

// viewApart makes the columns those of other memory.
func (p *InPlace) viewApart() error {
	if p.apart == nil {
		apart, err := NewBatch(p.head.ring.head.layout, 0)
		if err != nil {
			return err
		}
		p.apart = apart
	}
	if err := p.apart.Resize(p.rows); err != nil {
		return err
	}
	for i := range p.columns {
		p.columns[i] = p.apart.Bytes(i)
	}
	return nil
}
