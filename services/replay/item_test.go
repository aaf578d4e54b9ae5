package replay

import (
	"context"
	"fmt"
	"math"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"
	"github.com/raylink/raylink/gen/raylink/replay/v1/replayv1raylink"
	"github.com/raylink/raylink/services/replay/ring"
)

// itemsBothWays is typedBothWays for a replay with tables.
func itemsBothWays(t *testing.T, capacity uint64, configs []*replayv1.TableConfig, test func(t *testing.T, p *Typed[pointColumns], node *replayv1raylink.Replay)) {
	t.Helper()
	config := testConfig(capacity)
	config.Columns, config.Tables = pointRow().Columns(), configs
	bothWays(t, config, func(t *testing.T, c, holder *Client) {
		p, err := As(c, pointRow())
		require.NoError(t, err)
		test(t, p, holder.Handle())
	})
}

func itemWriter(t *testing.T, p *Typed[pointColumns], options ...WriterOption) *TypedWriter[pointColumns] {
	t.Helper()
	w, err := p.Writer(options...)
	require.NoError(t, err)
	return w
}

// sampled returns an item of a table, as the node has it.
func sampled(t *testing.T, node *replayv1raylink.Replay, table string) *replayv1.SampledItem {
	t.Helper()
	res, err := node.SampleItems(t.Context(), &replayv1.SampleItemsRequest{Table: table, Items: 1, WaitMs: 10_000})
	require.NoError(t, err)
	require.Len(t, res.GetItems(), 1)
	return res.GetItems()[0]
}

func TestItemsHaveTheWritersLastRows(t *testing.T) {
	itemsBothWays(t, 100, []*replayv1.TableConfig{Table("t", LIFO()), Table("per", Prioritized(1))}, func(t *testing.T, p *Typed[pointColumns], node *replayv1raylink.Replay) {
		ctx := t.Context()
		w, other := itemWriter(t, p, History(5), Caller("actor-0")), itemWriter(t, p)
		newest := func() []uint64 {
			var rows []uint64
			for _, r := range sampled(t, node, "t").GetRuns() {
				for i := range r.GetLength() {
					rows = append(rows, r.GetFirst()+uint64(i))
				}
			}
			return rows
		}
		var written []uint64
		for range 7 {
			require.NoError(t, w.Append(ctx, 1, points(1)))
			written = append(written, w.Sequences()...)
			require.NoError(t, other.Append(ctx, 1, points(2)))
		}
		key, err := w.Item(ctx, "t", 5, 1)
		require.NoError(t, err)
		require.NoError(t, w.Flush(ctx))
		k, confirmed := key.Get()
		require.True(t, confirmed)
		require.Equal(t, sampled(t, node, "t").GetKey(), k.Number())
		require.Equal(t, written[2:], newest(), "though another writer's rows lie in between")

		_, err = w.Item(ctx, "t", 6, 1)
		var short *HistoryError
		require.ErrorAs(t, err, &short)
		require.Equal(t, HistoryError{Table: "t", Rows: 6, Written: 5, History: 5}, *short)
		require.ErrorIs(t, err, ErrItem)
		_, err = w.Item(ctx, "t", 0, 1)
		require.ErrorIs(t, err, ErrItem)
		_, err = w.Item(ctx, "none", 1, 1)
		require.ErrorIs(t, err, ErrTable)
		require.ErrorContains(t, err, "the replay has t, per")
		for _, priority := range []float64{-1, math.NaN(), math.Inf(1)} {
			_, err = w.Item(ctx, "per", 1, priority)
			require.ErrorIs(t, err, ErrPriority)
		}
		_, err = other.Item(ctx, "t", 1, 1)
		require.ErrorIs(t, err, ErrItem, "it has no history")

		// An episode's end is not crossed, unless asked to.
		require.NoError(t, w.EndEpisode(ctx))
		_, err = w.Item(ctx, "t", 1, 1)
		require.ErrorAs(t, err, &short)
		require.Zero(t, short.Written)
		require.NoError(t, w.Append(ctx, 2, points(3, 4)))
		next := slices.Clone(w.Sequences())
		_, err = w.Item(ctx, "t", 3, 1)
		require.ErrorAs(t, err, &short)
		require.Equal(t, 2, short.Written)
		_, err = w.Item(ctx, "t", 2, 1)
		require.NoError(t, err)
		require.NoError(t, w.Flush(ctx))
		require.Equal(t, next, newest())
		_, err = w.Item(ctx, "t", 4, 1, AcrossEpisodes())
		require.NoError(t, err)
		require.NoError(t, w.Flush(ctx))
		require.Equal(t, append(written[5:], next...), newest())

		for _, priority := range []float64{3, 0} {
			_, err = w.Item(ctx, "per", 1, priority)
			require.NoError(t, err)
		}
		key, err = w.Item(ctx, "per", 1, 0, AtMaximum())
		require.NoError(t, err)
		require.NoError(t, w.Flush(ctx))
		for range 20 {
			require.InDelta(t, 3, sampled(t, node, "per").GetPriority(), 0)
		}
		_, confirmed = key.Get()
		require.True(t, confirmed)
	})
}

func TestHistoryMatchesItsModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := history{most: rapid.IntRange(1, 9).Draw(t, "history")}
		var all, episode []uint64
		next := uint64(0)
		t.Repeat(map[string]func(*rapid.T){
			"append": func(t *rapid.T) {
				var rows []uint64
				for range rapid.IntRange(0, 25).Draw(t, "rows") {
					next += rapid.Uint64Range(1, 2).Draw(t, "gap")
					rows = append(rows, next)
				}
				h.add("a", rows)
				all, episode = append(all, rows...), append(episode, rows...)
			},
			"end": func(*rapid.T) { episode, h.episode = nil, len(h.rows) },
			"item": func(t *rapid.T) {
				n, across := rapid.IntRange(-1, 12).Draw(t, "rows"), rapid.Bool().Draw(t, "across")
				from := episode
				if across {
					from = all
				}
				runs, written := h.last(n, across)
				if written != min(len(from), h.most) || (runs == nil) != (n < 1 || n > written) {
					t.Fatalf("%d rows: %v, %d", n, runs, written)
				}
				if runs != nil && fmt.Sprint(runs) != fmt.Sprint(runsOf(from[len(from)-n:])) {
					t.Fatalf("%d rows: %v, want those of %v", n, runs, from)
				}
			},
		})
		h.add("b", []uint64{1})
		if _, written := h.last(1, true); written != 1 {
			t.Fatalf("%d rows of the ring before", written-1)
		}
	})
}

