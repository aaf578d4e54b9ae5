package ring

import "testing"

// torture lets two processes write to a ring, while three others sample, read the newest rows and hold areas.
func torture(t *testing.T, r *Ring, rows int) []outcome {
	t.Helper()
	parts := []part{
		{Name: "write", Seed: 1, Rows: rows, Batch: 1},
		{Name: "write", Seed: 2, Rows: rows, Batch: 5},
		{Name: "sample", Seed: 3, Rows: rows, Batch: 32},
		{Name: "newest", Rows: rows, Batch: 40},
		{Name: "hold", Rows: rows, Batch: 20},
	}
	processes := make([]*process, len(parts))
	for i, p := range parts {
		processes[i] = start(t, r, p)
	}
	outcomes := make([]outcome, len(parts))
	for i, p := range processes {
		outcomes[i] = p.end()
	}
	return outcomes
}
