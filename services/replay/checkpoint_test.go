package replay

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"
	"github.com/raylink/raylink/services/replay/internal/table"
	"github.com/raylink/raylink/services/replay/ring"
)

// numbered returns a batch of rows whose numbers begin with first.
func numbered(t require.TestingT, n *node, first int64, rows int) *replayv1.Batch {
	b, err := ring.NewBatch(n.ring.Layout(), rows)
	require.NoError(t, err)
	numbers, err := Values[int64](b, "n")
	require.NoError(t, err)
	xy, err := Values[float32](b, "xy")
	require.NoError(t, err)
	for i := range numbers {
		v := first + int64(i)
		numbers[i], xy[2*i], xy[2*i+1] = v, float32(v), -float32(v)
	}
	return messageOf(b)
}

// content has the rows of a node by their sequence numbers.
func content(t require.TestingT, n *node) map[uint64]int64 {
	h, err := n.ring.Reader()
	require.NoError(t, err)
	b, err := ring.NewBatch(n.ring.Layout(), 0)
	require.NoError(t, err)
	rows := map[uint64]int64{}
	if err := h.Newest(context.Background(), int(n.ring.Layout().Capacity), b); err != nil {
		require.ErrorIs(t, err, ring.ErrEmpty)
		return rows
	}
	numbers, err := Values[int64](b, "n")
	require.NoError(t, err)
	xy, err := Values[float32](b, "xy")
	require.NoError(t, err)
	for i, s := range b.Sequences() {
		if xy[2*i] != float32(numbers[i]) || xy[2*i+1] != -float32(numbers[i]) {
			require.Equal(t, []float32{float32(numbers[i]), -float32(numbers[i])}, xy[2*i:2*i+2])
		}
		rows[s] = numbers[i]
	}
	return rows
}

// statesOf returns the items of a table.
func statesOf(n *node, name string) []table.State {
	states := make([]table.State, 100_000)
	listed, _ := n.tables.byName[name].Items(0, states)
	for i := range states[:listed] {
		states[i].Age = 0
	}
	return states[:listed]
}

// everything a table promises to keep, but for the age of its items.
func metaOf(n *node, name string) table.Meta {
	meta := n.tables.byName[name].Meta()
	meta.Oldest = 0
	return meta
}

// emptyNode returns a node without rows.
func emptyNode(t require.TestingT, directory string, config *replayv1.ReplayConfig) *node {
	n, err := newNode(directory, rand.Text(), config)
	require.NoError(t, err)
	return n
}

// silent ignores progress.
func silent(*replayv1.CheckpointResponse) error { return nil }

func allTables() []*replayv1.TableConfig {
	return []*replayv1.TableConfig{
		Table("uniform", Remover(Lowest()), MaxItems(20)),
		Table("per", Prioritized(0.6), SamplesPerInsert(2, 3, 10), Remover(LIFO())),
		Table("fifo", FIFO(), MaxSampled(2)), Table("lifo", LIFO(), MinSize(5)),
		Table("lowest", Lowest(), Remover(Highest())), Table("highest", Highest()),
		Table("epoch", Epoch(), Remover(Uniform()), MaxItems(7)),
		Table("queue", FIFO(), Queue(4)), Table("stack", LIFO(), Stack(4)),
	}
}

