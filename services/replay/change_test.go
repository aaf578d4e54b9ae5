package replay

import (
	"context"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"
	"github.com/raylink/raylink/gen/raylink/replay/v1/replayv1raylink"
	tensorv1 "github.com/raylink/raylink/gen/raylink/tensor/v1"
	"github.com/raylink/raylink/services/replay/ring"
)

// pointsOf returns the rows of sequence numbers, those that do not exist as zeros.
func pointsOf(t *testing.T, p *Typed[pointColumns], node *replayv1raylink.Replay, sequences ...uint64) *TypedBatch[pointColumns] {
	t.Helper()
	res, err := node.Read(t.Context(), &replayv1.ReadRequest{Runs: runsOf(sequences)})
	require.NoError(t, err)
	rows, err := batchOf(p.client.layout, res.GetBatch())
	require.NoError(t, err)
	b, err := p.NewBatch(0)
	require.NoError(t, err)
	require.NoError(t, b.rows.AppendRows(rows))
	require.NoError(t, b.view())
	return b
}

func TestChangedColumnsAreSampled(t *testing.T) {
	tables := []*replayv1.TableConfig{Table("a", FIFO()), Table("b")}
	itemsBothWays(t, 12, tables, func(t *testing.T, p *Typed[pointColumns], node *replayv1raylink.Replay) {
		ctx, w := t.Context(), itemWriter(t, p, History(3))
		early := writeItems(t, w, "a", 0, 2) // is overwritten
		keys := writeItems(t, w, "a", 2, 1, 3, 2, 2)
		other := writeItems(t, w, "b", 10, 1, 3)
		deleted := keys[2]
		_, err := p.Client().Delete(ctx, "a", []Key{deleted})
		require.NoError(t, err)
		all := []Key{keys[1], early[0], {}, deleted, other[0], keys[0]}
		calls := 0
		stale, err := p.Change(ctx, all, func(rows *pointColumns) {
			calls++
			require.Equal(t, []int64{3, 4, 5, 0, 0, 0, 0, 10, 2}, rows.N, "in the order of the keys, zeros for what is gone")
			require.Equal(t, []float32{3, -3, 4, -4}, rows.XY[:4])
			for i := range rows.N {
				rows.XY[2*i] = 100 + float32(i)
			}
			rows.Flag[0] = 9
		})
		require.NoError(t, err)
		require.Equal(t, 3, stale)
		require.Equal(t, 1, calls)

		got := pointsOf(t, p, node, 2, 3, 4, 5, 6, 7, 8, 9, 10).Columns
		require.Equal(t, []int64{2, 3, 4, 5, 6, 7, 8, 9, 10}, got.N)
		require.Equal(t, []float32{108, -2, 100, -3, 101, -4, 102, -5, 6, -6, 7, -7, 8, -8, 9, -9, 107, -10}, got.XY)
		require.Equal(t, []uint8{7, 9, 7, 7, 7, 7, 7, 7, 7}, got.Flag, "with their initial value")
		s := itemSampler(t, p, "a", BatchOf(1))
		b, err := s.Next(ctx)
		require.NoError(t, err)
		require.Equal(t, keys[0], b.Info[0].Key)
		require.Equal(t, []float32{108, -2}, b.Columns.XY)

		for _, gone := range [][]Key{{}, {early[0], deleted}, {{ring: "another", table: "a", number: keys[0].number, rows: 1}}, {{}}} {
			stale, err = p.Change(ctx, gone, func(*pointColumns) { calls++ })
			require.NoError(t, err)
			require.Equal(t, len(gone), stale)
		}
		require.Equal(t, 1, calls, "it is only called if there are rows")
		require.Panics(t, func() {
			_, _ = p.Change(ctx, keys[:1], func(rows *pointColumns) {
				rows.N[0] = 99
				panic("boom")
			})
		})
		require.Equal(t, int64(2), pointsOf(t, p, node, 2).Columns.N[0])
		_, err = p.Client().Change(ctx, keys[:1], func(rows *Batch) { require.NoError(t, rows.Resize(7)) })
		require.ErrorIs(t, err, ring.ErrBatch)
	})
}

