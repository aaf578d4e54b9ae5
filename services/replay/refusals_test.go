package replay

import (
	"errors"
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"
	"github.com/raylink/raylink/gen/raylink/replay/v1/replayv1raylink"
	tensorv1 "github.com/raylink/raylink/gen/raylink/tensor/v1"
	"github.com/raylink/raylink/runtime/row"
	"github.com/raylink/raylink/services/replay/ring"
)

// replayState is what calls that are refused must not change.
type replayState struct {
	info    string
	items   map[string][]TableItem
	numbers []int64
}

// stateOf returns all that can be seen of a replay, but for what depends on the time.
func stateOf(t *testing.T, c *Client) replayState {
	t.Helper()
	info, err := c.Inspect(t.Context())
	require.NoError(t, err)
	info.File = nil
	state := replayState{items: make(map[string][]TableItem), numbers: allNumbers(t, c)}
	for _, table := range info.GetTables() {
		table.WindowNs, table.InsertsPerSecond, table.SamplesPerSecond = 0, 0, 0
		name := table.GetConfig().GetName()
		for it, err := range c.Items(t.Context(), name) {
			require.NoError(t, err)
			it.Age = 0
			state.items[name] = append(state.items[name], it)
		}
	}
	text, err := proto.MarshalOptions{Deterministic: true}.Marshal(info)
	require.NoError(t, err)
	state.info = string(text)
	return state
}

// refusedCall is a call that is refused with one type of error, over both ways.
type refusedCall struct {
	name string
	call func() error
	want error
	// texts are what the error must name: what was asked for, and what there is.
	texts []string
}

// TestRefusedCallsChangeNothing has all typed errors of calls.
func TestRefusedCallsChangeNothing(t *testing.T) {
	tables := []*replayv1.TableConfig{
		Table("per", Prioritized(0.6), MaxItems(5), MaxSampled(3)), Table("queue", FIFO(), Queue(2)),
	}
	itemsBothWays(t, 20, tables, func(t *testing.T, p *Typed[pointColumns], _ *replayv1raylink.Replay) {
		c := p.Client()
		w := itemWriter(t, p, History(3))
		keys := writeItems(t, w, "per", 0, 1, 3)
		_, err := c.Checkpoint(t.Context(), filepath.Join(t.TempDir(), "made"), nil)
		require.NoError(t, err)
		before := stateOf(t, c)
		for _, r := range slices.Concat(
			refusedTables(t, p, w, keys[0]), refusedPriorities(t, p, w, keys), refusedLimiters(t, c), refusedRows(t, p, w, keys[0]), refusedCheckpoints(t, c),
		) {
			err := r.call()
			require.ErrorIs(t, err, r.want, r.name)
			for _, text := range r.texts {
				require.ErrorContains(t, err, text, r.name)
			}
			for _, other := range typedErrors() {
				require.Equal(t, errors.Is(r.want, other), errors.Is(err, other), "%s: %v also is %v", r.name, err, other)
			}
			require.Equal(t, before, stateOf(t, c), r.name)
		}
		require.NoError(t, w.Flush(t.Context()), "nothing is on its way")
	})
}

// typedErrors are those of calls.
func typedErrors() []error {
	return []error{
		ErrTable, ErrKey, ErrItem, ErrPriority, ErrLimiter, ErrArgument, ErrBlocked, ErrCheckpoint, ErrNotEmpty, ErrDirectory,
		ring.ErrBatch, ring.ErrLayout, ErrNoSpace, ring.ErrNoRoom, ring.ErrEnded, ring.ErrClosed,
	}
}

