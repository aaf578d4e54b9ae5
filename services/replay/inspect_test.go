package replay

import (
	"context"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"
	"github.com/raylink/raylink/gen/raylink/replay/v1/replayv1raylink"
	"github.com/raylink/raylink/services/replay/ring"
)

func TestInspectDescribesRingTablesAndHolders(t *testing.T) {
	tables := []*replayv1.TableConfig{Table("per", Prioritized(1)), Table("queue", FIFO(), Queue(2))}
	itemsBothWays(t, 10, tables, func(t *testing.T, p *Typed[pointColumns], _ *replayv1raylink.Replay) {
		ctx := t.Context()
		w := itemWriter(t, p, History(1), Caller("actor-7"))
		writeItems(t, w, "per", 0, 1, 1, 1, 1)
		writeItems(t, w, "queue", 4, 1, 1)
		s := itemSampler(t, p, "per", BatchOf(8), Caller("learner-0"))
		_, err := s.Next(ctx)
		require.NoError(t, err)
		area, err := p.Newest(ctx, 3)
		require.NoError(t, err)
		defer func() { require.NoError(t, area.Release()) }()

		waiting, cancel := context.WithCancel(ctx)
		done := make(chan error, 1)
		go func() {
			_, err := p.Client().Handle().CreateItems(waiting, &replayv1.CreateItemsRequest{
				Table: "queue", Items: itemsFrom(1, 3), WaitMs: 10_000, Caller: "actor-8",
			})
			done <- err
		}()
		var info *replayv1.InspectResponse
		require.Eventually(t, func() bool {
			info, err = p.Client().Inspect(ctx)
			require.NoError(t, err)
			return len(info.GetTables()[1].GetBlocked()) > 0
		}, 20*time.Second, time.Millisecond)
		cancel()
		require.Error(t, <-done)

		r := info.GetRing()
		require.Equal(t, []uint64{10, 6, 6}, []uint64{r.GetCapacity(), r.GetRows(), r.GetWritten()})
		require.Equal(t, p.Client().Layout().RowBytes(), r.GetRowBytes())
		file, err := os.Stat(r.GetFile())
		require.NoError(t, err)
		require.Equal(t, uint64(file.Size()), r.GetFileBytes())
		if p.Client().Mapped() {
			require.Equal(t, uint64(3), r.GetHeld())
			require.Len(t, r.GetHolders(), 1)
			require.Equal(t, int64(os.Getpid()), r.GetHolders()[0].GetPid())
			require.Equal(t, uint64(3), r.GetHolders()[0].GetRows())
			require.Positive(t, r.GetHolders()[0].GetAgeNs())
			require.Equal(t, uint64(1), r.GetAreas())
		} else {
			require.Zero(t, r.GetHeld(), "the area has copies")
		}

		per, queue := info.GetTables()[0], info.GetTables()[1]
		require.Equal(t, []uint64{4, 4, 8}, []uint64{per.GetSize(), per.GetInserted(), per.GetSampled()})
		window := time.Duration(per.GetWindowNs()).Seconds()
		require.InDelta(t, 4, window*per.GetInsertsPerSecond(), 1e-6)
		require.InDelta(t, 8, window*per.GetSamplesPerSecond(), 1e-6)
		require.Len(t, per.GetPriorities(), 7)
		require.Len(t, per.GetTimesSampled(), 7)
		require.Empty(t, per.GetInsertNeeds().GetText())
		require.Empty(t, per.GetSampleNeeds().GetText())
		require.Equal(t, uint64(1), queue.GetInsertNeeds().GetSamples())
		require.Equal(t, "1 more sample", queue.GetInsertNeeds().GetText())
		require.Len(t, queue.GetBlocked(), 1)
		require.Equal(t, "actor-8", queue.GetBlocked()[0].GetCaller())
		require.Contains(t, queue.GetBlocked()[0].GetText(), "for 1 more sample")
	})
}

