package replay

import (
	"fmt"

	replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"
	"github.com/raylink/raylink/services/replay/internal/table"
	"github.com/raylink/raylink/services/replay/ring"
)

// sampledColumnsOf returns samples as columns.
func sampledColumnsOf(samples []table.Sample) *replayv1.SampledColumns {
	n := len(samples)
	runs, held := n, false
	for i := range samples {
		runs += len(samples[i].More)
		held = held || samples[i].Held
	}
	c := &replayv1.SampledColumns{
		Keys: make([]uint64, n), Probabilities: make([]float64, n), Weights: make([]float64, n), Priorities: make([]float64, n),
		Sampled: make([]uint32, n), TableSizes: make([]uint64, n), AgesNs: make([]uint64, n),
		Firsts: make([]uint64, 0, runs), Lengths: make([]uint32, 0, runs),
	}
	if held {
		c.Held = make([]bool, n)
	}
	if runs > n {
		c.Runs = make([]uint32, n)
	}
	for i := range samples {
		s := &samples[i]
		c.Keys[i], c.Probabilities[i], c.Weights[i], c.Priorities[i] = uint64(s.Key), s.Probability, s.Weight, s.Priority
		c.Sampled[i], c.TableSizes[i], c.AgesNs[i] = s.Sampled, uint64(s.Size), uint64(s.Age) //nolint:gosec // not negative
		if held {
			c.Held[i] = s.Held
		}
		if runs > n {
			c.Runs[i] = uint32(1 + len(s.More)) //nolint:gosec // at most as many as an item's rows
		}
		c.Firsts, c.Lengths = append(c.Firsts, s.Run.First), append(c.Lengths, s.Run.Length)
		for _, r := range s.More {
			c.Firsts, c.Lengths = append(c.Firsts, r.First), append(c.Lengths, r.Length)
		}
	}
	return c
}

// checkSampledColumns returns an error if columns do not fit together.
func checkSampledColumns(c *replayv1.SampledColumns) error {
	n := len(c.GetKeys())
	for _, column := range []struct {
		name string
		rows int
	}{
		{"probabilities", len(c.GetProbabilities())},
		{"weights", len(c.GetWeights())},
		{"priorities", len(c.GetPriorities())},
		{"sampled", len(c.GetSampled())},
		{"table_sizes", len(c.GetTableSizes())},
		{"ages_ns", len(c.GetAgesNs())},
		{"held", len(c.GetHeld())},
		{"runs", len(c.GetRuns())},
	} {
		if column.rows != n && column.rows != 0 {
			return fmt.Errorf("invalid response from the replay: %w: %d items with %d %s", ring.ErrBatch, n, column.rows, column.name)
		}
	}
	runs := n
	if len(c.GetRuns()) > 0 {
		runs = 0
		for _, r := range c.GetRuns() {
			runs += int(r)
		}
	}
	if len(c.GetFirsts()) != runs || len(c.GetLengths()) != runs {
		return fmt.Errorf("invalid response from the replay: %w: %d items with %d runs, which have %d first rows and %d lengths",
			ring.ErrBatch, n, runs, len(c.GetFirsts()), len(c.GetLengths()))
	}
	return nil
}

// sampledItemsIn returns the items of columns, or an error if these do not fit together.
func sampledItemsIn(c *replayv1.SampledColumns) ([]*replayv1.SampledItem, error) {
	if err := checkSampledColumns(c); err != nil {
		return nil, err
	}
	n, runs := len(c.GetKeys()), len(c.GetFirsts())
	messages := make([]replayv1.Run, runs)
	pointers := make([]*replayv1.Run, runs)
	for i := range messages {
		messages[i].First, messages[i].Length = c.GetFirsts()[i], c.GetLengths()[i]
		pointers[i] = &messages[i]
	}
	items := make([]replayv1.SampledItem, n)
	all := make([]*replayv1.SampledItem, n)
	for i := range items {
		m, own := &items[i], uint32(1)
		if len(c.GetRuns()) > 0 {
			own = c.GetRuns()[i]
		}
		m.Key, m.Runs, pointers = c.GetKeys()[i], pointers[:own:own], pointers[own:]
		m.Probability, m.Weight, m.Priority = at(c.GetProbabilities(), i), at(c.GetWeights(), i), at(c.GetPriorities(), i)
		m.Sampled, m.TableSize, m.AgeNs, m.Held = at(c.GetSampled(), i), at(c.GetTableSizes(), i), at(c.GetAgesNs(), i), at(c.GetHeld(), i)
		all[i] = m
	}
	return all, nil
}

// at returns an element of a column, which may be empty.
func at[T any](column []T, i int) (element T) {
	if len(column) > 0 {
		element = column[i]
	}
	return element
}
