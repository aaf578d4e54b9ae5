package ring

import (
	"cmp"
	"fmt"
	"math/bits"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
)

// An area is some rows that somebody reads in place: a range, or a few. There is a small table of ranges in the file; for each a
// mark (a stamp and the participant that it belongs to, 0 for a free one), the first row and the number of rows. A bit in one
// word says that it counts.
//
// Who wants an area takes a free entry, writes the range, sets the bit, and only then looks at the rows' words: what is whole
// now stays whole. For a writer turns a row's word odd before it looks at the bits: either it sees the bit and backs out, or the
// word was odd (or already another) when the reader looked. This is Dekker's argument; it needs the two looks to be
// sequentially consistent with the two stores, as Go's atomics are.
//
// An area of a dead participant is taken back by whoever finds it in the way: he puts his own mark in place of the one he saw,
// so that only one does, and so that nobody clears the bit of an entry that has meanwhile gone to somebody else.

// maxAreas is the number of bits in a word.
const maxAreas = 64

type areaMark uint64

func newAreaMark(stamp uint64, participant int) areaMark {
	return areaMark(stamp<<8 | uint64(participant)) //nolint:gosec // a participant is a byte
}

func (m areaMark) participant() int { return int(m & 0xff) }

func (r *Ring) areaOffset(i int) uint64 {
	return r.head.geometry.areas + uint64(i)*areaSize //nolint:gosec // 0 to 63
}

func (r *Ring) areaOwner(i int) *atomic.Uint64 { return at(r.control, r.areaOffset(i)) }
func (r *Ring) areaFirst(i int) *atomic.Uint64 { return at(r.control, r.areaOffset(i)+8) }
func (r *Ring) areaCount(i int) *atomic.Uint64 { return at(r.control, r.areaOffset(i)+16) }

// active has a bit for each entry that writers go around.
func (r *Ring) active() uint64 {
	if !guarded {
		return 0
	}
	return r.counter(counterActive).Load()
}

// inArea says whether a row is held, and in which area.
func (r *Ring) inArea(slot uint64) (int, bool) {
	for active := r.active(); active != 0; active &= active - 1 {
		i := bits.TrailingZeros64(active)
		if r.intoArea(i, slot) < r.areaCount(i).Load() {
			return i, true
		}
	}
	return 0, false
}

// intoArea is how many rows after the area's first one a row is, going around.
func (r *Ring) intoArea(i int, slot uint64) uint64 {
	capacity := r.head.layout.Capacity
	return (slot + capacity - r.areaFirst(i).Load()%capacity) % capacity
}

// ahead looks from a row to the areas before a writer: how many rows are held from there on, or how many are free.
func (r *Ring) ahead(slot uint64) (blocked, free uint64) {
	capacity := r.head.layout.Capacity
	free = capacity
	for active := r.active(); active != 0; active &= active - 1 {
		i := bits.TrailingZeros64(active)
		if r.reaped(i) {
			continue
		}
		into, count := r.intoArea(i, slot), min(r.areaCount(i).Load(), capacity)
		if into < count {
			return count - into, 0
		}
		free = min(free, capacity-into)
	}
	return 0, free
}

// heldRows is how many rows are held, by whatever number of areas.
func (r *Ring) heldRows() uint64 {
	capacity := r.head.layout.Capacity
	type stretch struct{ from, to uint64 }
	var stretches []stretch
	for active := r.active(); active != 0; active &= active - 1 {
		i := bits.TrailingZeros64(active)
		if r.reaped(i) {
			continue
		}
		from := r.areaFirst(i).Load() % capacity
		to := from + min(r.areaCount(i).Load(), capacity)
		stretches = append(stretches, stretch{from, min(to, capacity)}, stretch{0, to - min(to, capacity)})
	}
	slices.SortFunc(stretches, func(a, b stretch) int { return cmp.Compare(a.from, b.from) })
	var held, end uint64
	for _, s := range stretches {
		held += max(s.to, end) - max(s.from, end)
		end = max(s.to, end)
	}
	return held
}

// reaped says whether an area's participant is dead, and if so ends the area. Only a participant may: another's mark would be
// a dead one's.
func (r *Ring) reaped(i int) bool {
	mark := areaMark(r.areaOwner(i).Load())
	if mark == 0 || !r.dead(mark.participant()) {
		return false
	}
	if r.self != none {
		r.reclaim(i, mark)
	}
	return true
}

