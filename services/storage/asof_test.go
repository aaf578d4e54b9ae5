package storage

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/require"

	storagev1 "github.com/raylink/raylink/gen/raylink/storage/v1"
	"github.com/raylink/raylink/gen/raylink/storage/v1/storagev1raylink"
)

// nextChange returns the first change since an id; nil if there is none within a minute.
func nextChange(t *testing.T, c *Client, prefix string, id uint64, opts ...WatchOption) *storagev1.Change {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for change, err := range c.Watch(ctx, prefix, append(opts, Since(id))...) {
		if ctx.Err() == nil {
			require.NoError(t, err)
		}
		return change
	}
	return nil
}

// A read may see a state that has other provisional writes, whose ids are given to other writes if
// their commit fails. It must not claim to have seen those.
func TestReadsDoNotClaimIDsThatAreGivenAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		r, log := slowStorage(t, async)
		defer r.end()
		for _, key := range []string{"a", "b"} {
			_, err := Put(ctx, r.Client, key, 1)
			require.NoError(t, err)
		}
		log.fail(errors.New("no such luck"))
		var all sync.WaitGroup
		all.Go(func() { _, _ = Put(ctx, r.Client, "b", 2) })
		synctest.Wait()
		var got, missing, many, b uint64
		_, err := Get[int](ctx, r.Client, "a", AsOf(&got))
		require.NoError(t, err)
		_, err = GetOr(ctx, r.Client, "none", 0, AsOf(&missing))
		require.NoError(t, err)
		res, err := r.Handle().GetMany(ctx, &storagev1.GetManyRequest{Keys: []string{"a", "none"}})
		require.NoError(t, err)
		many = res.GetAsOf()
		all.Go(func() { // it waits until the write has failed
			n, err := Get[int](ctx, r.Client, "b", AsOf(&b))
			require.NoError(t, err)
			require.Equal(t, 1, n)
		})
		all.Wait()
		log.fail(nil)
		time.Sleep(2 * maxReopen) //nolint:forbidigo // in a bubble of synctest
		require.NoError(t, r.Batch(ctx, PutOp("a", 3), PutOp("b", 3), PutOp("none", 3)))
		for key, id := range map[string][]uint64{"a": {got, many}, "none": {missing, many}, "b": {b}} {
			for _, id := range id {
				require.EqualValues(t, 3, nextChange(t, r.Client, key, id).GetValue().GetInt64Value(), "the next change of %q is missed", key)
			}
		}
	})
}

// TestReadThenWatchHasEachChangeOnce has readers count on with each change of what they have read,
// while it is written.
func TestReadThenWatchHasEachChangeOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		r, _ := slowStorage(t, async)
		defer r.end()
		const readers, each = 8, 25
		var all sync.WaitGroup
		for w := range 4 {
			all.Go(func() {
				for i := 0; ctx.Err() == nil; i++ {
					_ = r.Batch(ctx, AddOp("n", 1), AddOp(fmt.Sprint("other/", w), 1))
				}
			})
		}
		var reading sync.WaitGroup
		for reader := range readers {
			reading.Go(func() {
				for i := range each {
					var asOf uint64
					n, err := 0, error(nil)
					switch (reader + i) % 3 {
					case 0:
						n, err = GetOr(ctx, r.Client, "n", 0, AsOf(&asOf))
					case 1:
						for e, serr := range r.Scan(ctx, "n", AsOf(&asOf)) {
							require.NoError(t, serr)
							n, err = As[int](e)
						}
					case 2:
						var res *storagev1.GetManyResponse
						res, err = r.Handle().GetMany(ctx, &storagev1.GetManyRequest{Keys: []string{"n"}})
						asOf = res.GetAsOf()
						for _, e := range res.GetEntries() {
							n, err = As[int](e)
						}
					}
					require.NoError(t, err)
					seen := 0
					for change, err := range r.Watch(ctx, "n", Since(asOf), AsOf(&asOf)) {
						require.NoError(t, err)
						next, err := As[int](change)
						require.NoError(t, err)
						require.Equal(t, n+1, next)
						require.Equal(t, change.GetId(), asOf)
						if n, seen = next, seen+1; seen == 5 {
							break
						}
					}
				}
			})
		}
		reading.Wait()
		cancel()
		all.Wait()
	})
}

