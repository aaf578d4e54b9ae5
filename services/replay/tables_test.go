package replay

import (
	"context"
	"math"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"
	"github.com/raylink/raylink/services/replay/ring"
)

// tabled returns a node with tables, and writes rows to it.
func tabled(t *testing.T, capacity uint64, configs ...*replayv1.TableConfig) (n *node, write func(rows int) []uint64) {
	t.Helper()
	config := testConfig(capacity)
	config.Tables = configs
	n = testNode(t, config)
	return n, func(rows int) []uint64 {
		batch, err := ring.NewBatch(n.ring.Layout(), rows)
		require.NoError(t, err)
		res, err := n.Write(t.Context(), &replayv1.WriteRequest{Batch: messageOf(batch)})
		require.NoError(t, err)
		return res.GetSequence()
	}
}

// itemsFrom returns an item of n rows for each sequence number.
func itemsFrom(rows uint32, sequences ...uint64) []*replayv1.Item {
	var items []*replayv1.Item
	for _, s := range sequences {
		items = append(items, &replayv1.Item{Runs: []*replayv1.Run{{First: s, Length: rows}}, Priority: new(float64(s))})
	}
	return items
}

func TestItemsLeaveTheirTableWithTheirRows(t *testing.T) {
	n, write := tabled(t, 10, Table("per", Prioritized(1)), Table("newest", LIFO()))
	sequences := write(10)
	created, err := n.CreateItems(t.Context(), &replayv1.CreateItemsRequest{Table: "per", Items: itemsFrom(1, sequences...)})
	require.NoError(t, err)
	require.Len(t, created.GetKeys(), 10)
	require.Nil(t, created.GetBlocked())
	write(8)

	update := &replayv1.UpdatePrioritiesRequest{Table: "per", Keys: created.GetKeys(), Priorities: make([]float64, 10)}
	update.Priorities[9] = 3
	updated, err := n.UpdatePriorities(t.Context(), update)
	require.NoError(t, err)
	require.Equal(t, uint64(8), updated.GetStale())
	sampled, err := n.SampleItems(t.Context(), &replayv1.SampleItemsRequest{Table: "per", Items: 20, Beta: 0.4})
	require.NoError(t, err)
	require.Len(t, sampled.GetItems(), 20)
	for i, s := range sampled.GetItems() {
		require.Equal(t, created.GetKeys()[9], s.GetKey(), "the other has priority 0")
		require.Equal(t, []uint64{sequences[9], 1}, []uint64{s.GetRuns()[0].GetFirst(), uint64(s.GetRuns()[0].GetLength())})
		require.InDelta(t, 1, s.GetProbability(), 0)
		require.InDelta(t, 3, s.GetPriority(), 0)
		require.Equal(t, uint32(i+1), s.GetSampled())
		require.Equal(t, uint64(2), s.GetTableSize())
	}
	created, err = n.CreateItems(t.Context(), &replayv1.CreateItemsRequest{Table: "per", Items: itemsFrom(2, sequences[0])})
	require.NoError(t, err)
	require.Equal(t, []uint64{0}, created.GetKeys(), "its rows were overwritten")

	inspected, err := n.Inspect(t.Context(), &replayv1.InspectRequest{})
	require.NoError(t, err)
	require.Len(t, inspected.GetTables(), 2)
	per := inspected.GetTables()[0]
	require.Equal(t, "per", per.GetConfig().GetName())
	require.Equal(t, uint64(defaultMaxItems), per.GetConfig().GetMaxItems())
	require.Equal(t, replayv1.SelectorKind_SELECTOR_KIND_FIFO, per.GetConfig().GetRemover().GetKind())
	require.Equal(t, []uint64{2, 10, 20, 8, 1, 8}, []uint64{
		per.GetSize(), per.GetInserted(), per.GetSampled(), per.GetOverwritten(), per.GetLate(), per.GetStale(),
	})
	deleted, err := n.DeleteItems(t.Context(), &replayv1.DeleteItemsRequest{Table: "per", Keys: update.GetKeys()})
	require.NoError(t, err)
	require.Equal(t, uint64(8), deleted.GetStale())
}

