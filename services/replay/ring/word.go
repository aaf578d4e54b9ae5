package ring

import (
	"sync/atomic"
)

// word says what is in a row. It is the only thing that the processes agree by:
//
//	bit 0         somebody is writing
//	bits 1 to 8   the participant who is, or was
//	bits 9 to 63  the row's sequence number and one; 0 for a row that was never written
//
// Sequence numbers are positions in the ring's one long line of rows, given out by an atomic counter; row i holds those that
// are i modulo the capacity. A number is given once, so no word ever returns with another row behind it. (A writer that
// backs out of a claim puts the old word back, and has not touched the row.) At ten million rows a second the numbers last
// for a century.
//
// Writing a row: take a position; turn the row's word from a whole one (or an abandoned one) into one's own odd word, by
// compare and swap; look at the areas (area.go), and put the old word back if the row is in one; copy; store the even word.
// Where any of that fails the writer takes the next position. It never waits for anybody.
//
// Reading a row: load the word, which must be even; copy; load it again, and throw the copy away if it has changed.
//
// # Order
//
// Both orders need more than Go's atomics promise for plain memory beside them. A load is an acquire: what comes before it
// may still be done after it, and the reader's copy must not move below its second look. Nor does the compare and swap of a
// processor that makes it from two instructions (arm64 before 8.1) keep the writer's copy from moving above its store. Before
// the reader's second look, and after the writer's claim, stands therefore a read-modify-write on a word of the head's own:
// an acquire and a release in one, and where it is made of two instructions, its neighbours (the claim's releasing store and
// the final acquiring load) are ordered against it. On the row itself it would make readers write to shared lines, and
// a read-only mapping could not do it. The model is the one of Arm's architecture manual (B2.3, "barrier-ordered-before");
// on amd64 all of this is plain order, for loads are not reordered with loads nor stores with stores.
type word uint64

const (
	writing = 1
	// none is nobody: it owns what the dead have left. As a participant it is never given out.
	none = 255

	sequenceShift = 9
	// maxSequence is the last sequence number that a word can hold.
	maxSequence = 1<<(64-sequenceShift) - 2
)

func writingWord(sequence uint64, participant int) word {
	return word((sequence+1)<<sequenceShift | uint64(participant)<<1 | writing) //nolint:gosec // a participant is a byte
}

func (w word) published() word { return w &^ writing }

// readable says whether the row behind the word is whole.
func (w word) readable() bool { return w != 0 && w&writing == 0 }

// begun is the sequence number and one: how many positions had been given out when the row was last begun.
func (w word) begun() uint64 { return uint64(w >> sequenceShift) }

func (w word) sequence() uint64 { return w.begun() - 1 }

func (w word) participant() int { return int(w>>1) & 0xff }

// holds says whether the row is whole and is the one with this sequence number.
func (w word) holds(sequence uint64) bool { return w.readable() && w.begun() == sequence+1 }

// wordAt is a row's word in a mapping.
func (r *Ring) wordAt(mapping []byte, slot uint64) *atomic.Uint64 {
	return at(mapping, r.head.geometry.words+slot*wordSize)
}

// fence is a head's private word. It has a cache line of its own.
type fence struct {
	_    [cacheLine]byte
	word atomic.Uint64
	_    [cacheLine]byte
}

// full keeps what stands before it before what stands after it; see above.
func (f *fence) full() { f.word.Add(1) }