// TestRestoredReplayIsAsTheCheckpointed uses a replay at random, copies it, and compares the copy.
func TestRestoredReplayIsAsTheCheckpointed(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ctx, directory := context.Background(), tempDirectory(t)
		config := testConfig(rapid.Uint64Range(1, 40).Draw(t, "capacity"))
		all := allTables()
		for _, i := range rapid.SliceOfNDistinct(rapid.IntRange(0, len(all)-1), 1, 3, rapid.ID).Draw(t, "tables") {
			config.Tables = append(config.Tables, all[i])
		}
		n := emptyNode(t, directory, config)
		defer func() { require.NoError(t, n.close()) }()
		written := int64(0)
		var names []string
		for _, c := range config.GetTables() {
			names = append(names, c.GetName())
		}
		for range rapid.IntRange(0, 30).Draw(t, "operations") {
			name := rapid.SampledFrom(names).Draw(t, "table")
			switch rapid.IntRange(0, 4).Draw(t, "operation") {
			case 0, 1:
				rows := rapid.IntRange(0, min(int(config.GetCapacity()), 9)).Draw(t, "rows")
				_, err := n.Write(ctx, &replayv1.WriteRequest{Batch: numbered(t, n, written, rows)})
				require.NoError(t, err)
				written += int64(rows)
			case 2:
				oldest, next := max(0, written-int64(config.GetCapacity())), written
				if next-oldest < 3 {
					continue
				}
				first := rapid.Int64Range(oldest, next-1).Draw(t, "first")
				item := &replayv1.Item{Runs: []*replayv1.Run{{First: uint64(first), Length: 1}}}
				if first+2 < next && rapid.Bool().Draw(t, "two runs") {
					item.Runs = append(item.Runs, &replayv1.Run{First: uint64(first + 2), Length: uint32(rapid.Int64Range(1, next-first-2).Draw(t, "length"))})
				}
				if rapid.Bool().Draw(t, "given") {
					item.Priority = new(rapid.Float64Range(0, 10).Draw(t, "priority"))
				}
				_, err := n.CreateItems(ctx, &replayv1.CreateItemsRequest{Table: name, Items: []*replayv1.Item{item}})
				require.NoError(t, err)
			case 3:
				_, err := n.SampleItems(ctx, &replayv1.SampleItemsRequest{Table: name, Items: uint32(rapid.IntRange(0, 5).Draw(t, "samples"))})
				require.NoError(t, err)
			case 4:
				var keys []uint64
				for _, s := range statesOf(n, name) {
					keys = append(keys, uint64(s.Key()))
				}
				if len(keys) == 0 {
					continue
				}
				key := rapid.SampledFrom(keys).Draw(t, "key")
				if rapid.Bool().Draw(t, "delete") {
					_, err := n.DeleteItems(ctx, &replayv1.DeleteItemsRequest{Table: name, Keys: []uint64{key}})
					require.NoError(t, err)
					continue
				}
				_, err := n.UpdatePriorities(ctx, &replayv1.UpdatePrioritiesRequest{
					Table: name, Keys: []uint64{key}, Priorities: []float64{rapid.Float64Range(0, 5).Draw(t, "update")},
				})
				require.NoError(t, err)
			}
		}
		for _, name := range names { // what the node does before each call
			_, err := n.table(ctx, name)
			require.NoError(t, err)
		}
		target := filepath.Join(directory, "checkpoints", "first")
		done, err := n.checkpoint(ctx, target, silent)
		require.NoError(t, err)
		require.Equal(t, uint64(len(content(t, n))), done.GetRows())
		require.Zero(t, done.GetLost())

		again := emptyNode(t, directory, config)
		defer func() { require.NoError(t, again.close()) }()
		restored, err := again.restore(ctx, target)
		require.NoError(t, err)
		require.Empty(t, restored.GetDifferences())
		require.Equal(t, content(t, n), content(t, again))
		for _, name := range names {
			require.Equal(t, statesOf(n, name), statesOf(again, name), name)
			require.Equal(t, metaOf(n, name), metaOf(again, name), name)
			requireSameDraws(t, n, again, name)
		}
		// Writers continue behind the newest row.
		res, err := again.Write(ctx, &replayv1.WriteRequest{Batch: numbered(t, again, written, 1)})
		require.NoError(t, err)
		require.Equal(t, []uint64{uint64(written)}, res.GetSequence())
	})
}

// tempDirectory is T.TempDir for a check of rapid.
func tempDirectory(t *rapid.T) string {
	directory, err := os.MkdirTemp("", "checkpoint")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(directory)) })
	return directory
}

// requireSameDraws draws from both tables, and compares what does not depend on chance: items have
// the same probabilities.
func requireSameDraws(t require.TestingT, a, b *node, name string) {
	probabilities := func(n *node) (map[table.Key]float64, bool) {
		drawn := map[table.Key]float64{}
		for range 20 {
			var s [1]table.Sample
			if got, err := n.tables.byName[name].TrySample(s[:], table.SampleOptions{}); err != nil || got == 0 {
				return drawn, len(drawn) > 0
			}
			if info := n.tables.byName[name].Configuration(); info.Sampler.Kind == table.Epoch || info.MaxSampled > 0 {
				return drawn, true // the next draw is from others
			}
			drawn[s[0].Key] = s[0].Probability
		}
		return drawn, true
	}
	x, drawable := probabilities(a)
	y, same := probabilities(b)
	require.Equal(t, drawable, same, name)
	for key, p := range x {
		if other, ok := y[key]; ok {
			require.InDelta(t, p, other, 1e-12, name)
		}
	}
}

