package ring

import (
	"errors"
	"fmt"
	"math/bits"
)

// loading is the state of a ring that is being filled, in its file, so that it survives the process
// that does so: 0, or the mark of the area that the [Loader] holds. The creator's index, which is
// that of its participant, is 0, so the lowest bit is free. It is set once there is nothing left to
// undo: all rows are readable, or none was loaded.
type loading uint64

const loaded loading = 1

func (r *Ring) loading() loading { return loading(r.counter(counterLoading).Load()) }

// of reports whether an area is the Loader's.
func (l loading) of(mark areaMark) bool { return l != 0 && areaMark(l&^loaded) == mark }

// Loading reports whether the process that filled the ring was killed before the rows were
// complete. Then a node that takes over the ring finds it empty, as it was before. Until then,
// some of the rows may be readable, and none can be written.
func (r *Ring) Loading() (bool, error) {
	if err := r.pin(); err != nil {
		return false, err
	}
	defer r.unpin()
	l := r.loading()
	return l != 0 && l&loaded == 0, nil
}

// Loader fills a ring that was never written to with rows that have their sequence numbers already,
// those of another ring. No row is readable before [Loader.Commit]. Meanwhile an area that holds
// the whole ring makes writers wait. It is not safe for concurrent use.
//
// If the process is killed before Commit has returned, the next node that takes over the ring finds
// it empty, or complete.
type Loader struct {
	ring  *Ring
	entry int
	mark  areaMark
	// next is the lowest sequence number that no row has.
	next uint64
	// loaded has a bit for each slot with a row.
	loaded []uint64
	rows   uint64
	done   bool
}

// Load begins to fill the ring with rows whose numbers are below next. Writers continue from there.
// It returns [ErrNotEmpty] if a writer has reserved rows before. Only the ring's creator may call
// it. The caller must end the Loader, by Commit or Abort.
func (r *Ring) Load(next uint64) (*Loader, error) {
	if next > maxSequence/2 {
		return nil, fmt.Errorf("load rows into the ring: %w: the next row's number is %d, and at most %d is possible", ErrBatch, next, uint64(maxSequence/2))
	}
	if _, err := r.Writer(); err != nil { // maps the rows
		return nil, err
	}
	if err := r.use(); err != nil {
		return nil, err
	}
	l, err := r.beginLoad(next)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("load rows into the ring: %w", err), r.letGo())
	}
	return l, nil
}

func (r *Ring) beginLoad(next uint64) (*Loader, error) {
	switch {
	case r.ended():
		return nil, ErrEnded
	case r.self != ownerIndex:
		return nil, fmt.Errorf("%w: only its creator may load rows", ErrInUse)
	case r.counter(counterGivenUp).Load() > maxChanges:
		return nil, fmt.Errorf("%w: the processes that loaded rows were killed %d times: create the ring again", ErrChanged, r.counter(counterGivenUp).Load())
	}
	l := &Loader{
		ring: r, mark: newAreaMark(r.counter(counterStamp).Add(1), r.self), next: next,
		loaded: make([]uint64, (r.head.layout.Capacity+63)/64),
	}
	if !r.counter(counterLoading).CompareAndSwap(0, uint64(l.mark)) {
		return nil, fmt.Errorf("%w: other rows are being loaded", ErrNotEmpty)
	}
	entries, err := r.allocateEntries(1, l.mark)
	if err != nil {
		r.counter(counterLoading).Store(0)
		return nil, err
	}
	l.entry = entries[0]
	r.areaFirst(l.entry).Store(0)
	r.areaCount(l.entry).Store(r.head.layout.Capacity)
	r.activate(entrySet{}.with(l.entry))
	// No position was reserved before, and none is while the area is active: a writer reads the
	// counter before it looks for areas. So there is no writer that could touch a row.
	if head := r.counter(counterHead); !head.CompareAndSwap(0, max(next, 1)) {
		err := fmt.Errorf("%w: it has %d rows, and writers have reserved %d numbers", ErrNotEmpty, r.filledRows(), head.Load())
		r.counter(counterLoading).Or(uint64(loaded))
		l.unblock()
		return nil, err
	}
	return l, nil
}

// First returns the lowest sequence number that a row can have in this ring.
func (l *Loader) First() uint64 { return l.next - min(l.next, l.ring.head.layout.Capacity) }

// Rows returns how many rows were loaded.
func (l *Loader) Rows() uint64 { return l.rows }

