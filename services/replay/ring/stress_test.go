package ring

import "testing"

// stress runs two processes that write to a ring, and three others that sample, read the newest
// rows and hold areas.
func stress(t *testing.T, r *Ring, rows int) []result {
	t.Helper()
	tasks := []task{
		{Name: "write", Seed: 1, Rows: rows, Batch: 1},
		{Name: "write", Seed: 2, Rows: rows, Batch: 5},
		{Name: "sample", Seed: 3, Rows: rows, Batch: 32},
		{Name: "newest", Rows: rows, Batch: 40},
		{Name: "hold", Rows: rows, Batch: 20},
	}
	processes := make([]*process, len(tasks))
	for i, p := range tasks {
		processes[i] = start(t, r, p)
	}
	results := make([]result, len(tasks))
	for i, p := range processes {
		results[i] = p.end()
	}
	return results
}