// takeEntries takes up to n entries for an area, or says who has them all.
func (r *Ring) takeEntries(n int) ([]int, areaMark, error) {
	mine := newAreaMark(r.counter(counterStamp).Add(1), r.self)
	var taken []int
	for i := range maxAreas {
		if r.areaOwner(i).Load() != 0 && !r.reaped(i) {
			continue
		}
		if r.areaOwner(i).CompareAndSwap(0, uint64(mine)) {
			taken = append(taken, i)
		}
		if len(taken) == n {
			break
		}
	}
	if len(taken) == 0 {
		return nil, 0, fmt.Errorf("%w: %d, by the processes %v", ErrTooManyAreas, maxAreas, r.holders())
	}
	return taken, mine, nil
}

// giveBack ends an area that the caller's mark is on.
func (r *Ring) giveBack(i int, mine areaMark) {
	r.counter(counterActive).And(^(uint64(1) << i))
	r.areaOwner(i).CompareAndSwap(uint64(mine), 0)
}

// reclaim ends an area of a dead participant, unless somebody else does.
func (r *Ring) reclaim(i int, seen areaMark) {
	mine := newAreaMark(r.counter(counterStamp).Add(1), r.self)
	if r.areaOwner(i).CompareAndSwap(uint64(seen), uint64(mine)) {
		r.giveBack(i, mine)
	}
}

// holders are the processes that hold areas.
func (r *Ring) holders() []int {
	var pids []int
	for i := range maxAreas {
		if mark := areaMark(r.areaOwner(i).Load()); mark != 0 && mark.participant() != none {
			pids = append(pids, int(r.participantState(mark.participant()).Load())) //nolint:gosec // a process id, for a message
		}
	}
	slices.Sort(pids)
	return slices.Compact(pids)
}

// Area is some rows that can be read in place. Writers go around them until it is released. A process that has areas should
// release them soon: what they hold is lost to the ring meanwhile.
type Area struct {
	ring    *Ring
	entries []int
	mark    areaMark
	spans   []Span
	once    sync.Once
}

// Span is a piece of an area: rows that follow each other in memory and in sequence. It is valid until the area is released.
type Span struct {
	ring  *Ring
	slot  uint64
	first uint64
	rows  int
}

// Rows is how many rows the span has.
func (s Span) Rows() int { return s.rows }

// First is the sequence number of the span's first row; the others count on from there.
func (s Span) First() uint64 { return s.first }

// Layout is the ring's.
func (s Span) Layout() Layout { return s.ring.head.layout }

// Bytes is a column of the span's rows, in place. The memory is mapped read-only: who writes to it ends the process.
func (s Span) Bytes(column int) []byte {
	c := s.ring.head.geometry.columns[column]
	from := c.offset + s.slot*c.size
	to := from + uint64(s.rows)*c.size //nolint:gosec // positive
	return s.ring.all[from:to:to]
}

const (
	// holdTries is how often Hold starts again because writers were faster.
	holdTries = 8
	// maxPieces is how many entries an area may take: rows that lie apart, because writers had gone around something
	// between them, are not held with all that lies between.
	maxPieces = 4
)

// Hold makes the newest n rows an area: fewer where there are fewer, or where writers keep overwriting them meanwhile.
// [ErrEmpty] says that there are none, [ErrTooManyAreas] who has taken all that are possible.
func (h *ReadHead) Hold(n int) (*Area, error) {
	r := h.ring
	if err := r.useAsParticipant(); err != nil {
		return nil, err
	}
	defer r.done()
	if r.ended() {
		return nil, ErrEnded
	}
	if n <= 0 {
		return nil, fmt.Errorf("%w: an area of %d rows", ErrBatch, n)
	}
	entries, mark, err := r.takeEntries(maxPieces)
	if err != nil {
		return nil, err
	}
	area := &Area{ring: r, entries: entries, mark: mark}
	for try := range holdTries {
		if area.settle(uint64(n), try == holdTries-1) {
			r.held.Add(1)
			return area, nil
		}
	}
	area.giveBack(0)
	return nil, ErrEmpty
}

// settle puts the area around the newest n rows. It fails where writers took some of them before they saw it, and takes
// what is left where it is the last try.
func (a *Area) settle(n uint64, last bool) bool {
	r := a.ring
	ranges, found := r.newest(n)
	if found == 0 {
		return false
	}
	ranges = joined(ranges, len(a.entries))
	var active uint64
	for i, piece := range ranges {
		entry := a.entries[i]
		r.areaFirst(entry).Store(piece.from % r.head.layout.Capacity)
		r.areaCount(entry).Store(min(piece.to-piece.from, r.head.layout.Capacity))
		active |= 1 << entry
	}
	r.counter(counterActive).Or(active)
	for range 2 {
		var rows uint64
		a.spans, rows = r.spans(ranges)
		if rows >= found || last && rows > 0 {
			a.spans = newestOf(a.spans, rows, n)
			a.giveBack(len(ranges))
			return true
		}
		runtime.Gosched() // a writer that saw the bits is perhaps about to put a word back
	}
	r.counter(counterActive).And(^active)
	return false
}

