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

// An area is a set of rows that are read in place: one range, or a few. The file has a small table
// of ranges. An entry consists of an owner mark (a stamp and a participant's index; 0 if the entry
// is free), the first row and the number of rows. A bit in one word activates the entry.
//
// To hold an area, a reader allocates a free entry, writes the range, sets the bit, and only then
// loads the rows' words: a row that is complete now stays so. A writer makes a row's word odd
// before it loads the bits. So either the writer sees the bit and backs out, or the reader found
// the word odd or changed. This is Dekker's algorithm. It requires both loads to be sequentially
// consistent with both stores, which Go's atomics are.
//
// The area of a dead participant is reclaimed by any participant that finds it in its way. It first
// replaces the mark it saw by its own, with compare-and-swap: only one participant succeeds, and
// none clears the bit of an entry that was reallocated in between.

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

// active returns the set of entries whose rows writers must skip, one bit each.
func (r *Ring) active() uint64 {
	return r.counter(counterActive).Load()
}

// inArea returns the area that holds a row, if any.
func (r *Ring) inArea(slot uint64) (int, bool) {
	for active := r.active(); active != 0; active &= active - 1 {
		i := bits.TrailingZeros64(active)
		if r.offsetInArea(i, slot) < r.areaCount(i).Load() {
			return i, true
		}
	}
	return 0, false
}

// offsetInArea returns the distance of a row from the area's first row, modulo the capacity.
func (r *Ring) offsetInArea(i int, slot uint64) uint64 {
	capacity := r.head.layout.Capacity
	return (slot + capacity - r.areaFirst(i).Load()%capacity) % capacity
}

// ahead returns how many rows from slot on are held (blocked), or if slot is not held, how many
// rows are free before the next area.
func (r *Ring) ahead(slot uint64) (blocked, free uint64) {
	capacity := r.head.layout.Capacity
	free = capacity
	for active := r.active(); active != 0; active &= active - 1 {
		i := bits.TrailingZeros64(active)
		if r.reaped(i) {
			continue
		}
		into, count := r.offsetInArea(i, slot), min(r.areaCount(i).Load(), capacity)
		if into < count {
			return count - into, 0
		}
		free = min(free, capacity-into)
	}
	return 0, free
}

// heldRows returns the number of rows held by areas; overlaps count once.
func (r *Ring) heldRows() uint64 {
	capacity := r.head.layout.Capacity
	type interval struct{ from, to uint64 }
	var intervals []interval
	for active := r.active(); active != 0; active &= active - 1 {
		i := bits.TrailingZeros64(active)
		if r.reaped(i) {
			continue
		}
		from := r.areaFirst(i).Load() % capacity
		to := from + min(r.areaCount(i).Load(), capacity)
		intervals = append(intervals, interval{from, min(to, capacity)}, interval{0, to - min(to, capacity)})
	}
	slices.SortFunc(intervals, func(a, b interval) int { return cmp.Compare(a.from, b.from) })
	var held, end uint64
	for _, s := range intervals {
		held += max(s.to, end) - max(s.from, end)
		end = max(s.to, end)
	}
	return held
}

// reaped reports whether an area's participant is dead, and if so reclaims the area. Only a
// participant reclaims: the mark of any other process would look like that of a dead one.
func (r *Ring) reaped(i int) bool {
	mark := areaMark(r.areaOwner(i).Load())
	if mark == 0 || !r.knownDead(mark.participant()) {
		return false
	}
	if r.self != noParticipant {
		r.reclaim(i, mark)
	}
	return true
}