// refusedTables names tables that do not exist.
func refusedTables(t *testing.T, p *Typed[pointColumns], w *TypedWriter[pointColumns], key Key) []refusedCall {
	t.Helper()
	c, ctx := p.Client(), t.Context()
	texts := []string{`"none"`, "per, queue"}
	return []refusedCall{
		{"item of an unknown table", func() error {
			_, err := w.Item(ctx, "none", 1, 1)
			return err
		}, ErrTable, texts},
		{"sampler of an unknown table", func() error {
			_, err := p.Sampler("none")
			return err
		}, ErrTable, texts},
		{"deletion in an unknown table", func() error {
			_, err := c.Delete(ctx, "none", []Key{key})
			return err
		}, ErrTable, texts},
		{"limiter of an unknown table", func() error { return c.SetLimiter(ctx, "none", MinSize(1)) }, ErrTable, texts},
		{"look at an item of an unknown table", func() error {
			_, err := c.Item(ctx, "none", key)
			return err
		}, ErrTable, texts},
		{"list an unknown table", func() error {
			for _, err := range c.Items(ctx, "none") {
				return err
			}
			return nil
		}, ErrTable, texts},
		{"unknown key", func() error {
			_, err := c.Item(ctx, "per", Key{ring: key.ring, table: "per", number: 0xabc})
			return err
		}, ErrKey, []string{`table "per" has no item abc`, "the table has 2 items"}},
		{"key of another ring", func() error {
			_, err := c.Item(ctx, "per", Key{ring: "another", table: "per", number: key.number})
			return err
		}, ErrKey, []string{"restarted"}},
		{"no key", func() error {
			_, err := c.Item(ctx, "per", Key{})
			return err
		}, ErrKey, []string{"the table has 2 items"}},
	}
}

// refusedPriorities has priorities that no item can have.
func refusedPriorities(t *testing.T, p *Typed[pointColumns], w *TypedWriter[pointColumns], keys []Key) []refusedCall {
	t.Helper()
	s := itemSampler(t, p, "per")
	var calls []refusedCall
	for _, c := range []struct {
		priority float64
		texts    []string
	}{
		{-1, []string{"is -1", "must not be negative"}},
		{math.NaN(), []string{"is NaN", "must be a number"}},
		{math.Inf(1), []string{"is +Inf", "must be finite"}},
		{math.Inf(-1), []string{"is -Inf", "must be finite"}},
	} {
		calls = append(calls, refusedCall{"item", func() error {
			_, err := w.Item(t.Context(), "per", 1, c.priority)
			return err
		}, ErrPriority, append(c.texts, `"per"`, "priority 0")}, refusedCall{"update", func() error {
			_, err := s.Update(t.Context(), keys, []float64{7, c.priority})
			return err
		}, ErrPriority, append(c.texts, `"per"`, "priority 1")}, refusedCall{"update by the node", func() error {
			_, err := p.Client().Handle().UpdatePriorities(t.Context(), &replayv1.UpdatePrioritiesRequest{
				Table: "per", Keys: []uint64{keys[0].number, keys[1].number}, Priorities: []float64{7, c.priority},
			})
			return ringError(err)
		}, ErrPriority, append(c.texts, `"per"`, "priority 1")}, refusedCall{"item by the node", func() error {
			_, err := p.Client().Handle().CreateItems(t.Context(), &replayv1.CreateItemsRequest{
				Table: "per", Items: []*replayv1.Item{{Runs: []*replayv1.Run{{First: 1, Length: 1}}, Priority: &c.priority}},
			})
			return ringError(err)
		}, ErrPriority, append(c.texts, `"per"`, "priority 0")})
	}
	return append(calls, refusedCall{"another number of priorities", func() error {
		_, err := s.Update(t.Context(), keys, []float64{7})
		return err
	}, ErrArgument, []string{"update 1 priorities", "2 keys"}})
}

// refusedLimiters has limiters that can only deadlock, or that the table can't have.
func refusedLimiters(t *testing.T, c *Client) []refusedCall {
	t.Helper()
	var calls []refusedCall
	for _, l := range []struct {
		table   string
		limiter Limiter
		texts   []string
	}{
		{"per", MinSize(6), []string{"would deadlock", "wait for 6 items", "room for 5"}},
		{"per", SamplesPerInsert(2, 1, 1), []string{"would deadlock", "buffer of 1 samples", "at least 1.5"}},
		{"per", SamplesPerInsert(4, 1, 100), []string{"can't be met", "4 samples each", "sampled 3 times"}},
		{"per", SamplesPerInsert(-1, 1, 100), []string{"-1", "positive"}},
		{"per", SamplesPerInsert(math.NaN(), 1, 100), []string{"NaN", "positive"}},
		{"per", SamplesPerInsert(1, 1, math.Inf(1)), []string{"+Inf", "finite"}},
		{"per", Queue(2), []string{"queue(2)", "sampler fifo", "prioritized"}},
		{"queue", Queue(0), []string{"queue(0)", "from 1 to"}},
		{"queue", Stack(2), []string{"stack(2)", "sampler lifo", "fifo"}},
	} {
		calls = append(calls, refusedCall{"limiter", func() error {
			return c.SetLimiter(t.Context(), l.table, l.limiter)
		}, ErrLimiter, append(l.texts, l.table)})
	}
	return calls
}

