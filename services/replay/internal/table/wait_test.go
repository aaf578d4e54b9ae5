package table

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newTable(t *testing.T, config Config) *Table {
	t.Helper()
	if config.MaxItems == 0 {
		config.MaxItems = 10_000
	}
	config.Name = "per"
	table, err := New(config)
	require.NoError(t, err)
	return table
}

// call runs a call in a goroutine.
func call(f func() (int, error)) func() (int, error, bool) {
	var n int
	var err error
	var done atomic.Bool
	go func() {
		n, err = f()
		done.Store(true)
	}()
	return func() (int, error, bool) {
		synctest.Wait()
		if !done.Load() {
			return 0, nil, false
		}
		return n, err, true
	}
}

func sampling(ctx context.Context, table *Table, caller string, n int) func() (int, error, bool) {
	return call(func() (int, error) { return table.Sample(ctx, make([]Sample, n), SampleOptions{Caller: caller}) })
}

func inserting(ctx context.Context, table *Table, caller string, n int) func() (int, error, bool) {
	items := make([]Item, n)
	for i := range items {
		items[i] = rows(uint64(i))
	}
	return call(func() (int, error) { return table.Insert(ctx, caller, items, make([]Key, n)) })
}

func requireDone(t *testing.T, state func() (int, error, bool), want int) {
	t.Helper()
	n, err, done := state()
	require.True(t, done, "the call still waits")
	require.NoError(t, err)
	require.Equal(t, want, n)
}

func requireWaits(t *testing.T, state func() (int, error, bool)) {
	t.Helper()
	_, err, done := state()
	require.False(t, done, "the call has returned: %v", err)
}

func TestSampleWaitsForTheMinimumSize(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := newTable(t, Config{Limiter: MinSize(100)})
		requireDone(t, inserting(t.Context(), table, "actor-7", 63), 63)
		time.Sleep(time.Second) //nolint:forbidigo // the bubble's clock
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		waiting := sampling(ctx, table, "learner-0", 256)
		requireWaits(t, waiting)
		blocked := table.Inspect().Blocked
		require.Len(t, blocked, 1)
		require.Equal(t, "sample of learner-0 has 0 of 256 items and has waited 0s for 37 more inserts (the last was by actor-7, 1s ago)", blocked[0].String())

		<-ctx.Done()
		_, err, done := waiting()
		require.True(t, done)
		require.ErrorIs(t, err, ErrBlocked)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.EqualError(t, err, `table "per": sample of learner-0 has 0 of 256 items and has waited 2s for 37 more inserts (the last was by actor-7, 3s ago): context deadline exceeded`)
		require.Empty(t, table.Inspect().Blocked)

		waiting = sampling(t.Context(), table, "", 256)
		requireDone(t, inserting(t.Context(), table, "", 36), 36)
		requireWaits(t, waiting)
		requireDone(t, inserting(t.Context(), table, "", 1), 1)
		requireDone(t, waiting, 256)
	})
}

func TestInsertWaitsForSamples(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := newTable(t, Config{Limiter: SamplesPerInsert(8, 10, 40)})
		waiting := inserting(t.Context(), table, "actor-0", 17)
		requireWaits(t, waiting)
		info := table.Inspect()
		require.Equal(t, 15, info.Size)
		require.Equal(t, 15, info.Blocked[0].Done)
		require.Equal(t, Needs{Samples: 16}, info.Blocked[0].Needs)
		require.Equal(t, Needs{Samples: 8}, info.InsertNeeds)
		requireDone(t, sampling(t.Context(), table, "learner-0", 15), 15)
		requireWaits(t, waiting)
		require.Equal(t, "insert of actor-0 has 16 of 17 items and has waited 0s for 1 more sample (the last was by learner-0, 0s ago)",
			table.Inspect().Blocked[0].String())
		requireDone(t, sampling(t.Context(), table, "learner-0", 1), 1)
		requireDone(t, waiting, 17)

		waiting = sampling(t.Context(), table, "learner-0", 1000)
		requireWaits(t, waiting)
		// 17 inserts allow 17*8 - (10*8 - 40) = 96 samples; of 16 + 1000, 920 are left: 115
		// inserts.
		require.Equal(t, uint64(115), table.Inspect().Blocked[0].Needs.Inserts)
		table.Close(nil)
		_, err, _ := waiting()
		require.ErrorIs(t, err, ErrClosed)
	})
}

func TestSamplesReportThatTheyWereHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := newTable(t, Config{Sampler: Selector{Kind: FIFO}, Limiter: QueueOf(10)})
		requireDone(t, inserting(t.Context(), table, "", 2), 2)
		samples := make([]Sample, 3)
		waiting := call(func() (int, error) { return table.Sample(t.Context(), samples, SampleOptions{}) })
		requireWaits(t, waiting)
		requireDone(t, inserting(t.Context(), table, "", 1), 1)
		requireDone(t, waiting, 3)
		require.Equal(t, []bool{false, false, true}, []bool{samples[0].Held, samples[1].Held, samples[2].Held})
	})
}

func TestWaitingCallsAreServedInTheirOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := newTable(t, Config{Sampler: Selector{Kind: FIFO}, Limiter: QueueOf(3)})
		var samplers, inserters []func() (int, error, bool)
		for range 5 {
			samplers = append(samplers, sampling(t.Context(), table, "", 2))
			synctest.Wait()
		}
		for i := range samplers {
			requireDone(t, inserting(t.Context(), table, "", 1), 1)
			requireWaits(t, samplers[i])
			requireDone(t, inserting(t.Context(), table, "", 1), 1)
			requireDone(t, samplers[i], 2)
		}
		for range 4 {
			inserters = append(inserters, inserting(t.Context(), table, "", 2))
			synctest.Wait()
		}
		requireDone(t, inserters[0], 2)
		for i := 1; i < len(inserters); i++ {
			requireWaits(t, inserters[i])
			require.Equal(t, uint64(1), table.Inspect().Blocked[0].Needs.Samples)
			requireDone(t, sampling(t.Context(), table, "", 2), 2)
			if i < len(inserters)-1 {
				requireWaits(t, inserters[i+1])
			}
			requireDone(t, inserters[i], 2)
		}
	})
}

func TestCallThatGivesUpLeavesItsPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := newTable(t, Config{Sampler: Selector{Kind: FIFO}, Limiter: QueueOf(3)})
		ctx, cancel := context.WithCancel(t.Context())
		first := sampling(ctx, table, "", 5)
		requireWaits(t, first)
		second := sampling(t.Context(), table, "", 2)
		requireDone(t, inserting(t.Context(), table, "", 1), 1)
		requireWaits(t, second)
		cancel()
		n, err, done := first()
		require.True(t, done)
		require.ErrorIs(t, err, context.Canceled)
		require.Equal(t, 1, n, "it keeps the item that it got")
		requireDone(t, inserting(t.Context(), table, "", 2), 2)
		requireDone(t, second, 2)
		_, err = table.Sample(ctx, make([]Sample, 1), SampleOptions{})
		require.ErrorIs(t, err, context.Canceled)
	})
}

func TestCloseEndsAllCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		queue := newTable(t, Config{Sampler: Selector{Kind: LIFO}, Limiter: StackOf(1)})
		var calls []func() (int, error, bool)
		for range 3 {
			calls = append(calls, inserting(t.Context(), queue, "", 2))
		}
		empty := newTable(t, Config{})
		for range 3 {
			calls = append(calls, sampling(t.Context(), empty, "", 2))
		}
		for _, c := range calls {
			requireWaits(t, c)
		}
		cause := errors.New("the node stops")
		queue.Close(cause)
		empty.Close(cause)
		for _, c := range calls {
			_, err, done := c()
			require.True(t, done)
			require.ErrorIs(t, err, ErrClosed)
			require.ErrorIs(t, err, cause)
		}
		_, err := queue.Insert(t.Context(), "", []Item{rows(1)}, make([]Key, 1))
		require.ErrorIs(t, err, ErrClosed)
		_, err = queue.Update(nil, nil)
		require.ErrorIs(t, err, ErrClosed)
		_, err = queue.Delete(nil)
		require.ErrorIs(t, err, ErrClosed)
	})
}

