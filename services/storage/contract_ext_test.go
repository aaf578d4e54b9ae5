package storage_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/raylink/raylink"
	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	storagev1 "github.com/raylink/raylink/gen/raylink/storage/v1"
	"github.com/raylink/raylink/gen/raylink/storage/v1/storagev1raylink"
	"github.com/raylink/raylink/join"
	"github.com/raylink/raylink/runtime"
	"github.com/raylink/raylink/services/storage"
)

const (
	contractKeys    = 3000
	contractHistory = 8000
)

// opener creates a storage with the bounds above, on the disk, and returns a client that reaches it
// over the way under test.
type opener func(t *testing.T) *storage.Client

// ways are the ways by which a client reaches a storage.
var ways = map[string]func(t *testing.T) opener{
	"in one process": func(t *testing.T) opener {
		t.Helper()
		rt := start(t)
		return func(t *testing.T) *storage.Client {
			t.Helper()
			return storage.New(create(t, rt))
		}
	},
	"tunnel by Unix": func(t *testing.T) opener {
		t.Helper()
		rt := start(t)
		other := joined(t, rt)
		return func(t *testing.T) *storage.Client {
			t.Helper()
			return from(t, other, create(t, rt).Ref().NodeRef())
		}
	},
	"tunnel by TCP": func(t *testing.T) opener {
		t.Helper()
		rt := start(t)
		other := joined(t, rt)
		require.NoError(t, os.Remove(create(t, rt).Ref().NodeRef().GetHost().GetSocket()))
		return func(t *testing.T) *storage.Client {
			t.Helper()
			return from(t, other, create(t, rt).Ref().NodeRef())
		}
	},
	"tunnel of its own": func(t *testing.T) opener {
		t.Helper()
		rt := start(t)
		return func(t *testing.T) *storage.Client {
			t.Helper()
			info, err := create(t, rt).Ref().CreateTunnel(t.Context(), "mine")
			require.NoError(t, err)
			tunnel, err := runtime.DialTunnel(t.Context(), info, "")
			require.NoError(t, err)
			t.Cleanup(func() { _ = tunnel.Close() })
			return storage.New(storagev1raylink.NewStorageTunnel(tunnel.Client()))
		}
	},
	"HTTP, 1.1":          wayHTTP(false, true),
	"HTTP, h2c, JSON":    wayHTTP(false, false, connecthttp.WithProtoJSON()),
	"HTTP, h2c, gateway": wayHTTP(true, false),
	"gRPC, gateway":      wayHTTP(true, false, connecthttp.WithGRPC()),
	"gRPC-Web":           wayHTTP(false, false, connecthttp.WithGRPCWeb()),
}

// wayHTTP is HTTP, to the node's host or through Brain's gateway.
func wayHTTP(gateway, http1 bool, options ...connecthttp.Option) func(t *testing.T) opener {
	return func(t *testing.T) opener {
		t.Helper()
		brain := start(t)
		host := joined(t, brain)
		address := host.Address()
		if gateway {
			address = brain.Address()
		}
		return func(t *testing.T) *storage.Client {
			t.Helper()
			protocols := new(http.Protocols)
			protocols.SetHTTP1(http1)
			protocols.SetUnencryptedHTTP2(!http1)
			transport := &http.Transport{Protocols: protocols}
			t.Cleanup(transport.CloseIdleConnections)
			all := append([]connecthttp.Option{connecthttp.WithReadMaxBytes(64 << 20)}, options...)
			return storage.New(storagev1raylink.NewStorageTunnel(connect.NewClient(connecthttp.NewTransport(
				runtime.HTTPClient(&http.Client{Transport: transport}), "http://"+address+"/"+create(t, host).Ref().Path(), all...))))
		}
	}
}

func start(t *testing.T) *raylink.Runtime {
	t.Helper()
	rt, err := raylink.Start(t.Context(), raylink.WithData(t.TempDir()))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, rt.Close()) })
	return rt
}