// Put copies rows, which have sequence numbers in increasing order. It ignores those below First,
// for which the ring has no room. A column may lie anywhere in memory.
func (l *Loader) Put(sequences []uint64, columns [][]byte) error {
	r := l.ring
	if r.ended() {
		return ErrEnded
	}
	if len(columns) != len(r.head.geometry.columns) {
		return fmt.Errorf("%w: it has %d columns, and the ring %d", ErrBatch, len(columns), len(r.head.geometry.columns))
	}
	for i, c := range r.head.geometry.columns {
		if want := uint64(len(sequences)) * c.size; uint64(len(columns[i])) != want { //nolint:gosec // as many as the ring has
			name := r.head.layout.Columns[i].Name
			return fmt.Errorf("%w: column %q has %d bytes, and should have %d", ErrBatch, name, len(columns[i]), want) //nolint:gosec // as above
		}
	}
	capacity := r.head.layout.Capacity
	for from := 0; from < len(sequences); {
		first := sequences[from]
		if first < l.First() {
			from++
			continue
		}
		// A run of rows that lie back to back.
		slot, rows := first%capacity, uint64(0)
		for from+int(rows) < len(sequences) && slot+rows < capacity && sequences[from+int(rows)] == first+rows {
			if first+rows >= l.next || l.has(slot+rows) {
				return fmt.Errorf("%w: it has row %d, which is not below %d or was loaded before", ErrBatch, first+rows, l.next)
			}
			l.loaded[(slot+rows)/64] |= 1 << ((slot + rows) % 64)
			rows++
		}
		for i, c := range r.head.geometry.columns {
			copy(r.rows[c.offset+slot*c.size:], columns[i][uint64(from)*c.size:][:rows*c.size]) //nolint:gosec // not negative
		}
		l.rows += rows
		from += int(rows)
	}
	return nil
}

// Has reports whether the ring has all rows from one on.
func (l *Loader) Has(first uint64, rows uint32) bool {
	if first < l.First() || first >= l.next || uint64(rows) > l.next-first {
		return false
	}
	slot := first % l.ring.head.layout.Capacity
	for range rows {
		if !l.has(slot) {
			return false
		}
		if slot++; slot == l.ring.head.layout.Capacity {
			slot = 0
		}
	}
	return true
}

func (l *Loader) has(slot uint64) bool { return l.loaded[slot/64]&(1<<(slot%64)) != 0 }

// Commit makes the rows readable, and lets writers continue.
func (l *Loader) Commit() error {
	r := l.ring
	if l.done {
		return ErrClosed
	}
	if r.ended() {
		return errors.Join(ErrEnded, l.Abort())
	}
	l.publish()
	return l.finish()
}

// publish stores everything that makes the rows readable.
func (l *Loader) publish() {
	r := l.ring
	capacity, words := r.head.layout.Capacity, r.words(r.rows)
	// A row that another Loader has published had this number too, and perhaps other contents. So
	// that no word recurs, it counts as changed as often as that may have happened.
	changes := word(r.counter(counterGivenUp).Load()) << 1
	r.enter(l.First(), l.next)
	for i, bitmap := range l.loaded {
		base := uint64(i) * 64
		r.blockFilled(base >> blockShift).Add(uint64(bits.OnesCount64(bitmap))) //nolint:gosec // positive
		for ; bitmap != 0; bitmap &= bitmap - 1 {
			slot := base + uint64(bits.TrailingZeros64(bitmap)) //nolint:gosec // positive
			// The highest number below next that has the slot.
			sequence := l.next - 1 - (l.next-1+capacity-slot)%capacity
			words[slot].Store(uint64(writingWord(sequence, r.self).published() + changes))
		}
	}
	r.participantWritten(r.self, 0).Add(l.rows)
	r.counter(counterHead).Store(l.next)
}

// Abort leaves the ring empty. It does nothing after Commit.
func (l *Loader) Abort() error {
	if l.done {
		return nil
	}
	l.ring.counter(counterHead).Store(0)
	return l.finish()
}

// finish ends the loading, from which on a takeover undoes nothing, and lets writers continue.
func (l *Loader) finish() error {
	l.done = true
	l.ring.counter(counterLoading).Or(uint64(loaded))
	l.unblock()
	return l.ring.letGo()
}

// unblock lets writers continue.
func (l *Loader) unblock() {
	l.ring.releaseEntry(l.entry, l.mark)
	l.ring.counter(counterLoading).Store(0)
}

// endLoading undoes what a Loader has done whose process was killed, and lets writers continue. The
// creator's process may be killed in it, too: the next one begins anew.
func (r *Ring) endLoading() error {
	state := r.loading()
	if state == 0 {
		return nil
	}
	if state&loaded == 0 {
		r.counter(counterGivenUp).Add(1)
		if err := r.clear(); err != nil {
			return err
		}
		r.counter(counterLoading).Or(uint64(loaded))
	}
	for i := range maxAreas {
		if mark := areaMark(r.areaOwner(i).Load()); state.of(mark) {
			r.releaseEntry(i, mark)
		}
	}
	r.counter(counterLoading).Store(0)
	return nil
}

// clear makes the ring empty. No other participant may write.
func (r *Ring) clear() error {
	if err := r.mapRows(); err != nil {
		return err
	}
	words := r.words(r.rows)
	for i := range words {
		if words[i].Load() != 0 { // others stay pages that were never touched
			words[i].Store(0)
		}
	}
	for block := range blocksOf(r.head.layout.Capacity) {
		r.blockFilled(block).Store(0)
		r.blockRound(block).Store(0)
	}
	r.participantWritten(r.self, 0).Store(0)
	r.counter(counterHead).Store(0)
	return nil
}
