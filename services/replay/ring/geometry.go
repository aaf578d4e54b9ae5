package ring

import (
	"fmt"
	"math"
	"math/bits"
)

// The parts of a ring's file, in order:
//
//	header         see header.go; immutable
//	counters       a cache line each
//	areas          which rows are held: area.go
//	participants   which mappings write or hold: participant.go
//	blocks         a summary of every 4096 rows: block.go
//	words          one for each row: word.go
//	columns        one block for each column, row after row
//
// The layout determines all offsets. Those in a file are only compared with them, never used.
const (
	page      = 4096
	cacheLine = 64

	areaSize        = cacheLine
	participantSize = cacheLine
	wordSize        = 8
)

// counter is an index into the counters.
type counter uint64

const (
	// counterHead is the next position to be allocated to a writer.
	counterHead counter = iota
	// counterActive has a bit for each area whose rows writers must skip: several words, in one
	// cache line.
	counterActive
	// counterEpoch is how often areas were activated.
	counterEpoch
	// counterStamp is the stamp most recently given to an area.
	counterStamp
	counterSkipped
	counterRefused
	counterTakenOver
	counterEnded
	// counterSwept is when the areas' holders were last checked, in nanoseconds since boot.
	counterSwept
	// counterParticipants is one more than the highest index that a participant has had.
	counterParticipants
	// counterMark is the creator's own: see RaiseMark. It and those after it were added later:
	// older files of this version have 0 there.
	counterMark
	// counterTakeovers is how often the ring was taken over.
	counterTakeovers
	// counterLoading says that the ring is being filled: see loading.
	counterLoading
	// counterGivenUp is how often a takeover gave up what a killed Loader had loaded.
	counterGivenUp
	counters
)

// block is the place of a column's rows in the file; size is that of one row.
type block struct{ offset, size uint64 }

// geometry holds the offsets and sizes of a file's parts.
type geometry struct {
	counters, areas, participants, blocks uint64
	// words is where the rows' words begin; all before it is the control part.
	words   uint64
	columns []block
	size    uint64
}

func newGeometry(layout Layout) (geometry, error) {
	sizes, err := layout.sizes()
	if err != nil {
		return geometry{}, err
	}
	var g geometry
	g.counters = roundUp(headerLength(layout), page)
	g.areas = g.counters + roundUp(uint64(counters)*cacheLine, page)
	g.participants = g.areas + maxAreas*areaSize
	g.blocks = roundUp(g.participants+maxParticipants*participantSize, page)
	g.words = roundUp(g.blocks+blocksOf(layout.Capacity)*blockSummary, page)
	end, err := blockEnd(g.words, layout.Capacity, wordSize)
	if err != nil {
		return geometry{}, err
	}
	for _, size := range sizes {
		g.columns = append(g.columns, block{offset: end, size: size})
		if end, err = blockEnd(end, layout.Capacity, size); err != nil {
			return geometry{}, err
		}
	}
	g.size = roundUp(end, page)
	return g, nil
}

// blockEnd returns where the next block begins.
func blockEnd(offset, rows, size uint64) (uint64, error) {
	over, length := bits.Mul64(rows, size)
	if over != 0 || length > maxFile || offset+length > maxFile || offset+length > math.MaxInt-page {
		return 0, fmt.Errorf("%w: %d rows need a file of more than %d bytes", ErrLayout, rows, min(uint64(maxFile), math.MaxInt))
	}
	return roundUp(offset+length, cacheLine), nil
}

func roundUp(n, to uint64) uint64 { return (n + to - 1) / to * to }