func joined(t *testing.T, rt *raylink.Runtime) *join.Runtime {
	t.Helper()
	other, err := join.Start(t.Context(), runtime.WithBrain(rt.Address()), runtime.WithData(t.TempDir()))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, other.Close()) })
	return other
}

func create(t *testing.T, parent runtime.Parent) *storagev1raylink.Storage {
	t.Helper()
	node, err := storagev1raylink.CreateStorage(t.Context(), parent, &storagev1.StorageConfig{
		Durability: storagev1.Durability_DURABILITY_ASYNC, MaxKeys: contractKeys, History: contractHistory, HistoryBytes: 64 << 20,
	}, runtime.ParentProcess())
	require.NoError(t, err)
	return node
}

func from(t *testing.T, finder runtime.Finder, ref *nodev1.NodeRef) *storage.Client {
	t.Helper()
	node, err := storagev1raylink.StorageFrom(finder, ref)
	require.NoError(t, err)
	return storage.New(node)
}

// TestClient has all functions of the client, and all errors, behave the same on every way.
func TestClient(t *testing.T) {
	t.Parallel()
	for name, way := range ways {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			open := way(t)
			for _, test := range []struct {
				name string
				run  func(t *testing.T, c *storage.Client)
			}{
				{"values keep their type", testValues},
				{"puts have conditions, a time and a durability", testPuts},
				{"numbers, texts and batches change atomically", testChanges},
				{"several keys are read", testReads},
				{"errors keep their type and fields", testErrors},
				{"a watch misses nothing", testWatch},
				{"a watch goes on within a batch", testLargeBatch},
				{"entries are saved and loaded", testSave},
				{"values belong to their callers", testOwnership},
			} {
				t.Run(test.name, func(t *testing.T) { test.run(t, open(t)) })
			}
		})
	}
}

func roundTrip[T storage.Value](t *testing.T, c *storage.Client, values ...T) {
	t.Helper()
	for _, value := range values {
		_, err := storage.Put(t.Context(), c, "value", value)
		require.NoError(t, err)
		got, err := storage.Get[T](t.Context(), c, "value")
		require.NoError(t, err)
		require.Equal(t, value, got)
	}
}

func testValues(t *testing.T, c *storage.Client) {
	ctx := t.Context()
	roundTrip[int64](t, c, 0, math.MinInt64, math.MaxInt64)
	roundTrip(t, c, -1)
	roundTrip(t, c, 0, 0.1, math.Inf(-1), math.MaxFloat64)
	roundTrip(t, c, false, true)
	roundTrip(t, c, "", "é\x00<")
	roundTrip(t, c, []byte("\x00\xff"), make([]byte, 1<<20))
	json, err := structpb.NewValue(map[string]any{"a": []any{nil, true, 1.5, "x"}})
	require.NoError(t, err)
	for _, value := range []*structpb.Value{json, structpb.NewNullValue(), structpb.NewStringValue("")} {
		_, err := storage.Put(ctx, c, "json", value)
		require.NoError(t, err)
		got, err := storage.Get[*structpb.Value](ctx, c, "json")
		require.NoError(t, err)
		require.True(t, proto.Equal(value, got), "%v", got)
	}
	message := &storagev1.Entry{Key: "k", Id: math.MaxUint64}
	_, err = storage.PutMessage(ctx, c, "message", message)
	require.NoError(t, err)
	got := new(storagev1.Entry)
	require.NoError(t, storage.GetMessage(ctx, c, "message", got))
	require.True(t, proto.Equal(message, got))
	missing, err := storage.GetOr(ctx, c, "none", 7)
	require.NoError(t, err)
	require.Equal(t, 7, missing)
}

