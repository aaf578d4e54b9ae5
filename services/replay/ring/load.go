package ring

import (
	"errors"
	"fmt"
	"math/bits"
)

// Loader fills a ring that was never written to with rows that have their sequence numbers already,
// those of another ring. No row is readable before [Loader.Commit]. Meanwhile an area that holds
// the whole ring makes writers wait. It is not safe for concurrent use.
//
// A process that is killed before Commit leaves an empty ring.
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
// It returns [ErrNotEmpty] if a writer has reserved rows before. The caller must end the Loader, by
// Commit or Abort.
func (r *Ring) Load(next uint64) (*Loader, error) {
	if next > maxSequence/2 {
		return nil, fmt.Errorf("load rows into the ring: %w: the next row's number is %d, and at most %d is possible", ErrBatch, next, uint64(maxSequence/2))
	}
	if _, err := r.Writer(); err != nil { // maps the rows, and makes the ring a participant
		return nil, err
	}
	if err := r.use(); err != nil {
		return nil, err
	}
	if r.ended() {
		return nil, errors.Join(ErrEnded, r.letGo())
	}
	l := &Loader{
		ring: r, mark: newAreaMark(r.counter(counterStamp).Add(1), r.self), next: next,
		loaded: make([]uint64, (r.head.layout.Capacity+63)/64),
	}
	entries, err := r.allocateEntries(1, l.mark)
	if err != nil {
		return nil, errors.Join(err, r.letGo())
	}
	l.entry = entries[0]
	r.areaFirst(l.entry).Store(0)
	r.areaCount(l.entry).Store(r.head.layout.Capacity)
	r.activate(entrySet{}.with(l.entry))
	// No position was reserved before, and none is while the area is active: a writer reads the
	// counter before it looks for areas. So there is no writer that could touch a row.
	if head := r.counter(counterHead); !head.CompareAndSwap(0, next) {
		return nil, errors.Join(
			fmt.Errorf("load rows into the ring: %w: it has %d rows, and writers have reserved %d numbers", ErrNotEmpty, r.filledRows(), head.Load()),
			l.release())
	}
	return l, nil
}

// First returns the lowest sequence number that a row can have in this ring.
func (l *Loader) First() uint64 { return l.next - min(l.next, l.ring.head.layout.Capacity) }

// Rows returns how many rows were loaded.
func (l *Loader) Rows() uint64 { return l.rows }

// Put copies the rows of a batch that has their sequence numbers, in increasing order. It ignores
// rows below First, for which the ring has no room.
func (l *Loader) Put(b *Batch) error {
	r := l.ring
	if r.ended() {
		return ErrEnded
	}
	if !r.head.layout.SameRows(b.layout) {
		return fmt.Errorf("%w: its columns are %v, the ring's %v", ErrBatch, b.layout.Columns, r.head.layout.Columns)
	}
	if len(b.sequences) != b.rows {
		return fmt.Errorf("%w: it has %d rows and %d sequence numbers", ErrBatch, b.rows, len(b.sequences))
	}
	capacity := r.head.layout.Capacity
	for from := 0; from < b.rows; {
		first := b.sequences[from]
		if first < l.First() {
			from++
			continue
		}
		// A run of rows that lie back to back.
		slot, rows := first%capacity, uint64(0)
		for from+int(rows) < b.rows && slot+rows < capacity && b.sequences[from+int(rows)] == first+rows {
			if first+rows >= l.next || l.has(slot+rows) {
				return fmt.Errorf("%w: it has row %d, which is not below %d or was loaded before", ErrBatch, first+rows, l.next)
			}
			l.loaded[(slot+rows)/64] |= 1 << ((slot + rows) % 64)
			rows++
		}
		for i, c := range r.head.geometry.columns {
			copy(r.rows[c.offset+slot*c.size:], b.columns[i][uint64(from)*c.size:][:rows*c.size])
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
	capacity, words := r.head.layout.Capacity, r.words(r.rows)
	r.enter(l.First(), l.next)
	for i, bitmap := range l.loaded {
		base := uint64(i) * 64
		r.blockFilled(base >> blockShift).Add(uint64(bits.OnesCount64(bitmap))) //nolint:gosec // positive
		for ; bitmap != 0; bitmap &= bitmap - 1 {
			slot := base + uint64(bits.TrailingZeros64(bitmap)) //nolint:gosec // positive
			// The highest number below next that has the slot.
			sequence := l.next - 1 - (l.next-1+capacity-slot)%capacity
			words[slot].Store(uint64(writingWord(sequence, r.self).published()))
		}
	}
	r.participantWritten(r.self, 0).Add(l.rows)
	l.continueFrom(l.next)
	return l.release()
}

// Abort leaves the ring empty. It does nothing after Commit.
func (l *Loader) Abort() error {
	if l.done {
		return nil
	}
	l.continueFrom(0)
	return l.release()
}

// continueFrom sets the number that writers reserve next. None was reserved meanwhile, but writers
// that were about to do so when the area was activated may have skipped some.
func (l *Loader) continueFrom(next uint64) {
	if l.next > 0 {
		l.ring.counter(counterHead).Store(next)
	}
}

// release lets writers continue.
func (l *Loader) release() error {
	l.done = true
	l.ring.releaseEntry(l.entry, l.mark)
	return l.ring.letGo()
}