// giveBack gives all but the first entries back.
func (a *Area) giveBack(keep int) {
	for _, entry := range a.entries[keep:] {
		a.ring.giveBack(entry, a.mark)
	}
	a.entries = a.entries[:keep]
}

// positions is a range of them.
type positions struct{ from, to uint64 }

// newest finds the newest n whole rows, in ranges that have nothing else, newest first; and how many there are.
func (r *Ring) newest(n uint64) (ranges []positions, found uint64) {
	head := r.counter(counterHead).Load()
	oldest := head - min(head, r.head.layout.Capacity)
	for p := head; p > oldest && found < n; p-- {
		if word(r.wordAt(r.all, (p-1)%r.head.layout.Capacity).Load()).holds(p - 1) {
			ranges = extended(ranges, p-1)
			found++
		}
	}
	if found < n && oldest > 0 {
		older := r.olderThan(oldest)
		older = older[:min(uint64(len(older)), n-found)]
		for _, p := range older {
			ranges = extended(ranges, p)
		}
		found += uint64(len(older))
	}
	return ranges, found
}

// olderThan are the whole rows that stayed where they were in the last round, because writers went around them; newest first.
func (r *Ring) olderThan(oldest uint64) []uint64 {
	var older []uint64
	for slot := range r.head.layout.Capacity {
		if w := word(r.wordAt(r.all, slot).Load()); w.readable() && w.sequence() < oldest {
			older = append(older, w.sequence())
		}
	}
	slices.Sort(older)
	slices.Reverse(older)
	return older
}

// extended adds a position to ranges, newest first.
func extended(ranges []positions, p uint64) []positions {
	if k := len(ranges) - 1; k >= 0 && ranges[k].from == p+1 {
		ranges[k].from = p
		return ranges
	}
	return append(ranges, positions{from: p, to: p + 1})
}

// joined makes at most n ranges of some, newest first, by taking in the smallest gaps between them.
func joined(ranges []positions, n int) []positions {
	if len(ranges) <= n {
		return ranges
	}
	gaps := make([]uint64, 0, len(ranges)-1)
	for i := range len(ranges) - 1 {
		gaps = append(gaps, ranges[i].from-ranges[i+1].to)
	}
	slices.Sort(gaps)
	small := gaps[len(gaps)-n] // n-1 gaps may stay, no larger one is taken in
	kept := ranges[:1:1]
	for _, next := range ranges[1:] {
		last := &kept[len(kept)-1]
		if last.from-next.to <= small {
			last.from = next.from
			continue
		}
		kept = append(kept, next)
	}
	return kept
}

// spans are the whole rows of ranges of positions, newest range first, in pieces that hang together, oldest first.
func (r *Ring) spans(ranges []positions) (spans []Span, rows uint64) {
	capacity := r.head.layout.Capacity
	for _, piece := range slices.Backward(ranges) {
		for p := piece.from; p < piece.to; p++ {
			slot := p % capacity
			if !word(r.wordAt(r.all, slot).Load()).holds(p) {
				continue
			}
			rows++
			if k := len(spans) - 1; k >= 0 && slot != 0 && spans[k].first+uint64(spans[k].rows) == p { //nolint:gosec // positive
				spans[k].rows++
				continue
			}
			spans = append(spans, Span{ring: r, slot: slot, first: p, rows: 1})
		}
	}
	return spans, rows
}

// newestOf drops the oldest of the rows, down to n.
func newestOf(spans []Span, rows, n uint64) []Span {
	for rows > n {
		s := &spans[0]
		drop := min(rows-n, uint64(s.rows))                                   //nolint:gosec // positive
		s.slot, s.first, s.rows = s.slot+drop, s.first+drop, s.rows-int(drop) //nolint:gosec // at most s.rows
		if rows -= drop; s.rows == 0 {
			spans = spans[1:]
		}
	}
	return spans
}

// Rows is how many rows the area has.
func (a *Area) Rows() int {
	n := 0
	for _, s := range a.spans {
		n += s.rows
	}
	return n
}

// Spans are the area's rows, oldest first: in one piece, or in two where the ring's end lies between, or in more where rows
// were skipped or are being written.
func (a *Area) Spans() []Span { return a.spans }

// Release lets writers have the rows again. The spans must not be used after it. Only the first call does anything.
func (a *Area) Release() error {
	var err error
	a.once.Do(func() {
		r := a.ring
		r.life.Lock()
		defer r.life.Unlock()
		a.spans = nil
		a.giveBack(0)
		if r.held.Add(-1) == 0 && r.closed {
			err = r.unmapFile()
		}
	})
	return err
}
