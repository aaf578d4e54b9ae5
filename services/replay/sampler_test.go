package replay

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/require"

	replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"
	"github.com/raylink/raylink/gen/raylink/replay/v1/replayv1raylink"
	"github.com/raylink/raylink/services/replay/ring"
)

func itemSampler(t *testing.T, p *Typed[pointColumns], table string, options ...SamplerOption) *Sampler[pointColumns] {
	t.Helper()
	s, err := p.Sampler(table, options...)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return s
}

// checkSampled checks that a batch has the rows of its items: the number of a point is its
// sequence number.
func checkSampled(t *testing.T, b *SampledBatch[pointColumns], items int) {
	t.Helper()
	require.Equal(t, items, b.Len())
	require.Len(t, b.Columns.N, items*b.Length)
	require.Len(t, b.Mask, items*b.Length)
	for i, info := range b.Info {
		for k := range b.Length {
			row := i*b.Length + k
			if k >= len(info.Sequences) {
				require.Zero(t, b.Mask[row])
				require.Zero(t, b.Columns.N[row])
				continue
			}
			require.Equal(t, uint8(1), b.Mask[row])
			require.Equal(t, int64(info.Sequences[k]), b.Columns.N[row])
			require.Equal(t, []float32{float32(b.Columns.N[row]), -float32(b.Columns.N[row])}, b.Columns.XY[2*row:2*row+2])
		}
	}
}

// writeItems writes rows whose numbers are those that they get, and an item of each.
func writeItems(t *testing.T, w *TypedWriter[pointColumns], table string, first int64, lengths ...int) []Key {
	t.Helper()
	var pending []*PendingKey
	for _, length := range lengths {
		for range length {
			require.NoError(t, w.Append(t.Context(), 1, points(first)))
			require.Equal(t, []uint64{uint64(first)}, w.Sequences())
			first++
		}
		key, err := w.Item(t.Context(), table, length, float64(length))
		require.NoError(t, err)
		pending = append(pending, key)
	}
	require.NoError(t, w.Flush(t.Context()))
	keys := make([]Key, len(pending))
	for i, p := range pending {
		key, confirmed := p.Get()
		require.True(t, confirmed)
		keys[i] = key
	}
	return keys
}

func TestSamplesHaveTheRowsOfTheirItems(t *testing.T) {
	for _, prefetch := range []int{0, 1, 4} {
		itemsBothWays(t, 100, []*replayv1.TableConfig{Table("per", Prioritized(1))}, func(t *testing.T, p *Typed[pointColumns], node *replayv1raylink.Replay) {
			ctx, w := t.Context(), itemWriter(t, p, History(5))
			keys := writeItems(t, w, "per", 0, 1, 3, 5)
			s := itemSampler(t, p, "per", BatchOf(64), Prefetch(prefetch), Weights(1), Caller("learner-0"))
			drawn := map[Key]int{}
			for range 6 {
				b, err := s.Next(ctx)
				require.NoError(t, err)
				checkSampled(t, b, 64)
				require.Zero(t, b.Replaced)
				for i, info := range b.Info {
					n := float64(len(info.Sequences))
					require.Equal(t, b.Keys()[i], info.Key)
					require.InDelta(t, n, info.Priority, 0)
					require.InDelta(t, n/9, info.Probability, 1e-9)
					require.InDelta(t, 1/n, info.Weight, 1e-9)
					require.Equal(t, uint64(3), info.TableSize)
					require.Positive(t, info.Sampled)
					require.Positive(t, info.Age)
					require.False(t, info.Held)
					drawn[info.Key]++
				}
			}
			require.Len(t, drawn, 3)
			require.Less(t, drawn[keys[0]], drawn[keys[2]])

			stale, err := s.Update(ctx, append(keys, Key{}), []float64{0, 0, 2, 1})
			require.NoError(t, err)
			require.Equal(t, 1, stale)
			require.InDelta(t, 2, sampled(t, node, "per").GetPriority(), 0)
			_, err = s.Update(ctx, keys, []float64{7, 7, -1})
			require.ErrorIs(t, err, ErrPriority)
			_, err = s.Update(ctx, keys, []float64{7})
			require.ErrorIs(t, err, ErrArgument)
			require.InDelta(t, 2, sampled(t, node, "per").GetPriority(), 0, "nothing was changed")
		})
	}
}