func testPuts(t *testing.T, c *storage.Client) {
	ctx := t.Context()
	id, err := storage.Put(ctx, c, "k", 1, storage.IfAbsent())
	require.NoError(t, err)
	require.EqualValues(t, 1, id)
	next, err := storage.Put(ctx, c, "k", 2, storage.IfID(id), storage.Sync())
	require.NoError(t, err)
	require.EqualValues(t, 2, next)
	before := time.Now()
	_, err = storage.Put(ctx, c, "brief", 3, storage.TTL(time.Hour))
	require.NoError(t, err)
	e, err := c.Entry(ctx, "brief")
	require.NoError(t, err)
	require.WithinRange(t, e.GetExpires().AsTime(), before.Add(time.Hour), time.Now().Add(time.Hour))
	_, err = storage.Put(ctx, c, "over", 3, storage.TTL(time.Millisecond))
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		has, err := c.Has(ctx, "over")
		return err == nil && !has
	}, 20*time.Second, time.Millisecond)
	deleted, err := c.Delete(ctx, "k", storage.IfID(next), storage.Sync())
	require.NoError(t, err)
	require.True(t, deleted)
	deleted, err = c.Delete(ctx, "k")
	require.NoError(t, err)
	require.False(t, deleted)
	id, err = c.ID(ctx, "k")
	require.NoError(t, err)
	require.Zero(t, id)
}

func testChanges(t *testing.T, c *storage.Client) {
	ctx := t.Context()
	n, err := storage.Add(ctx, c, "n", int64(math.MaxInt64), storage.Sync())
	require.NoError(t, err)
	require.EqualValues(t, math.MaxInt64, n)
	x, err := storage.AddFrom(ctx, c, "x", 1.5, 0.25)
	require.NoError(t, err)
	require.InDelta(t, 1.75, x, 0)
	best, err := storage.Update(ctx, c, "best", func(old float64) (float64, error) { return max(old, 3), nil }, storage.TTL(time.Hour))
	require.NoError(t, err)
	require.InDelta(t, 3, best, 0)
	text, err := storage.UpdateFrom(ctx, c, "text", "a", func(old string) (string, error) { return old + "b", nil })
	require.NoError(t, err)
	require.Equal(t, "ab", text)
	size, err := storage.Append(ctx, c, "text", "cd", storage.Sync())
	require.NoError(t, err)
	require.EqualValues(t, 4, size)
	_, err = storage.Append(ctx, c, "log", []byte("\xff"))
	require.NoError(t, err)

	ids, err := c.BatchIDs(ctx,
		storage.PutOp("put", true, storage.IfAbsent()), storage.DeleteOp("none"), storage.DeleteOp("n"), storage.AddOp("x", 0.25),
		storage.AppendOp("log", []byte("x")), storage.PutMessageOp("message", &storagev1.Entry{Key: "k"}), storage.Sync())
	require.NoError(t, err)
	last, err := c.LastID(ctx)
	require.NoError(t, err)
	require.Equal(t, []uint64{last - 4, 0, last - 3, last - 2, last - 1, last}, ids)
	log, err := storage.Get[[]byte](ctx, c, "log")
	require.NoError(t, err)
	require.Equal(t, "\xffx", string(log))
	require.NoError(t, c.Batch(ctx))
}

func testReads(t *testing.T, c *storage.Client) {
	ctx := t.Context()
	const keys = 1200 // more than a page
	var ops []storage.Op
	var want []string
	for i := range keys {
		want = append(want, fmt.Sprintf("run/%04d", i))
		ops = append(ops, storage.PutOp(want[i], i))
	}
	require.NoError(t, c.Batch(ctx, append(ops, storage.PutOp("before", 1), storage.PutOp("zero", 1))...))
	values, err := storage.GetMany[int](ctx, c, "run/0007", "none", "run/0003")
	require.NoError(t, err)
	require.Equal(t, map[string]int{"run/0007": 7, "run/0003": 3}, values)
	for _, reverse := range []bool{false, true} {
		var asOf uint64
		opts := []storage.ScanOption{storage.AsOf(&asOf)}
		if reverse {
			opts = append(opts, storage.Reverse())
			slices.Reverse(want)
		}
		var got []string
		for e, err := range c.Scan(ctx, "run/", opts...) {
			require.NoError(t, err)
			got = append(got, e.GetKey())
		}
		require.Equal(t, want, got)
		require.EqualValues(t, keys+2, asOf)
	}
	page, err := c.Handle().List(ctx, &storagev1.ListRequest{Prefix: "run/", PageSize: 2})
	require.NoError(t, err)
	require.Len(t, page.GetEntries(), 2)
	page, err = c.Handle().List(ctx, &storagev1.ListRequest{Prefix: "run/", PageSize: 1, PageToken: page.GetNextPageToken()})
	require.NoError(t, err)
	require.Equal(t, "run/0002", page.GetEntries()[0].GetKey())
	count := 0
	for _, err := range c.All(ctx, "") {
		require.NoError(t, err)
		count++
	}
	require.Equal(t, keys+2, count)
}

