package table

import "math"

// NewColliding returns an empty table in which the hashes of many keys are equal.
func NewColliding(limits Limits) *Table {
	t := New(limits)
	t.index.mask = 3
	return t
}

// Check panics if the index is not consistent.
func (t *Table) Check() {
	x := t.index
	used, keys, bytes := 0, uint64(0), uint64(0)
	for slot := range x.limit {
		r := x.at(slot)
		if r != nil {
			used++
			if !r.stored() && r.id <= t.committedID {
				panic("a committed removal has a slot")
			}
		}
		if r.stored() {
			keys++
			bytes += r.bytes()
		}
	}
	if keys != t.keys || bytes != t.bytes {
		panic("the entries are not counted")
	}
	x.order()
	ordered := 0
	for i, b := range x.blocks {
		ordered += len(b.slots)
		switch {
		case len(b.slots) == 0 && len(x.blocks) > 1:
			panic("an empty block")
		case len(b.slots) > blockSlots:
			panic("a block is too large")
		case i == 0 && b.from != "":
			panic("the first block does not begin at the start")
		}
	}
	if used != x.used || ordered != used || len(x.slots)+len(x.colliding) != used || len(x.free) > 2*math.MaxUint16 {
		panic("the index is not consistent")
	}
}