// TestBatchesOfALengthHaveTheSameShape has items of different lengths, also at an episode's end.
func TestBatchesOfALengthHaveTheSameShape(t *testing.T) {
	itemsBothWays(t, 100, []*replayv1.TableConfig{Table("queue", FIFO(), Queue(64))}, func(t *testing.T, p *Typed[pointColumns], _ *replayv1raylink.Replay) {
		ctx, w := t.Context(), itemWriter(t, p, History(4))
		require.Zero(t, w.EpisodeRows())
		writeItems(t, w, "queue", 0, 1, 3)
		require.Equal(t, 4, w.EpisodeRows())
		writeItems(t, w, "queue", 4, 2, 4)
		require.Equal(t, 4, w.EpisodeRows(), "at most the history")
		require.NoError(t, w.EndEpisode(ctx))
		require.Zero(t, w.EpisodeRows())
		s := itemSampler(t, p, "queue", BatchOf(1), Length(3))
		for _, rows := range []int{1, 3, 2} {
			b, err := s.Next(ctx)
			require.NoError(t, err)
			checkSampled(t, b, 1)
			require.Equal(t, 3, b.Length)
			require.Len(t, b.Info[0].Sequences, rows)
		}
		_, err := s.Next(ctx)
		require.ErrorIs(t, err, ErrItem)
		require.ErrorContains(t, err, `sample table "queue"`)
		require.ErrorContains(t, err, "it has 4 rows, and the sampler's batches have 3 for each: create it with replay.Length(4)")
		for _, n := range []int{-1, 101} {
			_, err = p.Sampler("queue", Length(n))
			require.ErrorIs(t, err, ErrArgument)
		}
	})
}

func TestInvalidSamplersAreTypedErrors(t *testing.T) {
	itemsBothWays(t, 10, []*replayv1.TableConfig{Table("t")}, func(t *testing.T, p *Typed[pointColumns], _ *replayv1raylink.Replay) {
		_, err := p.Sampler("none")
		require.ErrorIs(t, err, ErrTable)
		for _, o := range []SamplerOption{BatchOf(0), BatchOf(1 << 20), Prefetch(-1), Weights(-1)} {
			_, err = p.Sampler("t", o)
			require.ErrorIs(t, err, ErrArgument)
		}
		for _, o := range []WriterOption{History(11), History(-1), Unconfirmed(0)} {
			_, err = p.Writer(o)
			require.ErrorIs(t, err, ErrArgument)
		}
	})
}

// busy is a replay whose rows are overwritten after some draws, before they are copied.
type busy struct {
	*node

	remote    bool
	unary     bool
	draws     atomic.Int64
	overwrite func(draw int64)
	// refused is the call that fails, from 1.
	refused int64
	calls   atomic.Int64
}

func (b *busy) Describe(ctx context.Context, req *replayv1.DescribeRequest) (*replayv1.DescribeResponse, error) {
	if b.remote {
		return (&remoteReplay{node: b.node}).Describe(ctx, req)
	}
	return b.node.Describe(ctx, req)
}

func (b *busy) SampleItems(ctx context.Context, req *replayv1.SampleItemsRequest) (*replayv1.SampleItemsResponse, error) {
	if b.calls.Add(1) == b.refused {
		return nil, connect.NewError(connect.CodeUnavailable, "refused")
	}
	res, err := b.node.SampleItems(ctx, req)
	b.overwrite(b.draws.Add(1))
	return res, err
}

func (b *busy) Draw(ctx context.Context, stream replayv1raylink.ReplayDrawServerStream) error {
	if b.unary {
		return b.UnimplementedReplayNode.Draw(ctx, stream)
	}
	b.draws.Add(1)
	return b.node.Draw(ctx, stream)
}

// overwriting opens a replay of ten items of two rows, of which four are overwritten between the
// first draw and the copy of its rows. It sets the missing fields of n.
func overwriting(t *testing.T, n *busy) *Typed[pointColumns] {
	t.Helper()
	config := testConfig(20)
	config.Columns, config.Tables = pointRow().Columns(), []*replayv1.TableConfig{Table("t", Uniform(), SamplesPerInsert(1000, 1, 100_000))}
	n.node = testNode(t, config)
	p, err := As(open(t, n), pointRow())
	require.NoError(t, err)
	w := itemWriter(t, p, History(4))
	writeItems(t, w, "t", 0, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2)
	n.overwrite = func(draw int64) {
		if draw == 1 {
			writeItems(t, w, "t", 20, 4, 4) // longer ones
		}
	}
	return p
}

// returned returns how many samples of the replay's table were given back to the limiter.
func (b *busy) returned(t *testing.T) int {
	t.Helper()
	inspected, err := b.Inspect(t.Context(), &replayv1.InspectRequest{})
	require.NoError(t, err)
	return int(inspected.GetTables()[0].GetReturned())
}

func TestItemsOverwrittenBeforeTheyAreCopiedAreReplaced(t *testing.T) {
	for _, way := range []string{"mapped", "remote", "mapped, ahead", "remote, ahead"} {
		t.Run(way, func(t *testing.T) {
			where, ahead, _ := strings.Cut(way, ", ")
			n := &busy{remote: where == "remote", unary: true}
			s := itemSampler(t, overwriting(t, n), "t", BatchOf(200), Prefetch(len(ahead)))
			replaced := 0
			for i := range 6 {
				b, err := s.Next(t.Context())
				require.NoError(t, err)
				checkSampled(t, b, 200)
				replaced += b.Replaced
				if ahead != "" && i < 3 {
					continue // of two calls in flight, only the fourth begins after rows were overwritten
				}
				require.Equal(t, i == 0, b.Replaced > 0, "batch %d: only those of the first call", i)
				require.Equal(t, 4, b.Length)
				for _, info := range b.Info {
					require.GreaterOrEqual(t, info.Sequences[0], uint64(8))
				}
			}
			require.Positive(t, replaced)
			require.Eventually(t, func() bool { return n.returned(t) == replaced }, 20*time.Second, time.Millisecond,
				"they do not count for the limiter")
		})
	}
}