func TestCallsReportWhatTheLimiterWaitsFor(t *testing.T) {
	n, write := tabled(t, 100, Table("queue", FIFO(), Queue(4)))
	first := write(6)[0]
	sampled, err := n.SampleItems(t.Context(), &replayv1.SampleItemsRequest{Table: "queue", Items: 3, Caller: "learner-0"})
	require.NoError(t, err)
	require.Empty(t, sampled.GetItems())
	require.Equal(t, "sample of learner-0 has 0 of 3 items and has waited 0s for 3 more inserts", sampled.GetBlocked().GetText())
	begin := time.Now()
	create := &replayv1.CreateItemsRequest{
		Table: "queue", Items: itemsFrom(1, first, first+1, first+2, first+3, first+4, first+5), Caller: "actor-0", WaitMs: 50,
	}
	created, err := n.CreateItems(t.Context(), create)
	require.NoError(t, err)
	require.Len(t, created.GetKeys(), 4)
	require.GreaterOrEqual(t, time.Since(begin), 50*time.Millisecond)
	require.Equal(t, uint64(2), created.GetBlocked().GetSamples())

	// What waits is served by the call that makes it possible.
	waiting := make(chan *replayv1.CreateItemsResponse, 1)
	go func() {
		create.Items, create.WaitMs = create.GetItems()[4:], 60_000
		res, err := n.CreateItems(context.Background(), create)
		if err != nil {
			t.Error(err)
		}
		waiting <- res
	}()
	require.Eventually(t, func() bool {
		inspected, err := n.Inspect(t.Context(), &replayv1.InspectRequest{Table: "queue"})
		return err == nil && len(inspected.GetTables()[0].GetBlocked()) == 1
	}, 10*time.Second, time.Millisecond)
	sampled, err = n.SampleItems(t.Context(), &replayv1.SampleItemsRequest{Table: "queue", Items: 6})
	require.NoError(t, err)
	require.GreaterOrEqual(t, len(sampled.GetItems()), 4)
	require.Len(t, (<-waiting).GetKeys(), 2)
	_, err = n.SetLimiter(t.Context(), &replayv1.SetLimiterRequest{Table: "queue", Limiter: &replayv1.Limiter{MinSize: 3}})
	require.NoError(t, err)
}

func TestNodesEndFailsWaitingCalls(t *testing.T) {
	n, _ := tabled(t, 10, Table("t"))
	failed := make(chan error, 1)
	go func() {
		_, err := n.SampleItems(context.Background(), &replayv1.SampleItemsRequest{Table: "t", Items: 1, WaitMs: 60_000})
		failed <- err
	}()
	require.Eventually(t, func() bool {
		inspected, err := n.Inspect(t.Context(), &replayv1.InspectRequest{})
		return err == nil && len(inspected.GetTables()[0].GetBlocked()) == 1
	}, 10*time.Second, time.Millisecond)
	require.NoError(t, n.close())
	var err error
	select {
	case err = <-failed:
	case <-time.After(5 * time.Second):
		require.Fail(t, "the call still waits")
	}
	require.Equal(t, connect.CodeUnavailable, connect.CodeOf(err))
	require.ErrorIs(t, ringError(err), ring.ErrEnded)
}

func TestInvalidCallsOfTablesAreTypedErrors(t *testing.T) {
	n, _ := tabled(t, 10, Table("a", Prioritized(0.6), MaxItems(5)), Table("b"))
	priority := func(p float64) []*replayv1.Item {
		return []*replayv1.Item{{Runs: []*replayv1.Run{{First: 1, Length: 1}}, Priority: &p}}
	}
	for reason, c := range map[string]struct {
		call func() error
		want error
	}{
		`no such table: "c": the replay has a, b`: {func() error {
			_, err := n.SampleItems(t.Context(), &replayv1.SampleItemsRequest{Table: "c"})
			return err
		}, ErrTable},
		"no rows": {func() error {
			_, err := n.CreateItems(t.Context(), &replayv1.CreateItemsRequest{Table: "a", Items: []*replayv1.Item{{}}})
			return err
		}, ErrItem},
		"priority 0 is NaN": {func() error {
			_, err := n.CreateItems(t.Context(), &replayv1.CreateItemsRequest{Table: "a", Items: priority(math.NaN())})
			return err
		}, ErrPriority},
		"priority 0 is -1": {func() error {
			_, err := n.UpdatePriorities(t.Context(), &replayv1.UpdatePrioritiesRequest{Table: "a", Keys: []uint64{1}, Priorities: []float64{-1}})
			return err
		}, ErrPriority},
		"there are 2 keys": {func() error {
			_, err := n.UpdatePriorities(t.Context(), &replayv1.UpdatePrioritiesRequest{Table: "a", Keys: []uint64{1, 2}, Priorities: []float64{1}})
			return err
		}, ErrArgument},
		"at most 65536": {func() error {
			_, err := n.SampleItems(t.Context(), &replayv1.SampleItemsRequest{Table: "a", Items: math.MaxUint32})
			return err
		}, ErrArgument},
		"the limiter would deadlock: it lets samples wait for 6 items": {func() error {
			_, err := n.SetLimiter(t.Context(), &replayv1.SetLimiterRequest{Table: "a", Limiter: &replayv1.Limiter{MinSize: 6}})
			return err
		}, ErrLimiter},
	} {
		err := c.call()
		require.Equal(t, connect.CodeInvalidArgument, connect.CodeOf(err), "%v", err)
		require.ErrorContains(t, err, reason)
		require.ErrorIs(t, ringError(err), c.want, "the client gets the same error")
	}
}