func TestItemsAreListedWithTheirRows(t *testing.T) {
	itemsBothWays(t, 10, []*replayv1.TableConfig{Table("per", Prioritized(1)), Table("empty")}, func(t *testing.T, p *Typed[pointColumns], _ *replayv1raylink.Replay) {
		ctx, c := t.Context(), p.Client()
		w := itemWriter(t, p, History(3))
		keys := writeItems(t, w, "per", 0, 1, 3, 2)
		_, err := p.Client().Handle().UpdatePriorities(ctx, &replayv1.UpdatePrioritiesRequest{
			Table: "per", Keys: []uint64{keys[1].Number()}, Priorities: []float64{7},
		})
		require.NoError(t, err)

		it, err := c.Item(ctx, "per", keys[1])
		require.NoError(t, err)
		require.Equal(t, keys[1], it.Key)
		require.Equal(t, []uint64{1, 2, 3}, it.Sequences)
		require.InDelta(t, 7, it.Priority, 0)
		require.Zero(t, it.Sampled)
		require.Positive(t, it.Age)
		require.Nil(t, it.Rows)

		all := c.Layout().Columns
		name := all[0].Name
		it, err = c.Item(ctx, "per", keys[1], WithRows(name))
		require.NoError(t, err)
		require.Len(t, it.Rows.Layout().Columns, 1)
		require.Equal(t, []uint64{1, 2, 3}, it.Rows.Sequences())
		whole, err := c.Item(ctx, "per", keys[1], WithRows())
		require.NoError(t, err)
		require.Equal(t, all, whole.Rows.Layout().Columns)
		require.Equal(t, whole.Rows.Bytes(0), it.Rows.Bytes(0))
		reader, at := c.Reader(nil), rowsOf(t, c)
		require.NoError(t, reader.Newest(ctx, 5, at))
		part, err := at.Slice(0, 3)
		require.NoError(t, err)
		for i := range all {
			require.Equal(t, part.Bytes(i), whole.Rows.Bytes(i))
		}

		var listed []Key
		for it, err := range c.Items(ctx, "per", WithRows(name)) {
			require.NoError(t, err)
			require.Equal(t, len(it.Sequences), it.Rows.Rows())
			listed = append(listed, it.Key)
		}
		require.ElementsMatch(t, keys, listed)
		for _, err := range c.Items(ctx, "empty") {
			require.Fail(t, "there are no items", err)
		}
		for _, err := range c.Items(ctx, "per") {
			require.NoError(t, err)
			break
		}
		info, err := c.Inspect(ctx)
		require.NoError(t, err)
		require.Zero(t, info.GetTables()[0].GetSampled(), "to list an item is not to sample it")
	})
}

func TestUnknownItemsTablesAndColumnsAreTypedErrors(t *testing.T) {
	itemsBothWays(t, 4, []*replayv1.TableConfig{Table("per", Prioritized(1)), Table("queue", FIFO(), Queue(2))}, func(t *testing.T, p *Typed[pointColumns], _ *replayv1raylink.Replay) {
		ctx, c := t.Context(), p.Client()
		w := itemWriter(t, p, History(2))
		keys := writeItems(t, w, "per", 0, 1, 2)

		_, err := c.Item(ctx, "none", keys[0])
		require.ErrorIs(t, err, ErrTable)
		require.ErrorContains(t, err, "the replay has per, queue")
		_, err = c.Item(ctx, "per", Key{ring: keys[0].ring, number: 0xabc})
		require.ErrorIs(t, err, ErrKey)
		require.ErrorContains(t, err, `table "per" has no item abc: it left the table, or never was in it; the table has 2 items`)
		_, err = c.Item(ctx, "per", Key{ring: "another", number: keys[0].number})
		require.ErrorIs(t, err, ErrKey)
		require.ErrorContains(t, err, "restarted")
		_, err = c.Item(ctx, "per", keys[0], WithRows("colour"))
		require.ErrorIs(t, err, ring.ErrLayout)
		require.ErrorContains(t, err, `no column "colour"; there are [`)
		for _, err := range c.Items(ctx, "none") {
			require.ErrorIs(t, err, ErrTable)
		}
		_, err = c.Handle().ListItems(ctx, &replayv1.ListItemsRequest{Table: "per", Items: maxSampledItems + 1})
		require.ErrorIs(t, ringError(err), ErrArgument)
		_, err = c.Handle().ListItems(ctx, &replayv1.ListItemsRequest{Table: "per", Rows: true, Columns: []string{"colour"}})
		require.ErrorIs(t, ringError(err), ring.ErrLayout)

		writeItems(t, w, "per", 3, 1, 1) // overwrites the first row
		_, err = c.Item(ctx, "per", keys[0])
		require.ErrorIs(t, err, ErrKey)

		require.NoError(t, c.Close())
		_, err = c.Inspect(ctx)
		require.ErrorIs(t, err, ring.ErrClosed)
		_, err = c.Item(ctx, "per", keys[1])
		require.ErrorIs(t, err, ring.ErrClosed)
	})
}

