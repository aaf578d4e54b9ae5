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
	maxAheadBytes = 64 << 10
	// maxLag bounds the positions that others reserved since, for those left to be used.
	maxLag = 1024
)

// ahead are positions reserved for later writes: [from, to). None of them was in an area at epoch.
type ahead struct {
	from, to, epoch uint64
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

// reserve reserves positions for a number of rows, and more if all of them lie together.
func (k *ahead) reserve(a *allocator, rows uint64, together bool) bool {
	wanted := rows
	if together && k.size > rows {
		wanted = k.size - k.size%rows
	}
	ok := a.reserve(wanted)
	k.begin = a.from
	return ok
}

// keep keeps the positions that an allocator has left.
func (k *ahead) keep(a *allocator) {
	k.from, k.to, k.epoch = a.from, a.to, a.epoch
	if k.from == k.to && k.size < k.most && a.head.ring.counter(counterHead).Load()-k.begin <= k.lag/4 {
		k.size = min(2*k.size, k.most)
	}
}

// drop leaves the positions unused.
func (k *ahead) drop() { k.from, k.to, k.size = 0, 0, 1 }

// DropReserved leaves the positions unused that were reserved for later writes. These then have
// higher sequence numbers than all that other heads wrote until now.
func (p *InPlace) DropReserved() { p.ahead.drop() }
