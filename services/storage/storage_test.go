package storage

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"math/big"
	"os"
	"slices"
	"strings"
	"testing"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"pgregory.net/rapid"

	storagev1 "github.com/raylink/raylink/gen/raylink/storage/v1"
)

func TestMain(m *testing.M) {
	// Clients of plain HTTP, and of tunnels, reach the tests' systems without a token.
	if err := os.Setenv("RAYLINK_OPEN", "1"); err != nil {
		panic(err)
	}
	goleak.VerifyTestMain(m)
}

func requireCode(t require.TestingT, code connect.Code, err error, texts ...string) {
	require.Error(t, err)
	require.Equal(t, code, connect.CodeOf(err), "%v", err)
	for _, text := range texts {
		require.ErrorContains(t, err, text)
	}
}

// Within a process messages are passed without a copy. Still, callers that modify their buffers or
// results must not change the stored value.
func TestStoredValuesShareNoMemoryWithCallers(t *testing.T) {
	c, ctx := newClient(t, nil), t.Context()
	stored := func() string {
		t.Helper()
		got, err := Get[[]byte](ctx, c, "k")
		require.NoError(t, err)
		return string(got)
	}
	buffer := []byte("stored")
	_, err := Put(ctx, c, "k", buffer)
	require.NoError(t, err)
	copy(buffer, "reused")
	require.Equal(t, "stored", stored())
	got, err := Get[[]byte](ctx, c, "k")
	require.NoError(t, err)
	copy(got, "change")
	require.Equal(t, "stored", stored())
	for e, err := range c.All(ctx, "") {
		require.NoError(t, err)
		copy(e.GetValue().GetBytesValue(), "change")
		e.Key = "other"
	}
	require.Equal(t, "stored", stored())
	missing := []byte("missing")
	got, err = GetOr(ctx, c, "none", missing)
	require.NoError(t, err)
	copy(got, "changed")
	require.Equal(t, "missing", string(missing))

	// The same with the handle, once the call has returned or its future has the result. (The rules
	// forbid it, because interceptors may keep the messages.)
	value := &storagev1.Value{Kind: &storagev1.Value_BytesValue{BytesValue: buffer}}
	_, err = c.Handle().Put(ctx, &storagev1.PutRequest{Key: "k", Value: value})
	require.NoError(t, err)
	value.Kind = &storagev1.Value_BoolValue{}
	copy(buffer, "change")
	require.Equal(t, "reused", stored())
	async := &storagev1.PutRequest{Key: "k", Value: &storagev1.Value{Kind: &storagev1.Value_BytesValue{BytesValue: []byte("async")}}}
	_, err = c.Handle().PutAsync(ctx, async).Get(ctx)
	require.NoError(t, err)
	copy(async.GetValue().GetBytesValue(), "change")
	require.Equal(t, "async", stored())
	counted, err := c.Handle().Incr(ctx, &storagev1.IncrRequest{Key: "n"})
	require.NoError(t, err)
	counted.GetValue().Kind = nil
	n, err := Get[int64](ctx, c, "n")
	require.NoError(t, err)
	require.EqualValues(t, 1, n)
}

func TestValuesThatCannotBeSentAreRejected(t *testing.T) {
	c, ctx := newSized(t, nil, 1<<20), t.Context()
	_, err := Put(ctx, c, "run/a", "first")
	require.NoError(t, err)
	_, err = Put(ctx, c, "run/text", "caf\xe9")
	requireCode(t, connect.CodeInvalidArgument, err, "run/text", "not UTF-8")
	_, err = Put(ctx, c, "run/\xff", int64(1))
	requireCode(t, connect.CodeInvalidArgument, err, "not UTF-8")
	_, err = Add(ctx, c, "run/\xfe", int64(1))
	requireCode(t, connect.CodeInvalidArgument, err, "not UTF-8")
	_, err = c.Handle().Put(ctx, &storagev1.PutRequest{Key: "run/any", Value: &storagev1.Value{Kind: &storagev1.Value_MessageValue{
		MessageValue: &anypb.Any{TypeUrl: "x/\xff"},
	}}})
	requireCode(t, connect.CodeInvalidArgument, err, "run/any", "not UTF-8")
	_, err = Put(ctx, c, "run/big", make([]byte, 1<<20))
	requireCode(t, connect.CodeInvalidArgument, err, "run/big", "would not fit into a message")
	var keys []string
	for e, err := range c.All(ctx, "run/") {
		require.NoError(t, err)
		keys = append(keys, e.GetKey())
	}
	require.Equal(t, []string{"run/a"}, keys)
}

