package ring

import (
	"cmp"
	"context"
	"fmt"
	"math/bits"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/raylink/raylink/services/internal/mapfile"
)

// An area is a set of rows that are read in place: one range, or a few. The file has a small table
// of ranges. An entry consists of an owner mark (a stamp and a participant's index; 0 if the entry
// is free), the first row, the number of rows, and when the entry was taken. A bit activates the
// entry.
//
// To hold an area, a reader allocates a free entry, writes the range, sets the bit, increments the
// epoch, and only then loads the rows' words: a row that is complete now stays so.
//
// A writer loads the epoch, then the active ranges, and allocates positions that none of them
// contains. For each of these it makes the row's word odd, and then loads the epoch again. If it is
// unchanged, no range was activated in between, and the row is not held. If it has changed, the
// writer checks all active ranges. So either the writer sees the area and backs out, or the reader
// found the word odd or changed. This is Dekker's algorithm. It requires both loads to be
// sequentially consistent with both stores, which Go's atomics are. What a writer knows about areas
// stays valid until the epoch changes, because releasing an area only makes more rows writable. So
// held areas cost a writer nothing per row.
//
// # Dead holders
//
// Asking the kernel whether a holder is alive (participant.go) costs more than writing a row. It is
// asked only when it matters: when a write finds no room, when the table of areas is full, and when
// statistics are collected. So that a dead holder's rows do not stay unused for ever, a writer that
// has to skip an area also asks, at most once every sweepInterval for the whole machine.
//
// The area of a dead participant is reclaimed by the participant that finds out. It first replaces
// the mark it saw by its own, with compare-and-swap: only one participant succeeds, and none clears
// the bit of an entry that was reallocated in between.

const (
	// maxAreas is the number of entries of the table.
	maxAreas    = 256
	activeWords = maxAreas / 64
	// sweepInterval is how often the holders of areas are checked where there is room.
	sweepInterval = time.Second
)

type areaMark uint64

func newAreaMark(stamp uint64, participant int) areaMark {
	return areaMark(stamp<<participantBits | uint64(participant)) //nolint:gosec // a participant has that many bits
}

func (m areaMark) participant() int { return int(m & noParticipant) }

func (r *Ring) areaOffset(i int) uint64 {
	return r.head.geometry.areas + uint64(i)*areaSize //nolint:gosec // 0 to 255
}

func (r *Ring) areaOwner(i int) *atomic.Uint64 { return at(r.control, r.areaOffset(i)) }
func (r *Ring) areaFirst(i int) *atomic.Uint64 { return at(r.control, r.areaOffset(i)+8) }
func (r *Ring) areaCount(i int) *atomic.Uint64 { return at(r.control, r.areaOffset(i)+16) }

// areaSince is when the entry was allocated, in nanoseconds since boot.
func (r *Ring) areaSince(i int) *atomic.Uint64 { return at(r.control, r.areaOffset(i)+24) }

// activeWord is the i-th word of the set of active entries.
func (r *Ring) activeWord(i int) *atomic.Uint64 {
	return at(r.control, r.head.geometry.counters+uint64(counterActive)*cacheLine+uint64(i)*8) //nolint:gosec // 0 to 3
}

// entrySet is a set of entries of the table of areas, a bit each.
type entrySet [activeWords]uint64

func (s entrySet) with(entry int) entrySet {
	s[entry/64] |= 1 << (entry % 64)
	return s
}

// all iterates over the entries of the set.
func (s entrySet) all(yield func(int) bool) {
	for i, bitmap := range s {
		for ; bitmap != 0; bitmap &= bitmap - 1 {
			if !yield(i*64 + bits.TrailingZeros64(bitmap)) {
				return
			}
		}
	}
}

// active returns the entries whose rows writers must skip.
func (r *Ring) active() entrySet {
	var s entrySet
	for i := range s {
		s[i] = r.activeWord(i).Load()
	}
	return s
}

// activate makes writers skip the rows of entries.
func (r *Ring) activate(s entrySet) {
	for i, bitmap := range s {
		if bitmap != 0 {
			r.activeWord(i).Or(bitmap)
		}
	}
	r.counter(counterEpoch).Add(1)
}

