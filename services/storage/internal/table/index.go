package table

import (
	"cmp"
	"encoding/binary"
	"hash/maphash"
	"iter"
	"slices"
	"strings"
)

// index finds the records of keys, by hash and in order.
//
// Each key has a slot, a number, with its current record. The map and the blocks have numbers
// instead of pointers: they are small, the garbage collector does not scan them, and replacing a
// key's record changes neither.
//
// While records are restored, and until the order is needed, the blocks are empty: sorting all keys
// at once is much faster than inserting them one by one.
type index struct {
	seed maphash.Seed
	// mask is applied to hashes: tests clear bits.
	mask uint32
	// slots has the slots by the hashes of their keys, and colliding those of keys whose hash
	// another key had already. Its keys are copies, because those of records keep the values alive.
	slots     map[uint32]uint32
	colliding map[string]uint32

	// pages have the records of the slots below limit, nil in free ones. The last slot is not free.
	pages []*[pageSlots]*record
	limit uint32
	used  int
	// free has every free slot. What is not below limit, or not free, is to be ignored.
	free []uint32

	// blocks have all slots in the order of their keys, unless unordered is set. There is at least
	// one; only a single one can be empty.
	blocks    []block
	unordered bool
}

// block is a part of the order.
type block struct {
	// from is not above the block's keys, and above those of the block before; "" in the first.
	from  string
	slots []uint32
}

const (
	pageSlots  = 1024
	blockSlots = 256
	// filledSlots is how many slots a sorted block has, so that inserting does not split it at
	// once.
	filledSlots = 192
	// slotBytes is the memory that a slot takes: the pointer; 10 to 21 bytes in the map, whose load
	// is between 7/16 and 7/8; 4 to 8 in the blocks, or 4 as a free one.
	slotBytes = 28
	// sparse slots are renumbered: if less than one in so many is used, of more than minSparse.
	sparse    = 4
	minSparse = 4096
)

func newIndex(mask uint32) *index {
	return &index{seed: maphash.MakeSeed(), mask: mask, slots: make(map[uint32]uint32), blocks: make([]block, 1)}
}

// bytes is the memory that the index takes, beside the records.
func (x *index) bytes() uint64 { return slotBytes * uint64(x.limit) }

func (x *index) hash(key string) uint32 {
	return uint32(maphash.String(x.seed, key)) & x.mask //nolint:gosec // half of the bits
}

func (x *index) at(slot uint32) *record { return x.pages[slot/pageSlots][slot%pageSlots] }

// set replaces the record of a slot by one of the same key.
func (x *index) set(slot uint32, r *record) { x.pages[slot/pageSlots][slot%pageSlots] = r }

// place is where the index has a key, or would have it. It is valid until the index changes.
type place struct {
	slot, hash uint32
	// collides is set if another key has the hash.
	collides bool
}

// find returns the place and the record of a key; nil if the key has none.
func (x *index) find(key string) (p place, r *record) {
	p.hash = x.hash(key)
	if p.slot, p.collides = x.slots[p.hash]; p.collides {
		if r = x.at(p.slot); r.key() == key {
			return p, r
		}
	}
	if len(x.colliding) > 0 {
		if slot, ok := x.colliding[key]; ok {
			p.slot = slot
			return p, x.at(slot)
		}
	}
	return p, nil
}

// add adds a record whose key has none, at its place.
func (x *index) add(p place, r *record) {
	slot := x.take()
	x.set(slot, r)
	x.enter(p, slot, r.key())
	if !x.unordered {
		x.insert(slot, r.key())
	}
}

// take returns a free slot.
func (x *index) take() uint32 {
	x.used++
	for len(x.free) > 0 {
		slot := x.free[len(x.free)-1]
		x.free = x.free[:len(x.free)-1]
		if slot < x.limit && x.at(slot) == nil {
			return slot
		}
	}
	if x.limit == uint32(len(x.pages)*pageSlots) { //nolint:gosec // it would take 32 GiB to exceed an uint32
		x.pages = append(x.pages, new([pageSlots]*record))
	}
	x.limit++
	return x.limit - 1
}

// enter makes the slot of a key without one found.
func (x *index) enter(p place, slot uint32, key string) {
	if !p.collides {
		x.slots[p.hash] = slot
		return
	}
	if x.colliding == nil {
		x.colliding = make(map[string]uint32)
	}
	x.colliding[strings.Clone(key)] = slot
}