// as returns an error as one of the typed ones, which must have a code.
func as[E error](t *testing.T, err error, code connect.Code) E {
	t.Helper()
	var typed E
	require.ErrorAs(t, err, &typed)
	assert.Equal(t, code, connect.CodeOf(err), "%v", err)
	return typed
}

func testErrors(t *testing.T, c *storage.Client) {
	ctx := t.Context()
	id, err := storage.Put(ctx, c, "k", math.MaxInt64)
	require.NoError(t, err)

	_, err = storage.Get[int](ctx, c, "none")
	require.ErrorIs(t, err, storage.ErrNotFound)
	assert.Equal(t, connect.CodeNotFound, connect.CodeOf(err))
	require.ErrorContains(t, err, `"k"`, "it names keys that exist")

	_, err = storage.Put(ctx, c, "k", 1, storage.IfAbsent())
	condition := as[*storage.ConditionError](t, err, connect.CodeAborted)
	assert.Equal(t, []any{"k", id, uint64(0)}, []any{condition.Key, condition.ID, condition.Want})
	_, err = c.Delete(ctx, "none", storage.IfID(9))
	condition = as[*storage.ConditionError](t, err, connect.CodeAborted)
	assert.Equal(t, []any{"none", uint64(0), uint64(9)}, []any{condition.Key, condition.ID, condition.Want})

	_, err = storage.Add(ctx, c, "k", 0.5)
	wrong := as[*storage.TypeError](t, err, connect.CodeFailedPrecondition)
	assert.Equal(t, []any{"k", "int64", "double"}, []any{wrong.Key, wrong.Has, wrong.Want})
	_, err = storage.Append(ctx, c, "k", "text")
	wrong = as[*storage.TypeError](t, err, connect.CodeFailedPrecondition)
	assert.Equal(t, []any{"k", "int64", "string"}, []any{wrong.Key, wrong.Has, wrong.Want})
	_, err = storage.Get[string](ctx, c, "k")
	require.ErrorAs(t, err, &wrong)
	assert.Equal(t, []any{"k", "int64", "string"}, []any{wrong.Key, wrong.Has, wrong.Want})

	_, err = storage.Add(ctx, c, "k", 1)
	assert.Equal(t, "k", as[*storage.RangeError](t, err, connect.CodeOutOfRange).Key)

	err = c.Batch(ctx, storage.Sync(), storage.PutOp("new", 1), storage.AddOp("k", 1))
	failed := as[*storage.BatchError](t, err, connect.CodeOutOfRange)
	assert.Equal(t, []any{1, "k"}, []any{failed.Index, failed.Key})
	assert.Equal(t, "k", as[*storage.RangeError](t, err, connect.CodeOutOfRange).Key)
	err = c.Batch(ctx, storage.PutOp("new", 1), storage.DeleteOp("k", storage.IfID(id+1)))
	failed = as[*storage.BatchError](t, err, connect.CodeAborted)
	assert.Equal(t, 1, failed.Index)
	condition = as[*storage.ConditionError](t, err, connect.CodeAborted)
	assert.Equal(t, []any{"k", id, id + 1}, []any{condition.Key, condition.ID, condition.Want})

	_, err = storage.Put(ctx, c, strings.Repeat("k", 5000), 1)
	limit := as[*storage.LimitError](t, err, connect.CodeInvalidArgument)
	assert.Equal(t, []any{"key bytes", uint64(4096), uint64(5000)}, []any{limit.Limit, limit.Max, limit.Need})
	_, err = c.Entries(ctx, make([]string, 10001)...)
	limit = as[*storage.LimitError](t, err, connect.CodeInvalidArgument)
	assert.Equal(t, []any{"operations", uint64(10000), uint64(10001)}, []any{limit.Limit, limit.Max, limit.Need})
	var ops []storage.Op
	for i := range contractKeys {
		ops = append(ops, storage.PutOp(fmt.Sprint("many/", i), i))
	}
	limit = as[*storage.LimitError](t, c.Batch(ctx, ops...), connect.CodeResourceExhausted)
	assert.Equal(t, []any{"keys", uint64(contractKeys), uint64(contractKeys + 1)}, []any{limit.Limit, limit.Max, limit.Need})

	for _, err := range c.Watch(ctx, "", storage.Since(1<<50)) {
		lost := as[*storage.HistoryLostError](t, err, connect.CodeOutOfRange)
		assert.Equal(t, []any{uint64(1 << 50), uint64(0), id}, []any{lost.Since, lost.Oldest, lost.Newest})
	}
	_, err = storage.Put(ctx, c, "k", 1, storage.TTL(0))
	assert.Equal(t, connect.CodeInvalidArgument, connect.CodeOf(err))
	_, err = c.Handle().List(ctx, &storagev1.ListRequest{PageSize: -1})
	assert.Equal(t, connect.CodeInvalidArgument, connect.CodeOf(err))

	// None of them has changed anything.
	for e, err := range c.All(ctx, "") {
		require.NoError(t, err)
		assert.Equal(t, []any{"k", id}, []any{e.GetKey(), e.GetId()})
	}
	last, err := c.LastID(ctx)
	require.NoError(t, err)
	assert.Equal(t, id, last)
}