func TestInvalidTablesAreRefused(t *testing.T) {
	for reason, configs := range map[string][]*replayv1.TableConfig{
		"table 0 has no name":           {Table("")},
		`there are two tables "a"`:      {Table("a"), Table("a")},
		"its kind 99 is unknown":        {Table("a", Selector{kind: 99})},
		"rule 9 is unknown":             {Table("a", Limiter{&replayv1.Limiter{Rule: 9}})},
		"needs the sampler lifo":        {Table("a", FIFO(), Stack(3))},
		"buffer of 1 samples":           {Table("a", SamplesPerInsert(8, 1000, 1))},
		"maximum number of items is":    {Table("a", MaxItems(math.MaxUint64))},
		"an item can be sampled 2 time": {Table("a", MaxSampled(2), Remover(Lowest()), SamplesPerInsert(8, 1000, 4000))},
	} {
		config := testConfig(10)
		config.Tables = configs
		_, err := newNode(t.TempDir(), "the-nid", config)
		require.Equal(t, connect.CodeInvalidArgument, connect.CodeOf(err), "%v", err)
		require.ErrorContains(t, err, reason)
	}
}

// TestOptionsOfTables configures what the documentation shows.
func TestOptionsOfTables(t *testing.T) {
	n, _ := tabled(t, 10,
		Table("per", Prioritized(0.6), MaxItems(1_000_000), SamplesPerInsert(8, 1000, 4000)),
		Table("queue", FIFO(), Queue(64)), Table("stack", LIFO(), Stack(64)), Table("uniform", Uniform(), MinSize(7), MaxSampled(3)),
		Table("epoch", Epoch(), Remover(Highest())), Table("highest", Highest(), Remover(Prioritized(2))))
	inspected, err := n.Inspect(t.Context(), &replayv1.InspectRequest{})
	require.NoError(t, err)
	require.Len(t, inspected.GetTables(), 6)
	per := inspected.GetTables()[0]
	require.True(t, proto.Equal(&replayv1.TableConfig{
		Name: "per", Sampler: Prioritized(0.6).message(), Remover: FIFO().message(), MaxItems: 1_000_000,
		Limiter: &replayv1.Limiter{Rule: replayv1.LimiterRule_LIMITER_RULE_SAMPLES_PER_INSERT, MinSize: 1000, SamplesPerInsert: 8, Buffer: 4000},
	}, per.GetConfig()), "%v", per.GetConfig())
	require.InDelta(t, 4000, per.GetLow(), 0)
	require.InDelta(t, 12000, per.GetHigh(), 0)
	require.True(t, proto.Equal(Prioritized(2).message(), inspected.GetTables()[5].GetConfig().GetRemover()))
	_, err = n.tables.find("none")
	require.ErrorIs(t, err, ErrTable)
}

// TestSamplesOfARingBeforeAreNotGivenBack gives back samples that another incarnation has drawn.
func TestSamplesOfARingBeforeAreNotGivenBack(t *testing.T) {
	n := testNode(t, pointsReplay(20, Table("t")))
	createItems(t, n, "t", 0)
	for _, id := range []string{n.ring.ID().String(), "", ring.ID{}.String()} {
		_, err := n.SampleItems(t.Context(), &replayv1.SampleItemsRequest{Table: "t", Items: 1, Returned: 1, RingId: id})
		require.NoError(t, err)
	}
	require.EqualValues(t, 1, n.tables.byName["t"].Inspect().Counts.Returned, "the first request has nothing to give back, the last another ring")
}