// remove removes a key's slot.
func (x *index) remove(slot uint32) {
	key := x.at(slot).key()
	if !x.unordered {
		x.cut(key)
	}
	if _, ok := x.colliding[key]; ok {
		delete(x.colliding, key)
	} else {
		delete(x.slots, x.hash(key))
	}
	x.set(slot, nil)
	x.free = append(x.free, slot)
	x.used--
	for x.limit > 0 && x.at(x.limit-1) == nil {
		x.limit--
	}
	if x.limit > minSparse && x.used < int(x.limit/sparse) {
		x.compact()
	}
}

// compact renumbers the slots, because neither a map nor the pages shrink.
func (x *index) compact() {
	old := *x
	*x = index{seed: old.seed, mask: old.mask, slots: make(map[uint32]uint32, old.used), unordered: true}
	ordered := make([]uint32, 0, old.used)
	for from := range old.all() {
		r := old.at(from)
		slot := x.take()
		x.set(slot, r)
		p, _ := x.find(r.key())
		x.enter(p, slot, r.key())
		ordered = append(ordered, slot)
	}
	if !old.unordered {
		x.fill(ordered)
	}
}

// all iterates over the slots, in the order of their keys if there is one.
func (x *index) all() iter.Seq[uint32] {
	if !x.unordered {
		return x.up("")
	}
	return func(yield func(uint32) bool) {
		for slot := range x.limit {
			if x.at(slot) != nil && !yield(slot) {
				return
			}
		}
	}
}

// unorder makes the index forget the order until it is needed.
func (x *index) unorder() { x.blocks, x.unordered = nil, true }

// order sorts the keys, if they are not in order.
func (x *index) order() {
	if !x.unordered {
		return
	}
	items := make([]sortable, 0, x.used)
	for slot := range x.all() {
		items = append(items, sortable{slot: slot})
	}
	x.sort(items, 0)
	ordered := make([]uint32, len(items))
	for i, item := range items {
		ordered[i] = item.slot
	}
	x.fill(ordered)
}

// fill makes the blocks of ordered slots.
func (x *index) fill(ordered []uint32) {
	x.blocks, x.unordered = make([]block, 0, len(ordered)/filledSlots+1), false
	for part := range slices.Chunk(ordered, filledSlots) {
		b := block{slots: append(make([]uint32, 0, blockSlots), part...)}
		if len(x.blocks) > 0 {
			b.from = strings.Clone(x.key(part[0]))
		}
		x.blocks = append(x.blocks, b)
	}
	if len(x.blocks) == 0 {
		x.blocks = append(x.blocks, block{})
	}
}

func (x *index) key(slot uint32) string { return x.at(slot).key() }

// sortable is a slot to be sorted by a part of its key, which is kept beside it.
type sortable struct {
	part uint64
	slot uint32
}

// partBytes is how many bytes of a key a part has. In its lowest byte is how many it has, or more
// than partBytes if the key goes on: so parts that are equal are of equal keys, or of longer ones.
const partBytes = 7

// sort sorts slots whose keys have the same first bytes.
func (x *index) sort(items []sortable, equal int) {
	for len(items) > 1 {
		first := x.key(items[0].slot)
		same := len(first)
		for _, item := range items[1:] {
			same = min(same, equal+commonPrefix(first[equal:], x.key(item.slot)[equal:]))
		}
		for i := range items {
			items[i].part = partOf(x.key(items[i].slot)[same:])
		}
		slices.SortFunc(items, func(a, b sortable) int { return cmp.Compare(a.part, b.part) })
		equal = same + partBytes
		// The longest of the groups that are not sorted yet could be all but one: it is left to the
		// loop, so that the depth of the recursion stays small.
		var rest []sortable
		for from := 0; from < len(items); {
			to := from + 1
			for to < len(items) && items[to].part == items[from].part {
				to++
			}
			group := items[from:to]
			if from = to; len(group) > len(rest) {
				group, rest = rest, group
			}
			x.sort(group, equal)
		}
		items = rest
	}
}

