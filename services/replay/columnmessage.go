package replay

import (
	"encoding/binary"
	"fmt"
	"math"
	"time"

	replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"
	"github.com/raylink/raylink/services/replay/internal/table"
	"github.com/raylink/raylink/services/replay/ring"
)

// Sizes of the elements of columns.
const (
	size64 = 8
	size32 = 4
)

// sampledColumnsOf returns samples as columns.
func sampledColumnsOf(samples []table.Sample) *replayv1.SampledColumns {
	n := len(samples)
	runs, held := n, false
	for i := range samples {
		runs += len(samples[i].More)
		held = held || samples[i].Held
	}
	// The columns share memory.
	memory := make([]byte, n*(6*size64+2*size32+1)+runs*(size64+size32))
	column := func(n, size int) []byte {
		var c []byte
		c, memory = memory[:n*size:n*size], memory[n*size:]
		return c
	}
	c := &replayv1.SampledColumns{
		Keys: column(n, size64), Probabilities: column(n, size64), Weights: column(n, size64), Priorities: column(n, size64),
		TableSizes: column(n, size64), AgesNs: column(n, size64), Sampled: column(n, size32),
		Firsts: column(runs, size64), Lengths: column(runs, size32),
	}
	for i := range samples {
		s := &samples[i]
		put64(c.GetKeys(), i, uint64(s.Key))
		put64(c.GetProbabilities(), i, math.Float64bits(s.Probability))
		put64(c.GetWeights(), i, math.Float64bits(s.Weight))
		put64(c.GetPriorities(), i, math.Float64bits(s.Priority))
		put64(c.GetTableSizes(), i, uint64(s.Size)) //nolint:gosec // not negative
		put64(c.GetAgesNs(), i, uint64(s.Age))      //nolint:gosec // not negative
		put32(c.GetSampled(), i, s.Sampled)
	}
	run := 0
	add := func(r table.Run) {
		put64(c.GetFirsts(), run, r.First)
		put32(c.GetLengths(), run, r.Length)
		run++
	}
	for i := range samples {
		add(samples[i].Run)
		for _, r := range samples[i].More {
			add(r)
		}
	}
	if runs > n {
		c.Runs = column(n, size32)
		for i := range samples {
			put32(c.GetRuns(), i, uint32(1+len(samples[i].More))) //nolint:gosec // at most as many as an item's rows
		}
	}
	if held {
		c.Held = column(n, 1)
		for i := range samples {
			if samples[i].Held {
				c.GetHeld()[i] = 1
			}
		}
	}
	return c
}

func put64(column []byte, i int, x uint64) { binary.LittleEndian.PutUint64(column[i*size64:], x) }
func put32(column []byte, i int, x uint32) { binary.LittleEndian.PutUint32(column[i*size32:], x) }

// at64 and at32 return an element of a column, which may be empty.
func at64(column []byte, i int) uint64 {
	if len(column) == 0 {
		return 0
	}
	return binary.LittleEndian.Uint64(column[i*size64:])
}

func at32(column []byte, i int) uint32 {
	if len(column) == 0 {
		return 0
	}
	return binary.LittleEndian.Uint32(column[i*size32:])
}

// checkSampledColumns returns an error if columns do not fit together.
func checkSampledColumns(c *replayv1.SampledColumns) error {
	n := len(c.GetKeys()) / size64
	for _, column := range []struct {
		name  string
		bytes []byte
		size  int
	}{
		{"keys", c.GetKeys(), size64},
		{"probabilities", c.GetProbabilities(), size64},
		{"weights", c.GetWeights(), size64},
		{"priorities", c.GetPriorities(), size64},
		{"sampled", c.GetSampled(), size32},
		{"table_sizes", c.GetTableSizes(), size64},
		{"ages_ns", c.GetAgesNs(), size64},
		{"held", c.GetHeld(), 1},
		{"runs", c.GetRuns(), size32},
	} {
		if bytes := len(column.bytes); bytes != n*column.size && bytes != 0 {
			return fmt.Errorf("invalid response from the replay: %w: %d items with %d bytes of %s", ring.ErrBatch, n, bytes, column.name)
		}
	}
	runs := n
	if len(c.GetRuns()) > 0 {
		runs = 0
		for i := range n {
			runs += int(at32(c.GetRuns(), i))
		}
	}
	if len(c.GetFirsts()) != runs*size64 || len(c.GetLengths()) != runs*size32 {
		return fmt.Errorf("invalid response from the replay: %w: %d items with %d runs, which have %d bytes of first rows and %d of lengths",
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
func (s *sampledItems) left() int { return len(s.columns.GetKeys())/size64 - s.item }

// next sets info to the next item, which has at most a number of rows, without their sequence
// numbers.
func (s *sampledItems) next(info *ItemInfo, ringID, tableName string, most uint64) error {
	c, i, runs := s.columns, s.item, 1
	if len(c.GetRuns()) > 0 {
		runs = int(at32(c.GetRuns(), i))
	}
	rows, err := rowsOfRuns(c, s.run, runs, most)
	s.item++
	s.run += runs
	info.Key = Key{ring: ringID, table: tableName, number: at64(c.GetKeys(), i), rows: rows}
	info.Sequences = nil
	info.Probability = math.Float64frombits(at64(c.GetProbabilities(), i))
	info.Weight = math.Float64frombits(at64(c.GetWeights(), i))
	info.Priority = math.Float64frombits(at64(c.GetPriorities(), i))
	info.Sampled, info.TableSize = at32(c.GetSampled(), i), at64(c.GetTableSizes(), i)
	info.Age = time.Duration(at64(c.GetAgesNs(), i)) //nolint:gosec // since the node began
	info.Held = len(c.GetHeld()) > 0 && c.GetHeld()[i] != 0
	return err
}

// appendRunsOf appends the sequence numbers of the rows of n runs, from one on.
func appendRunsOf(sequences []uint64, c *replayv1.SampledColumns, from, n int) []uint64 {
	for i := from; i < from+n; i++ {
		sequences = appendRun(sequences, at64(c.GetFirsts(), i), at32(c.GetLengths(), i))
	}
	return sequences
}

// rowsOfRuns returns how many rows the n runs of an item have, from one on: at least one row, and
// at most a number, in increasing order.
func rowsOfRuns(c *replayv1.SampledColumns, from, n int, most uint64) (int, error) {
	var rows, next uint64
	for i := from; i < from+n; i++ {
		first, length := at64(c.GetFirsts(), i), uint64(at32(c.GetLengths(), i))
		if length == 0 || first < next || first+length < first {
			return 0, fmt.Errorf("%w: an item has %d rows from number %d on", ring.ErrBatch, length, first)
		}
		next = first + length
		if rows += length; rows > most {
			return 0, fmt.Errorf("%w: an item of more than %d rows", ring.ErrBatch, most)
		}
	}
	if rows == 0 {
		return 0, fmt.Errorf("%w: an item without rows", ring.ErrBatch)
	}
	return int(rows), nil // at most a ring's rows
}