// refusedRows has rows, items of rows and samplers that can't be.
func refusedRows(t *testing.T, p *Typed[pointColumns], w *TypedWriter[pointColumns], key Key) []refusedCall {
	t.Helper()
	c, ctx := p.Client(), t.Context()
	config := testConfig(10)
	config.Columns[2].Name = "flags"
	other := open(t, testNode(t, config))
	batch := rowsOf(t, other, 1)
	renamed := *pointRow().Generated
	renamed.Columns = slices.Clone(renamed.Columns)
	renamed.Columns[2].Name = "flags"
	columns := []string{"flags", "{flag "}
	sampler := func(options ...SamplerOption) func() error {
		return func() error {
			_, err := p.Sampler("per", options...)
			return err
		}
	}
	return []refusedCall{
		{"append a batch of other columns", func() error {
			_, err := c.Writer().Append(ctx, batch)
			return err
		}, ring.ErrBatch, columns},
		{"append at once a batch of other columns", func() error {
			_, err := c.Writer().TryAppend(ctx, batch)
			return err
		}, ring.ErrBatch, columns},
		{"read into a batch of other columns", func() error { return c.Reader(nil).Sample(ctx, 1, batch) }, ring.ErrBatch, columns},
		{"more rows than the ring has", func() error {
			_, err := c.Writer().Append(ctx, rowsOf(t, c, make([]int64, 21)...))
			return err
		}, ring.ErrBatch, []string{"21 rows", "20"}},
		{"row of other columns", func() error {
			_, err := As(c, row.Type[pointColumns]{Generated: &renamed})
			var schema *SchemaError
			require.ErrorAs(t, err, &schema)
			return err
		}, ring.ErrLayout, []string{"flags", "flag uint8"}},
		{"unknown column", func() error {
			_, err := c.Item(ctx, "per", key, WithRows("colour"))
			return err
		}, ring.ErrLayout, []string{`"colour"`, "[n xy flag]"}},
		{"unknown column by the node", func() error {
			_, err := c.Handle().ListItems(ctx, &replayv1.ListItemsRequest{Table: "per", Rows: true, Columns: []string{"colour"}})
			return ringError(err)
		}, ring.ErrLayout, []string{`"colour"`, "[n xy flag]"}},
		{"item longer than the history", func() error {
			_, err := w.Item(ctx, "per", 4, 1)
			return err
		}, ErrItem, []string{"4 rows", "remembers 3 rows"}},
		{"item of no rows", func() error {
			_, err := w.Item(ctx, "per", 0, 1)
			return err
		}, ErrItem, []string{"0 rows", "at least one row"}},
		{"item of no rows by the node", func() error {
			_, err := c.Handle().CreateItems(ctx, &replayv1.CreateItemsRequest{Table: "per", Items: []*replayv1.Item{{}}})
			return ringError(err)
		}, ErrItem, []string{"item 0", "no rows"}},
		{"history longer than the ring", func() error {
			_, err := p.Writer(History(21))
			return err
		}, ErrArgument, []string{"21 rows", "has 20"}},
		{"empty batches", sampler(BatchOf(0)), ErrArgument, []string{"0 items", "1 to 65536"}},
		{"items longer than the ring", sampler(Length(21)), ErrArgument, []string{"21 rows", "has 20"}},
		{"weights with a negative exponent", sampler(Weights(-1)), ErrArgument, []string{"-1", "not negative"}},
	}
}

// refusedCheckpoints has directories that can't be written to, or restored.
func refusedCheckpoints(t *testing.T, c *Client) []refusedCall {
	t.Helper()
	directory := t.TempDir()
	made, damaged := filepath.Join(directory, "made"), filepath.Join(directory, "damaged")
	for _, target := range []string{made, damaged} {
		_, err := c.Checkpoint(t.Context(), target, nil)
		require.NoError(t, err)
	}
	rows, err := os.ReadFile(filepath.Join(damaged, "rows"))
	require.NoError(t, err)
	rows[len(rows)-1] ^= 1
	require.NoError(t, os.WriteFile(filepath.Join(damaged, "rows"), rows, 0o600))
	restore := func(directory string) func() error {
		return func() error {
			_, err := c.Restore(t.Context(), directory)
			return err
		}
	}
	return []refusedCall{
		{"checkpoint where one is", func() error {
			_, err := c.Checkpoint(t.Context(), made, nil)
			return err
		}, ErrDirectory, []string{made, "empty"}},
		{"restore into a replay with rows", restore(made), ErrNotEmpty, []string{made}},
		{"restore what is none", restore(directory), ErrCheckpoint, []string{directory}},
	}
}