// The largest value fits into List's response together with the longest key and a token.
func TestLargestEntryCanBeListed(t *testing.T) {
	const maxMessage = 1 << 20
	n, err := newNode(nil, maxMessage, slog.Default())
	require.NoError(t, err)
	key := strings.Repeat("k", maxKey)
	value := &storagev1.Value{Kind: &storagev1.Value_BytesValue{BytesValue: make([]byte, n.maxValue-8)}}
	for _, k := range []string{key, key[1:]} {
		_, err := n.Put(t.Context(), &storagev1.PutRequest{Key: k, Value: value})
		require.NoError(t, err)
	}
	res, err := n.List(t.Context(), &storagev1.ListRequest{PageSize: 1})
	require.NoError(t, err)
	require.NotEmpty(t, res.GetNextPageToken())
	require.LessOrEqual(t, proto.Size(res), maxMessage)
}

func TestValuesRoundTrip(t *testing.T) {
	c, ctx := newClient(t, nil), t.Context()
	roundTrip(t, c, int64(math.MinInt64), int64(7))
	roundTrip(t, c, -1, 7)
	roundTrip(t, c, math.Inf(1), 0.5)
	roundTrip(t, c, true, false)
	roundTrip(t, c, "", "other")
	roundTrip(t, c, []byte{0, 255}, []byte{})

	_, err := PutMessage(ctx, c, "m", &storagev1.PutRequest{Key: "x"})
	require.NoError(t, err)
	var read storagev1.PutRequest
	require.NoError(t, GetMessage(ctx, c, "m", &read))
	require.Equal(t, "x", read.GetKey())
	var wrong *TypeError
	require.ErrorAs(t, GetMessage(ctx, c, "m", new(storagev1.GetRequest)), &wrong)
	require.Equal(t, "raylink.storage.v1.PutRequest", wrong.Has)
}

func roundTrip[T Value](t *testing.T, c *Client, value, other T) {
	t.Helper()
	ctx, key := t.Context(), fmt.Sprintf("%T", value)
	got, err := GetOr(ctx, c, key, other)
	require.NoError(t, err)
	require.Equal(t, other, got)
	_, err = Get[T](ctx, c, key)
	requireCode(t, connect.CodeNotFound, err, key)

	id, err := Put(ctx, c, key, value)
	require.NoError(t, err)
	require.Positive(t, id)
	got, err = GetOr(ctx, c, key, other)
	require.NoError(t, err)
	require.Equal(t, value, got)
	again, err := c.ID(ctx, key)
	require.NoError(t, err)
	require.Equal(t, id, again)

	if key != "string" {
		_, err = Get[string](ctx, c, key)
		var wrong *TypeError
		require.ErrorAs(t, err, &wrong)
		require.Equal(t, "string", wrong.Want)
	}
	deleted, err := c.Delete(ctx, key)
	require.NoError(t, err)
	require.True(t, deleted)
	deleted, err = c.Delete(ctx, key)
	require.NoError(t, err)
	require.False(t, deleted)
	has, err := c.Has(ctx, key)
	require.NoError(t, err)
	require.False(t, has)
}

func TestAddKeepsTypeAndRange(t *testing.T) {
	c, ctx := newClient(t, nil), t.Context()
	n, err := Add(ctx, c, "n", 5)
	require.NoError(t, err)
	require.Equal(t, 5, n)
	n, err = AddFrom(ctx, c, "m", 10, -3)
	require.NoError(t, err)
	require.Equal(t, 7, n)
	x, err := Add(ctx, c, "x", 0.5)
	require.NoError(t, err)
	require.InDelta(t, 0.5, x, 0)

	_, err = Add(ctx, c, "n", 0.5)
	requireCode(t, connect.CodeFailedPrecondition, err, "int64", "double")
	_, err = Put(ctx, c, "s", "text")
	require.NoError(t, err)
	_, err = Add(ctx, c, "s", 1)
	requireCode(t, connect.CodeFailedPrecondition, err, "string", `"s"`)
	_, err = c.Handle().Incr(ctx, &storagev1.IncrRequest{Key: "new", By: valueOf(1), Initial: valueOf(1.5)})
	requireCode(t, connect.CodeInvalidArgument, err)
	_, err = c.Handle().Incr(ctx, &storagev1.IncrRequest{Key: "new", By: valueOf("1")})
	requireCode(t, connect.CodeInvalidArgument, err, "string")
	_, err = c.Handle().Incr(ctx, &storagev1.IncrRequest{Key: "new", By: &storagev1.Value{}})
	requireCode(t, connect.CodeInvalidArgument, err)
	has, err := c.Has(ctx, "new")
	require.NoError(t, err)
	require.False(t, has)

	res, err := c.Handle().Incr(ctx, &storagev1.IncrRequest{Key: "x"})
	require.NoError(t, err)
	require.InDelta(t, 1.5, res.GetValue().GetDoubleValue(), 0, "the default step is one, with the stored type")

	_, err = Put(ctx, c, "n", int64(math.MaxInt64))
	require.NoError(t, err)
	id, err := c.ID(ctx, "n")
	require.NoError(t, err)
	_, err = Add(ctx, c, "n", 1)
	requireCode(t, connect.CodeOutOfRange, err)
	unchanged, err := c.ID(ctx, "n")
	require.NoError(t, err)
	require.Equal(t, id, unchanged)
	_, err = Put(ctx, c, "x", math.MaxFloat64)
	require.NoError(t, err)
	_, err = Add(ctx, c, "x", math.MaxFloat64)
	requireCode(t, connect.CodeOutOfRange, err)
	_, err = c.Handle().Decr(ctx, &storagev1.DecrRequest{Key: "low", Initial: valueOf(int64(math.MinInt64))})
	requireCode(t, connect.CodeOutOfRange, err)
}