// TestKeysAreThoseOfTheirTable uses keys for a table that has another item with the same number.
func TestKeysAreThoseOfTheirTable(t *testing.T) {
	itemsBothWays(t, 12, []*replayv1.TableConfig{Table("a", Prioritized(1)), Table("b")}, func(t *testing.T, p *Typed[pointColumns], node *replayv1raylink.Replay) {
		w := itemWriter(t, p, History(3))
		a, b := writeItems(t, w, "a", 0, 2)[0], writeItems(t, w, "b", 2, 3)[0]
		require.Equal(t, a.Number(), b.Number())
		require.Equal(t, []int{2, 3}, []int{a.Rows(), b.Rows()})
		stale, err := itemSampler(t, p, "a").Update(t.Context(), []Key{b}, []float64{5})
		require.NoError(t, err)
		require.Equal(t, 1, stale)
		stale, err = p.Client().Delete(t.Context(), "a", []Key{b})
		require.NoError(t, err)
		require.Equal(t, 1, stale)
		require.InDelta(t, 2, sampled(t, node, "a").GetPriority(), 0)
	})
}

func TestChangeWaitsForAreas(t *testing.T) {
	itemsBothWays(t, 12, []*replayv1.TableConfig{Table("a")}, func(t *testing.T, p *Typed[pointColumns], node *replayv1raylink.Replay) {
		holder, err := Open(t.Context(), node, pointRow())
		require.NoError(t, err)
		keys := writeItems(t, itemWriter(t, p, History(1)), "a", 0, 1, 1, 1)
		area, err := holder.Newest(t.Context(), 2)
		require.NoError(t, err)
		set := func(rows *pointColumns) {
			for i := range rows.N {
				rows.N[i] += 50
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		stale, err := p.Change(ctx, keys, set)
		require.Zero(t, stale)
		require.ErrorIs(t, err, ring.ErrHeld)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		var held *ring.HeldError
		require.ErrorAs(t, err, &held)
		require.Equal(t, []int{1, 3, 1}, []int{held.Done, held.Rows, int(held.Sequence)})
		require.Len(t, held.Holders, 1)
		require.Equal(t, os.Getpid(), held.Holders[0].PID)
		require.Equal(t, []int64{1, 2}, area.Spans()[0].Columns.N, "they do not change under their reader")
		require.Equal(t, int64(50), pointsOf(t, p, node, 0).Columns.N[0], "the first one was changed")

		done := make(chan error, 1)
		go func() {
			_, err := p.Change(t.Context(), keys[1:], set)
			done <- err
		}()
		require.Never(t, func() bool { return len(done) > 0 }, 30*time.Millisecond, 5*time.Millisecond)
		require.NoError(t, area.Release())
		require.NoError(t, <-done)
		require.Equal(t, []int64{50, 51, 52}, pointsOf(t, p, node, 0, 1, 2).Columns.N)
		require.NoError(t, holder.Close())
	})
}

func TestChangesThatCannotBe(t *testing.T) {
	itemsBothWays(t, 12, []*replayv1.TableConfig{Table("a")}, func(t *testing.T, p *Typed[pointColumns], node *replayv1raylink.Replay) {
		keys := writeItems(t, itemWriter(t, p, History(1)), "a", 0, 1, 1)
		change := func(ctx context.Context) error {
			_, err := p.Change(ctx, keys, func(rows *pointColumns) { rows.N[0]++ })
			return err
		}
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		require.ErrorIs(t, change(ended), context.Canceled)
		unknown := keys[0]
		unknown.table = "none"
		_, err := p.Change(t.Context(), []Key{unknown}, func(*pointColumns) {})
		require.ErrorIs(t, err, ErrTable)
		require.ErrorContains(t, err, "the replay has a")
		require.Equal(t, []int64{0, 1}, allNumbers(t, p.Client()))

		mapped, err := Open(t.Context(), node, pointRow())
		require.NoError(t, err)
		for range 4094 {
			_, err = mapped.Change(t.Context(), keys[:1], func(rows *pointColumns) { rows.N[0]++ })
			require.NoError(t, err)
		}
		require.NoError(t, mapped.Close())
		require.NoError(t, change(t.Context()))
		err = change(t.Context())
		require.ErrorIs(t, err, ErrChanged)
		require.Equal(t, int64(4095), pointsOf(t, p, node, 0).Columns.N[0])
		require.NoError(t, p.Close())
		require.ErrorIs(t, change(t.Context()), ring.ErrClosed)
	})
}

// TestChangesAreNotBoundedInBytes changes more than fits into one message.
func TestChangesAreNotBoundedInBytes(t *testing.T) {
	const rows = 9000
	config := &replayv1.ReplayConfig{Capacity: rows, Columns: []*tensorv1.Column{Column[uint8]("x", 1024), Column[int32]("i")}, Tables: []*replayv1.TableConfig{Table("a")}}
	bothWays(t, config, func(t *testing.T, c, holder *Client) {
		b, err := c.NewBatch(rows)
		require.NoError(t, err)
		_, err = c.Writer().Append(t.Context(), b)
		require.NoError(t, err)
		created, err := holder.Handle().CreateItems(t.Context(), &replayv1.CreateItemsRequest{
			Table: "a", Items: []*replayv1.Item{{Runs: []*replayv1.Run{{First: 0, Length: rows}}}},
		})
		require.NoError(t, err)
		key := Key{ring: holder.mapping.Load().ring.ID().String(), table: "a", number: created.GetKeys()[0], rows: rows}
		stale, err := c.Change(t.Context(), []Key{key}, func(b *Batch) {
			numbers, err := Values[int32](b, "i")
			require.NoError(t, err)
			for i := range rows {
				b.Bytes(0)[1024*i+i%1024] = 1
				if i%3 == 0 { // so that rows differ in which columns change
					numbers[i] = int32(i)
				}
			}
		})
		require.NoError(t, err)
		require.Zero(t, stale)
		require.NoError(t, holder.Reader(nil).Newest(t.Context(), rows, b))
		numbers, err := Values[int32](b, "i")
		require.NoError(t, err)
		for i := range rows {
			require.Equal(t, uint8(1), b.Bytes(0)[1024*i+i%1024])
			require.Equal(t, int32(i*max(0, 1-i%3)), numbers[i])
		}
	})
}

// TestChangesOfDifferentColumnsAreKept has two learners that change a column each.
func TestChangesOfDifferentColumnsAreKept(t *testing.T) {
	itemsBothWays(t, 12, []*replayv1.TableConfig{Table("a")}, func(t *testing.T, p *Typed[pointColumns], node *replayv1raylink.Replay) {
		keys := writeItems(t, itemWriter(t, p, History(2)), "a", 0, 2, 2, 2)
		_, err := p.Change(t.Context(), keys, func(rows *pointColumns) {
			rows.N[0] = 7
			_, err := p.Change(t.Context(), keys[:1], func(rows *pointColumns) { rows.XY[0] = 8 })
			require.NoError(t, err)
		})
		require.NoError(t, err)
		first := pointsOf(t, p, node, 0).Columns
		require.Equal(t, int64(7), first.N[0])
		require.Equal(t, []float32{8, 0}, first.XY)
		var learners sync.WaitGroup
		for i := range 2 {
			learners.Go(func() {
				for round := range 200 {
					_, err := p.Change(context.Background(), keys, func(rows *pointColumns) {
						for k := range rows.N {
							if i == 0 {
								rows.N[k] = int64(round)
							} else {
								rows.XY[2*k], rows.XY[2*k+1] = float32(round), float32(round)
							}
						}
					})
					if err != nil {
						t.Error(err)
					}
				}
			})
		}
		learners.Wait()
		got := pointsOf(t, p, node, 0, 1, 2, 3, 4, 5).Columns
		for i := range 6 {
			require.Equal(t, int64(199), got.N[i])
			require.Equal(t, []float32{199, 199}, got.XY[2*i:2*i+2])
		}
	})
}

// TestChangesMatchTheirModel writes, deletes and changes items of random lengths.
func TestChangesMatchTheirModel(t *testing.T) {
	itemsBothWays(t, 24, []*replayv1.TableConfig{Table("a")}, func(t *testing.T, p *Typed[pointColumns], node *replayv1raylink.Replay) {
		w := itemWriter(t, p, History(5))
		next := int64(0)
		rapid.Check(t, func(rt *rapid.T) {
			type item struct {
				key  Key
				rows []uint64
				gone bool
			}
			var items []*item
			values := map[uint64]int64{}
			rt.Repeat(map[string]func(*rapid.T){
				"write": func(rt *rapid.T) {
					n := rapid.IntRange(1, 5).Draw(rt, "rows")
					it := &item{key: writeItems(t, w, "a", next, n)[0]}
					for range n {
						it.rows = append(it.rows, uint64(next))
						values[uint64(next)] = next
						next++
					}
					items = append(items, it)
					for _, other := range items {
						other.gone = other.gone || other.rows[0]+24 < uint64(next)
					}
				},
				"delete": func(rt *rapid.T) {
					if len(items) == 0 {
						rt.Skip("no item")
					}
					it := rapid.SampledFrom(items).Draw(rt, "item")
					_, err := p.Client().Delete(t.Context(), "a", []Key{it.key})
					require.NoError(rt, err)
					it.gone = true
				},
				"change": func(rt *rapid.T) {
					if len(items) == 0 {
						rt.Skip("no item")
					}
					some := rapid.SliceOfNDistinct(rapid.SampledFrom(items), 1, 4, func(it *item) Key { return it.key }).Draw(rt, "items")
					add := rapid.Int64Range(1, 9).Draw(rt, "add")
					var keys []Key
					want, wantStale := []int64{}, 0
					for _, it := range some {
						keys = append(keys, it.key)
						if it.gone {
							wantStale++
						}
						for _, s := range it.rows {
							want = append(want, values[s])
							if it.gone {
								want[len(want)-1] = 0
							}
						}
					}
					stale, err := p.Change(t.Context(), keys, func(rows *pointColumns) {
						require.Equal(rt, want, rows.N)
						for i := range rows.N {
							rows.N[i] += add
						}
					})
					require.NoError(rt, err)
					require.Equal(rt, wantStale, stale)
					for _, it := range some {
						for _, s := range it.rows {
							if !it.gone {
								values[s] += add
							}
						}
					}
				},
				"": func(rt *rapid.T) {
					var sequences []uint64
					var want []int64
					for s, v := range values {
						if s+24 >= uint64(next) {
							sequences, want = append(sequences, s), append(want, v)
						}
					}
					if len(want) > 0 {
						require.Equal(rt, want, pointsOf(t, p, node, sequences...).Columns.N)
					}
				},
			})
			for _, it := range items {
				if _, err := p.Client().Delete(t.Context(), "a", []Key{it.key}); err != nil {
					require.NoError(rt, err)
				}
			}
		})
	})
}

// TestChangeAfterTheNodeEnded is TestAllCallsAfterTheNodeEnded for changes, deletions and limiters.
func TestChangeAfterTheNodeEnded(t *testing.T) {
	for _, way := range []string{"mapped", "remote"} {
		config := testConfig(10)
		config.Columns, config.Tables = pointRow().Columns(), []*replayv1.TableConfig{Table("a")}
		n := testNode(t, config)
		var served replayv1raylink.ReplayNode = n
		if way == "remote" {
			served = &remoteReplay{node: n}
		}
		p, err := As(openTunnel(t, served), pointRow())
		require.NoError(t, err)
		keys := writeItems(t, itemWriter(t, p, History(1)), "a", 0, 1)
		require.NoError(t, n.close())
		_, changed := p.Change(t.Context(), keys, func(*pointColumns) {})
		_, deleted := p.Client().Delete(t.Context(), "a", keys)
		for _, err := range []error{changed, deleted, p.Client().SetLimiter(t.Context(), "a", MinSize(1))} {
			require.ErrorIs(t, err, ring.ErrEnded, way)
			require.NotErrorIs(t, err, ring.ErrClosed, way)
		}
	}
}

// restartsAfter is a replay that is restarted after a number of calls of FindItems.
type restartsAfter struct {
	*restartable

	calls int
	next  replayv1raylink.ReplayNode
}

func (r *restartsAfter) FindItems(ctx context.Context, req *replayv1.FindItemsRequest) (*replayv1.FindItemsResponse, error) {
	if r.calls--; r.calls < 0 {
		r.ReplayNode = r.next
	}
	return r.ReplayNode.FindItems(ctx, req)
}

// TestChangeDuringARestart restarts the replay after the items of one of two tables were found.
func TestChangeDuringARestart(t *testing.T) {
	config := pointsReplay(20, Table("a"), Table("b"))
	r := &restartsAfter{restartable: &restartable{testNode(t, config)}, calls: 1, next: testNode(t, config)}
	p, err := As(open(t, r), pointRow())
	require.NoError(t, err)
	w := itemWriter(t, p, History(2))
	keys := append(writeItems(t, w, "a", 0, 1), writeItems(t, w, "b", 1, 1)...)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	stale, err := p.Change(ctx, keys, func(*pointColumns) { t.Error("there is no row to change") })
	require.NoError(t, err)
	require.Equal(t, 2, stale)
}