// TestWatchOfAnOldKey watches keys whose last writes are no longer in the history.
func TestWatchOfAnOldKey(t *testing.T) {
	c, ctx := newClient(t, &storagev1.StorageConfig{History: 10}), t.Context()
	id, err := Put(ctx, c, "old", 1)
	require.NoError(t, err)
	_, err = Put(ctx, c, "changed", 1)
	require.NoError(t, err)
	_, err = Put(ctx, c, "changed", 2)
	require.NoError(t, err)
	for i := range 100 {
		_, err := Put(ctx, c, "busy", i)
		require.NoError(t, err)
	}
	var asOf, missing uint64
	_, err = Get[int](ctx, c, "old", AsOf(&asOf))
	require.NoError(t, err)
	require.EqualValues(t, 103, asOf)
	require.ErrorIs(t, GetMessage(ctx, c, "none", nil, AsOf(&missing)), ErrNotFound)
	require.Equal(t, asOf, missing)
	_, err = Put(ctx, c, "old", 2)
	require.NoError(t, err)
	require.EqualValues(t, 2, nextChange(t, c, "old", asOf).GetValue().GetInt64Value())

	lost := func(prefix string, since uint64, exact bool) {
		t.Helper()
		stream, err := c.Handle().Watch(ctx, &storagev1.WatchRequest{Prefix: prefix, Since: &since, Exact: exact})
		require.NoError(t, err)
		_, err = stream.Receive()
		var lost *HistoryLostError
		require.ErrorAs(t, typed(err), &lost)
		require.Equal(t, since, lost.Since)
		require.NoError(t, stream.Close())
	}
	lost("old", id, true)
	lost("changed", 2, true)
	lost("changed", 3, false) // a key with this prefix may have been removed
	lost("none", 0, true)     // it may have been there
	since := uint64(3)
	stream, err := c.Handle().Watch(ctx, &storagev1.WatchRequest{Prefix: "changed", Exact: true, Since: &since})
	require.NoError(t, err)
	res, err := stream.Receive()
	require.NoError(t, err, "it has the key's last change")
	require.EqualValues(t, 104, res.GetId())
	require.NoError(t, stream.Close())
}

// switched is a storage in memory that is started again: its first incarnation, until ended is
// closed, and its second one.
type switched struct {
	storagev1raylink.UnimplementedStorageNode

	first, second *node
	ended         chan struct{}
}

// Watch implements storagev1raylink.StorageNode.
func (s *switched) Watch(ctx context.Context, req *storagev1.WatchRequest, stream storagev1raylink.StorageWatchServerStream) error {
	select {
	case <-s.ended:
		return s.second.Watch(ctx, req, stream)
	default:
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-s.ended:
			cancel(connect.NewError(connect.CodeUnavailable, "the process has ended"))
		case <-ctx.Done():
		}
	}()
	return s.first.Watch(ctx, req, stream)
}

// A storage in memory that was started again has lost what it had. It does not take an id from
// before for one of its own, however many writes it has had since.
func TestRestartInMemoryIsNoticed(t *testing.T) {
	ctx := t.Context()
	incarnation := func(number uint64) (*node, *Client) {
		n, err := newNode(nil, 64<<20, slog.New(slog.DiscardHandler))
		require.NoError(t, err)
		n.startAfter(number)
		return n, New(storagev1raylink.NewLocalStorage(n))
	}
	first, before := incarnation(1)
	second, after := incarnation(2)
	s := &switched{first: first, second: second, ended: make(chan struct{})}
	c := New(storagev1raylink.NewLocalStorage(s))
	id, err := Put(ctx, before, "k", "old")
	require.NoError(t, err)
	require.EqualValues(t, 1, id, "the first incarnation's ids are short")

	var lost *HistoryLostError
	yielded := 0
	for change, err := range c.Watch(ctx, "k", Since(0)) {
		if err != nil {
			require.ErrorAs(t, err, &lost)
			requireCode(t, connect.CodeOutOfRange, err, "started again", "only in memory")
			continue
		}
		require.Equal(t, id, change.GetId())
		yielded++
		for i := range 10 { // more than the first incarnation had
			_, err := Put(ctx, after, "k", i)
			require.NoError(t, err)
		}
		close(s.ended)
	}
	require.NotNil(t, lost, "it ended without an error")
	require.Equal(t, 1, yielded)
	require.Equal(t, []uint64{id, 1 << 40, 1<<40 + 10}, []uint64{lost.Since, lost.Oldest, lost.Newest})

	// So does what a program has kept.
	for _, exact := range [][]WatchOption{nil, {Exact()}} {
		for _, err := range c.Watch(ctx, "k", append(exact, Since(id))...) {
			require.ErrorAs(t, err, &lost)
		}
	}
	var condition *ConditionError
	_, err = Put(ctx, after, "k", "new", IfID(id))
	require.ErrorAs(t, err, &condition)
	has, err := after.ID(ctx, "k")
	require.NoError(t, err)
	require.Greater(t, has, id)
	require.EqualValues(t, 9, nextChange(t, c, "k", lost.Newest-1).GetValue().GetInt64Value(), "it goes on from what the error says")
}