func testWatch(t *testing.T, c *storage.Client) {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	_, err := storage.Put(ctx, c, "old", 1)
	require.NoError(t, err)
	for range 9 { // the old one leaves the history
		var ops []storage.Op
		for i := range 1000 {
			ops = append(ops, storage.PutOp(fmt.Sprint("other/", i), i))
		}
		require.NoError(t, c.Batch(ctx, ops...))
	}
	var asOf, missing uint64
	old, err := c.Entry(ctx, "old", storage.AsOf(&asOf))
	require.NoError(t, err)
	require.EqualValues(t, 1, old.GetId())
	_, err = storage.Get[string](ctx, c, "new", storage.AsOf(&missing))
	require.ErrorIs(t, err, storage.ErrNotFound)
	_, err = storage.Put(ctx, c, "old", 2)
	require.NoError(t, err)
	_, err = storage.Put(ctx, c, "new", "x", storage.TTL(100*time.Millisecond))
	require.NoError(t, err)
	_, err = c.Delete(ctx, "old")
	require.NoError(t, err)

	var got []string
	for change, err := range c.Watch(ctx, "old", storage.Exact(), storage.Since(asOf), storage.AsOf(&asOf)) {
		require.NoError(t, err)
		require.Equal(t, change.GetId(), asOf)
		if got = append(got, storage.TypeName(change.GetValue())); len(got) == 2 {
			break
		}
	}
	require.Equal(t, []string{"int64", "nothing"}, got)
	for change, err := range c.Watch(ctx, "new", storage.Since(missing)) {
		require.NoError(t, err)
		if change.GetValue() == nil {
			require.True(t, change.GetExpired())
			break
		}
		text, err := storage.As[string](change)
		require.NoError(t, err)
		require.Equal(t, "x", text)
	}
	for _, err := range c.Watch(ctx, "old", storage.Since(old.GetId())) {
		require.EqualValues(t, 1, as[*storage.HistoryLostError](t, err, connect.CodeOutOfRange).Since)
	}

	// Changes that happen while it waits.
	at, err := c.LastID(ctx)
	require.NoError(t, err)
	next := 0
	go func() { _, _ = storage.Put(ctx, c, "live/", 0) }()
	for change, err := range c.Watch(ctx, "live/", storage.Since(at)) {
		require.NoError(t, err)
		n, err := storage.As[int](change)
		require.NoError(t, err)
		require.Equal(t, next, n)
		if next++; next == 10 {
			break
		}
		_, err = storage.Put(ctx, c, "live/", next)
		require.NoError(t, err)
	}
	cancel()
	for _, err := range c.Watch(ctx, "") {
		require.ErrorIs(t, err, context.Canceled)
	}
}

