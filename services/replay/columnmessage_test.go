package replay

import (
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"
	"github.com/raylink/raylink/services/replay/internal/table"
	"github.com/raylink/raylink/services/replay/ring"
)

// TestColumnsAreTheSameItems checks that items travel alike with and without columns.
func TestColumnsAreTheSameItems(t *testing.T) {
	sample := rapid.Custom(func(t *rapid.T) table.Sample {
		runs := make([]table.Run, rapid.IntRange(1, 4).Draw(t, "runs"))
		next := rapid.Uint64Range(0, 1<<62).Draw(t, "first")
		for i := range runs {
			runs[i] = table.Run{First: next, Length: rapid.Uint32Range(1, math.MaxUint32).Draw(t, "length")}
			next += uint64(runs[i].Length) + rapid.Uint64Range(0, 1<<32).Draw(t, "gap")
		}
		return table.Sample{
			Key: table.Key(rapid.Uint64().Draw(t, "key")), Run: runs[0], More: runs[1:],
			Probability: rapid.Float64().Draw(t, "probability"), Weight: rapid.Float64().Draw(t, "weight"),
			Priority: rapid.Float64().Draw(t, "priority"), Sampled: rapid.Uint32().Draw(t, "sampled"),
			Size: int(rapid.Uint32().Draw(t, "size")), Age: time.Duration(rapid.Uint32().Draw(t, "age")), Held: rapid.Bool().Draw(t, "held"),
		}
	})
	rapid.Check(t, func(t *rapid.T) {
		samples := rapid.SliceOfN(sample, 0, 8).Draw(t, "samples")
		encoded, err := proto.Marshal(sampledColumnsOf(samples))
		require.NoError(t, err)
		c := new(replayv1.SampledColumns)
		require.NoError(t, proto.Unmarshal(encoded, c))
		got, err := sampledItemsIn(c)
		require.NoError(t, err)
		want := sampledItemsOf(samples)
		require.Equal(t, len(want), got.left())
		for _, it := range want {
			info := ItemInfo{Sequences: []uint64{1}}
			require.NoError(t, got.next(&info, "ring", "table", math.MaxUint64))
			require.Equal(t, ItemInfo{
				Key: keyOf("ring", "table", it.GetKey(), it.GetRuns()), Probability: it.GetProbability(), Weight: it.GetWeight(),
				Priority: it.GetPriority(), Sampled: it.GetSampled(), TableSize: it.GetTableSize(), Age: time.Duration(it.GetAgeNs()),
				Held: it.GetHeld(),
			}, info)
		}
		require.Zero(t, got.left())
	})
}

func TestColumnsThatDoNotFitAreRefused(t *testing.T) {
	valid := func() *replayv1.SampledColumns {
		return sampledColumnsOf([]table.Sample{{Key: 1, Run: table.Run{Length: 1}, More: []table.Run{{First: 5, Length: 1}}}, {Key: 2}})
	}
	_, err := sampledItemsIn(valid())
	require.NoError(t, err)
	for name, damage := range map[string]func(c *replayv1.SampledColumns){
		"keys":          func(c *replayv1.SampledColumns) { c.Keys = c.GetKeys()[:size64] },
		"part of a key": func(c *replayv1.SampledColumns) { c.Keys = append(c.GetKeys(), 0) },
		"probabilities": func(c *replayv1.SampledColumns) { c.Probabilities = c.GetProbabilities()[:size64] },
		"weights":       func(c *replayv1.SampledColumns) { c.Weights = append(c.GetWeights(), 1) },
		"priorities":    func(c *replayv1.SampledColumns) { c.Priorities = c.GetPriorities()[1:] },
		"sampled":       func(c *replayv1.SampledColumns) { c.Sampled = c.GetSampled()[1:] },
		"table_sizes":   func(c *replayv1.SampledColumns) { c.TableSizes = c.GetTableSizes()[1:] },
		"ages_ns":       func(c *replayv1.SampledColumns) { c.AgesNs = c.GetAgesNs()[1:] },
		"held":          func(c *replayv1.SampledColumns) { c.Held = []byte{1} },
		"runs":          func(c *replayv1.SampledColumns) { c.Runs = c.GetRuns()[1:] },
		"no runs":       func(c *replayv1.SampledColumns) { c.Runs = nil },
		"many runs":     func(c *replayv1.SampledColumns) { put32(c.GetRuns(), 0, 1<<31) },
		"first rows":    func(c *replayv1.SampledColumns) { c.Firsts = c.GetFirsts()[1:] },
		"lengths":       func(c *replayv1.SampledColumns) { c.Lengths = nil },
	} {
		t.Run(name, func(t *testing.T) {
			c := valid()
			damage(c)
			_, err := sampledItemsIn(c)
			require.ErrorIs(t, err, ring.ErrBatch)
		})
	}
}
