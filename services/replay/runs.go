package replay

import replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"

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
