package replay

import (
	"context"
	"maps"
	"math"
	"math/rand/v2"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"
	"github.com/raylink/raylink/services/replay/internal/table"
	"github.com/raylink/raylink/services/replay/ring"
)

// generations uses a small replay, so that all of its rows are overwritten again and again. A row
// has a number of its own, and in xy how often it was changed: (number + c, -(number + c)), c being
// a multiple of the step.
type generations struct {
	t    *testing.T
	n    *node
	next atomic.Int64

	mu sync.Mutex
	// numbers are those of the rows of each item that was acknowledged, by its priority, which no
	// other item has, and keys are its keys in both tables.
	numbers map[float64][]int64
	keys    map[float64][]uint64
	// late is how many items are not in both tables.
	late atomic.Uint64
}

// changeStep is what a change adds. Up to 2^24 a float32 has each integer.
const changeStep = 1 << 20

func (g *generations) write(ctx context.Context, rng *rand.Rand) error {
	rows := 1 + rng.IntN(6)
	first := g.next.Add(int64(rows)) - int64(rows)
	res, err := g.n.Write(ctx, &replayv1.WriteRequest{Batch: numbered(g.t, g.n, first, rows), WaitMs: 1000})
	if err != nil {
		return err
	}
	priority := float64(first + 1)
	item := &replayv1.Item{Runs: runsOf(res.GetSequence()), Priority: &priority}
	var keys []uint64
	for _, name := range []string{"per", "fifo"} {
		created, err := g.n.CreateItems(ctx, &replayv1.CreateItemsRequest{Table: name, Items: []*replayv1.Item{item}})
		if err != nil {
			return err
		}
		if created.GetKeys()[0] == 0 {
			g.late.Add(1) // its rows were overwritten before
			return nil
		}
		keys = append(keys, created.GetKeys()...)
	}
	numbers := make([]int64, rows)
	for i := range numbers {
		numbers[i] = first + int64(i)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.numbers[priority], g.keys[priority] = numbers, keys
	return nil
}

// acknowledged returns the items that were acknowledged.
func (g *generations) acknowledged() map[float64][]int64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return maps.Clone(g.numbers)
}

// some returns the priority and the keys of a recent item.
func (g *generations) some(rng *rand.Rand) (float64, []uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for priority := float64(g.next.Load() - rng.Int64N(500)); priority > 0; priority-- {
		if keys := g.keys[priority]; keys != nil {
			return priority, keys
		}
	}
	return 0, []uint64{0}
}