// TestMinimumSizeIsReachedWhateverTheRingHolds inserts episodes of any length into a ring that has
// room for far fewer items than the minimum size.
func TestMinimumSizeIsReachedWhateverTheRingHolds(t *testing.T) {
	for _, limiter := range []Limiter{MinSize(1000), SamplesPerInsert(8, 1000, 4000), SamplesPerInsert(0.5, 1000, 1)} {
		t.Run(limiter.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				table := newTable(t, Config{Limiter: limiter})
				waiting := sampling(t.Context(), table, "", 4)
				const capacity = 5000
				next, inserted := uint64(0), 0
				random := rand.New(rand.NewPCG(1, 2))
				for ; ; inserted++ {
					if _, _, done := waiting(); done {
						break
					}
					info := table.Inspect()
					if inserted < 1000 {
						require.Equal(t, uint64(1000-inserted), info.SampleNeeds.Inserts)
					}
					length := uint32(random.IntN(700)) + 1
					next += uint64(length)
					table.Expire(next - min(next, capacity))
					it := Item{Run: Run{First: next - uint64(length), Length: length}, Priority: 1}
					requireDone(t, call(func() (int, error) { return table.Insert(t.Context(), "", []Item{it}, make([]Key, 1)) }), 1)
				}
				require.Less(t, inserted, 1010)
				requireDone(t, waiting, 4)
			})
		})
	}
}

func TestLimiterChangesWhileCallsWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := newTable(t, Config{Limiter: MinSize(1000)})
		requireDone(t, inserting(t.Context(), table, "", 500), 500)
		waiting := sampling(t.Context(), table, "", 10)
		requireWaits(t, waiting)
		require.ErrorIs(t, table.SetLimiter(SamplesPerInsert(1, 1, 0.1)), ErrConfig)
		requireWaits(t, waiting)
		require.NoError(t, table.SetLimiter(SamplesPerInsert(1, 400, 20)))
		requireDone(t, waiting, 10)
		more := inserting(t.Context(), table, "", 100)
		requireWaits(t, more)
		require.Equal(t, 530, table.Inspect().Size, "the buffer and the samples let 30 through")
		require.NoError(t, table.SetLimiter(MinSize(1)))
		requireDone(t, more, 100)
	})
}

func TestReturnedSamplesAreDrawnAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := newTable(t, Config{Limiter: SamplesPerInsert(1, 1, 5)})
		requireDone(t, inserting(t.Context(), table, "", 1), 1)
		requireDone(t, sampling(t.Context(), table, "", 5), 5)
		waiting := sampling(t.Context(), table, "", 2)
		requireWaits(t, waiting)
		table.Return(2)
		requireDone(t, waiting, 2)
		require.Equal(t, uint64(2), table.Inspect().Counts.Returned)
	})
}

func TestCallsThatWaitNeedWhatThoseBeforeThemNeed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := newTable(t, Config{Sampler: Selector{Kind: FIFO}, Limiter: QueueOf(1)})
		requireDone(t, inserting(t.Context(), table, "", 1), 1)
		first := inserting(t.Context(), table, "first", 2)
		synctest.Wait()
		second := inserting(t.Context(), table, "second", 3)
		synctest.Wait()
		blocked := table.Inspect().Blocked
		require.Len(t, blocked, 2)
		require.Equal(t, uint64(2), blocked[0].Needs.Samples)
		require.Equal(t, uint64(5), blocked[1].Needs.Samples)
		requireDone(t, sampling(t.Context(), table, "", 5), 5)
		requireDone(t, first, 2)
		requireDone(t, second, 3)
	})
}

func TestSampleWaitsForPriorityAboveZero(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := newTable(t, Config{Sampler: Selector{Kind: Prioritized, Exponent: 1}})
		keys := insert(t, table, Item{Run: Run{Length: 1}}, Item{Run: Run{First: 1, Length: 1}})
		waiting := sampling(t.Context(), table, "", 3)
		requireWaits(t, waiting)
		require.Equal(t, "an item with a priority above zero", table.Inspect().SampleNeeds.String())
		_, err := table.Update(keys[1:], []float64{0.5})
		require.NoError(t, err)
		requireDone(t, waiting, 3)
	})
}

