package replay

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"
	"github.com/raylink/raylink/services/replay/internal/table"
	"github.com/raylink/raylink/services/replay/ring"
)

// gatedReplay is a replay on another machine whose updates wait at a gate.
type gatedReplay struct {
	remoteReplay

	// calls is how many calls for updates there were, and ended how many of those that waited were
	// canceled.
	calls, ended atomic.Int64
	// gate lets a call pass with each element, and all once it is closed. An error is returned.
	gate chan error
}

func (r *gatedReplay) UpdatePriorities(ctx context.Context, req *replayv1.UpdatePrioritiesRequest) (*replayv1.UpdatePrioritiesResponse, error) {
	r.calls.Add(1)
	select {
	case err := <-r.gate:
		if err != nil {
			return nil, err
		}
	case <-ctx.Done():
		r.ended.Add(1)
		return nil, ctx.Err()
	}
	return r.node.UpdatePriorities(ctx, req)
}

// gatedItems returns a replay of a table with some items of priority 1, and their keys.
func gatedItems(t *testing.T, items int) (*gatedReplay, *Client, []uint64) {
	t.Helper()
	n := testNode(t, pointsReplay(uint64(items), Table("t", Prioritized(1))))
	_, err := open(t, n).Writer().Append(t.Context(), rowsOf(t, open(t, n), make([]int64, items)...))
	require.NoError(t, err)
	req := &replayv1.CreateItemsRequest{Table: "t"}
	for i := range items {
		one := 1.0
		req.Items = append(req.Items, &replayv1.Item{Runs: []*replayv1.Run{{First: uint64(i), Length: 1}}, Priority: &one})
	}
	res, err := n.CreateItems(t.Context(), req)
	require.NoError(t, err)
	r := &gatedReplay{remoteReplay: remoteReplay{node: n}, gate: make(chan error)}
	return r, open(t, r), res.GetKeys()
}

func (r *gatedReplay) priority(t require.TestingT, key uint64) float64 {
	state, ok := r.tables.byName["t"].Get(table.Key(key))
	require.True(t, ok)
	return state.Priority
}

// pass lets a call pass.
func (r *gatedReplay) pass(t *testing.T) {
	t.Helper()
	select {
	case r.gate <- nil:
	case <-time.After(10 * time.Second):
		require.Fail(t, "no call waits")
	}
}

// waitingUpdates returns how many updates wait for the call of others.
func waitingUpdates(c *Client) int {
	c.updates.mu.Lock()
	defer c.updates.mu.Unlock()
	n := 0
	for _, waiting := range c.updates.waiting {
		n += len(waiting)
	}
	return n
}

func eventually(t *testing.T, done func() bool) {
	t.Helper()
	require.Eventually(t, done, 10*time.Second, 100*time.Microsecond)
}

// TestUpdatesAtTheSameTimeShareCalls has many updates begin while a call is in flight. Each has its
// own count of keys without an item, and its own error.
func TestUpdatesAtTheSameTimeShareCalls(t *testing.T) {
	const updates = 300
	r, c, keys := gatedItems(t, updates)
	type result struct {
		stale int
		err   error
	}
	results := make([]result, updates)
	var callers sync.WaitGroup
	begin := func(i int) {
		req := &replayv1.UpdatePrioritiesRequest{Table: "t", RingId: r.ring.ID().String(), Keys: []uint64{keys[i]}, Priorities: []float64{float64(i)}}
		for range i % 3 {
			req.Keys, req.Priorities = append(req.Keys, 0), append(req.Priorities, 1)
		}
		if i%10 == 9 {
			req.Keys, req.Priorities = append(req.Keys, keys[i]), append(req.Priorities, -1)
		}
		callers.Go(func() { results[i].stale, results[i].err = c.updates.update(t.Context(), req) })
	}
	begin(0)
	eventually(t, func() bool { return r.calls.Load() == 1 })
	for i := 1; i < updates; i++ {
		begin(i)
	}
	eventually(t, func() bool { return waitingUpdates(c) == updates-1 })
	require.Equal(t, int64(1), r.calls.Load(), "one call at a time")
	close(r.gate)
	callers.Wait()
	require.Equal(t, int64(2), r.calls.Load(), "all others share a call")
	for i, got := range results {
		if i%10 == 9 {
			require.ErrorIs(t, got.err, ErrPriority)
			require.ErrorContains(t, got.err, "is -1: it must not be negative")
			require.InDelta(t, 1, r.priority(t, keys[i]), 0, "an update with an invalid priority changes nothing")
			continue
		}
		require.NoError(t, got.err)
		require.Equal(t, i%3, got.stale)
		require.InDelta(t, float64(i), r.priority(t, keys[i]), 0)
	}
	eventually(t, func() bool { // the goroutine that has sent them ends
		c.updates.mu.Lock()
		defer c.updates.mu.Unlock()
		return len(c.updates.waiting) == 0
	})
}