// TestCheckpointOfRowsThatAreOverwritten checks checkpoints that are made while rows are
// overwritten and changed, and items inserted, drawn and given other priorities.
func TestCheckpointOfRowsThatAreOverwritten(t *testing.T) {
	config := testConfig(20_000)
	config.Tables = []*replayv1.TableConfig{Table("per", Prioritized(1), MinSize(10)), Table("fifo", FIFO(), SamplesPerInsert(1, 10, 1e9))}
	g := &generations{t: t, n: testNode(t, config), numbers: map[float64][]int64{}, keys: map[float64][]uint64{}}
	client := open(t, g.n)
	ctx, cancel := context.WithCancel(t.Context())
	var users sync.WaitGroup
	use := func(seed uint64, f func(rng *rand.Rand) error) {
		users.Go(func() {
			rng := rand.New(rand.NewPCG(seed, 1))
			for ctx.Err() == nil {
				if err := f(rng); err != nil && ctx.Err() == nil {
					t.Errorf("a user: %v", err)
					return
				}
			}
		})
	}
	use(1, func(rng *rand.Rand) error { return g.write(ctx, rng) })
	use(2, func(rng *rand.Rand) error { return g.write(ctx, rng) })
	use(3, func(*rand.Rand) error { // changes of rows
		res, err := g.n.SampleItems(ctx, &replayv1.SampleItemsRequest{Table: "per", Items: 2})
		if err != nil {
			return err
		}
		var keys []Key
		for _, item := range res.GetItems() {
			key := Key{table: "per", ring: g.n.ring.ID().String(), number: item.GetKey()}
			for _, r := range item.GetRuns() {
				key.rows += int(r.GetLength())
			}
			keys = append(keys, key)
		}
		_, err = client.Change(ctx, keys, func(rows *Batch) {
			xy, _ := Values[float32](rows, "xy")
			for i := 0; i < len(xy); i += 2 {
				if c := float32(changeStep); xy[i] < 8*changeStep {
					xy[i], xy[i+1] = xy[i]+c, xy[i+1]-c
				}
			}
		})
		return err
	})
	use(4, func(rng *rand.Rand) error { // draws, and updates of priorities
		res, err := g.n.SampleItems(ctx, &replayv1.SampleItemsRequest{Table: "fifo", Items: 1})
		if err != nil || len(res.GetItems()) == 0 {
			return err
		}
		// The integer part of a priority is the item's.
		priority, keys := g.some(rng)
		_, err = g.n.UpdatePriorities(ctx, &replayv1.UpdatePrioritiesRequest{Table: "per", Keys: keys[:1], Priorities: []float64{priority + rng.Float64()}})
		return err
	})
	require.Eventually(t, func() bool { return g.next.Load() > 25_000 }, time.Minute, time.Millisecond)
	type made struct {
		target        string
		before, after map[float64][]int64
		done          *replayv1.CheckpointResponse
	}
	var checkpoints []made
	directory := t.TempDir()
	for i := range 4 {
		m := made{target: filepath.Join(directory, strconv.Itoa(i)), before: g.acknowledged()}
		var err error
		m.done, err = g.n.checkpoint(t.Context(), m.target, silent)
		require.NoError(t, err)
		m.after = g.acknowledged()
		checkpoints = append(checkpoints, m)
		begin := g.next.Load()
		require.Eventually(t, func() bool { return g.next.Load() > begin+2000 }, time.Minute, time.Millisecond)
	}
	cancel()
	users.Wait()
	all := g.acknowledged()
	leftOut, changed, updated := uint64(0), 0, false
	for _, m := range checkpoints {
		again := emptyNode(t, t.TempDir(), config)
		restored, err := again.restore(t.Context(), m.target)
		require.NoError(t, err)
		require.Empty(t, restored.GetDifferences())
		rows := g.contentOf(again, &changed)
		require.Len(t, rows, int(m.done.GetRows()))
		for i, name := range []string{"per", "fifo"} {
			found := map[float64]bool{}
			for _, s := range statesOf(again, name) {
				priority := math.Floor(s.Priority)
				updated = updated || priority != s.Priority
				numbers, ok := all[priority]
				if !ok {
					continue // its call had not returned when the users ended
				}
				found[priority] = true
				for _, r := range append([]table.Run{s.Run}, s.More...) {
					for k := range uint64(r.Length) {
						got, ok := rows[r.First+k]
						require.True(t, ok, "an item without one of its rows")
						require.Equal(t, numbers[0], got, "a row of another generation")
						numbers = numbers[1:]
					}
				}
				require.Empty(t, numbers, "an item without one of its rows")
			}
			numbers := map[int64]bool{}
			for _, number := range rows {
				numbers[number] = true
			}
			for priority, of := range m.before {
				whole := true
				for _, number := range of {
					whole = whole && numbers[number]
				}
				require.True(t, found[priority] || !whole, "an item of which all rows are there is missing: %v", of)
			}
			counts := again.tables.byName[name].Meta().Counts
			require.GreaterOrEqual(t, counts.Inserted, uint64(len(m.before)))
			require.LessOrEqual(t, counts.Inserted, uint64(len(m.after)+2)+g.late.Load(), "two calls may not have returned")
			described := m.done.GetTables()[i]
			require.EqualValues(t, len(statesOf(again, name)), described.GetItems())
			require.GreaterOrEqual(t, counts.Inserted-counts.Overwritten, described.GetItems(), "the counts are those after the items")
			leftOut += described.GetLeftOut()
			meta := again.tables.byName[name].Meta()
			if name == "fifo" {
				// One sample for each insert, from the tenth on.
				require.InDelta(t, float64(counts.Inserted)-float64(counts.Sampled), meta.Difference, 10)
			}
		}
		require.NoError(t, again.close())
	}
	t.Logf("%d items were left out, %d rows had been changed", leftOut, changed)
	require.Positive(t, changed)
	require.True(t, updated)
}

// contentOf returns the rows by their sequence numbers, none of which is torn.
func (g *generations) contentOf(n *node, changed *int) map[uint64]int64 {
	g.t.Helper()
	h, err := n.ring.Reader()
	require.NoError(g.t, err)
	b, err := ring.NewBatch(n.ring.Layout(), 0)
	require.NoError(g.t, err)
	require.NoError(g.t, h.Newest(g.t.Context(), int(n.ring.Layout().Capacity), b))
	numbers, err := Values[int64](b, "n")
	require.NoError(g.t, err)
	xy, err := Values[float32](b, "xy")
	require.NoError(g.t, err)
	rows := map[uint64]int64{}
	for i, s := range b.Sequences() {
		rows[s] = numbers[i]
		by := xy[2*i] - float32(numbers[i])
		if xy[2*i+1] != -xy[2*i] || by < 0 || by != float32(int(by)/changeStep*changeStep) {
			require.Fail(g.t, "a torn row", "%d: %v", numbers[i], xy[2*i:2*i+2])
		}
		if by > 0 {
			*changed++
		}
	}
	return rows
}
