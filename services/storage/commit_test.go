package storage

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	storagev1 "github.com/raylink/raylink/gen/raylink/storage/v1"
	"github.com/raylink/raylink/services/storage/internal/changelog"
	"github.com/raylink/raylink/services/storage/internal/table"
)

// slow is how long a commit takes in tests of what is provisional meanwhile.
const slow = time.Second

// slowStorage starts a storage whose commits take a second.
func slowStorage(t *testing.T, durability storagev1.Durability) (*running, *fakeLog) {
	t.Helper()
	log := newFakeLog()
	r := start(t, &storagev1.StorageConfig{Durability: durability}, log)
	t.Cleanup(r.end)
	log.took = slow
	return r, log
}

// Calls that arrive while a group is being committed form the next one.
func TestCallersShareCommits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, log := slowStorage(t, synced)
		defer r.end()
		const callers, each = 50, 20
		var all sync.WaitGroup
		for range callers {
			all.Go(func() {
				for range each {
					_, err := Add(t.Context(), r.Client, "n", 1)
					assert.NoError(t, err)
				}
			})
		}
		all.Wait()
		n, err := Get[int](t.Context(), r.Client, "n")
		require.NoError(t, err)
		require.Equal(t, callers*each, n)
		// Those that wake up first are a group of their own.
		require.LessOrEqual(t, len(log.committed()), 2*each+2, "the commits of %d writes", callers*each)
	})
}

// The writes of one caller have the order of its calls, whatever group they are in.
func TestAsyncCallsKeepTheirOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, log := slowStorage(t, async)
		defer r.end()
		const calls = 100
		var last uint64
		var results []func() (uint64, error)
		for i := range calls {
			future := r.Handle().PutAsync(t.Context(), &storagev1.PutRequest{Key: "k", Value: valueOf(i)})
			results = append(results, func() (uint64, error) {
				res, err := future.Get(t.Context())
				return res.GetId(), err
			})
			if i%40 == 0 {
				synctest.Wait()
			}
		}
		for _, result := range results {
			id, err := result()
			require.NoError(t, err)
			require.Equal(t, last+1, id)
			last = id
		}
		n, err := Get[int](t.Context(), r.Client, "k")
		require.NoError(t, err)
		require.Equal(t, calls-1, n)
		require.Less(t, len(log.committed()), calls/10)
	})
}

// shown is what a read has returned.
func shown(err error, what int) string {
	if err != nil {
		return err.Error()
	}
	return strconv.Itoa(what)
}

// Whatever depends on a write is not returned before the write is committed: values, that a key is
// missing, conditions, pages.
func TestProvisionalWritesAreNotShown(t *testing.T) {
	for name, durability := range map[string]storagev1.Durability{"async": async, "sync": synced} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx := t.Context()
				r, log := slowStorage(t, durability)
				defer r.end()
				for _, key := range []string{"a", "b", "untouched"} {
					_, err := Put(ctx, r.Client, key, 1)
					require.NoError(t, err)
				}
				reads := map[string]func() string{
					"get": func() string {
						n, err := Get[int](ctx, r.Client, "a")
						return shown(err, n)
					},
					"missing": func() string {
						_, err := Get[int](ctx, r.Client, "b")
						if errors.Is(typed(err), ErrNotFound) {
							return "missing"
						}
						if err != nil {
							return err.Error()
						}
						return "there"
					},
					"many": func() string {
						res, err := r.Handle().GetMany(ctx, &storagev1.GetManyRequest{Keys: []string{"untouched", "b"}})
						return shown(err, len(res.GetEntries()))
					},
					"list": func() string {
						res, err := r.Handle().List(ctx, &storagev1.ListRequest{})
						return shown(err, len(res.GetEntries()))
					},
					"export": func() string {
						stream, err := r.Handle().Export(ctx, &storagev1.ExportRequest{Prefixes: []string{""}})
						if err != nil {
							return err.Error()
						}
						res, err := stream.Receive()
						return shown(err, len(res.GetEntries()))
					},
					"id": func() string {
						id, err := r.ID(ctx, "a")
						return shown(err, int(id))
					},
				}
				// observe begins two writes and all reads, and returns the results of the reads.
				observe := func(key int) map[string]string {
					var all sync.WaitGroup
					all.Go(func() { _, _ = Put(ctx, r.Client, "a", key) })
					synctest.Wait()
					all.Go(func() { _, _ = r.Delete(ctx, "b") })
					synctest.Wait()
					began := time.Now()
					id, err := r.ID(ctx, "untouched")
					require.NoError(t, err)
					require.EqualValues(t, 3, id)
					require.Zero(t, time.Since(began), "what does not depend on a provisional write is returned at once")
					var mu sync.Mutex
					got := map[string]string{}
					for name, read := range reads {
						all.Go(func() {
							result := read()
							mu.Lock()
							defer mu.Unlock()
							got[name] = result
						})
					}
					synctest.Wait()
					mu.Lock()
					assert.Empty(t, got, "what was provisional was shown")
					mu.Unlock()
					all.Wait()
					return got
				}
				log.fail(errors.New("no such luck"))
				require.Equal(t, map[string]string{"get": "1", "missing": "there", "many": "2", "list": "3", "export": "3", "id": "1"}, observe(2))
				log.fail(nil)
				time.Sleep(2 * maxReopen) //nolint:forbidigo // in a bubble of synctest
				require.Equal(t, map[string]string{"get": "3", "missing": "missing", "many": "1", "list": "2", "export": "2", "id": "4"}, observe(3))
			})
		})
	}
}