// TestUpdatesOfACallAreBounded has so many keys wait that they take several calls.
func TestUpdatesOfACallAreBounded(t *testing.T) {
	r, c, keys := gatedItems(t, 1)
	var callers sync.WaitGroup
	update := func(n int) {
		req := &replayv1.UpdatePrioritiesRequest{Table: "t", Keys: make([]uint64, n), Priorities: make([]float64, n)}
		callers.Go(func() {
			stale, err := c.updates.update(t.Context(), req)
			require.NoError(t, err)
			require.Equal(t, n, stale)
		})
	}
	update(1)
	eventually(t, func() bool { return r.calls.Load() == 1 })
	for range 3 {
		update(maxKeysTogether/2 + 1)
	}
	eventually(t, func() bool { return waitingUpdates(c) == 3 })
	for range maxUpdatesTogether + 1 {
		update(1)
	}
	eventually(t, func() bool { return waitingUpdates(c) == maxUpdatesTogether+4 })
	close(r.gate)
	callers.Wait()
	require.Equal(t, int64(1+3+1), r.calls.Load())
	require.InDelta(t, 1, r.priority(t, keys[0]), 0)
}

// TestUpdatesThatEndEarly ends contexts of updates that wait for a call, and of those that share
// it.
func TestUpdatesThatEndEarly(t *testing.T) {
	r, c, keys := gatedItems(t, 3)
	update := func(ctx context.Context, i int) chan error {
		done := make(chan error, 1)
		go func() {
			_, err := c.updates.update(ctx, &replayv1.UpdatePrioritiesRequest{Table: "t", Keys: keys[i : i+1], Priorities: []float64{5}})
			done <- err
		}()
		return done
	}
	first := update(t.Context(), 0)
	eventually(t, func() bool { return r.calls.Load() == 1 })
	ctx, cancel := context.WithCancel(t.Context())
	second := update(ctx, 1)
	eventually(t, func() bool { return waitingUpdates(c) == 1 })
	cancel()
	require.ErrorIs(t, <-second, context.Canceled)
	require.Zero(t, waitingUpdates(c))
	r.gate <- nil
	require.NoError(t, <-first)

	require.InDelta(t, 1, r.priority(t, keys[1]), 0)

	// The call of two goes on until both have left.
	first = update(t.Context(), 0)
	eventually(t, func() bool { return r.calls.Load() == 2 })
	ctx, cancel = context.WithCancel(t.Context())
	other, cancelOther := context.WithCancel(t.Context())
	second, third := update(ctx, 1), update(other, 2)
	eventually(t, func() bool { return waitingUpdates(c) == 2 })
	r.gate <- nil
	require.NoError(t, <-first)
	eventually(t, func() bool { return r.calls.Load() == 3 })
	cancel()
	require.ErrorIs(t, <-second, context.Canceled)
	r.pass(t)
	require.NoError(t, <-third, "it goes on for the other")
	require.InDelta(t, 5, r.priority(t, keys[2]), 0)

	first = update(t.Context(), 0)
	eventually(t, func() bool { return r.calls.Load() == 4 })
	ctx, cancel = context.WithCancel(t.Context())
	second, third = update(ctx, 1), update(other, 2)
	eventually(t, func() bool { return waitingUpdates(c) == 2 })
	r.pass(t)
	require.NoError(t, <-first)
	eventually(t, func() bool { return r.calls.Load() == 5 })
	cancel()
	require.ErrorIs(t, <-second, context.Canceled)
	cancelOther()
	require.ErrorIs(t, <-third, context.Canceled)
	eventually(t, func() bool { return r.ended.Load() == 1 })
	require.Error(t, <-update(ctx, 1), "it does not begin")
	require.Equal(t, int64(5), r.calls.Load())
}

// TestUpdatesThatShareACallFailTogether lets a shared call fail, and closes the client meanwhile.
func TestUpdatesThatShareACallFailTogether(t *testing.T) {
	r, c, keys := gatedItems(t, 1)
	results := make(chan error, 3)
	update := func() {
		go func() {
			_, err := c.updates.update(context.Background(), &replayv1.UpdatePrioritiesRequest{Table: "t", Keys: keys, Priorities: []float64{5}})
			results <- err
		}()
	}
	update()
	eventually(t, func() bool { return r.calls.Load() == 1 })
	update()
	update()
	eventually(t, func() bool { return waitingUpdates(c) == 2 })
	r.gate <- nil
	require.NoError(t, <-results)
	r.gate <- errCut
	for range 2 {
		require.ErrorContains(t, <-results, "the connection was lost")
	}

	update()
	eventually(t, func() bool { return r.calls.Load() == 3 })
	update()
	update()
	eventually(t, func() bool { return waitingUpdates(c) == 2 })
	r.gate <- nil
	require.NoError(t, <-results)
	eventually(t, func() bool { return r.calls.Load() == 4 })
	closed := make(chan error, 1)
	go func() { closed <- c.Close() }()
	select {
	case err := <-closed:
		require.NoError(t, err)
	case <-time.After(10 * time.Second):
		close(r.gate) // so that the test ends
		require.Fail(t, "the client waits for the call")
	}
	for range 2 {
		require.ErrorIs(t, <-results, ring.ErrClosed)
	}
}

