package replay

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"
	"github.com/raylink/raylink/gen/raylink/replay/v1/replayv1raylink"
)

func TestSamplersDrawAsManyBatchesAheadAsTheyShould(t *testing.T) {
	const batch = 3
	for _, prefetch := range []int{1, 2, 3, 5} {
		itemsBothWays(t, 100, []*replayv1.TableConfig{Table("t", Uniform())}, func(t *testing.T, p *Typed[pointColumns], node *replayv1raylink.Replay) {
			writeItems(t, itemWriter(t, p, History(1)), "t", 0, 1, 1, 1)
			s := itemSampler(t, p, "t", BatchOf(batch), Prefetch(prefetch))
			drawn := func() uint64 {
				res, err := node.Inspect(t.Context(), &replayv1.InspectRequest{})
				require.NoError(t, err)
				return res.GetTables()[0].GetSampled()
			}
			for taken := 1; taken <= 20; taken++ {
				b, err := s.Next(t.Context())
				require.NoError(t, err)
				checkSampled(t, b, batch)
				most := uint64((taken + prefetch) * batch)
				require.LessOrEqual(t, drawn(), most)
				if taken%4 == 0 {
					require.Eventually(t, func() bool { return drawn() == most }, 20*time.Second, time.Millisecond)
				}
			}
		})
	}
}

// TestBatchesDoNotWaitForThoseBehindThem has a limiter that lets one batch pass at a time, in spite
// of what is drawn ahead.
func TestBatchesDoNotWaitForThoseBehindThem(t *testing.T) {
	itemsBothWays(t, 100, []*replayv1.TableConfig{Table("queue", FIFO(), Queue(64))}, func(t *testing.T, p *Typed[pointColumns], _ *replayv1raylink.Replay) {
		w, s := itemWriter(t, p, History(1)), itemSampler(t, p, "queue", BatchOf(3), Prefetch(4))
		written := int64(0)
		write := func(n int) {
			for range n {
				writeItems(t, w, "queue", written, 1)
				written++
			}
		}
		write(1)
		for first := int64(0); first < 30; first += 3 {
			write(3)
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			b, err := s.Next(ctx)
			cancel()
			require.NoError(t, err)
			checkSampled(t, b, 3)
			require.Equal(t, []int64{first, first + 1, first + 2}, b.Columns.N)
		}
	})
}

// TestDrawsAheadKeepTheOrder samples tables whose order matters. The node may answer calls that are
// in flight together in any order.
func TestDrawsAheadKeepTheOrder(t *testing.T) {
	const items = 3000
	tables := []*replayv1.TableConfig{
		Table("first", FIFO(), MaxSampled(1), MaxItems(items)), Table("last", LIFO(), MaxSampled(1), MaxItems(items)),
	}
	itemsBothWays(t, 2*items, tables, func(t *testing.T, p *Typed[pointColumns], _ *replayv1raylink.Replay) {
		w := itemWriter(t, p, History(1))
		for n := range int64(items) {
			require.NoError(t, w.Append(t.Context(), 1, points(n)))
			for _, config := range tables {
				_, err := w.Item(t.Context(), config.GetName(), 1, 1)
				require.NoError(t, err)
			}
		}
		require.NoError(t, w.Flush(t.Context()))
		first, last := itemSampler(t, p, "first", BatchOf(1), Prefetch(3)), itemSampler(t, p, "last", BatchOf(1), Prefetch(3))
		for n := range int64(items) {
			b, err := first.Next(t.Context())
			require.NoError(t, err)
			require.Equal(t, n, b.Columns.N[0])
			b, err = last.Next(t.Context())
			require.NoError(t, err)
			require.Equal(t, items-1-n, b.Columns.N[0])
		}
	})
}

// TestSamplersThatAreCalledAtOnceCopyNoRowsAhead and copy them ahead again once the caller has
// other work.
func TestSamplersThatAreCalledAtOnceCopyNoRowsAhead(t *testing.T) {
	const prefetch = 4
	config := testConfig(100)
	config.Columns, config.Tables = pointRow().Columns(), []*replayv1.TableConfig{Table("t", Uniform())}
	p, err := As(open(t, testNode(t, config)), pointRow())
	require.NoError(t, err)
	writeItems(t, itemWriter(t, p, History(1)), "t", 0, 1, 1, 1)
	s := itemSampler(t, p, "t", BatchOf(3), Prefetch(prefetch))
	nextAfter := func(other time.Duration) {
		s.returnedAt = time.Now().Add(-other)
		b, err := s.Next(t.Context())
		require.NoError(t, err)
		checkSampled(t, b, 3)
	}
	for range 3 {
		for deadline := time.Now().Add(20 * time.Second); s.fetching || s.hurried < 2*impatientAfter; {
			require.True(t, time.Now().Before(deadline), "rows are copied ahead")
			if len(s.fetched) == 0 { // on a busy machine the goroutine that copies is ahead of most calls
				s.hurried = 2 * impatientAfter
			}
			nextAfter(-time.Hour)
		}
		require.Empty(t, s.fetched)
		nextAfter(time.Hour)
		require.True(t, s.fetching)
		require.Eventually(t, func() bool { return len(s.fetched) == prefetch }, 20*time.Second, time.Millisecond)
	}
}
