package storage

import (
	"context"
	"math"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"

	storagev1 "github.com/raylink/raylink/gen/raylink/storage/v1"
)

func jsonValue(v *structpb.Value) *storagev1.Value {
	return &storagev1.Value{Kind: &storagev1.Value_JsonValue{JsonValue: v}}
}

// Bad input is one error with a code, which names what was asked, and the state is as before.
func TestBadInput(t *testing.T) {
	const maxMessage = 1 << 20
	ctx := t.Context()
	c := newSized(t, &storagev1.StorageConfig{MaxKeys: 3}, maxMessage)
	h := c.Handle()
	for key, value := range map[string]*storagev1.Value{"n": valueOf(int64(math.MaxInt64)), "s": valueOf("text"), "big": valueOf(make([]byte, 900<<10))} {
		_, err := h.Put(ctx, &storagev1.PutRequest{Key: key, Value: value})
		require.NoError(t, err)
	}
	state := func() *storagev1.ListResponse {
		res, err := h.List(ctx, nil)
		require.NoError(t, err)
		return res
	}
	before := state()
	put := func(r *storagev1.PutRequest) error { _, err := h.Put(ctx, r); return err }
	deep := structpb.NewNullValue()
	for range maxJSONDepth + 1 {
		deep = structpb.NewListValue(&structpb.ListValue{Values: []*structpb.Value{deep}})
	}
	op := func(r *storagev1.PutRequest) *storagev1.Op {
		return &storagev1.Op{Kind: &storagev1.Op_Put{Put: r}}
	}
	batch := func(ops ...*storagev1.Op) error {
		_, err := h.Batch(ctx, &storagev1.BatchRequest{Ops: ops})
		return err
	}
	grow := &storagev1.Op{Kind: &storagev1.Op_Append{Append: &storagev1.AppendRequest{Key: "big", Value: valueOf(make([]byte, 1000))}}}
	watch := func(r *storagev1.WatchRequest) error {
		stream, err := h.Watch(ctx, r)
		require.NoError(t, err)
		_, err = stream.Receive()
		return err
	}
	for name, bad := range map[string]struct {
		do    func() error
		code  connect.Code
		texts []string
	}{
		"unknown key": {
			func() error { _, err := h.Get(ctx, &storagev1.GetRequest{Key: "run/x"}); return err },
			connect.CodeNotFound,
			[]string{`"run/x"`, `"big"`, `"n"`},
		},
		"no key":   {func() error { return put(&storagev1.PutRequest{Value: valueOf(1)}) }, connect.CodeInvalidArgument, []string{"empty"}},
		"long key": {func() error { return put(&storagev1.PutRequest{Key: strings.Repeat("k", 5000), Value: valueOf(1)}) }, connect.CodeInvalidArgument, []string{"4096", "5000"}},
		"no value": {func() error { return put(&storagev1.PutRequest{Key: "n"}) }, connect.CodeInvalidArgument, []string{`"n"`}},
		"no message": {func() error {
			return put(&storagev1.PutRequest{Key: "n", Value: &storagev1.Value{Kind: &storagev1.Value_MessageValue{}}})
		}, connect.CodeInvalidArgument, []string{`"n"`}},
		"NaN in JSON": {func() error {
			return put(&storagev1.PutRequest{Key: "n", Value: jsonValue(structpb.NewNumberValue(math.NaN()))})
		}, connect.CodeInvalidArgument, []string{"NaN"}},
		"nothing in JSON": {func() error {
			return put(&storagev1.PutRequest{Key: "n", Value: jsonValue(structpb.NewListValue(&structpb.ListValue{Values: []*structpb.Value{nil}}))})
		}, connect.CodeInvalidArgument, []string{"without a value"}},
		"text in JSON": {func() error {
			return put(&storagev1.PutRequest{Key: "n", Value: jsonValue(structpb.NewStructValue(&structpb.Struct{Fields: map[string]*structpb.Value{"\xff": structpb.NewNullValue()}}))})
		}, connect.CodeInvalidArgument, []string{"UTF-8"}},
		"deep JSON": {func() error { return put(&storagev1.PutRequest{Key: "n", Value: jsonValue(deep)}) }, connect.CodeInvalidArgument, []string{"1000"}},
		"type URL": {func() error {
			return put(&storagev1.PutRequest{Key: "n", Value: &storagev1.Value{Kind: &storagev1.Value_MessageValue{MessageValue: &anypb.Any{TypeUrl: "\xff"}}}})
		}, connect.CodeInvalidArgument, []string{"UTF-8"}},
		"negative ttl": {func() error {
			return put(&storagev1.PutRequest{Key: "n", Value: valueOf(1), Ttl: durationpb.New(-time.Second)})
		}, connect.CodeInvalidArgument, []string{"-1s"}},
		"zero ttl": {func() error { return put(&storagev1.PutRequest{Key: "n", Value: valueOf(1), Ttl: durationpb.New(0)}) }, connect.CodeInvalidArgument, []string{"positive"}},
		"endless ttl": {func() error {
			return put(&storagev1.PutRequest{Key: "n", Value: valueOf(1), Ttl: &durationpb.Duration{Seconds: math.MaxInt64}})
		}, connect.CodeInvalidArgument, []string{"too long"}},
		"no condition": {func() error {
			return put(&storagev1.PutRequest{Key: "n", Value: valueOf(1), Condition: &storagev1.Condition{}})
		}, connect.CodeInvalidArgument, []string{"requires nothing"}},
		"not absent": {func() error {
			return put(&storagev1.PutRequest{Key: "n", Value: valueOf(1), Condition: &storagev1.Condition{Kind: &storagev1.Condition_Absent{}}})
		}, connect.CodeInvalidArgument, []string{"false"}},
		"too many keys": {func() error { return put(&storagev1.PutRequest{Key: "fourth", Value: valueOf(1)}) }, connect.CodeResourceExhausted, []string{"3 keys"}},
		"append to int": {
			func() error {
				_, err := h.Append(ctx, &storagev1.AppendRequest{Key: "n", Value: valueOf("x")})
				return err
			},
			connect.CodeFailedPrecondition,
			[]string{"int64", "string"},
		},
		"append an int": {
			func() error {
				_, err := h.Append(ctx, &storagev1.AppendRequest{Key: "s", Value: valueOf(1)})
				return err
			},
			connect.CodeInvalidArgument,
			[]string{"int64"},
		},
		"append too much": {func() error {
			_, err := h.Append(ctx, &storagev1.AppendRequest{Key: "big", Value: valueOf(make([]byte, 200<<10))})
			return err
		}, connect.CodeInvalidArgument, []string{`"big"`, "would not fit"}},
		"overflow in a batch": {func() error {
			return batch(op(&storagev1.PutRequest{Key: "s", Value: valueOf(1)}), &storagev1.Op{Kind: &storagev1.Op_Add{Add: &storagev1.IncrRequest{Key: "n"}}})
		}, connect.CodeOutOfRange, []string{"operation 1", `"n"`}},
		"too many keys in a batch": {func() error {
			return batch(op(&storagev1.PutRequest{Key: "s", Value: valueOf(1)}), op(&storagev1.PutRequest{Key: "t", Value: valueOf(1)}))
		}, connect.CodeResourceExhausted, []string{"3 keys"}},
		"bad value in a batch": {
			func() error {
				return batch(op(&storagev1.PutRequest{Key: "s", Value: valueOf(1)}), op(&storagev1.PutRequest{Key: "t"}))
			},
			connect.CodeInvalidArgument,
			[]string{"operation 1", `"t"`},
		},
		"empty operation": {func() error { return batch(&storagev1.Op{}) }, connect.CodeInvalidArgument, []string{"operation 0"}},
		"large batch":     {func() error { return batch(grow, grow, grow) }, connect.CodeInvalidArgument, []string{"operation 1", "1048576"}},
		"long batch":      {func() error { return batch(make([]*storagev1.Op, maxOps+1)...) }, connect.CodeInvalidArgument, []string{"10001"}},
		"many keys": {func() error {
			_, err := h.GetMany(ctx, &storagev1.GetManyRequest{Keys: make([]string, maxOps+1)})
			return err
		}, connect.CodeInvalidArgument, []string{"10001"}},
		"large response": {func() error {
			_, err := h.GetMany(ctx, &storagev1.GetManyRequest{Keys: []string{"big", "big"}})
			return err
		}, connect.CodeResourceExhausted, []string{"fewer"}},
		"negative page":    {func() error { _, err := h.List(ctx, &storagev1.ListRequest{PageSize: -1}); return err }, connect.CodeInvalidArgument, []string{"-1"}},
		"watch a bad key":  {func() error { return watch(&storagev1.WatchRequest{Exact: true}) }, connect.CodeInvalidArgument, []string{"empty"}},
		"watch a bad text": {func() error { return watch(&storagev1.WatchRequest{Prefix: "\xff"}) }, connect.CodeInvalidArgument, []string{"UTF-8"}},
		"watch the future": {func() error { return watch(&storagev1.WatchRequest{Since: proto.Uint64(99)}) }, connect.CodeOutOfRange, []string{"99", "0 to 3"}},
		"import too many": {func() error {
			stream, err := h.Import(ctx)
			require.NoError(t, err)
			for _, key := range []string{"s", "t"} {
				require.NoError(t, stream.Send(&storagev1.ImportRequest{Entries: []*storagev1.Entry{{Key: key, Value: valueOf(1)}}}))
			}
			_, err = stream.CloseAndReceive()
			return err
		}, connect.CodeResourceExhausted, []string{"3 keys"}},
	} {
		t.Run(name, func(t *testing.T) {
			requireCode(t, bad.code, bad.do(), bad.texts...)
			require.True(t, proto.Equal(before, state()), "the state has changed")
		})
	}
}

