package replay

import (
	"fmt"
	"time"

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

// sampledItems reads items of columns, one after the other. Without columns there are none.
type sampledItems struct {
	columns *replayv1.SampledColumns
	// item and run are the indexes of the next item, and of its first run.
	item, run int
}

// sampledItemsIn returns the items of columns, or an error if these do not fit together.
func sampledItemsIn(c *replayv1.SampledColumns) (sampledItems, error) {
	return sampledItems{columns: c}, checkSampledColumns(c)
}

// left returns how many items are left.
func (s *sampledItems) left() int { return len(s.columns.GetKeys()) - s.item }

// next returns the next item, which has at most a number of rows, without their sequence numbers.
func (s *sampledItems) next(ringID, tableName string, most uint64) (ItemInfo, error) {
	c, i, runs := s.columns, s.item, 1
	if len(c.GetRuns()) > 0 {
		runs = int(c.GetRuns()[i])
	}
	rows, err := rowsOfRuns(c.GetFirsts()[s.run:s.run+runs], c.GetLengths()[s.run:s.run+runs], most)
	s.item++
	s.run += runs
	return ItemInfo{
		Key:         Key{ring: ringID, table: tableName, number: c.GetKeys()[i], rows: rows},
		Probability: at(c.GetProbabilities(), i), Weight: at(c.GetWeights(), i), Priority: at(c.GetPriorities(), i),
		Sampled: at(c.GetSampled(), i), TableSize: at(c.GetTableSizes(), i),
		Age: time.Duration(at(c.GetAgesNs(), i)), Held: at(c.GetHeld(), i), //nolint:gosec // since the node began
	}, err
}

// at returns an element of a column, which may be empty.
func at[T any](column []T, i int) (element T) {
	if len(column) > 0 {
		element = column[i]
	}
	return element
}
