package ring

import (
	"cmp"
	"context"
	"slices"
	"sync/atomic"
)

// Blocks summarize the words of 4096 consecutive rows each, so that a reader need not visit all
// words where few rows are readable, or where writers skipped many. Each has two numbers:
//
//   - The round is one more than the highest round of the ring in which a position of the block was
//     allocated to a writer. A writer raises it before it claims the first row. So a block whose
//     round is lower than that of a position has no row with that position.
//   - The number of filled rows counts the words that are readable or being written: all but those
//     never written and the disowned. A writer increments it before it claims a row that is not
//     counted, and decrements it after it disowned one. So the block never has more readable rows.
//     It may have fewer: rows that are being written, or were when their writer was killed.

const (
	blockShift   = 12
	blockRows    = 1 << blockShift
	blockSummary = 16
)

// blocksOf returns the number of blocks of a ring.
func blocksOf(capacity uint64) uint64 { return (capacity + blockRows - 1) >> blockShift }

func (r *Ring) blockRound(block uint64) *atomic.Uint64 {
	return at(r.control, r.head.geometry.blocks+block*blockSummary)
}

func (r *Ring) blockFilled(block uint64) *atomic.Uint64 {
	return at(r.control, r.head.geometry.blocks+block*blockSummary+8)
}

// counted reports whether a row with this word is counted as filled.
func (w word) counted() bool {
	return w.readable() || w&writing != 0 && w.participant() != noParticipant
}

// blockSlots returns the half-open range of a block's rows.
func (r *Ring) blockSlots(block uint64) (from, to uint64) {
	from = block << blockShift
	return from, min(from+blockRows, r.head.layout.Capacity)
}

// filled returns the upper bound of a block's readable rows.
func (r *Ring) filled(block uint64) uint64 {
	from, to := r.blockSlots(block)
	return min(r.blockFilled(block).Load(), to-from)
}

// enter raises the rounds of the blocks of newly allocated positions.
func (r *Ring) enter(from, to uint64) {
	capacity := r.head.layout.Capacity
	for from < to {
		slot := from % capacity
		raise(r.blockRound(slot>>blockShift), from/capacity+1)
		from += min(blockRows-slot%blockRows, capacity-slot)
	}
}

// raise sets a word to the maximum of its value and another.
func raise(at *atomic.Uint64, to uint64) {
	for {
		old := at.Load()
		if old >= to || at.CompareAndSwap(old, to) {
			return
		}
	}
}

// filledRows returns an upper bound of the number of readable rows: see above.
func (r *Ring) filledRows() uint64 {
	var n uint64
	for block := range blocksOf(r.head.layout.Capacity) {
		n += r.filled(block)
	}
	return n
}

// census has the filled rows of the blocks, summed up: element i counts those of blocks 0 to i.
type census []uint64

func (r *Ring) census() census {
	c := make(census, blocksOf(r.head.layout.Capacity))
	var n uint64
	for i := range c {
		n += r.filled(uint64(i))
		c[i] = n
	}
	return c
}

func (c census) total() uint64 { return c[len(c)-1] }

// find returns the x-th filled row, or false if fewer of its block's rows are readable. So each
// readable row is found by exactly one x of those below the total.
func (c census) find(r *Ring, x uint64) (uint64, bool) {
	block, _ := slices.BinarySearch(c, x+1)
	if block > 0 {
		x -= c[block-1]
	}
	from, to := r.blockSlots(uint64(block)) //nolint:gosec // not negative
	for slot := from; slot < to; slot++ {
		if !word(r.wordAt(r.all, slot).Load()).readable() {
			continue
		}
		if x == 0 {
			return slot, true
		}
		x--
	}
	return 0, false
}

// positions is the half-open range [from, to).
type positions struct{ from, to uint64 }