// TestCheckpointWhileTheReplayIsUsed checks that a copy has complete rows, and items with all of
// their rows, though others write, insert and sample meanwhile.
func TestCheckpointWhileTheReplayIsUsed(t *testing.T) {
	config := testConfig(100_000)
	config.Tables = []*replayv1.TableConfig{Table("per", Prioritized(1)), Table("epoch", Epoch())}
	n := testNode(t, config)
	ctx, cancel := context.WithCancel(t.Context())
	var users sync.WaitGroup
	started := make(chan struct{}, 3)
	for range 2 {
		users.Go(func() {
			for first := int64(0); ctx.Err() == nil; first += 8 {
				// The number of a row says which item it is of, not where it lies.
				batch := numbered(t, n, first, 8)
				res, err := n.Write(ctx, &replayv1.WriteRequest{Batch: batch, WaitMs: 1000})
				if err != nil {
					require.ErrorIs(t, err, context.Canceled)
					return
				}
				runs := runsOf(res.GetSequence())
				for _, name := range []string{"per", "epoch"} {
					// The priority is the first number of the item's rows.
					item := &replayv1.Item{Runs: runs, Priority: new(float64(first + 1))}
					_, err := n.CreateItems(ctx, &replayv1.CreateItemsRequest{Table: name, Items: []*replayv1.Item{item}})
					if err != nil {
						require.ErrorIs(t, err, context.Canceled)
						return
					}
				}
				if first == 8*10_000 {
					started <- struct{}{}
				}
			}
		})
	}
	users.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			for _, name := range []string{"per", "epoch"} {
				if _, err := n.SampleItems(ctx, &replayv1.SampleItemsRequest{Table: name, Items: 10}); err != nil {
					require.ErrorIs(t, err, context.Canceled)
				}
			}
			if i == 100 {
				started <- struct{}{}
			}
		}
	})
	for range 3 {
		select {
		case <-started:
		case <-time.After(time.Minute):
			t.Fatal("the users have not begun")
		}
	}
	directory := t.TempDir()
	var targets []string
	for i := range 3 {
		target := filepath.Join(directory, strconv.Itoa(i))
		done, err := n.checkpoint(t.Context(), target, silent)
		require.NoError(t, err)
		require.NotZero(t, done.GetRows())
		targets = append(targets, target)
	}
	cancel()
	users.Wait()
	for _, target := range targets {
		again := emptyNode(t, t.TempDir(), config)
		restored, err := again.restore(t.Context(), target)
		require.NoError(t, err)
		require.Empty(t, restored.GetDifferences())
		rows := content(t, again)
		require.Len(t, rows, int(restored.GetRows()))
		for _, name := range []string{"per", "epoch"} {
			states := statesOf(again, name)
			require.NotEmpty(t, states)
			for _, s := range states {
				number := int64(s.Priority) - 1
				for _, r := range append([]table.Run{s.Run}, s.More...) {
					for k := range uint64(r.Length) {
						got, ok := rows[r.First+k]
						if !ok || got != number {
							t.Fatalf("row %d of an item: there is one: %v, its number is %d instead of %d", r.First+k, ok, got, number)
						}
						number++
					}
				}
				if number != int64(s.Priority)-1+8 {
					t.Fatalf("the last number of an item of 8 rows is %d, and its priority %g", number-1, s.Priority)
				}
			}
		}
		require.NoError(t, again.close())
	}
}

// filled returns a node with rows and items.
func filled(t *testing.T, capacity uint64, tables ...*replayv1.TableConfig) (*node, *replayv1.ReplayConfig) {
	t.Helper()
	config := testConfig(capacity)
	config.Tables = tables
	n := testNode(t, config)
	res, err := n.Write(t.Context(), &replayv1.WriteRequest{Batch: numbered(t, n, 0, int(capacity)/2)})
	require.NoError(t, err)
	for _, c := range tables {
		var items []*replayv1.Item
		for _, s := range res.GetSequence() {
			items = append(items, &replayv1.Item{Runs: []*replayv1.Run{{First: s, Length: 1}}, Priority: new(float64(s))})
		}
		_, err = n.CreateItems(t.Context(), &replayv1.CreateItemsRequest{Table: c.GetName(), Items: items})
		require.NoError(t, err)
	}
	return n, config
}