// A write whose check depended on one that could not be committed fails with the disk's error, not
// with that of its check.
func TestFailedChecksWaitForWhatTheySaw(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, log := slowStorage(t, synced)
		defer r.end()
		log.fail(errors.New("no such luck"))
		var all sync.WaitGroup
		all.Go(func() { _, _ = Put(t.Context(), r.Client, "a", "text") })
		synctest.Wait()
		began := time.Now()
		_, err := Add(t.Context(), r.Client, "a", 1)
		var failing *WritesFailError
		require.ErrorAs(t, typed(err), &failing)
		require.Positive(t, time.Since(began))
		all.Wait()
	})
}

// A full disk has a code of its own, and the write after the disk has space again succeeds.
func TestFullDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := newFakeLog()
		r := start(t, &storagev1.StorageConfig{Durability: synced}, log)
		defer r.end()
		log.fail(&changelog.FullError{Dir: "somewhere"})
		for range 2 {
			_, err := Put(t.Context(), r.Client, "a", 1)
			requireCode(t, connect.CodeResourceExhausted, err, "somewhere", "free space")
		}
		log.fail(nil)
		require.Eventually(t, func() bool {
			_, err := Put(t.Context(), r.Client, "a", 1)
			return err == nil
		}, 2*maxReopen, 100*time.Millisecond)
	})
}

// A call may ask for more than the storage's durability, but not for what it can't promise.
func TestDurabilityOfACall(t *testing.T) {
	ctx := context.Background()
	log := newFakeLog()
	r := start(t, &storagev1.StorageConfig{Durability: async}, log)
	defer r.end()
	h := r.Handle()
	for _, d := range []storagev1.Durability{0, inMemory, async} {
		_, err := h.Put(ctx, &storagev1.PutRequest{Key: "a", Value: valueOf(1), Durability: d})
		require.NoError(t, err)
	}
	require.Zero(t, log.syncs)
	_, err := h.Put(ctx, &storagev1.PutRequest{Key: "a", Value: valueOf(1), Durability: synced})
	require.NoError(t, err)
	require.Equal(t, 1, log.syncs)
	_, err = h.Batch(ctx, &storagev1.BatchRequest{Ops: []*storagev1.Op{
		{Kind: &storagev1.Op_Put{Put: &storagev1.PutRequest{Key: "a", Value: valueOf(1), Durability: synced}}},
	}})
	require.NoError(t, err)
	require.Equal(t, 2, log.syncs, "a batch is as durable as its operations require")
	_, err = h.Put(ctx, &storagev1.PutRequest{Key: "a", Value: valueOf(1), Durability: 17})
	requireCode(t, connect.CodeInvalidArgument, err, "17")

	memory := newClient(t, nil).Handle()
	_, err = memory.Put(ctx, &storagev1.PutRequest{Key: "a", Value: valueOf(1), Durability: async})
	requireCode(t, connect.CodeFailedPrecondition, err, "only in memory")
	has, err := memory.Has(ctx, &storagev1.HasRequest{Key: "a"})
	require.NoError(t, err)
	require.False(t, has.GetHas())
}

// A watcher that is too slow gets an error instead of a gap.
func TestSlowWatcherLosesItsHistory(t *testing.T) {
	r := start(t, &storagev1.StorageConfig{History: 10}, nil)
	defer r.end()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stream, err := r.Handle().Watch(ctx, &storagev1.WatchRequest{})
	require.NoError(t, err)
	first, err := stream.Receive()
	require.NoError(t, err)
	require.Zero(t, first.GetId())
	const writes = 10000
	for i := range writes {
		_, err := Put(ctx, r.Client, "k", i)
		require.NoError(t, err)
	}
	next := uint64(1)
	for {
		res, err := stream.Receive()
		if err != nil {
			var lost *HistoryLostError
			require.ErrorAs(t, typed(err), &lost)
			requireCode(t, connect.CodeOutOfRange, err)
			require.Equal(t, lost.Newest-10, lost.Oldest)
			require.Greater(t, lost.Oldest, lost.Since)
			break
		}
		for _, c := range res.GetChanges() {
			require.Equal(t, next, c.GetId(), "a change was left out")
			next++
		}
		require.Less(t, next, uint64(writes), "the watcher was never slow")
	}
	// From the oldest id on a watcher can resume, but not from before, nor from the future.
	for since, ok := range map[uint64]bool{writes - 11: false, writes - 10: true, writes: true, writes + 1: false} {
		w, err := r.watch(t, &storagev1.WatchRequest{Since: &since})
		require.Equal(t, ok, err == nil, "since %d: %v", since, err)
		if ok {
			w.end()
			continue
		}
		var lost *HistoryLostError
		require.ErrorAs(t, typed(err), &lost)
		require.Equal(t, since, lost.Since)
	}
}

func TestSelectorsSelectEachKeyOnce(t *testing.T) {
	for _, c := range []struct {
		keys, prefixes []string
		want           []table.Selector
	}{
		{nil, nil, []table.Selector{}},
		{[]string{"b", "a", "b"}, nil, []table.Selector{{Text: "a"}, {Text: "b"}}},
		{[]string{"ab", "a", "b"}, []string{"a", "ab", "abc"}, []table.Selector{{Text: "a", Prefix: true}, {Text: "b"}}},
		{[]string{"a", "ax"}, []string{"aa"}, []table.Selector{{Text: "a"}, {Text: "aa", Prefix: true}, {Text: "ax"}}},
		{[]string{"a"}, []string{"b", ""}, []table.Selector{{Text: "", Prefix: true}}},
	} {
		require.Equal(t, c.want, slices.Clone(selectorsOf(c.keys, c.prefixes)))
	}
}