// allocateEntries allocates up to n entries. If there are none, the error lists their holders.
func (r *Ring) allocateEntries(n int) ([]int, areaMark, error) {
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

// releaseEntry frees an entry that carries the caller's mark.
func (r *Ring) releaseEntry(i int, mine areaMark) {
	r.counter(counterActive).And(^(uint64(1) << i))
	r.areaOwner(i).CompareAndSwap(uint64(mine), 0)
}

// reclaim frees the entry of a dead participant, unless another participant did so first.
func (r *Ring) reclaim(i int, seen areaMark) {
	mine := newAreaMark(r.counter(counterStamp).Add(1), r.self)
	if r.areaOwner(i).CompareAndSwap(uint64(seen), uint64(mine)) {
		r.releaseEntry(i, mine)
	}
}

// holders returns the ids of the processes that hold areas.
func (r *Ring) holders() []int {
	var pids []int
	for i := range maxAreas {
		if mark := areaMark(r.areaOwner(i).Load()); mark != 0 && mark.participant() != noParticipant {
			pids = append(pids, int(r.participantState(mark.participant()).Load())) //nolint:gosec // a process id, for a message
		}
	}
	slices.Sort(pids)
	return slices.Compact(pids)
}

// Area is a set of rows that can be read in place. Writers skip them until it is released. Release
// areas soon: the ring has no use of their rows meanwhile.
type Area struct {
	ring    *Ring
	entries []int
	mark    areaMark
	spans   []Span
	once    sync.Once
}

// Span is a part of an area: rows that are contiguous in memory and in sequence. It is valid until
// the area is released.
type Span struct {
	ring  *Ring
	slot  uint64
	first uint64
	rows  int
}

// Rows returns the number of rows.
func (s Span) Rows() int { return s.rows }

// First returns the sequence number of the first row. The others follow without gaps.
func (s Span) First() uint64 { return s.first }

// Layout returns the ring's layout. It must not be modified.
func (s Span) Layout() Layout { return s.ring.head.layout }

// Bytes returns a column of the span's rows, without a copy. The memory is mapped read-only:
// writing to it crashes the process.
func (s Span) Bytes(column int) []byte {
	c := s.ring.head.geometry.columns[column]
	from := c.offset + s.slot*c.size
	to := from + uint64(s.rows)*c.size //nolint:gosec // positive
	return s.ring.all[from:to:to]
}

const (
	// holdTries is how often Hold retries after writers overwrote rows that it was about to hold.
	holdTries = 8
	// maxPieces is the maximum number of entries for one area. Rows can lie apart because writers
	// skipped those between them; several entries avoid holding all that lies between.
	maxPieces = 4
)

// Hold makes the newest n rows an area. The area has fewer rows if fewer are readable, or if
// writers keep overwriting them meanwhile. Hold returns [ErrEmpty] if there are none, and
// [ErrTooManyAreas] with the current holders if the table of areas is full.
func (h *ReadHead) Hold(n int) (*Area, error) {
	r := h.ring
	if err := r.pinAsParticipant(); err != nil {
		return nil, err
	}
	defer r.unpin()
	if r.ended() {
		return nil, ErrEnded
	}
	if n <= 0 {
		return nil, fmt.Errorf("%w: area of %d rows", ErrBatch, n)
	}
	entries, mark, err := r.allocateEntries(maxPieces)
	if err != nil {
		return nil, err
	}
	area := &Area{ring: r, entries: entries, mark: mark}
	for try := range holdTries {
		if area.tryHold(uint64(n), try == holdTries-1) {
			r.held.Add(1)
			return area, nil
		}
	}
	area.releaseEntries(0)
	return nil, ErrEmpty
}

// tryHold puts the area around the newest n rows. It fails if writers claimed some of them before
// they saw the area; on the last try, it accepts the rows that are left.
func (a *Area) tryHold(n uint64, last bool) bool {
	r := a.ring
	ranges, found := r.newest(n)
	if found == 0 {
		return false
	}
	ranges = mergeRanges(ranges, len(a.entries))
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
			a.spans = trimOldest(a.spans, rows, n)
			a.releaseEntries(len(ranges))
			return true
		}
		runtime.Gosched() // a writer that saw the bits may be about to restore a word
	}
	r.counter(counterActive).And(^active)
	return false
}

// releaseEntries frees all entries from an index on.
func (a *Area) releaseEntries(from int) {
	for _, entry := range a.entries[from:] {
		a.ring.releaseEntry(entry, a.mark)
	}
	a.entries = a.entries[:from]
}

// positions is the half-open range [from, to).
type positions struct{ from, to uint64 }

// newest finds the newest n complete rows. It returns ranges that contain no other rows, newest
// first, and the number of rows.
func (r *Ring) newest(n uint64) (ranges []positions, found uint64) {
	head := r.counter(counterHead).Load()
	oldest := head - min(head, r.head.layout.Capacity)
	for p := head; p > oldest && found < n; p-- {
		if word(r.wordAt(r.all, (p-1)%r.head.layout.Capacity).Load()).holds(p - 1) {
			ranges = addPosition(ranges, p-1)
			found++
		}
	}
	if found < n && oldest > 0 {
		older := r.olderThan(oldest)
		older = older[:min(uint64(len(older)), n-found)]
		for _, p := range older {
			ranges = addPosition(ranges, p)
		}
		found += uint64(len(older))
	}
	return ranges, found
}

// olderThan returns the complete rows that survived the last round because writers skipped them,
// newest first.
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

// addPosition adds the next older position to ranges, newest first.
func addPosition(ranges []positions, p uint64) []positions {
	if k := len(ranges) - 1; k >= 0 && ranges[k].from == p+1 {
		ranges[k].from = p
		return ranges
	}
	return append(ranges, positions{from: p, to: p + 1})
}

// mergeRanges reduces ranges, newest first, to at most n by closing the smallest gaps between them.
func mergeRanges(ranges []positions, n int) []positions {
	if len(ranges) <= n {
		return ranges
	}
	gaps := make([]uint64, 0, len(ranges)-1)
	for i := range len(ranges) - 1 {
		gaps = append(gaps, ranges[i].from-ranges[i+1].to)
	}
	slices.Sort(gaps)
	small := gaps[len(gaps)-n] // n-1 gaps may remain; none larger than this is closed
	merged := ranges[:1:1]
	for _, next := range ranges[1:] {
		last := &merged[len(merged)-1]
		if last.from-next.to <= small {
			last.from = next.from
			continue
		}
		merged = append(merged, next)
	}
	return merged
}

// spans returns the complete rows in ranges of positions (newest range first) as contiguous pieces,
// oldest first.
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

// trimOldest drops the oldest rows until n are left.
func trimOldest(spans []Span, rows, n uint64) []Span {
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

// Rows returns the number of rows.
func (a *Area) Rows() int {
	n := 0
	for _, s := range a.spans {
		n += s.rows
	}
	return n
}

// Spans returns the area's rows, oldest first: one span, two if the area wraps around the ring's
// end, or more if rows between them were skipped or are being written.
func (a *Area) Spans() []Span { return a.spans }

// Release lets writers reuse the rows. The spans must not be used afterwards. Further calls do
// nothing.
func (a *Area) Release() error {
	var err error
	a.once.Do(func() {
		r := a.ring
		r.mu.Lock()
		defer r.mu.Unlock()
		a.spans = nil
		a.releaseEntries(0)
		if r.held.Add(-1) == 0 && r.closed {
			err = r.unmapFile()
		}
	})
	return err
}