func TestRestoreLetsTheConfigurationWinAndSaysWhere(t *testing.T) {
	n, config := filled(t, 20, Table("per", Prioritized(0.5), MinSize(2)), Table("old"))
	target := filepath.Join(t.TempDir(), "c")
	_, err := n.checkpoint(t.Context(), target, silent)
	require.NoError(t, err)
	for name, test := range map[string]struct {
		change  func(*replayv1.ReplayConfig)
		differs []string
		items   int
		rows    int
	}{
		"nothing":  {func(*replayv1.ReplayConfig) {}, nil, 10, 10},
		"capacity": {func(c *replayv1.ReplayConfig) { c.Capacity = 1000 }, []string{"the capacity in rows is 1000, and was 20"}, 10, 10},
		"small": {func(c *replayv1.ReplayConfig) { c.Capacity = 4 }, []string{
			"the capacity in rows is 4, and was 20", "the oldest 6 rows are dropped: there is room for 4",
			`table "per" lacks 6 items: the replay has no room for their rows`, `table "old" lacks 6 items: the replay has no room for their rows`,
		}, 4, 4},
		"fewer items": {func(c *replayv1.ReplayConfig) { c.Tables[0].MaxItems = 3 }, []string{
			`the maximum number of items of table "per" is 3, and was 1000000`, `table "per" lacks 7 items: it has room for fewer, and its remover chose them`,
		}, 3, 10},
		"selectors": {func(c *replayv1.ReplayConfig) {
			c.Tables[0].Sampler, c.Tables[0].Remover, c.Tables[0].MaxSampled = Uniform().message(), LIFO().message(), 3
		}, []string{
			`the sampler of table "per" is uniform, and was prioritized(0.5)`, `the remover of table "per" is lifo, and was fifo`,
			`the maximum of times sampled of table "per" is 3, and was 0`,
		}, 10, 10},
		"priorities": {func(c *replayv1.ReplayConfig) { c.Tables[0].Sampler.Exponent = 400 }, []string{
			`the sampler of table "per" is prioritized(400), and was prioritized(0.5)`, `table "per" lacks 4 items: its sampler or remover does not allow their priority`,
		}, 6, 10},
		"limiter": {func(c *replayv1.ReplayConfig) { c.Tables[0].Limiter = &replayv1.Limiter{MinSize: 7} }, []string{
			`the limiter of table "per" is minimum size(7), and was minimum size(2)`,
		}, 10, 10},
		"tables": {func(c *replayv1.ReplayConfig) { c.Tables[1].Name = "new" }, []string{
			`table "old" is not configured: its 10 items are dropped`, `table "new" is not in the checkpoint: it is empty`,
		}, 10, 10},
		"initial values": {func(c *replayv1.ReplayConfig) { c.Columns[2].Initial = []byte{1} }, []string{`the initial value of column "flag" is 01, and was `}, 10, 10},
	} {
		t.Run(name, func(t *testing.T) {
			changed := proto.CloneOf(config)
			test.change(changed)
			again := emptyNode(t, t.TempDir(), changed)
			defer func() { require.NoError(t, again.close()) }()
			restored, err := again.restore(t.Context(), target)
			require.NoError(t, err)
			require.Equal(t, test.differs, restored.GetDifferences())
			require.Len(t, content(t, again), test.rows)
			require.Len(t, statesOf(again, "per"), test.items)
			for s, n := range content(t, again) {
				require.Equal(t, int64(s), n)
				require.GreaterOrEqual(t, n, int64(10-test.rows), "the newest rows win")
			}
			res, err := again.SampleItems(t.Context(), &replayv1.SampleItemsRequest{Table: "per", Items: 1})
			require.NoError(t, err)
			require.Len(t, res.GetItems(), 1, "sampling works at once")
		})
	}
}