// TestRefusedReplaysMakeNothing has configurations of which no replay can be made. The error of a
// node in another process is the same.
func TestRefusedReplaysMakeNothing(t *testing.T) {
	tables := func(tables ...*replayv1.TableConfig) func(*replayv1.ReplayConfig) {
		return func(c *replayv1.ReplayConfig) { c.Tables = tables }
	}
	columns := func(columns ...*tensorv1.Column) func(*replayv1.ReplayConfig) {
		return func(c *replayv1.ReplayConfig) { c.Columns = columns }
	}
	for name, r := range map[string]struct {
		change func(c *replayv1.ReplayConfig)
		want   error
		texts  []string
	}{
		"no columns":         {columns(), ring.ErrLayout, []string{"no columns"}},
		"two of a name":      {columns(Column[int8]("a"), Column[int8]("a")), ring.ErrLayout, []string{`two columns named "a"`}},
		"no such element":    {columns(&tensorv1.Column{Name: "a", Dtype: 99}), ring.ErrLayout, []string{`"a"`, "element type"}},
		"a shape of nothing": {columns(Column[int8]("a", 3, 0)), ring.ErrLayout, []string{`"a"`, "[3 0]"}},
		"no rows":            {func(c *replayv1.ReplayConfig) { c.Capacity = 0 }, ring.ErrLayout, []string{"no rows"}},
		"too many rows":      {func(c *replayv1.ReplayConfig) { c.Capacity = 1 << 60 }, ring.ErrLayout, []string{"1152921504606846976 rows"}},
		"a large row":        {columns(Column[uint8]("a", 64<<20)), ring.ErrLayout, []string{"67108864 bytes", "at most 66060288"}},
		"too few bytes": {func(c *replayv1.ReplayConfig) {
			c.Capacity, c.CapacityBytes = 0, 1000
		}, ring.ErrLayout, []string{"at most 1000 bytes", "a single row has"}},
		"two capacities": {func(c *replayv1.ReplayConfig) { c.CapacityBytes = 1 << 20 }, ring.ErrLayout, []string{"10 rows", "1048576 bytes"}},
		"an initial value of another size": {columns(&tensorv1.Column{
			Name: "a", Dtype: tensorv1.DataType_DATA_TYPE_INT32, Initial: []byte{1},
		}), ring.ErrLayout, []string{"1 bytes", "have 4"}},
		"a table without a name": {tables(Table("")), ErrLimiter, []string{"table 0"}},
		"two tables of a name":   {tables(Table("t"), Table("t")), ErrLimiter, []string{`"t"`}},
		"a deadlock":             {tables(Table("t", MaxItems(5), MinSize(6))), ErrLimiter, []string{`"t"`, "wait for 6 items", "room for 5"}},
		"too many items":         {tables(Table("t", MaxItems(math.MaxUint64))), ErrLimiter, []string{`"t"`, "from 1 to"}},
	} {
		for _, file := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				config := testConfig(10)
				r.change(config)
				requireRefused(t, config, t.TempDir(), file, r.want, append(r.texts, "configure replay"))
			})
		}
	}
}

// requireRefused fails to create a node in an empty directory, with a file that is named or not.
// The error of a node in another process is the same.
func requireRefused(t *testing.T, config *replayv1.ReplayConfig, directory string, file bool, want error, texts []string) {
	t.Helper()
	var err error
	if file {
		config.File = filepath.Join(directory, "ring")
		_, err = openNode(config, nil, nil)
	} else {
		_, err = newNode(directory, "the-nid", config)
	}
	files, readErr := os.ReadDir(directory)
	require.NoError(t, readErr)
	require.Empty(t, files)
	for _, err := range []error{err, CreateError(err), CreateError(encoded(t, err))} {
		for _, text := range texts {
			require.ErrorContains(t, err, text)
		}
		for _, other := range typedErrors() {
			require.Equal(t, errors.Is(want, other), errors.Is(err, other), "%v is %v", err, other)
		}
	}
}