func TestLimitersThatDeadlockAreRefused(t *testing.T) {
	for _, c := range []struct {
		config Config
		reason string
	}{
		{Config{MaxItems: 99, Limiter: MinSize(100)}, "the limiter would deadlock: it lets samples wait for 100 items, and the table has room for 99"},
		{Config{Limiter: SamplesPerInsert(8, 1, 4)}, "a buffer of 4 samples can block an insert and a sample at once; it needs at least 4.5"},
		{
			Config{Sampler: Selector{Kind: FIFO}, Limiter: Limiter{Rule: Queue, Capacity: 3, MinSize: 5}},
			"the limiter would deadlock: it lets samples wait for 5 items, and its capacity is 3",
		},
		{Config{Limiter: Limiter{Ratio: math.NaN()}}, "a ratio of NaN and a buffer of 0: only one of samples per insert has them"},
		{Config{Sampler: Selector{Kind: FIFO}, Limiter: Limiter{Rule: Queue, Capacity: 3, Buffer: 2}}, "only one of samples per insert has them"},
		{Config{Limiter: SamplesPerInsert(8, 1, 40), MaxSampled: 7}, "the limiter can't be met: it lets inserts wait for 8 samples each, and an item can be sampled 7 times at most"},
		{Config{Limiter: SamplesPerInsert(0, 1, 40)}, "samples per insert are 0"},
		{Config{Limiter: SamplesPerInsert(math.NaN(), 1, 40)}, "samples per insert are NaN"},
		{Config{Limiter: SamplesPerInsert(1, 1, math.Inf(1))}, "buffer is +Inf"},
		{Config{Limiter: SamplesPerInsert(1, -1, 5)}, "minimum size is -1"},
		{Config{Limiter: QueueOf(8)}, "needs the sampler fifo, not uniform"},
		{Config{Limiter: StackOf(8), Sampler: Selector{Kind: FIFO}}, "needs the sampler lifo, not fifo"},
		{Config{Limiter: QueueOf(0), Sampler: Selector{Kind: FIFO}}, "needs a capacity from 1 to 100"},
		{Config{Limiter: QueueOf(101), Sampler: Selector{Kind: FIFO}}, "needs a capacity from 1 to 100"},
		{Config{Limiter: QueueOf(10), Sampler: Selector{Kind: FIFO}, MaxSampled: 2}, "lets each item be sampled once, not 2 times"},
		{Config{Limiter: Limiter{Rule: 9}}, "rule 9 is unknown"},
		{Config{MaxItems: -1}, "maximum number of items is -1"},
		{Config{MaxItems: MaxItems + 1}, "maximum number of items is 268435457"},
		{Config{Sampler: Selector{Kind: Prioritized, Exponent: math.NaN()}}, "exponent of its sampler is NaN"},
		{Config{Remover: Selector{Kind: Prioritized, Exponent: -1}}, "exponent of its remover is -1"},
		{Config{Remover: Selector{Kind: FIFO, Exponent: 1}}, "only a prioritized one has an exponent"},
		{Config{Sampler: Selector{Kind: 99}}, "its sampler is unknown"},
	} {
		c.config.Name = "per"
		if c.config.MaxItems == 0 {
			c.config.MaxItems = 100
		}
		_, err := New(c.config)
		require.ErrorIs(t, err, ErrConfig)
		require.ErrorContains(t, err, `configure table "per": `)
		require.ErrorContains(t, err, c.reason)
	}
}

func TestInvalidItemsChangeNothing(t *testing.T) {
	table := newTable(t, Config{Sampler: Selector{Kind: Prioritized, Exponent: 2}})
	good := rows(1)
	for _, c := range []struct {
		item   Item
		err    error
		reason string
	}{
		{Item{Run: Run{Length: 1}, Priority: -1}, ErrPriority, "priority 1 is -1: it must not be negative"},
		{Item{Run: Run{Length: 1}, Priority: math.NaN()}, ErrPriority, "must be a number"},
		{Item{Run: Run{Length: 1}, Priority: math.Inf(1)}, ErrPriority, "must be finite"},
		{Item{Run: Run{Length: 1}, Priority: 1e200}, ErrPriority, "must be at most"},
		{Item{}, ErrItem, "item 1 is invalid: its run 0 has no rows"},
		{Item{Run: Run{First: math.MaxUint64, Length: 1}}, ErrItem, "behind the last sequence number"},
		{Item{Run: Run{First: 5, Length: 2}, More: []Run{{First: 6, Length: 1}}}, ErrItem, "its run 1 begins at row 6, before the end of the one before it"},
		{Item{Run: Run{Length: math.MaxUint32}, More: []Run{{First: 1 << 40, Length: 1}}}, ErrItem, "it has 4294967296 rows"},
	} {
		_, err := table.Insert(t.Context(), "", []Item{good, c.item}, make([]Key, 2))
		require.ErrorIs(t, err, c.err)
		require.ErrorContains(t, err, c.reason)
	}
	_, err := table.Insert(t.Context(), "", []Item{good}, nil)
	require.ErrorIs(t, err, ErrArgument)
	_, err = table.Update([]Key{1}, nil)
	require.ErrorIs(t, err, ErrArgument)
	_, err = table.Sample(t.Context(), nil, SampleOptions{Beta: math.NaN()})
	require.ErrorIs(t, err, ErrArgument)
	require.Equal(t, Counts{}, table.Inspect().Counts)
}