// TestPagesOfItemsHaveEachItemOnce lists a table in pages: by number of items, and by the size of
// their rows, of which two fit into a response.
func TestPagesOfItemsHaveEachItemOnce(t *testing.T) {
	config := &replayv1.ReplayConfig{
		Capacity: 6, Tables: []*replayv1.TableConfig{Table("t")},
	}
	config.Columns = append(config.Columns, Column[uint8]("large", maxResponse/2-1000), Column[uint8]("small"))
	n := testNode(t, config)
	batch, err := ring.NewBatch(n.ring.Layout(), 1)
	require.NoError(t, err)
	var sequences []uint64
	for range 5 {
		res, err := n.Write(t.Context(), &replayv1.WriteRequest{Batch: messageOf(batch)})
		require.NoError(t, err)
		sequences = append(sequences, res.GetSequence()...)
	}
	created, err := n.CreateItems(t.Context(), &replayv1.CreateItemsRequest{Table: "t", Items: itemsFrom(1, sequences...)})
	require.NoError(t, err)

	for name, test := range map[string]struct {
		request *replayv1.ListItemsRequest
		pages   int
	}{
		"items": {&replayv1.ListItemsRequest{Items: 2}, 3},
		"large": {&replayv1.ListItemsRequest{Rows: true, Columns: []string{"large"}}, 3},
		"small": {&replayv1.ListItemsRequest{Rows: true, Columns: []string{"small"}}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			req := test.request
			req.Table = "t"
			var listed []uint64
			pages := 0
			for {
				res, err := n.ListItems(t.Context(), req)
				require.NoError(t, err)
				for _, it := range res.GetItems() {
					listed = append(listed, it.GetKey())
					require.Len(t, it.GetColumns(), len(req.GetColumns()))
				}
				pages++
				if req.From = res.GetNext(); req.GetFrom() == 0 {
					break
				}
			}
			require.ElementsMatch(t, created.GetKeys(), listed)
			require.Equal(t, test.pages, pages)
		})
	}

	three, err := n.CreateItems(t.Context(), &replayv1.CreateItemsRequest{Table: "t", Items: itemsFrom(3, sequences[0])})
	require.NoError(t, err)
	req := &replayv1.ListItemsRequest{Table: "t", Keys: three.GetKeys(), Rows: true}
	_, err = n.ListItems(t.Context(), req)
	require.ErrorContains(t, err, "choose fewer columns")
	req.Columns = []string{"small"}
	res, err := n.ListItems(t.Context(), req)
	require.NoError(t, err)
	require.Len(t, res.GetItems()[0].GetColumns()[0].GetData(), 3)
}

// TestItemsWithOverwrittenRowsAreNotListed overwrites a row of an item which its table still has:
// not its first one, by which the table knows.
func TestItemsWithOverwrittenRowsAreNotListed(t *testing.T) {
	n, write := tabled(t, 4, Table("t"))
	sequences := write(4)
	// Runs in the order of age would leave with the first row.
	keys, err := n.CreateItems(t.Context(), &replayv1.CreateItemsRequest{Table: "t", Items: itemsFrom(1, sequences...)})
	require.NoError(t, err)
	tb, err := n.tables.find("t")
	require.NoError(t, err)
	states, _, err := n.states(tb, &replayv1.ListItemsRequest{Table: "t"})
	require.NoError(t, err)
	require.Len(t, states, 4)
	rows, err := n.rowsOfItems(nil)
	require.NoError(t, err)
	write(1) // after the table was asked
	for i, s := range states {
		item := &replayv1.ItemState{Runs: runsMessage(s.Run, s.More)}
		complete, err := rows.read(t.Context(), item)
		require.NoError(t, err)
		require.Equal(t, i > 0, complete)
	}
	_, err = n.ListItems(t.Context(), &replayv1.ListItemsRequest{Table: "t", Keys: keys.GetKeys()[:1]})
	require.ErrorIs(t, err, ErrKey)
}
