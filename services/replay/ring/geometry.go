package ring

import (
	"fmt"
	"math"
	"math/bits"
)

// A ring's file, from its beginning:
//
//	header         see header.go; never changes
//	counters       a cache line each
//	areas          who holds which rows: area.go
//	participants   who writes or holds: participant.go
//	words          one for each row: word.go
//	columns        one block for each column, row after row
//
// Everything follows from the layout. The offsets in a file are therefore compared, never used.
const (
	page      = 4096
	cacheLine = 64

	areaSize        = cacheLine
	participantSize = cacheLine
	wordSize        = 8
)

// counter is the place of a counter among the counters.
type counter uint64

const (
	// counterHead is the next position to be given to a writer.
	counterHead counter = iota
	// counterActive has a bit for each area that writers must go around.
	counterActive
	// counterStamp is the last stamp given to an area.
	counterStamp
	counterSkipped
	counterRefused
	counterTakenOver
	counterEnded
	counters
)

// block is where a column's rows are.
type block struct{ offset, size uint64 }

// geometry is where things are in a file.
type geometry struct {
	counters, areas, participants uint64
	// words is where the words of the rows begin; all before it is the control part.
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
	g.words = roundUp(g.participants+maxParticipants*participantSize, page)
	end, err := after(g.words, layout.Capacity, wordSize)
	if err != nil {
		return geometry{}, err
	}
	for _, size := range sizes {
		g.columns = append(g.columns, block{offset: end, size: size})
		if end, err = after(end, layout.Capacity, size); err != nil {
			return geometry{}, err
		}
	}
	g.size = roundUp(end, page)
	return g, nil
}

// after is where the next block begins.
func after(offset, rows, size uint64) (uint64, error) {
	over, length := bits.Mul64(rows, size)
	if over != 0 || length > maxFile || offset+length > maxFile || offset+length > math.MaxInt-page {
		return 0, fmt.Errorf("%w: %d rows would make a file of more than %d bytes", ErrLayout, rows, min(uint64(maxFile), math.MaxInt))
	}
	return roundUp(offset+length, cacheLine), nil
}

func roundUp(n, to uint64) uint64 { return (n + to - 1) / to * to }