// testLargeBatch watches a batch that no response can hold whole.
func testLargeBatch(t *testing.T, c *storage.Client) {
	ctx := t.Context()
	const writes, size = 1500, 5000 // 1024 of them are more than a response has, and so are 4 MiB
	_, err := storage.Put(ctx, c, "first", 1)
	require.NoError(t, err)
	var ops []storage.Op
	for i := range writes - 1 {
		ops = append(ops, storage.PutOp(fmt.Sprint("part/", i), make([]byte, size)))
	}
	ids, err := c.BatchIDs(ctx, append(ops, storage.PutOp("part/end", writes))...)
	require.NoError(t, err)

	stream, err := c.Handle().Watch(ctx, &storagev1.WatchRequest{Since: proto.Uint64(1)})
	require.NoError(t, err)
	responses, seen := 0, 0
	for seen < writes {
		res, err := stream.Receive()
		require.NoError(t, err)
		if len(res.GetChanges()) == 0 {
			continue
		}
		responses++
		seen += len(res.GetChanges())
		require.Equal(t, ids[seen-1], res.GetId(), "a watcher that resumes from here misses nothing")
	}
	require.NoError(t, stream.Close())
	require.Greater(t, responses, 2, "the batch is not a large one")

	// The iteration ends after each of some changes, and the next one goes on.
	at, next := uint64(1), 0
	for done := false; !done; {
		stop := next + 1 + next%3*400
		for change, err := range c.Watch(ctx, "", storage.Since(at)) {
			require.NoError(t, err)
			require.Equal(t, ids[next], change.GetId())
			if next == 0 { // all of it can be read already
				end, err := storage.Get[int](ctx, c, "part/end")
				require.NoError(t, err)
				require.Equal(t, writes, end)
			}
			at, next = change.GetId(), next+1
			if done = change.GetKey() == "part/end"; done || next >= stop {
				break
			}
		}
	}
	require.Equal(t, writes, next)
}

func testSave(t *testing.T, c *storage.Client) {
	ctx, directory := t.Context(), t.TempDir()
	require.NoError(t, c.Batch(ctx, storage.PutOp("config", 1), storage.PutOp("run/1", []byte("\xff")), storage.PutOp("other", "x"),
		storage.PutMessageOp("run/2", &storagev1.Entry{Key: "k"}), storage.PutOp("run/3", strings.Repeat("x", 5<<20))))
	saved, err := c.Save(ctx, directory, storage.Keys("config"), storage.Prefix("run/"))
	require.NoError(t, err)
	require.Equal(t, storage.Saved{Entries: 4, ID: 5}, saved)
	before, err := c.Entries(ctx, "config", "other", "run/1", "run/2", "run/3")
	require.NoError(t, err)
	for _, key := range []string{"config", "run/1", "run/2", "run/3"} {
		_, err := c.Delete(ctx, key)
		require.NoError(t, err)
	}
	loaded, err := c.Load(ctx, directory, storage.Sync())
	require.NoError(t, err)
	require.EqualValues(t, 4, loaded.Entries)
	after, err := c.Entries(ctx, "config", "other", "run/1", "run/2", "run/3")
	require.NoError(t, err)
	require.Len(t, after, len(before))
	for i := range before {
		require.True(t, proto.Equal(before[i].GetValue(), after[i].GetValue()))
	}
	_, err = c.Save(ctx, directory, storage.Keys("none"))
	require.ErrorIs(t, err, storage.ErrNotFound)
	_, err = c.Load(ctx, directory, storage.Keys("none"))
	require.ErrorIs(t, err, storage.ErrNotFound)
	var file *storage.DamagedFileError
	require.NoError(t, os.Truncate(directory+"/storage.jsonl", 100))
	_, err = c.Load(ctx, directory)
	require.ErrorAs(t, err, &file)
}

