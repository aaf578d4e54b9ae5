package replay

import (
	"fmt"

	replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"
	"github.com/raylink/raylink/services/replay/ring"
)

// rowsIn returns the number of rows of runs.
func rowsIn(runs []*replayv1.Run) int {
	n := 0
	for _, r := range runs {
		n += int(r.GetLength())
	}
	return n
}

// runsOf returns numbers as runs.
func runsOf(sequences []uint64) []*replayv1.Run {
	var runs []*replayv1.Run
	for i, s := range sequences {
		if i > 0 && s == sequences[i-1]+1 && s != 0 {
			runs[len(runs)-1].Length++
		} else {
			runs = append(runs, &replayv1.Run{First: s, Length: 1})
		}
	}
	return runs
}

// appendRuns appends the numbers of runs.
func appendRuns(sequences []uint64, runs []*replayv1.Run) []uint64 {
	for _, r := range runs {
		sequences = appendRun(sequences, r.GetFirst(), r.GetLength())
	}
	return sequences
}

func appendRun(sequences []uint64, first uint64, length uint32) []uint64 {
	for k := range uint64(length) {
		sequences = append(sequences, first+k)
	}
	return sequences
}

// rowsOfRuns returns how many rows the runs of an item have: at least one, and at most a number, in
// increasing order.
func rowsOfRuns(firsts []uint64, lengths []uint32, most uint64) (int, error) {
	var n, next uint64
	for i, first := range firsts {
		length := uint64(lengths[i])
		if length == 0 || first < next || first+length < first {
			return 0, fmt.Errorf("%w: an item has %d rows from number %d on", ring.ErrBatch, length, first)
		}
		next = first + length
		if n += length; n > most {
			return 0, fmt.Errorf("%w: an item of more than %d rows", ring.ErrBatch, most)
		}
	}
	if n == 0 {
		return 0, fmt.Errorf("%w: an item without rows", ring.ErrBatch)
	}
	return int(n), nil
}
