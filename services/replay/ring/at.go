package ring

import (
	"context"
	"fmt"
	"math"
	"runtime"
	"time"
)

// NoRow is a sequence number that no row has.
const NoRow = math.MaxUint64

// At fills a batch with the rows that have the given sequence numbers, in their order. It returns
// the indexes of the rows that can't be read any more, in increasing order: they were overwritten,
// are being overwritten, or do not exist. These rows of the batch are zero, and their sequence
// numbers are [NoRow]. So are those whose number is NoRow, which are not reported. At returns the
// context's error if that ends first.
//
// Each row is checked after it was copied: it is never torn, nor that of another number. At waits
// for rows that are being changed: see [WriteHead.Change]. Rows with consecutive numbers are copied
// together.
func (h *ReadHead) At(ctx context.Context, sequences []uint64, into *Batch) (lost []int, err error) {
	r := h.ring
	if err := h.prepare(len(sequences), into); err != nil {
		return nil, err
	}
	defer r.unpin()
	var ahead [drawnAhead]stretch
	var drawn [drawnAhead]draw
	var words [maxStretch]word
	for next := 0; next < len(sequences); {
		if err := ctx.Err(); err != nil {
			return nil, h.truncate(into, next, fmt.Errorf("read %d rows of the ring: after %d: %w", len(sequences), next, err))
		}
		n := 0
		for ; n < len(ahead) && next < len(sequences); n++ {
			ahead[n] = r.stretchOf(sequences, next)
			drawn[n].slot = ahead[n].slot
			next += ahead[n].rows
		}
		// The words first, all of them: see drawnAhead.
		for i := range n {
			drawn[i].word = word(r.wordAt(r.all, drawn[i].slot).Load())
		}
		h.touch(drawn[:n])
		for i := range min(n, preloaded) {
			h.preload(drawn[i].slot)
		}
		for i, s := range ahead[:n] {
			if i+preloaded < n {
				h.preload(drawn[i+preloaded].slot) //nolint:gosec // n is at most len(drawn)
			}
			into.sequences = append(into.sequences, sequences[s.from:s.from+s.rows]...)
			if s.empty {
				h.clearRows(into, s.from, s.rows)
				continue
			}
			if h.copyStretch(s, sequences[s.from], into, words[:s.rows]) {
				continue
			}
			for i := s.from; i < s.from+s.rows; i++ {
				if !h.copyNumbered(ctx, sequences[i], into, i) {
					if err := ctx.Err(); err != nil { // the row may be there
						return nil, h.truncate(into, i, fmt.Errorf("read %d rows of the ring: after %d: %w", len(sequences), i, err))
					}
					h.clearRows(into, i, 1)
					into.sequences[i] = NoRow
					lost = append(lost, i)
				}
			}
		}
	}
	return lost, nil
}

// stretch is a run of rows with consecutive sequence numbers, and contiguous in the ring; or of
// entries that are no rows.
type stretch struct {
	from, rows int
	slot       uint64
	empty      bool
}

// maxStretch is the maximum number of rows of a stretch.
const maxStretch = 64

// stretchOf returns the stretch that begins at an index.
func (r *Ring) stretchOf(sequences []uint64, from int) stretch {
	capacity, first := r.head.layout.Capacity, sequences[from]
	most := min(maxStretch, len(sequences)-from)
	s := stretch{from: from, rows: 1}
	if first > maxSequence {
		for s.empty = first == NoRow; s.empty && s.rows < most && sequences[from+s.rows] == NoRow; {
			s.rows++
		}
		return s
	}
	s.slot = first % capacity
	most = int(min(uint64(most), capacity-s.slot))                        //nolint:gosec // at most maxStretch
	for s.rows < most && sequences[from+s.rows] == first+uint64(s.rows) { //nolint:gosec // positive
		s.rows++
	}
	return s
}

// copyStretch copies the rows of a stretch. It returns false if one of them was not complete, or
// changed meanwhile: then the rows of the batch have anything in them. before is memory for as many
// words.
func (h *ReadHead) copyStretch(s stretch, first uint64, into *Batch, before []word) bool {
	r := h.ring
	if first > maxSequence {
		return false
	}
	words := r.words(r.all)[s.slot : s.slot+uint64(s.rows)] //nolint:gosec // positive
	for i := range words {
		before[i] = word(words[i].Load())        //nolint:gosec // as many as words
		if !before[i].holds(first + uint64(i)) { //nolint:gosec // as above
			return false
		}
	}
	for c, column := range r.head.geometry.columns {
		size := uint64(s.rows) * column.size                                                                       //nolint:gosec // positive
		copy(into.columns[c][uint64(s.from)*column.size:][:size], r.all[column.offset+s.slot*column.size:][:size]) //nolint:gosec // not negative
	}
	h.fence.barrier()
	for i := range words {
		if word(words[i].Load()) != before[i] { //nolint:gosec // as above
			return false
		}
	}
	return true
}

const (
	// changeTries is how often a reader tries again to read a row that is being changed. From
	// changeSleeps on it sleeps before it does: in all for a few milliseconds.
	changeTries  = 200
	changeSleeps = 100
)

// copyNumbered copies a row. It waits for one that is being changed, unless its changer is dead or
// suspended.
func (h *ReadHead) copyNumbered(ctx context.Context, sequence uint64, into *Batch, i int) bool {
	r := h.ring
	if sequence > maxSequence {
		return false
	}
	s := stretch{from: i, rows: 1, slot: sequence % r.head.layout.Capacity}
	var before [1]word
	for try := range changeTries {
		w := word(r.wordAt(r.all, s.slot).Load())
		switch {
		case w.holds(sequence):
			if h.copyStretch(s, sequence, into, before[:]) {
				return true
			}
		case !w.unfinished(sequence):
			return false
		case try == changeSleeps && r.knownDead(w.participant()):
			return false
		}
		if try < changeSleeps {
			runtime.Gosched()
			continue
		}
		timer := time.NewTimer(firstWait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return false
		case <-timer.C:
		}
	}
	return false
}

// clearRows makes rows of a batch zero.
func (h *ReadHead) clearRows(into *Batch, from, rows int) {
	for c, column := range h.ring.head.geometry.columns {
		size := int(column.size) //nolint:gosec // at most maxRow
		clear(into.columns[c][from*size : (from+rows)*size])
	}
}