// testOwnership modifies what was put and got.
func testOwnership(t *testing.T, c *storage.Client) {
	ctx := t.Context()
	stored := func(key string, want string) {
		t.Helper()
		for range 2 { // what is got is modified too
			got, err := storage.Get[[]byte](ctx, c, key)
			require.NoError(t, err)
			require.Equal(t, want, string(got), key)
			clear(got)
		}
	}
	buffer := []byte("abc")
	reuse := func(text string) { copy(buffer, text) }
	_, err := storage.Put(ctx, c, "put", buffer)
	require.NoError(t, err)
	ops := []storage.Op{storage.PutOp("batch", buffer), storage.AppendOp("batch", buffer)}
	reuse("xyz")
	stored("put", "abc")
	require.NoError(t, c.Batch(ctx, ops...))
	require.NoError(t, c.Batch(ctx, ops...), "operations can be used again")
	stored("batch", "abcabc")
	_, err = storage.Append(ctx, c, "put", buffer)
	require.NoError(t, err)
	reuse("...")
	stored("put", "abcxyz")
	got, err := storage.GetOr(ctx, c, "none", buffer)
	require.NoError(t, err)
	clear(got)
	require.Equal(t, "...", string(buffer))
	_, err = storage.Update(ctx, c, "put", func(old []byte) ([]byte, error) { old[0] = 'A'; return old, errors.New("no") })
	require.EqualError(t, err, "no")
	stored("put", "abcxyz")
	updated, err := storage.Update(ctx, c, "put", func(old []byte) ([]byte, error) { old[0] = 'A'; return old, nil })
	require.NoError(t, err)
	clear(updated)
	stored("put", "Abcxyz")

	value := &storagev1.Value{Kind: &storagev1.Value_BytesValue{BytesValue: []byte("abc")}}
	over, cancel := context.WithCancel(ctx)
	cancel()
	_, err = c.PutValue(over, "value", value)
	require.ErrorIs(t, err, context.Canceled)
	clear(value.GetBytesValue()) // also if the call has ended early
	_, err = c.PutValue(ctx, "value", value)
	require.NoError(t, err)
	copy(value.GetBytesValue(), "xyz")
	stored("value", "\x00\x00\x00")

	message := &storagev1.Entry{Key: "k"}
	_, err = storage.PutMessage(ctx, c, "message", message)
	require.NoError(t, err)
	message.Key = "changed"
	json := structpb.NewStringValue("abc")
	_, err = storage.Put(ctx, c, "json", json)
	require.NoError(t, err)
	json.Kind = &structpb.Value_BoolValue{}
	for range 2 {
		message := new(storagev1.Entry)
		require.NoError(t, storage.GetMessage(ctx, c, "message", message))
		require.Equal(t, "k", message.GetKey())
		message.Key = "changed"
		json, err := storage.Get[*structpb.Value](ctx, c, "json")
		require.NoError(t, err)
		require.Equal(t, "abc", json.GetStringValue())
		json.Kind = &structpb.Value_BoolValue{}
		many, err := storage.GetMany[[]byte](ctx, c, "put", "batch")
		require.NoError(t, err)
		require.Equal(t, "Abcxyz", string(many["put"]))
		clear(many["put"])
		for e, err := range c.Scan(ctx, "put") {
			require.NoError(t, err)
			got, err := storage.As[[]byte](e)
			require.NoError(t, err)
			require.Equal(t, "Abcxyz", string(got))
			clear(got)
		}
		for change, err := range c.Watch(ctx, "put", storage.Since(0)) {
			require.NoError(t, err)
			got, err := storage.As[[]byte](change)
			require.NoError(t, err)
			require.Equal(t, "abc", string(got))
			clear(got)
			break
		}
	}
}