func TestBadConfigurations(t *testing.T) {
	for text, config := range map[string]*storagev1.StorageConfig{
		"no durability 9": {Durability: 9},
		"only in memory":  {Directory: "/x"},
		"relative":        {Durability: async, Directory: "x"},
		"16777217":        {History: maxHistory + 1},
	} {
		_, err := newNode(config, 1<<20, nil)
		requireCode(t, connect.CodeInvalidArgument, err, "configure a storage", text)
	}
}

// Entries end when their time is over, also those of a storage that was not running then.
func TestEntriesExpireAcrossRestarts(t *testing.T) {
	ctx := context.Background()
	log := newFakeLog()
	r := start(t, &storagev1.StorageConfig{Durability: async}, log)
	_, err := r.Handle().Put(ctx, &storagev1.PutRequest{Key: "a", Value: valueOf(1), Ttl: durationpb.New(time.Millisecond)})
	require.NoError(t, err)
	_, err = r.Handle().Put(ctx, &storagev1.PutRequest{Key: "b", Value: valueOf(1), Ttl: durationpb.New(time.Hour)})
	require.NoError(t, err)
	r.end()
	r = start(t, &storagev1.StorageConfig{Durability: async}, log)
	defer r.end()
	require.Eventually(t, func() bool {
		status, err := r.Handle().Status(ctx, nil)
		require.NoError(t, err)
		return status.GetKeys() == 1
	}, 10*time.Second, time.Millisecond)
}

// An entry whose time is over is missing, even if it was not removed yet.
func TestExpiredEntriesAreMissing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newClient(t, nil) // without the task that removes it
		ctx := t.Context()
		_, err := c.Handle().Put(ctx, &storagev1.PutRequest{Key: "a", Value: valueOf(1), Ttl: durationpb.New(time.Second)})
		require.NoError(t, err)
		time.Sleep(time.Second - 1) //nolint:forbidigo // in a bubble of synctest
		n, err := Get[int](ctx, c, "a")
		require.NoError(t, err)
		require.Equal(t, 1, n)
		time.Sleep(time.Nanosecond) //nolint:forbidigo // in a bubble of synctest
		_, err = Get[int](ctx, c, "a")
		require.ErrorIs(t, typed(err), ErrNotFound)
		require.ErrorContains(t, err, "the storage is empty")
		list, err := c.Handle().List(ctx, nil)
		require.NoError(t, err)
		require.Empty(t, list.GetEntries())
		deleted, err := c.Delete(ctx, "a")
		require.NoError(t, err)
		require.False(t, deleted)
		n, err = Add(ctx, c, "a", 5)
		require.NoError(t, err)
		require.Equal(t, 5, n, "it does not continue the value whose time was over")
	})
}