func TestRestoreRefusesWhatItCannotRestore(t *testing.T) {
	n, config := filled(t, 20, Table("per", Prioritized(0.5)))
	directory := t.TempDir()
	target := filepath.Join(directory, "good")
	_, err := n.checkpoint(t.Context(), target, silent)
	require.NoError(t, err)

	_, err = n.restore(t.Context(), target)
	require.ErrorIs(t, err, ErrNotEmpty)
	require.ErrorContains(t, err, "10 rows were written")
	again := emptyNode(t, t.TempDir(), config)
	defer func() { require.NoError(t, again.close()) }()
	_, err = again.restore(t.Context(), filepath.Join(directory, "goof"))
	require.ErrorIs(t, err, ErrCheckpoint)
	require.ErrorContains(t, err, "there is no such directory; "+directory+" has the checkpoints good")
	_, err = again.restore(t.Context(), "relative")
	require.ErrorIs(t, err, ErrCheckpoint)
	_, err = again.restore(t.Context(), directory)
	require.ErrorIs(t, err, ErrCheckpoint)
	require.ErrorContains(t, err, "it has no checkpoint.json, which is written last; it has good")

	other := proto.CloneOf(config)
	other.Columns[1].Shape = []uint64{3}
	columns := emptyNode(t, t.TempDir(), other)
	defer func() { require.NoError(t, columns.close()) }()
	_, err = columns.restore(t.Context(), target)
	require.ErrorIs(t, err, ring.ErrLayout)
	require.ErrorContains(t, err, `column 1, "xy", is xy float32[2] in the checkpoint, and xy float32[3] in the replay`)

	// An item without rows.
	_, err = again.CreateItems(t.Context(), &replayv1.CreateItemsRequest{Table: "per", Items: itemsFrom(1, 3)})
	require.NoError(t, err)
	_, err = again.restore(t.Context(), target)
	require.ErrorIs(t, err, ErrNotEmpty)
	require.Empty(t, content(t, again))
	require.Len(t, statesOf(again, "per"), 1)
}

// TestDamagedCheckpointsAreRefused flips each byte of each file, cuts each file everywhere, and
// removes and adds files. The node is the same all the time: nothing of what was refused is left.
func TestDamagedCheckpointsAreRefused(t *testing.T) {
	n, config := filled(t, 12, Table("per", Prioritized(0.5)), Table("queue", FIFO(), Queue(6)))
	directory := t.TempDir()
	target, other := filepath.Join(directory, "c"), filepath.Join(directory, "other")
	_, err := n.checkpoint(t.Context(), target, silent)
	require.NoError(t, err)
	differs := testNode(t, config)
	_, err = differs.Write(t.Context(), &replayv1.WriteRequest{Batch: numbered(t, differs, 7, 6)})
	require.NoError(t, err)
	_, err = differs.checkpoint(t.Context(), other, silent)
	require.NoError(t, err)

	again := emptyNode(t, t.TempDir(), config)
	defer func() { require.NoError(t, again.close()) }()
	refused := func(what, says string) {
		t.Helper()
		_, err := again.restore(t.Context(), target)
		require.ErrorIs(t, err, ErrCheckpoint, what)
		require.ErrorContains(t, err, says, what)
		require.Empty(t, content(t, again), what)
		require.Zero(t, again.tables.byName["per"].Meta().Counts.Inserted, what)
	}
	entries, err := os.ReadDir(target)
	require.NoError(t, err)
	require.Len(t, entries, 4)
	for _, e := range entries {
		path := filepath.Join(target, e.Name())
		good, err := os.ReadFile(path)
		require.NoError(t, err)
		for i := range good {
			bad := slices.Clone(good)
			bad[i] ^= 1 << (i % 8)
			require.NoError(t, os.WriteFile(path, bad, 0o600))
			refused(fmt.Sprintf("byte %d of %s", i, e.Name()), e.Name())
		}
		for size := 0; size < len(good); size += 1 + len(good)/50 {
			require.NoError(t, os.WriteFile(path, good[:size], 0o600))
			refused(fmt.Sprintf("%d bytes of %s", size, e.Name()), e.Name())
		}
		require.NoError(t, os.WriteFile(path, append(slices.Clone(good), 0), 0o600))
		refused("one byte more of "+e.Name(), e.Name())
		require.NoError(t, os.Remove(path))
		refused("no "+e.Name(), e.Name())
		require.NoError(t, os.Mkdir(path, 0o700))
		refused("a directory "+e.Name(), e.Name())
		require.NoError(t, os.Remove(path))
		require.NoError(t, os.WriteFile(path, good, 0o600))
	}
	require.NoError(t, os.WriteFile(filepath.Join(target, "notes"), nil, 0o600))
	refused("another file", "notes is not one of it")
	require.NoError(t, os.Remove(filepath.Join(target, "notes")))
	good, err := os.ReadFile(filepath.Join(target, "rows"))
	require.NoError(t, err)
	foreign, err := os.ReadFile(filepath.Join(other, "rows"))
	require.NoError(t, err)
	require.Len(t, foreign, len(good))
	require.NoError(t, os.WriteFile(filepath.Join(target, "rows"), foreign, 0o600))
	refused("a file of another checkpoint", "rows")
	require.NoError(t, os.WriteFile(filepath.Join(target, "rows"), good, 0o600))

	_, err = again.restore(t.Context(), target)
	require.NoError(t, err)
	require.Len(t, content(t, again), 6)
}