// TestSharedUpdatesAreLikeCallsOfTheirOwn compares the results of goroutines that update at the
// same time, and the priorities, with a model. Each has items of its own, some of which it deletes.
func TestSharedUpdatesAreLikeCallsOfTheirOwn(t *testing.T) {
	type step struct {
		items      []int
		priorities []float64
		remove     int
	}
	const goroutines, own = 8, 4
	rapid.Check(t, func(rt *rapid.T) {
		r, c, keys := gatedItems(t, goroutines*own)
		close(r.gate)
		p, err := As(c, pointRow())
		require.NoError(rt, err)
		s, err := p.Sampler("t")
		require.NoError(rt, err)
		all := make([]Key, len(keys))
		for i, key := range keys {
			all[i] = Key{ring: r.ring.ID().String(), table: "t", number: key, rows: 1}
		}
		steps := rapid.SliceOfN(rapid.SliceOfN(rapid.Custom(func(t *rapid.T) step {
			items := rapid.SliceOfN(rapid.IntRange(0, own-1), 0, 5).Draw(t, "items")
			return step{
				items: items, priorities: rapid.SliceOfN(rapid.Float64Range(-0.2, 10), len(items), len(items)).Draw(t, "priorities"),
				remove: rapid.IntRange(-6, own-1).Draw(t, "remove"),
			}
		}), 0, 12), goroutines, goroutines).Draw(rt, "steps")
		wrong := make(chan error, goroutines)
		var all8 sync.WaitGroup
		for g := range goroutines {
			mine := all[g*own : (g+1)*own]
			all8.Go(func() {
				wrong <- func() error {
					model := make(map[int]float64)
					for i := range own {
						model[i] = 1
					}
					for _, step := range steps[g] {
						var chosen []Key
						want, valid := 0, true
						for k, i := range step.items {
							chosen = append(chosen, mine[i])
							valid = valid && step.priorities[k] >= 0
							if _, ok := model[i]; !ok {
								want++
							}
						}
						stale, err := s.Update(t.Context(), chosen, step.priorities)
						switch {
						case valid && (err != nil || stale != want):
							return errors.Join(errors.New("another result than expected"), err)
						case !valid && !errors.Is(err, ErrPriority):
							return errors.Join(errors.New("another error than expected"), err)
						case valid:
							for k, i := range step.items {
								if _, ok := model[i]; ok {
									model[i] = step.priorities[k]
								}
							}
						}
						if i := step.remove; i >= 0 {
							if _, err := c.Delete(t.Context(), "t", mine[i:i+1]); err != nil {
								return err
							}
							delete(model, i)
						}
					}
					for i := range own {
						state, ok := r.tables.byName["t"].Get(table.Key(mine[i].Number()))
						if want, exists := model[i]; ok != exists || ok && state.Priority != want {
							return errors.New("another priority than expected")
						}
					}
					return nil
				}()
			})
		}
		all8.Wait()
		close(wrong)
		for err := range wrong {
			require.NoError(rt, err)
		}
		require.NoError(rt, s.Close())
		require.NoError(rt, c.Close())
	})
}

func TestPartsOfUpdatesThatDoNotFitAreRefused(t *testing.T) {
	bothWays(t, pointsReplay(4, Table("t", Prioritized(1))), func(t *testing.T, c, _ *Client) {
		node := c.Handle()
		for _, req := range []*replayv1.UpdatePrioritiesRequest{
			{Table: "t", Parts: []uint32{1}},
			{Table: "t", Keys: []uint64{1, 2}, Priorities: []float64{1, 2}, Parts: []uint32{1}},
			{Table: "t", Keys: []uint64{1, 2}, Priorities: []float64{1, 2}, Parts: []uint32{1, 2}},
			{Table: "t", Keys: []uint64{1, 2}, Priorities: []float64{1, 2}, Parts: []uint32{3, 1<<32 - 1}},
			{Table: "t", Keys: []uint64{1, 2}, Priorities: []float64{1}, Parts: []uint32{1, 1}},
			{Table: "t", Keys: []uint64{1}, Priorities: []float64{1, 2}, Parts: []uint32{1}},
		} {
			_, err := node.UpdatePriorities(t.Context(), req)
			require.ErrorIs(t, ringError(err), ErrArgument)
			require.ErrorContains(t, err, "parts")
			require.Equal(t, connect.CodeInvalidArgument, connect.CodeOf(err))
		}
		res, err := node.UpdatePriorities(t.Context(), &replayv1.UpdatePrioritiesRequest{
			Table: "t", Keys: []uint64{1, 2, 3}, Priorities: []float64{1, 2, -1}, Parts: []uint32{2, 0, 1},
		})
		require.NoError(t, err)
		require.Equal(t, []uint32{2, 0, 0}, res.GetStaleParts())
		require.Equal(t, uint64(2), res.GetStale())
		require.Len(t, res.GetFailed(), 1)
		require.Equal(t, uint32(2), res.GetFailed()[0].GetPart())
		require.Equal(t, replayv1.Reason_REASON_PRIORITY, res.GetFailed()[0].GetReason())
	})
}
