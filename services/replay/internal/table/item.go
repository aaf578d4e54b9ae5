package table

import (
	"fmt"
	"math"
	"slices"
	"time"
)

// Key identifies an item of a table: it is never the key of another item. It has the item's slot
// and generation, the latter modulo 2^36: it would take as many inserts while a key is kept, and
// the same slot exactly then, for the key to be taken for another's. No item has the key 0.
type Key uint64

// slotBits is the size of a slot number. The rest of a key is the generation.
const slotBits = 28

// MaxItems is the maximum number of items of a table.
const MaxItems = 1 << slotBits

func (k Key) slot() uint32 { return uint32(k & (1<<slotBits - 1)) }

// keyOf returns the key of the item that is the number-th of its table.
func keyOf(number uint64, slot uint32) Key { return Key(number<<slotBits | uint64(slot)) }

// Run is a run of rows: consecutive sequence numbers.
type Run struct {
	First  uint64
	Length uint32
}

// Item is what is inserted into a table.
type Item struct {
	// Run is the item's rows; if these are not consecutive, the first of them. More has the others,
	// in increasing order.
	Run  Run
	More []Run
	// Priority is the item's priority, unless Maximum is set: then the item gets the highest
	// priority of the table's items at the time, or 1 if no item has a positive one.
	Priority float64
	Maximum  bool
}

// validate returns an [ItemError] unless the item's rows can exist.
func (it *Item) validate(index int) error {
	end, rows := uint64(0), uint64(0)
	for i := range 1 + len(it.More) {
		r := it.Run
		if i > 0 {
			r = it.More[i-1]
		}
		switch {
		case r.Length == 0:
			return &ItemError{Index: index, Reason: fmt.Sprintf("its run %d has no rows", i)}
		case r.First > math.MaxUint64-uint64(r.Length):
			return &ItemError{Index: index, Reason: fmt.Sprintf("its run %d ends behind the last sequence number", i)}
		case r.First < end:
			return &ItemError{Index: index, Reason: fmt.Sprintf("its run %d begins at row %d, before the end of the one before it", i, r.First)}
		}
		end = r.First + uint64(r.Length)
		rows += uint64(r.Length)
	}
	if rows > math.MaxUint32 {
		return &ItemError{Index: index, Reason: fmt.Sprintf("it has %d rows", rows)}
	}
	return nil
}

// Sample is a drawn item, as it was after the draw.
type Sample struct {
	Key  Key
	Run  Run
	More []Run
	// Probability is that with which the draw had this result.
	Probability float64
	// Weight is the importance weight: see [SampleOptions].
	Weight   float64
	Priority float64
	// Sampled is how often the item has been drawn, this time included.
	Sampled uint32
	// Size is the number of the table's items at the draw.
	Size int
	// Age is the time since the item was inserted.
	Age time.Duration
	// Held means that the limiter made the call wait for this draw.
	Held bool
}

// item is the state of a slot. It has no pointers.
type item struct {
	// number is the item's number in the table, from 1. Its low bits are the generation of its key.
	// It is 0 if the slot is free.
	number uint64
	first  uint64
	// created is when the item was inserted, in nanoseconds since the table was made.
	created int64
	length  uint32
	// more is the index of the second run, plus 1.
	more    uint32
	sampled uint32
	// next and prev are neighbours in the wheel's bucket, plus 1. next of a free slot is the next
	// free one.
	next, prev uint32
	priority   float64
	// The size is that of a cache line: a draw then reads one.
	_ uint64
}

// piece is a further run of an item. next is the index of the one behind it, plus 1.
type piece struct {
	first        uint64
	length, next uint32
}

// slots stores items. A slot is used again after its item was removed.
type slots struct {
	items chunks[item]
	// high is the number of slots in use so far; free is the last one that was freed, plus 1.
	high, free uint32

	pieces               chunks[piece]
	highPiece, freePiece uint32
}

// allocate returns a free slot.
func (s *slots) allocate() uint32 {
	if s.free != 0 {
		slot := s.free - 1
		s.free = s.items.at(slot).next
		return slot
	}
	s.high++
	s.items.grow(s.high)
	return s.high - 1
}

// release frees a slot and the item's further runs.
func (s *slots) release(slot uint32) {
	it := s.items.at(slot)
	for more := it.more; more != 0; {
		p := s.pieces.at(more - 1)
		p.next, more, s.freePiece = s.freePiece, p.next, more
	}
	*it = item{next: s.free}
	s.free = slot + 1
}

// link stores further runs and returns the index of the first one, plus 1.
func (s *slots) link(runs []Run) uint32 {
	next := uint32(0)
	for _, r := range slices.Backward(runs) {
		index := s.freePiece
		if index != 0 {
			s.freePiece = s.pieces.at(index - 1).next
		} else {
			s.highPiece++
			index = s.highPiece
			s.pieces.grow(index)
		}
		*s.pieces.at(index - 1) = piece{first: r.First, length: r.Length, next: next}
		next = index
	}
	return next
}

// more returns the further runs of an item, nil if there are none.
func (s *slots) more(it *item) []Run {
	var runs []Run
	for more := it.more; more != 0; {
		p := s.pieces.at(more - 1)
		runs = append(runs, Run{First: p.first, Length: p.length})
		more = p.next
	}
	return runs
}

// find returns the slot of a key, and whether its item is in the table.
func (s *slots) find(key Key) (uint32, bool) {
	slot := key.slot()
	if slot >= s.high {
		return 0, false
	}
	number := s.items.at(slot).number
	return slot, number != 0 && keyOf(number, slot) == key
}

// touch reads the numbers of the items with the given keys, before find does: as these reads do not
// depend on each other, their cache misses overlap. What it returns only keeps the compiler from
// leaving them out.
func (s *slots) touch(keys []Key) (numbers uint64) {
	for _, key := range keys {
		if slot := key.slot(); slot < s.high {
			numbers |= s.items.at(slot).number
		}
	}
	return numbers
}
