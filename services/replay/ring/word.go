package ring

import (
	"sync/atomic"
	"unsafe" //nolint:depguard // atomic access to aligned words of mapped memory: see at
)

// word is the state of a row, and all that processes use to synchronize access to it:
//
//	bit 0         the row is being written or changed
//	bits 1 to 12  if it is: the participant that does so; otherwise how often the row was changed
//	bits 13 to 63 the row's sequence number plus one; 0 for a row that was never written
//
// Sequence numbers are positions in the infinite sequence of rows, allocated from an atomic
// counter. Slot i holds the positions that equal i modulo the capacity. A number is allocated once,
// so a word never recurs with different contents of the row. (A writer that backs out of a claim
// restores the old word, and has not touched the row.) At ten million rows a second the numbers
// last for seven years. A row that was changed (change.go) has the same number, and one more change
// in its word. It is refused further changes after 4,095 of them: the count never wraps around, so
// such a word never recurs either, however long a reader is suspended in the middle of its copy.
//
// To write a row, allocate a position; change the row's word from a complete (or abandoned) one to
// one's own odd word by compare-and-swap; check that no area was activated since the position was
// allocated (area.go), and restore the old word if the row is in one; copy the row; store the even
// word. If any step fails, the writer goes on to the next position. It never blocks.
//
// A write in place (inplace.go) takes each of these steps for all of its rows before the next one.
// If it gives up, it restores the old words, or, where it may have written to the rows, makes them
// odd words of no participant: rows that the next writer takes over.
//
// To read a row, load the word, which must be even; copy the row; load the word again, and discard
// the copy if it has changed.
//
// # Order
//
// Both need more ordering than Go's atomics guarantee for plain accesses around them. An atomic
// load is an acquire: accesses before it may still be performed after it, but the reader's copy
// must not move below its second load. Nor does a compare-and-swap that consists of two
// instructions (arm64 before 8.1) keep the writer's copy from moving above its store. So both the
// reader's second load and the writer's copy are preceded by a read-modify-write of a word private
// to the head. It is an acquire and a release in one; where it consists of two instructions, the
// neighbouring accesses (the claim's store-release and the final load-acquire) are ordered against
// it. A read-modify-write of the row's own word would make readers write to shared cache lines,
// which a read-only mapping does not allow. The memory model is that of Arm's architecture manual
// (B2.3, "barrier-ordered-before").
//
// On amd64 the word is left out. What it orders are loads with later loads (the reader's copy and
// its second load) and stores with later stores (the claim and the writer's copy, the copy and the
// even word). The processor keeps both orders, also for string instructions, which copies may
// consist of. Streaming stores are an exception: the function that uses them must end with a fence,
// as Go's and C's copies do. The compiler moves no memory access across an atomic one, nor a store
// across another one. The one order that amd64 does not keep by itself is that of a store and a
// later load. Rows and areas need it twice: between the claim and the load of the epoch, and
// between the activation of an area and the load of its rows' words (area.go). In both the store is
// a locked instruction, a full barrier.
//
// So the even word is stored by a plain store on amd64, and by an atomic one, which is a release,
// elsewhere (storeRelease). No order is needed between it and later loads: what a writer loads next
// concerns other rows. It is not lost if the process is killed then: a store that has been executed
// reaches the cache. Of the instructions that write a row, only the claim waits for earlier stores.
type word uint64

const (
	writing = 1

	participantBits = 12
	// noParticipant is an index that is never allocated. It marks what dead participants left
	// behind, and rows whose writer gave up in the middle.
	noParticipant = 1<<participantBits - 1

	sequenceShift = 1 + participantBits
	// maxChanges is how often a row can be changed.
	maxChanges = 1<<participantBits - 1
	// maxSequence is the largest sequence number that fits into a word.
	maxSequence = 1<<(64-sequenceShift) - 2
)

func writingWord(sequence uint64, participant int) word {
	return word((sequence+1)<<sequenceShift | uint64(participant)<<1 | writing) //nolint:gosec // a participant has that many bits
}

// published is the word of the complete row, without changes.
func (w word) published() word { return w >> sequenceShift << sequenceShift }

// changes is how often a complete row was changed; changed is its word after one more time.
func (w word) changes() int  { return int(w>>1) & maxChanges }
func (w word) changed() word { return w + 1<<1 }

// disowned is the word of a row that its writer gave up in the middle: nothing but another write
// makes it readable.
func (w word) disowned() word { return w | noParticipant<<1 | writing }

// readable reports whether the row is complete.
func (w word) readable() bool { return w != 0 && w&writing == 0 }

// sequencePlusOne is the number of positions that had been allocated when the write of the row
// began; 0 if it was never written.
func (w word) sequencePlusOne() uint64 { return uint64(w >> sequenceShift) }

func (w word) sequence() uint64 { return w.sequencePlusOne() - 1 }

// participant is the one that writes or changes the row.
func (w word) participant() int { return int(w>>1) & noParticipant }

// holds reports whether the row is complete and has this sequence number, changed or not.
func (w word) holds(sequence uint64) bool {
	return w&^(maxChanges<<1) == word((sequence+1)<<sequenceShift)
}

// unfinished reports whether a row with this sequence number is being written or changed.
func (w word) unfinished(sequence uint64) bool {
	return w&writing != 0 && w.sequencePlusOne() == sequence+1
}

// words returns all rows' words in a mapping.
func (r *Ring) words(mapping []byte) []atomic.Uint64 {
	return unsafe.Slice(r.wordAt(mapping, 0), r.head.layout.Capacity) //nolint:gosec // aligned and in bounds
}

// wordAt returns a row's word in a mapping.
func (r *Ring) wordAt(mapping []byte, slot uint64) *atomic.Uint64 {
	return at(mapping, r.head.geometry.words+slot*wordSize)
}
