package replay

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"
	"github.com/raylink/raylink/gen/raylink/replay/v1/replayv1raylink"
)

// inBubble runs a test with fake time and a mapped ring.
func inBubble(t *testing.T, configs []*replayv1.TableConfig, test func(t *testing.T, p *Typed[pointColumns], node *replayv1raylink.Replay)) {
	t.Helper()
	config := testConfig(100)
	config.Columns, config.Tables = pointRow().Columns(), configs
	synctest.Test(t, func(t *testing.T) {
		c := open(t, testNode(t, config))
		p, err := As(c, pointRow())
		require.NoError(t, err)
		test(t, p, c.Handle())
	})
}

// TestWaitingSamplersKeepTheirPlace has samplers that wait for more than a second, in the order in
// which they came.
func TestWaitingSamplersKeepTheirPlace(t *testing.T) {
	for _, prefetch := range []int{0, 2} {
		inBubble(t, []*replayv1.TableConfig{Table("queue", FIFO(), Queue(64))}, func(t *testing.T, p *Typed[pointColumns], _ *replayv1raylink.Replay) {
			got := make(chan string, 4)
			for _, name := range []string{"first", "second"} {
				s := itemSampler(t, p, "queue", BatchOf(1), Prefetch(prefetch), Caller(name))
				if name == "first" { // its context ends, and its place is kept
					ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
					_, err := s.Next(ctx)
					cancel()
					require.ErrorIs(t, err, ErrBlocked)
				}
				go func() {
					if _, err := s.Next(t.Context()); err != nil {
						t.Error(err)
					}
					got <- name
				}()
				time.Sleep(700 * time.Millisecond) //nolint:forbidigo // fake time
			}
			w := itemWriter(t, p, History(1))
			written := 0
			for i, name := range []string{"first", "second"} {
				writeItems(t, w, "queue", int64(i), 1)
				written++
				synctest.Wait()
				require.Equal(t, name, <-got)
				if prefetch > 0 {
					break // the first one waits for its next batch now
				}
			}
			writeItems(t, w, "queue", int64(written), 1, 1, 1)
			for len(got) > 0 {
				<-got
			}
			synctest.Wait()
		})
	}
}

func TestWaitingItemsKeepTheirPlace(t *testing.T) {
	inBubble(t, []*replayv1.TableConfig{Table("queue", FIFO(), Queue(1))}, func(t *testing.T, p *Typed[pointColumns], node *replayv1raylink.Replay) {
		w := itemWriter(t, p, History(1))
		writeItems(t, w, "queue", 0, 1) // the queue is full
		for range 2 {
			next := itemWriter(t, p, History(1))
			require.NoError(t, next.Append(t.Context(), 1, points(1)))
			_, err := next.Item(t.Context(), "queue", 1, 1)
			require.NoError(t, err)
			time.Sleep(700 * time.Millisecond) //nolint:forbidigo // fake time
		}
		for i := range uint64(3) {
			require.Equal(t, i, sampled(t, node, "queue").GetRuns()[0].GetFirst(), "in the order in which they came")
			synctest.Wait()
		}
	})
}

// TestErrorsSayWhatIsWaitedForNow changes that while a call waits.
func TestErrorsSayWhatIsWaitedForNow(t *testing.T) {
	itemsBothWays(t, 100, []*replayv1.TableConfig{Table("queue", FIFO(), Queue(4))}, func(t *testing.T, p *Typed[pointColumns], _ *replayv1raylink.Replay) {
		w := itemWriter(t, p, History(1), Caller("actor-0"), Unconfirmed(3))
		s := itemSampler(t, p, "queue", BatchOf(3), Caller("learner-0"))
		short := func() context.Context {
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			t.Cleanup(cancel)
			return ctx
		}
		for i, needs := range []string{"has 0 of 3 items", "has 1 of 3 items", "has 2 of 3 items"} {
			_, err := s.Next(short())
			require.ErrorIs(t, err, ErrBlocked)
			require.ErrorIs(t, err, context.DeadlineExceeded)
			require.ErrorContains(t, err, "sample of learner-0 "+needs)
			require.NotContains(t, err.Error(), "has waited 0s", "it has waited since the first call")
			writeItems(t, w, "queue", int64(i), 1)
		}
		b, err := s.Next(t.Context())
		require.NoError(t, err)
		checkSampled(t, b, 3)

		for range 7 { // four in the table
			_, err := w.Item(t.Context(), "queue", 1, 1)
			require.NoError(t, err)
		}
		_, err = w.Item(short(), "queue", 1, 1)
		require.ErrorContains(t, err, "with 3 unconfirmed items for the limiter: insert of actor-0 has 0 of ")
		require.NotContains(t, err.Error(), "has waited 0s")
	})
}

func TestDeletedItemsAreGone(t *testing.T) {
	itemsBothWays(t, 100, []*replayv1.TableConfig{Table("t"), Table("queue", FIFO(), Queue(2))}, func(t *testing.T, p *Typed[pointColumns], node *replayv1raylink.Replay) {
		ctx, c, w := t.Context(), p.Client(), itemWriter(t, p, History(1))
		keys := writeItems(t, w, "t", 0, 1, 1, 1)
		stale, err := c.Delete(ctx, "t", []Key{keys[0], keys[2], keys[0], {}, {ring: "another", table: "t", number: keys[1].number}})
		require.NoError(t, err)
		require.Equal(t, 3, stale, "one that occurs twice, that of no item, and that of another ring")
		for range 10 {
			require.Equal(t, keys[1].Number(), sampled(t, node, "t").GetKey())
		}
		stale, err = c.Delete(ctx, "t", nil)
		require.NoError(t, err)
		require.Zero(t, stale)
		require.Equal(t, []int64{0, 1, 2}, allNumbers(t, c), "the rows stay")

		// A deletion makes room for an insert that waits.
		keys = writeItems(t, w, "queue", 3, 1, 1)
		next, err := w.Item(ctx, "queue", 1, 1)
		require.NoError(t, err)
		stale, err = c.Delete(ctx, "queue", keys[:1])
		require.NoError(t, err)
		require.Zero(t, stale)
		require.NoError(t, w.Flush(ctx))
		key, _ := next.Get()
		require.NotZero(t, key)
	})
}

func TestLimiterIsReplacedWhileCallsWait(t *testing.T) {
	itemsBothWays(t, 100, []*replayv1.TableConfig{Table("t", MinSize(100))}, func(t *testing.T, p *Typed[pointColumns], _ *replayv1raylink.Replay) {
		w, s := itemWriter(t, p, History(1)), itemSampler(t, p, "t", BatchOf(4))
		writeItems(t, w, "t", 0, 1)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		_, err := s.Next(ctx)
		require.ErrorIs(t, err, ErrBlocked)
		require.NoError(t, p.Client().SetLimiter(t.Context(), "t", MinSize(1)))
		b, err := s.Next(t.Context())
		require.NoError(t, err)
		checkSampled(t, b, 4)
		require.True(t, b.Info[0].Held)
	})
}
