package ring

// An [InPlace] reserves positions for the writes that follow, so that rows that it writes one after
// the other lie together though others write at the same time, and so that most of its writes do
// not touch the counter that all writers share.
//
// A position is only a number: reserving it locks no row and changes none. A row's word is locked
// when the row is written, as always, with a check for areas that were activated meanwhile. So a
// head that is idle, or whose process died, blocks nothing: positions that it does not use are
// skipped, and the rows in their place stay readable for another round.
//
// Sequence numbers then do not follow the time of writing exactly. A head does not use positions
// that are more than its lag behind the newest one of the ring. It reserves more of them each time
// only if it used up the last ones in a quarter of that, so heads that write seldom, or with many
// others, reserve what they write and no more.

const (
	// maxAhead and maxAheadBytes bound the positions that a head reserves at once for several
	// writes.
	maxAhead      = 64
	maxAheadBytes = 1 << 20
	// maxLag bounds the positions that others reserved since, for those left to be used.
	maxLag = 1024
)

// ahead are positions reserved for later writes: [from, to). None of them was in an area at epoch.
type ahead struct {
	from, to, epoch uint64
	// slot is that of from.
	slot uint64
	// room is how many rows a write may have, as areas were at epoch; 0 if that is not known.
	room uint64
	// left is how many rows can be written at the next positions, in one write or several: they lie
	// together, and areas leave room.
	left uint64
	// begin is the first one that was reserved.
	begin uint64
	// size is how many to reserve next time; most is its maximum, and lag that of the positions
	// reserved since.
	size, most, lag uint64
}

func (r *Ring) newAhead() ahead {
	var row uint64
	for _, c := range r.head.geometry.columns {
		row += c.size
	}
	capacity := r.head.layout.Capacity
	return ahead{size: 1, most: min(maxAhead, maxAheadBytes/max(row, 1), capacity/64), lag: min(maxLag, capacity/16)}
}

// resume gives an allocator the positions that were kept, if they are enough for a number of rows.
// Otherwise it drops them.
func (k *ahead) resume(a *allocator, rows uint64) {
	if k.from == k.to {
		return
	}
	r := a.head.ring
	fresh := k.to-k.from >= rows && r.counter(counterHead).Load()-k.to <= k.lag
	if fresh && k.epoch != r.epoch() {
		s, blocked := r.survey(k.from)
		fresh = blocked == 0 && k.to <= s.to
		k.epoch = s.epoch
	}
	if !fresh {
		k.drop()
		return
	}
	a.from, a.to, a.epoch = k.from, k.to, k.epoch
}

// refill is reserve where nothing is in the way, by what the head knows about areas. Otherwise it
// returns false, and reserves nothing.
func (k *ahead) refill(w *WriteHead, rows uint64) bool {
	r := w.ring
	s, position := w.surveyed.Load(), r.counter(counterHead)
	head, wanted := position.Load(), k.wanted(rows)
	if s == nil || s.epoch != r.epoch() || head < s.from || head+wanted > s.to || s.room(r) < rows ||
		head > maxSequence-wanted-r.head.layout.Capacity || !position.CompareAndSwap(head, head+wanted) {
		return false
	}
	r.enter(head, head+wanted)
	k.from, k.to, k.epoch, k.begin = head, head+wanted, s.epoch, head
	k.slot, k.room = head%r.head.layout.Capacity, s.room(r)
	k.measure(r)
	return true
}

// ready reports whether a number of rows can be written at the next positions, unless an area was
// activated since.
func (k *ahead) ready(r *Ring, rows uint64) bool {
	return rows <= k.to-k.from && rows <= k.room && rows <= r.head.layout.Capacity-k.slot &&
		r.counter(counterHead).Load()-k.to <= k.lag
}

// advance removes positions that were used.
func (k *ahead) advance(r *Ring, rows uint64) {
	k.from += rows
	if k.slot += rows; k.slot == r.head.layout.Capacity {
		k.slot = 0
	}
	if k.from == k.to {
		k.grow(r)
	}
	k.measure(r)
}

// advanceOne is advance for one row, while left is not 0.
func (k *ahead) advanceOne(r *Ring) {
	k.from++
	k.slot++
	if k.left--; k.left == 0 {
		k.advance(r, 0)
	}
}

// measure sets left.
func (k *ahead) measure(r *Ring) { k.left = min(k.to-k.from, k.room, r.head.layout.Capacity-k.slot) }

// grow reserves more next time if the positions were used up quickly.
func (k *ahead) grow(r *Ring) {
	if k.size < k.most && r.counter(counterHead).Load()-k.begin <= k.lag/4 {
		k.size = min(2*k.size, k.most)
	}
}

// wanted is how many positions to reserve for a number of rows if all of them lie together.
func (k *ahead) wanted(rows uint64) uint64 {
	if k.size > rows {
		return k.size - k.size%rows
	}
	return rows
}

// reserve reserves positions for a number of rows, and more if all of them lie together.
func (k *ahead) reserve(a *allocator, rows uint64, together bool) bool {
	wanted := rows
	if together {
		wanted = k.wanted(rows)
	}
	ok := a.reserve(wanted)
	k.begin = a.from
	return ok
}

// keep keeps the positions that an allocator has left.
func (k *ahead) keep(a *allocator) {
	r := a.head.ring
	k.from, k.to, k.epoch = a.from, a.to, a.epoch
	k.left = 0
	if k.from == k.to {
		k.grow(r)
		return
	}
	k.slot, k.room = k.from%r.head.layout.Capacity, 0
	if s := a.head.surveyed.Load(); s != nil && s.epoch == k.epoch {
		k.room = s.room(r)
	}
	k.measure(r)
}

// drop leaves the positions unused.
func (k *ahead) drop() { k.from, k.to, k.left, k.size = 0, 0, 0, 1 }

// DropReserved leaves the positions unused that were reserved for later writes. These then have
// higher sequence numbers than all that other heads wrote until now.
func (p *InPlace) DropReserved() { p.ahead.drop() }