// TestReplacedItemsAreGivenBackAfterAFailedCall lets the call fail that gives them back.
func TestReplacedItemsAreGivenBackAfterAFailedCall(t *testing.T) {
	n := &busy{refused: 2}
	s := itemSampler(t, overwriting(t, n), "t", BatchOf(200))
	_, err := s.Next(t.Context())
	require.Equal(t, connect.CodeUnavailable, connect.CodeOf(err))
	b, err := s.Next(t.Context())
	require.NoError(t, err)
	checkSampled(t, b, 200)
	require.Positive(t, b.Replaced)
	require.Equal(t, b.Replaced, n.returned(t))
}

func TestNextSaysWhatItWaitsForAndGoesOn(t *testing.T) {
	for _, prefetch := range []int{0, 2} {
		itemsBothWays(t, 100, []*replayv1.TableConfig{Table("queue", FIFO(), Queue(64))}, func(t *testing.T, p *Typed[pointColumns], _ *replayv1raylink.Replay) {
			w := itemWriter(t, p, History(1), Caller("actor-0"))
			writeItems(t, w, "queue", 0, 1, 1)
			s := itemSampler(t, p, "queue", BatchOf(3), Prefetch(prefetch), Caller("learner-0"))
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			defer cancel()
			_, err := s.Next(ctx)
			require.ErrorIs(t, err, ErrBlocked)
			require.ErrorIs(t, err, context.DeadlineExceeded)
			require.ErrorContains(t, err, "for 1 more insert (the last was by actor-0")
			writeItems(t, w, "queue", 2, 1)
			ctx, cancel = context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			b, err := s.Next(ctx)
			require.NoError(t, err)
			checkSampled(t, b, 3)
			require.Equal(t, []int64{0, 1, 2}, b.Columns.N, "none was lost")
			require.True(t, b.Info[2].Held || prefetch == 0)
		})
	}
}

func TestNextFailsWithinASecondOfTheNodesEnd(t *testing.T) {
	for _, prefetch := range []int{0, 2} {
		for _, way := range []string{"mapped", "remote"} {
			config := testConfig(100)
			config.Columns, config.Tables = pointRow().Columns(), []*replayv1.TableConfig{Table("t")}
			n := &busy{node: testNode(t, config), remote: way == "remote", overwrite: func(int64) {}}
			p, err := As(open(t, n), pointRow())
			require.NoError(t, err)
			s := itemSampler(t, p, "t", Prefetch(prefetch))
			done := make(chan error, 1)
			go func() {
				_, err := s.Next(context.Background())
				done <- err
			}()
			require.Eventually(t, func() bool { return n.draws.Load() > 0 }, 10*time.Second, time.Millisecond)
			begin := time.Now()
			require.NoError(t, n.close())
			require.ErrorIs(t, <-done, ring.ErrEnded)
			require.Less(t, time.Since(begin), time.Second)
			require.NoError(t, s.Close())
			_, err = s.Next(t.Context())
			require.ErrorIs(t, err, ring.ErrClosed)
		}
	}
}

func TestSamplerGoesOnWithTheRestartedReplay(t *testing.T) {
	config := testConfig(100)
	config.Columns, config.Tables = pointRow().Columns(), []*replayv1.TableConfig{Table("t", LIFO())}
	first := testNode(t, config)
	m := &restartable{first}
	p, err := As(open(t, m), pointRow())
	require.NoError(t, err)
	w, s := itemWriter(t, p, History(3)), itemSampler(t, p, "t", BatchOf(8))
	before := writeItems(t, w, "t", 0, 3)
	b, err := s.Next(t.Context())
	require.NoError(t, err)
	checkSampled(t, b, 8)

	m.ReplayNode = testNode(t, config)
	require.NoError(t, first.close())
	after := writeItems(t, w, "t", 0, 2)
	require.Equal(t, before[0].Number(), after[0].Number(), "the case is worth a test only then")
	b, err = s.Next(t.Context())
	require.NoError(t, err)
	checkSampled(t, b, 8)
	require.Equal(t, 2, b.Length)
	require.Equal(t, after[0], b.Info[0].Key)
	stale, err := s.Update(t.Context(), append(before, after...), []float64{5, 6})
	require.NoError(t, err)
	require.Equal(t, 1, stale)
	b, err = s.Next(t.Context())
	require.NoError(t, err)
	require.InDelta(t, 6, b.Info[0].Priority, 0)
}