// newest finds the newest n complete rows with sequence numbers below a limit. It returns ranges
// that contain no other rows, newest first, and the number of rows.
func (r *Ring) newest(ctx context.Context, n, before uint64) (ranges []positions, found uint64, err error) {
	capacity := r.head.layout.Capacity
	head := r.counter(counterHead).Load()
	oldest := head - min(head, capacity)
	for p := min(head, before); p > oldest && found < n; {
		if err := ctx.Err(); err != nil {
			return nil, 0, err //nolint:wrapcheck // the caller adds the operation
		}
		// The positions of a block, newest first.
		slot, round := (p-1)%capacity, (p-1)/capacity+1
		end := max(p-1-slot%blockRows, oldest)
		if r.blockRound(slot>>blockShift).Load() < round {
			p = end
		}
		for p > end && found < n {
			rows := r.heldBefore(p, slot, min(p-end, n-found))
			if rows == 0 {
				p, slot = p-1, slot-1
				continue
			}
			ranges = addPositions(ranges, positions{p - rows, p})
			p, slot, found = p-rows, slot-rows, found+rows
		}
	}
	if found == n || oldest == 0 {
		return ranges, found, nil
	}
	older, err := r.olderThan(ctx, min(oldest, before), n-found)
	for _, p := range older {
		ranges = addPositions(ranges, positions{p, p + 1})
	}
	return ranges, found + uint64(len(older)), err
}

// olderThan returns up to n sequence numbers of complete rows that survived the last round because
// writers skipped them, newest first. It visits blocks in the order of the newest row that they may
// have, and stops when no other block can have a newer row than those found.
func (r *Ring) olderThan(ctx context.Context, limit, n uint64) ([]uint64, error) {
	type candidate struct{ block, below uint64 }
	var candidates []candidate
	for block := range blocksOf(r.head.layout.Capacity) {
		if below := r.newestBelow(block, limit); r.filled(block) > 0 && below > 0 {
			candidates = append(candidates, candidate{block, below})
		}
	}
	slices.SortFunc(candidates, func(a, b candidate) int { return cmp.Compare(b.below, a.below) })
	var older []uint64
	for _, c := range candidates {
		if err := ctx.Err(); err != nil {
			return nil, err //nolint:wrapcheck // the caller adds the operation
		}
		if uint64(len(older)) >= n {
			older = newestOf(older, n)
			if older[n-1] >= c.below {
				return older, nil
			}
		}
		from, to := r.blockSlots(c.block)
		for slot := from; slot < to; slot++ {
			if w := word(r.wordAt(r.all, slot).Load()); w.readable() && w.sequence() < limit {
				older = append(older, w.sequence())
			}
		}
	}
	return newestOf(older, n), nil
}

// newestBelow returns an upper bound of a block's sequence numbers below a limit. Those in use are
// lower than it.
func (r *Ring) newestBelow(block, limit uint64) uint64 {
	capacity := r.head.layout.Capacity
	from, to := r.blockSlots(block)
	slot := limit % capacity
	start := limit - slot // of the limit's round
	below := start + min(to, slot)
	if slot <= from { // the block's positions of this round are not below the limit
		if start == 0 {
			return 0
		}
		below = start - capacity + to
	}
	round := min(r.blockRound(block).Load(), maxSequence/capacity+1)
	if round == 0 {
		return 0
	}
	return min(below, (round-1)*capacity+to)
}

// newestOf returns the n highest sequence numbers in descending order.
func newestOf(sequences []uint64, n uint64) []uint64 {
	slices.SortFunc(sequences, func(a, b uint64) int { return cmp.Compare(b, a) })
	return sequences[:min(n, uint64(len(sequences)))]
}

// addPositions adds older positions to ranges, newest first.
func addPositions(ranges []positions, older positions) []positions {
	if k := len(ranges) - 1; k >= 0 && ranges[k].from == older.to {
		ranges[k].from = older.from
		return ranges
	}
	return append(ranges, older)
}

// heldBefore returns how many of the positions p-1, p-2 and so on have complete rows before one has
// not, at most a maximum. slot is that of p-1, and the maximum does not go beyond slot 0.
func (r *Ring) heldBefore(p, slot, most uint64) uint64 {
	words := r.words(r.all)
	for n := range most {
		if !word(words[slot-n].Load()).holds(p - 1 - n) {
			return n
		}
	}
	return most
}

// heldFrom is heldBefore for the positions p, p+1 and so on; slot is that of p.
func (r *Ring) heldFrom(p, slot, most uint64) uint64 {
	words := r.words(r.all)[slot:][:most]
	for i := range words {
		if !word(words[i].Load()).holds(p + uint64(i)) {
			return uint64(i)
		}
	}
	return most
}