// partOf returns the part at the beginning of a key's rest.
func partOf(rest string) uint64 {
	var b [partBytes + 1]byte
	copy(b[:partBytes], rest)
	b[partBytes] = byte(min(len(rest), partBytes+1))
	return binary.BigEndian.Uint64(b[:])
}

func commonPrefix(a, b string) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] != b[i] {
			return i
		}
	}
	return n
}

// search returns the block in which a key is or would be, and where in the block the keys begin
// that are not below it.
func (x *index) search(key string) (b, i int) {
	b, _ = slices.BinarySearchFunc(x.blocks, key, func(b block, key string) int {
		if b.from <= key {
			return -1
		}
		return 1
	})
	b = max(b-1, 0)
	i, _ = slices.BinarySearchFunc(x.blocks[b].slots, key, func(slot uint32, key string) int {
		return cmp.Compare(x.key(slot), key)
	})
	return b, i
}

// insert adds the slot of a key that is not in the order.
func (x *index) insert(slot uint32, key string) {
	b, i := x.search(key)
	slots := x.blocks[b].slots
	if len(slots) == blockSlots {
		// Keys that ascend fill the blocks.
		half := blockSlots / 2 //nolint:mnd // two blocks
		if b == len(x.blocks)-1 && i == len(slots) {
			half = len(slots)
		}
		right := block{from: key, slots: append(make([]uint32, 0, blockSlots), slots[half:]...)}
		if len(right.slots) > 0 {
			right.from = x.key(right.slots[0])
		}
		right.from = strings.Clone(right.from)
		x.blocks[b].slots = slots[:half]
		x.blocks = slices.Insert(x.blocks, b+1, right)
		if i > half || len(right.slots) == 0 {
			b, i = b+1, i-half
		}
	}
	x.blocks[b].slots = slices.Insert(x.blocks[b].slots, i, slot)
}

// cut removes a key from the order.
func (x *index) cut(key string) {
	b, i := x.search(key)
	x.blocks[b].slots = slices.Delete(x.blocks[b].slots, i, i+1)
	if b+1 < len(x.blocks) {
		x.merge(b)
	}
	if b > 0 {
		x.merge(b - 1)
	}
}

// merge makes one block of two if one is empty, or if they have room in the half of one.
func (x *index) merge(b int) {
	left, right := x.blocks[b].slots, x.blocks[b+1].slots
	if len(left) > 0 && len(right) > 0 && len(left)+len(right) > blockSlots/2 {
		return
	}
	x.blocks[b].slots = slices.Concat(left, right)
	x.blocks = slices.Delete(x.blocks, b+1, b+2) //nolint:mnd // one block
}

// up iterates over the slots of keys that are not below one.
func (x *index) up(from string) iter.Seq[uint32] {
	return func(yield func(uint32) bool) {
		b, i := x.search(from)
		for ; b < len(x.blocks); b, i = b+1, 0 {
			for _, slot := range x.blocks[b].slots[i:] {
				if !yield(slot) {
					return
				}
			}
		}
	}
}

// down iterates downwards over the slots of keys that are below one; over all if it is "".
func (x *index) down(end string) iter.Seq[uint32] {
	return func(yield func(uint32) bool) {
		b := len(x.blocks) - 1
		i := len(x.blocks[b].slots)
		if end != "" {
			b, i = x.search(end)
		}
		for {
			for _, slot := range slices.Backward(x.blocks[b].slots[:i]) {
				if !yield(slot) {
					return
				}
			}
			if b--; b < 0 {
				return
			}
			i = len(x.blocks[b].slots)
		}
	}
}

// collect returns the records of the keys from one up to, but without, another one.
func (x *index) collect(from, end string, bounded bool) []*record {
	b, i := x.search(from)
	lastBlock, last := len(x.blocks)-1, len(x.blocks[len(x.blocks)-1].slots)
	if bounded {
		lastBlock, last = x.search(end)
	}
	count := last - i
	for _, whole := range x.blocks[b:lastBlock] {
		count += len(whole.slots)
	}
	records := make([]*record, 0, count)
	for ; b <= lastBlock; b, i = b+1, 0 {
		slots := x.blocks[b].slots
		if b == lastBlock {
			slots = slots[:last]
		}
		for _, slot := range slots[i:] {
			records = append(records, x.at(slot))
		}
	}
	return records
}