func TestCheckpointsThatEndEarlyLeaveNothing(t *testing.T) {
	n, _ := filled(t, 2000, Table("per", Prioritized(0.5)))
	directory := t.TempDir()
	target := filepath.Join(directory, "new", "c")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := n.checkpoint(ctx, target, silent)
	require.ErrorIs(t, err, context.Canceled)
	entries, err := os.ReadDir(directory)
	require.NoError(t, err)
	require.Empty(t, entries)

	taken := filepath.Join(directory, "taken")
	require.NoError(t, os.Mkdir(taken, 0o700))
	_, err = n.checkpoint(t.Context(), taken, silent)
	require.NoError(t, err, "an empty directory is replaced")
	for path, says := range map[string]string{
		taken:                                    "it is not empty, and has checkpoint.json, rows, table-0: use another path",
		filepath.Join(taken, "rows"):             "it exists and is not a directory",
		filepath.Join(taken, "rows", "c"):        "not a directory",
		"relative":                               "use an absolute path",
		filepath.Join(directory, "zero\x00byte"): "invalid argument",
	} {
		before := content(t, n)
		_, err = n.checkpoint(t.Context(), path, silent)
		require.ErrorContains(t, err, says)
		require.Equal(t, before, content(t, n))
	}
}

func TestClientsCheckpointAndRestore(t *testing.T) {
	config := testConfig(1000)
	config.Tables = []*replayv1.TableConfig{Table("per", Prioritized(1))}
	bothWays(t, config, func(t *testing.T, c, holder *Client) {
		ctx, target := t.Context(), filepath.Join(t.TempDir(), "c")
		sequences := write(t, c, 1, 2, 3)
		_, err := holder.Handle().CreateItems(ctx, &replayv1.CreateItemsRequest{Table: "per", Items: itemsFrom(2, sequences[0])})
		require.NoError(t, err)
		done, err := c.Checkpoint(ctx, target, func(*replayv1.CheckpointResponse) {})
		require.NoError(t, err)
		require.Equal(t, uint64(3), done.GetRows())
		require.Equal(t, uint64(1), done.GetTables()[0].GetItems())
		require.NotZero(t, done.GetBytes())
		_, err = c.Checkpoint(ctx, target, nil)
		require.ErrorIs(t, err, ErrDirectory)
		_, err = c.Checkpoint(ctx, "", nil)
		require.ErrorIs(t, err, ErrArgument)
		_, err = c.Restore(ctx, target)
		require.ErrorIs(t, err, ErrNotEmpty)
		_, err = c.Restore(ctx, target+"x")
		require.ErrorIs(t, err, ErrCheckpoint)

		fresh := open(t, testNode(t, config))
		if !c.Mapped() {
			fresh = openTunnel(t, &remoteReplay{node: testNode(t, config)})
		}
		restored, err := fresh.Restore(ctx, target)
		require.NoError(t, err)
		require.Equal(t, uint64(3), restored.GetRows())
		into := rowsOf(t, fresh)
		require.NoError(t, fresh.Reader(nil).Newest(ctx, 10, into))
		require.Equal(t, []int64{1, 2, 3}, numbersOf(t, into))
		require.Equal(t, sequences, into.Sequences())
		require.Equal(t, sequences[2]+1, write(t, fresh, 4)[0])
		described, err := fresh.Handle().Describe(ctx, &replayv1.DescribeRequest{})
		require.NoError(t, err)
		require.True(t, proto.Equal(restored, described.GetRestored()))
	})
}