func (r *Ring) deactivate(s entrySet) {
	for i, bitmap := range s {
		if bitmap != 0 {
			r.activeWord(i).And(^bitmap)
		}
	}
}

// epoch changes whenever an area is activated.
func (r *Ring) epoch() uint64 { return r.counter(counterEpoch).Load() }

// inArea reports whether an area holds a row.
func (r *Ring) inArea(slot uint64) bool {
	for i := range r.active().all {
		if r.offsetInArea(i, slot) < r.areaCount(i).Load() {
			return true
		}
	}
	return false
}

// offsetInArea returns the distance of a row from the area's first row, modulo the capacity.
func (r *Ring) offsetInArea(i int, slot uint64) uint64 {
	capacity := r.head.layout.Capacity
	first := r.areaFirst(i).Load()
	if first >= capacity { // another process wrote it
		first %= capacity
	}
	if slot < first {
		slot += capacity
	}
	return slot - first
}

// survey is what a writer knows about areas: that none of them contains the positions [from, to).
// It is valid as long as the epoch is unchanged.
type survey struct {
	epoch, from, to uint64
	// held is an upper bound of the number of held rows.
	held uint64
}

// room is how many rows a write may have.
func (s *survey) room(r *Ring) uint64 {
	capacity := r.head.layout.Capacity
	if s.held == 0 {
		return capacity
	}
	return capacity - min(s.held, capacity)
}

// survey returns how many rows from a position on are held (blocked), or if there are none, how
// many follow that are not.
func (r *Ring) survey(position uint64) (s *survey, blocked uint64) {
	capacity := r.head.layout.Capacity
	s = &survey{epoch: r.epoch(), from: position} // the epoch first: see above
	slot, free := position%capacity, capacity
	for i := range r.active().all {
		into, count := r.offsetInArea(i, slot), min(r.areaCount(i).Load(), capacity)
		s.held += count
		if into < count {
			blocked = max(blocked, count-into)
		} else {
			free = min(free, capacity-into)
		}
	}
	s.to = position + free
	return s, blocked
}

// heldRows returns the number of rows held by areas; overlaps count once. It does not check whether
// their holders are alive.
func (r *Ring) heldRows() uint64 {
	return r.heldBy(r.active())
}