func TestStepsAreExactAtLimits(t *testing.T) {
	edge := rapid.OneOf(rapid.Int64(),
		rapid.SampledFrom([]int64{math.MinInt64, math.MinInt64 + 1, -1, 0, 1, math.MaxInt64 - 1, math.MaxInt64}))
	rapid.Check(t, func(t *rapid.T) {
		from, by, down := edge.Draw(t, "from"), edge.Draw(t, "by"), rapid.Bool().Draw(t, "down")
		got, err := steppedInt64("k", int64Value(from), int64Value(by), down)
		want := new(big.Int).Add(big.NewInt(from), big.NewInt(by))
		if down {
			want.Sub(big.NewInt(from), big.NewInt(by))
		}
		if !want.IsInt64() {
			requireCode(t, connect.CodeOutOfRange, err)
			return
		}
		require.NoError(t, err)
		require.Equal(t, want.Int64(), got.GetInt64Value())
	})
}

func TestLimitsAreReportedAndFailedWritesChangeNothing(t *testing.T) {
	ctx := t.Context()
	c := newClient(t, &storagev1.StorageConfig{MaxKeys: 2, MaxBytes: 1000})
	for _, key := range []string{"a", "b"} {
		_, err := Put(ctx, c, key, 1)
		require.NoError(t, err)
	}
	_, err := Put(ctx, c, "c", 1)
	requireCode(t, connect.CodeResourceExhausted, err, "2 keys")
	_, err = Put(ctx, c, "a", strings.Repeat("x", 1000))
	requireCode(t, connect.CodeResourceExhausted, err, "1000 bytes")
	got, err := Get[int](ctx, c, "a")
	require.NoError(t, err)
	require.Equal(t, 1, got)
	_, err = Put(ctx, c, "a", strings.Repeat("x", 700))
	require.NoError(t, err)
	_, err = Put(ctx, c, "a", "short")
	require.NoError(t, err)
	_, err = Put(ctx, c, "", 1)
	requireCode(t, connect.CodeInvalidArgument, err)
	_, err = Put(ctx, c, strings.Repeat("k", maxKey+1), 1)
	requireCode(t, connect.CodeInvalidArgument, err)
	_, err = c.Handle().Put(ctx, &storagev1.PutRequest{Key: "a", Value: &storagev1.Value{}})
	requireCode(t, connect.CodeInvalidArgument, err)
	_, err = c.Handle().Put(ctx, nil)
	requireCode(t, connect.CodeInvalidArgument, err)
}

func TestListSplitsLargeValuesIntoPages(t *testing.T) {
	c, ctx := newClient(t, nil), t.Context()
	for i := range 9 {
		_, err := Put(ctx, c, fmt.Sprintf("big/%d", i), make([]byte, maxPageBytes/3))
		require.NoError(t, err)
	}
	res, err := c.Handle().List(ctx, &storagev1.ListRequest{Prefix: "big/"})
	require.NoError(t, err)
	require.NotEmpty(t, res.GetNextPageToken())
	require.Len(t, res.GetEntries(), 2)
	n := 0
	for e, err := range c.All(ctx, "big/") {
		require.NoError(t, err)
		require.Equal(t, fmt.Sprintf("big/%d", n), e.GetKey())
		n++
	}
	require.Equal(t, 9, n)
}