// TestQueueDeliversEachItemOnce has several writers and readers: what one writer inserts is read
// once, and by each reader in its order.
func TestQueueDeliversEachItemOnce(t *testing.T) {
	table := newTable(t, Config{Sampler: Selector{Kind: FIFO}, Limiter: QueueOf(7)})
	const writers, each = 4, 2000
	var reading, writing sync.WaitGroup
	var mu sync.Mutex
	seen := map[uint64]bool{}
	for range 3 {
		reading.Go(func() {
			var last [writers]uint64
			samples := make([]Sample, 5)
			for {
				n, err := table.Sample(context.Background(), samples, SampleOptions{})
				for _, s := range samples[:n] {
					w := s.Run.First % writers
					if s.Run.First < last[w] {
						t.Error("items of a writer change their order")
					}
					last[w] = s.Run.First
					mu.Lock()
					if seen[s.Run.First] {
						t.Error("an item is delivered twice")
					}
					seen[s.Run.First] = true
					mu.Unlock()
				}
				if err != nil {
					return
				}
			}
		})
	}
	for w := range writers {
		writing.Go(func() {
			for i := 0; i < each; i += 4 {
				var items []Item
				for k := range 4 {
					items = append(items, rows(uint64((i+k)*writers+w)))
				}
				if _, err := table.Insert(context.Background(), "", items, make([]Key, 4)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	writing.Wait()
	for table.Inspect().Size > 0 {
		table.Expire(0)
	}
	table.Close(nil)
	reading.Wait()
	require.Len(t, seen, writers*each)
}

// TestConcurrentUse does everything at once. Keys must never get another item's priority: each item
// has that of its first row.
func TestConcurrentUse(t *testing.T) {
	table := newTable(t, Config{
		Sampler: Selector{Kind: Prioritized, Exponent: 1}, Remover: Selector{Kind: Lowest},
		MaxItems: 500, Limiter: SamplesPerInsert(4, 100, 200),
	})
	table.Track()
	ctx, cancel := context.WithCancel(t.Context())
	var next atomic.Uint64
	var writing, others sync.WaitGroup
	for range 3 {
		writing.Go(func() {
			for range 300 {
				items, keys := make([]Item, 8), make([]Key, 8)
				for i := range items {
					first := next.Add(1)
					items[i] = Item{Run: Run{First: first, Length: 1}, Priority: float64(first)}
				}
				if _, err := table.Insert(t.Context(), "", items, keys); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for range 2 {
		others.Go(func() {
			samples := make([]Sample, 32)
			for {
				n, err := table.Sample(ctx, samples, SampleOptions{Beta: 1})
				keys, updated := make([]Key, n), make([]float64, n)
				for i, s := range samples[:n] {
					if s.Priority != float64(s.Run.First) {
						t.Errorf("item of row %d has priority %g", s.Run.First, s.Priority)
					}
					keys[i], updated[i] = s.Key, float64(s.Run.First)
				}
				if _, err := table.Update(keys, updated); err != nil {
					t.Error(err)
				}
				if _, err := table.Delete(keys[:n/16]); err != nil {
					t.Error(err)
				}
				if err != nil {
					return
				}
			}
		})
	}
	others.Go(func() {
		states := make([]State, 64)
		for ctx.Err() == nil {
			table.Expire(next.Load() - min(next.Load(), 400))
			table.Changes(states)
			table.Items(0, states)
			table.Inspect()
		}
	})
	writing.Wait()
	cancel()
	others.Wait()
	info := table.Inspect()
	c := info.Counts
	require.Equal(t, int(c.Inserted-c.Overwritten-c.Evicted-c.Exhausted-c.Deleted), info.Size)
}

// TestExpiryMakesRoomInAQueue overwrites the rows of items that a full queue has.
func TestExpiryMakesRoomInAQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := newTable(t, Config{Sampler: Selector{Kind: FIFO}, Limiter: QueueOf(2)})
		insert(t, table, rows(0), rows(1))
		waiting := inserting(t.Context(), table, "", 5)
		requireWaits(t, waiting)
		require.Equal(t, 2, table.Expire(2))
		requireWaits(t, waiting) // two of its items were late, and two are in the queue
		table.Expire(4)
		requireDone(t, waiting, 5)
	})
}