// heldBy returns the number of rows of some entries; overlaps count once.
func (r *Ring) heldBy(entries entrySet) uint64 {
	capacity := r.head.layout.Capacity
	type interval struct{ from, to uint64 }
	var intervals []interval
	for i := range entries.all {
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

// sweep reclaims the areas of dead participants, unless a process did so less than sweepInterval
// ago.
func (r *Ring) sweep() {
	// This process's clock first: the one that all processes share needs a system call.
	local, checked := time.Now().UnixNano(), r.sweepChecked.Load()
	if since := local - checked; since >= 0 && since < int64(sweepInterval)/8 || !r.sweepChecked.CompareAndSwap(checked, local) {
		return
	}
	now, swept := uint64(mapfile.Boottime()), r.counter(counterSwept) //nolint:gosec // positive
	last := swept.Load()
	if now-last < uint64(sweepInterval) || !swept.CompareAndSwap(last, now) {
		return
	}
	r.reclaimDead()
}

// reclaimDead reclaims the areas of dead participants, and returns the active ones of participants
// that are alive. Only a participant reclaims: the mark of any other process would look like that
// of a dead one.
func (r *Ring) reclaimDead() entrySet {
	live, active := entrySet{}, r.active()
	dead := make(map[int]bool)
	for i := range maxAreas {
		mark := areaMark(r.areaOwner(i).Load())
		if mark == 0 {
			continue
		}
		isDead, known := dead[mark.participant()]
		if !known {
			isDead = r.knownDead(mark.participant())
			dead[mark.participant()] = isDead
		}
		switch {
		case !isDead:
			live = live.with(i)
		case r.self != noParticipant:
			r.reclaim(i, mark)
		}
	}
	for i := range live {
		live[i] &= active[i]
	}
	return live
}

// allocateEntries allocates up to n entries. If there are none, the error lists their holders.
func (r *Ring) allocateEntries(n int, mine areaMark) ([]int, error) {
	taken := r.takeEntries(n, mine)
	if len(taken) == 0 {
		r.reclaimDead()
		taken = r.takeEntries(n, mine)
	}
	if len(taken) == 0 {
		return nil, fmt.Errorf("%w: all %d are in use; %s", ErrTooManyAreas, maxAreas, holderText(r.holders()))
	}
	return taken, nil
}

func (r *Ring) takeEntries(n int, mine areaMark) []int {
	var taken []int
	for i := 0; i < maxAreas && len(taken) < n; i++ {
		if r.areaOwner(i).Load() == 0 && r.areaOwner(i).CompareAndSwap(0, uint64(mine)) {
			r.areaSince(i).Store(uint64(mapfile.Boottime())) //nolint:gosec // positive
			taken = append(taken, i)
		}
	}
	return taken
}

// releaseEntry frees an entry that carries the caller's mark.
func (r *Ring) releaseEntry(i int, mine areaMark) {
	r.deactivate(entrySet{}.with(i))
	r.areaOwner(i).CompareAndSwap(uint64(mine), 0)
}

// reclaim frees the entry of a dead participant, unless another participant did so first. That of a
// [Loader] is left to the node that takes over the ring: until then, no row may be written.
func (r *Ring) reclaim(i int, seen areaMark) {
	if r.loading().of(seen) {
		return
	}
	mine := newAreaMark(r.counter(counterStamp).Add(1), r.self)
	if r.areaOwner(i).CompareAndSwap(uint64(seen), uint64(mine)) {
		r.releaseEntry(i, mine)
	}
}

// Holders returns the processes that hold areas, those that have held them longest first. It visits
// the table of areas, but no rows, and asks the kernel which of the holders are alive.
func (r *Ring) Holders() ([]Holder, error) {
	if err := r.pin(); err != nil {
		return nil, err
	}
	defer r.unpin()
	return r.holdersOf(r.reclaimDead()), nil
}

// holders is Holders, which may include those that have died or are about to hold an area.
func (r *Ring) holders() []Holder {
	var all entrySet
	for i := range maxAreas {
		all = all.with(i)
	}
	return r.holdersOf(all)
}

// holdersOf returns the processes that have some entries of the table.
func (r *Ring) holdersOf(some entrySet) []Holder {
	now := uint64(mapfile.Boottime()) //nolint:gosec // positive
	entries := make(map[int]entrySet)
	ages := make(map[int]time.Duration)
	for i := range some.all {
		mark := areaMark(r.areaOwner(i).Load())
		if mark == 0 || mark.participant() == noParticipant {
			continue
		}
		pid := r.processID(mark.participant())
		entries[pid] = entries[pid].with(i)
		since := r.areaSince(i).Load()
		ages[pid] = max(ages[pid], time.Duration(now-min(since, now))) //nolint:gosec // since boot
	}
	holders := make([]Holder, 0, len(entries))
	for pid, s := range entries {
		holders = append(holders, Holder{PID: pid, Rows: r.heldBy(s), Age: ages[pid]})
	}
	slices.SortFunc(holders, func(a, b Holder) int {
		return cmp.Or(cmp.Compare(b.Age, a.Age), cmp.Compare(a.PID, b.PID))
	})
	return holders
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
// writers keep overwriting them meanwhile. Hold returns [ErrEmpty] if there are none,
// [ErrTooManyAreas] with the current holders if the table of areas is full, and the context's error
// if it ends first.
//
// What it costs depends on the number of rows, not on their age. Rows that lie apart need several
// entries of the table. Where they need more than four, the area includes the rows between those
// that lie closest together.
func (h *ReadHead) Hold(ctx context.Context, n int) (*Area, error) {
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
	area := &Area{ring: r, mark: newAreaMark(r.counter(counterStamp).Add(1), r.self)}
	for try := range holdTries {
		done, err := area.tryHold(ctx, uint64(n), try == holdTries-1)
		if err != nil {
			area.releaseEntries(0)
			return nil, fmt.Errorf("hold the newest %d rows of the ring: %w", n, err)
		}
		if done {
			r.held.Add(1)
			return area, nil
		}
	}
	area.releaseEntries(0)
	return nil, ErrEmpty
}

// tryHold puts the area around the newest n rows. It fails if writers claimed some of them before
// they saw the area; on the last try, it accepts the rows that are left.
func (a *Area) tryHold(ctx context.Context, n uint64, last bool) (bool, error) {
	r := a.ring
	ranges, found, err := r.newest(ctx, n, maxSequence)
	for try := 1; try < emptyTries && found == 0 && err == nil && r.filledRows() > 0; try++ {
		ranges, found, err = r.newest(ctx, n, maxSequence)
	}
	if err != nil {
		return false, err
	}
	if found == 0 {
		return false, ErrEmpty
	}
	if missing := min(len(ranges), maxPieces) - len(a.entries); missing > 0 {
		entries, err := r.allocateEntries(missing, a.mark)
		if err != nil && len(a.entries) == 0 {
			return false, err
		}
		a.entries = append(a.entries, entries...)
	}
	var active entrySet
	pieces := r.mergeSlots(ranges, len(a.entries))
	for i, piece := range pieces {
		entry := a.entries[i]
		r.areaFirst(entry).Store(piece.first)
		r.areaCount(entry).Store(piece.count)
		active = active.with(entry)
	}
	r.activate(active)
	for range 2 {
		var rows uint64
		a.spans, rows = r.spans(ranges)
		if rows == found || last && rows > 0 {
			a.releaseEntries(len(pieces))
			return true, nil
		}
		runtime.Gosched() // a writer that saw the bits may be about to restore a word
	}
	r.deactivate(active)
	return false, nil
}

// releaseEntries frees all entries from an index on.
func (a *Area) releaseEntries(from int) {
	for _, entry := range a.entries[from:] {
		a.ring.releaseEntry(entry, a.mark)
	}
	a.entries = a.entries[:from]
}

// slots are count slots from first on, modulo the capacity.
type slots struct{ first, count uint64 }

// mergeSlots returns at most n pieces that contain all rows of the ranges, and as few others as
// possible.
func (r *Ring) mergeSlots(ranges []positions, n int) []slots {
	capacity := r.head.layout.Capacity
	pieces := make([]slots, len(ranges))
	for i, p := range ranges {
		pieces[i] = slots{first: p.from % capacity, count: p.to - p.from}
	}
	if len(pieces) <= n {
		return pieces
	}
	slices.SortFunc(pieces, func(a, b slots) int { return cmp.Compare(a.first, b.first) })
	// gap is the number of slots between a piece and its successor, around the ring's end.
	gap := func(i int) uint64 {
		end, next := pieces[i].first+pieces[i].count, pieces[(i+1)%len(pieces)].first
		if next < end {
			next += capacity
		}
		return next - end
	}
	order := make([]int, len(pieces))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int { return cmp.Compare(gap(b), gap(a)) })
	order = order[:n] // those whose gaps remain
	slices.Sort(order)
	merged := make([]slots, n)
	for i, last := range order {
		first := (order[(i+n-1)%n] + 1) % len(pieces)
		end := pieces[last].first + pieces[last].count
		if last < first {
			end += capacity
		}
		merged[i] = slots{first: pieces[first].first, count: end - pieces[first].first}
	}
	return merged
}

// spans returns the rows of ranges (newest range first) that are still complete as contiguous
// pieces, oldest first.
func (r *Ring) spans(ranges []positions) (spans []Span, rows uint64) {
	capacity := r.head.layout.Capacity
	for _, piece := range slices.Backward(ranges) {
		slot := piece.from % capacity
		for p := piece.from; p < piece.to; {
			if slot == capacity {
				slot = 0
			}
			n := r.heldFrom(p, slot, min(piece.to-p, capacity-slot))
			if n == 0 {
				p, slot = p+1, slot+1
				continue
			}
			rows += n
			if k := len(spans) - 1; k >= 0 && slot != 0 && spans[k].first+uint64(spans[k].rows) == p { //nolint:gosec // positive
				spans[k].rows += int(n) //nolint:gosec // at most the capacity
			} else {
				spans = append(spans, Span{ring: r, slot: slot, first: p, rows: int(n)}) //nolint:gosec // at most the capacity
			}
			p, slot = p+n, slot+n
		}
	}
	return spans, rows
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
		a.spans = nil
		a.releaseEntries(0)
		err = a.ring.letGo()
	})
	return err
}