func TestListReturnsOnlyItsPrefix(t *testing.T) {
	c, ctx := newClient(t, nil), t.Context()
	stored := []string{"a", "a/", "a/\x00", "a/1", "a/\U0010ffff", "a/\U0010ffff/x", "a0", "b", "é", "€/x", "\U0010ffff"}
	for _, key := range stored {
		_, err := Put(ctx, c, key, key)
		require.NoError(t, err)
	}
	for prefix, want := range map[string][]string{
		"":              stored,
		"a":             stored[:7],
		"a/":            stored[1:6],
		"a/\U0010ffff":  stored[4:6],
		"a/\U0010ffff/": stored[5:6],
		"b":             {"b"},
		"b/":            nil,
		"A":             nil,
		"\U0010ffff":    {"\U0010ffff"},
		"c":             nil,
		"€":             {"€/x"},
	} {
		for _, size := range []int32{0, 1, 2, 100, math.MaxInt32} {
			var got []string
			token := ""
			for {
				res, err := c.Handle().List(ctx, &storagev1.ListRequest{Prefix: prefix, PageSize: size, PageToken: token})
				require.NoError(t, err)
				for _, e := range res.GetEntries() {
					got = append(got, e.GetKey())
				}
				if token = res.GetNextPageToken(); token == "" {
					break
				}
				require.Len(t, res.GetEntries(), int(size), "the prefix %q", prefix)
			}
			require.Equal(t, want, got, "the prefix %q, %d a page", prefix, size)
		}
	}
}

func TestPageLimits(t *testing.T) {
	c, ctx := newClient(t, nil), t.Context()
	for i := range maxPage + 1 {
		_, err := Put(ctx, c, fmt.Sprintf("k/%05d", i), i)
		require.NoError(t, err)
	}
	for size, want := range map[int32]int{0: defaultPage, 3: 3, maxPage: maxPage, math.MaxInt32: maxPage} {
		res, err := c.Handle().List(ctx, &storagev1.ListRequest{Prefix: "k/", PageSize: size})
		require.NoError(t, err)
		require.Len(t, res.GetEntries(), want)
		require.NotEmpty(t, res.GetNextPageToken())
	}
	_, err := c.Handle().List(ctx, &storagev1.ListRequest{PageSize: -1})
	requireCode(t, connect.CodeInvalidArgument, err, "-1")
	res, err := c.Handle().List(ctx, &storagev1.ListRequest{Prefix: "k/", PageSize: 1})
	require.NoError(t, err)
	for _, token := range []string{"!", res.GetNextPageToken() + "=", "k/00000"} {
		_, err = c.Handle().List(ctx, &storagev1.ListRequest{Prefix: "k/", PageToken: token})
		requireCode(t, connect.CodeInvalidArgument, err, token)
	}
	_, err = c.Handle().List(ctx, &storagev1.ListRequest{Prefix: "other/", PageToken: res.GetNextPageToken()})
	requireCode(t, connect.CodeInvalidArgument, err, `"other/"`)
}

func TestListSurvivesConcurrentChanges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ctx := context.Background()
		c := newClient(t, nil)
		key := rapid.StringMatching(`[ab]{1,4}`)
		throughout := map[string]bool{} // stored during the whole iteration
		for _, k := range rapid.SliceOfDistinct(key, rapid.ID[string]).Draw(t, "stored") {
			_, err := Put(ctx, c, k, 1)
			require.NoError(t, err)
			throughout[k] = true
		}
		ever := maps.Clone(throughout)
		prefix := rapid.StringMatching(`[ab]{0,1}`).Draw(t, "prefix")
		var got []string
		for token := ""; ; {
			res, err := c.Handle().List(ctx, &storagev1.ListRequest{Prefix: prefix, PageToken: token, PageSize: rapid.Int32Range(1, 4).Draw(t, "size")})
			require.NoError(t, err)
			for _, e := range res.GetEntries() {
				got = append(got, e.GetKey())
			}
			if token = res.GetNextPageToken(); token == "" {
				break
			}
			drop := rapid.SliceOf(key).Draw(t, "deleted")
			if rapid.Bool().Draw(t, "the last one too") {
				drop = append(drop, got[len(got)-1])
			}
			for _, k := range drop {
				_, err := c.Delete(ctx, k)
				require.NoError(t, err)
				delete(throughout, k)
			}
			for _, k := range rapid.SliceOf(key).Draw(t, "added") {
				_, err := Put(ctx, c, k, 2)
				require.NoError(t, err)
				ever[k] = true
			}
		}
		require.True(t, slices.IsSorted(got))
		require.Equal(t, slices.Compact(slices.Clone(got)), got, "no key is listed twice")
		for _, k := range got {
			require.True(t, ever[k] && strings.HasPrefix(k, prefix), "%q", k)
		}
		for k := range throughout {
			require.Equal(t, strings.HasPrefix(k, prefix), slices.Contains(got, k), "%q", k)
		}
	})
}