func TestItemWaitsWhileTooManyAreUnconfirmed(t *testing.T) {
	itemsBothWays(t, 100, []*replayv1.TableConfig{Table("queue", FIFO(), Queue(2))}, func(t *testing.T, p *Typed[pointColumns], node *replayv1raylink.Replay) {
		w := itemWriter(t, p, History(1), Unconfirmed(3), Caller("actor-0"))
		require.NoError(t, w.Append(t.Context(), 1, points(1)))
		for range 5 { // two in the table, three on their way
			_, err := w.Item(t.Context(), "queue", 1, 1)
			require.NoError(t, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		_, err := w.Item(ctx, "queue", 1, 1)
		require.ErrorIs(t, err, ErrBlocked)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.ErrorContains(t, err, "with 3 unconfirmed items for the limiter: insert of actor-0")
		require.ErrorContains(t, err, "more sample")
		err = w.Flush(ctx)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		done := make(chan error, 1)
		go func() {
			_, err := w.Item(t.Context(), "queue", 1, 1)
			done <- err
		}()
		for range 4 {
			sampled(t, node, "queue")
		}
		require.NoError(t, <-done)
		require.NoError(t, w.Flush(t.Context()))
	})
}

// TestUnconfirmedItemsAreReportedOnceTheNodeHasEnded checks the time too: within a second.
func TestUnconfirmedItemsAreReportedOnceTheNodeHasEnded(t *testing.T) {
	for _, way := range []string{"mapped", "remote"} {
		t.Run(way, func(t *testing.T) {
			config := testConfig(100)
			config.Columns, config.Tables = pointRow().Columns(), []*replayv1.TableConfig{Table("queue", FIFO(), Queue(2))}
			n := testNode(t, config)
			c := open(t, n)
			if way == "remote" {
				c = open(t, &remoteReplay{node: n})
			}
			p, err := As(c, pointRow())
			require.NoError(t, err)
			w := itemWriter(t, p, History(1), Unconfirmed(3))
			require.NoError(t, w.Append(t.Context(), 1, points(1)))
			for range 5 {
				_, err := w.Item(t.Context(), "queue", 1, 1)
				require.NoError(t, err)
			}
			done := make(chan error, 1)
			go func() {
				_, err := w.Item(t.Context(), "queue", 1, 1)
				done <- err
			}()
			require.Never(t, func() bool { return len(done) > 0 }, 30*time.Millisecond, 5*time.Millisecond)
			begin := time.Now()
			require.NoError(t, n.close())
			err = <-done
			require.Less(t, time.Since(begin), time.Second)
			require.ErrorIs(t, err, ring.ErrEnded)
			var lost *UnconfirmedError
			require.ErrorAs(t, err, &lost)
			require.Equal(t, 3, lost.Items)
			require.NoError(t, w.Flush(t.Context()), "it is reported once")
		})
	}
}

// TestItemsOfARingBeforeAreRefused restarts the replay between a row and its item.
func TestItemsOfARingBeforeAreRefused(t *testing.T) {
	config := testConfig(100)
	config.Columns, config.Tables = pointRow().Columns(), []*replayv1.TableConfig{Table("t")}
	first := testNode(t, config)
	m := &restartable{first}
	p, err := As(open(t, m), pointRow())
	require.NoError(t, err)
	w := itemWriter(t, p, History(1))
	require.NoError(t, w.Append(t.Context(), 1, points(1)))
	m.ReplayNode = testNode(t, config)
	require.NoError(t, first.close())
	_, err = w.Item(t.Context(), "t", 1, 1)
	require.NoError(t, err)
	err = w.Flush(t.Context())
	require.ErrorIs(t, err, ring.ErrEnded)
	require.ErrorContains(t, err, "the ring before")
	require.NoError(t, w.Append(t.Context(), 1, points(1)))
	_, err = w.Item(t.Context(), "t", 1, 1)
	require.NoError(t, err)
	require.NoError(t, w.Flush(t.Context()))
}

func TestCallsEndWithTheProcessOfTheNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := testNode(t, testConfig(10))
		c := open(t, n)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := c.whileServed(ctx, func(ctx context.Context) error {
			require.NoError(t, n.ring.Close()) // as though the process had ended
			<-ctx.Done()
			return ctx.Err()
		})
		require.ErrorIs(t, err, ring.ErrOrphaned)
	})
}

func TestClosedClientEndsItsItems(t *testing.T) {
	config := testConfig(100)
	config.Columns, config.Tables = pointRow().Columns(), []*replayv1.TableConfig{Table("queue", FIFO(), Queue(1))}
	p, err := As(open(t, testNode(t, config)), pointRow())
	require.NoError(t, err)
	w := itemWriter(t, p, History(1))
	require.NoError(t, w.Append(t.Context(), 1, points(1)))
	for range 2 {
		_, err = w.Item(t.Context(), "queue", 1, 1)
		require.NoError(t, err)
	}
	require.NoError(t, p.Close())
	require.ErrorIs(t, w.Flush(t.Context()), ring.ErrClosed)
	_, err = w.Item(t.Context(), "queue", 1, 1)
	require.ErrorIs(t, err, ring.ErrClosed)
	_, err = p.Writer(History(1))
	require.ErrorIs(t, err, ring.ErrClosed)
}

// TestRefusedAppendsAreNoHistory appends in the function that writes rows. The rows of the outer
// call are there once.
func TestRefusedAppendsAreNoHistory(t *testing.T) {
	itemsBothWays(t, 100, []*replayv1.TableConfig{Table("t", LIFO())}, func(t *testing.T, p *Typed[pointColumns], node *replayv1raylink.Replay) {
		ctx, w := t.Context(), itemWriter(t, p, History(5))
		require.NoError(t, w.Append(ctx, 1, points(0)))
		require.NoError(t, w.Append(ctx, 1, func(rows *pointColumns) {
			points(1)(rows)
			require.ErrorIs(t, w.Append(ctx, 1, points(2)), ring.ErrBatch)
		}))
		require.Equal(t, 2, w.EpisodeRows())
		_, err := w.Item(ctx, "t", 2, 1)
		require.NoError(t, err)
		require.NoError(t, w.Flush(ctx))
		require.Equal(t, []uint64{0, 1}, appendRuns(nil, sampled(t, node, "t").GetRuns()))
	})
}
