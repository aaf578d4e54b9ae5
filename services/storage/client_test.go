package storage

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	storagev1 "github.com/raylink/raylink/gen/raylink/storage/v1"
	"github.com/raylink/raylink/gen/raylink/storage/v1/storagev1raylink"
)

// contents returns all entries of a storage, without their ids.
func contents(t require.TestingT, c *Client) map[string]*storagev1.Value {
	all := map[string]*storagev1.Value{}
	for e, err := range c.All(context.Background(), "") {
		require.NoError(t, err)
		all[e.GetKey()] = e.GetValue()
	}
	return all
}

func requireContents(t require.TestingT, want map[string]*storagev1.Value, c *Client) {
	got := contents(t, c)
	require.ElementsMatch(t, slices.Collect(maps.Keys(want)), slices.Collect(maps.Keys(got)))
	for key, value := range want {
		require.True(t, proto.Equal(value, got[key]), "%q: %v, not %v", key, got[key], value)
	}
}

func TestUpdatesUnderContentionAreNotLost(t *testing.T) {
	c, ctx := newClient(t, nil), t.Context()
	const updaters, each = 16, 50
	var wg sync.WaitGroup
	for range updaters {
		wg.Go(func() {
			for range each {
				if _, err := Update(ctx, c, "n", func(n int64) (int64, error) { return n + 1, nil }); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	n, err := Get[int64](ctx, c, "n")
	require.NoError(t, err)
	require.EqualValues(t, updaters*each, n)

	// Another update is always in between.
	outer := true
	n, err = Update(ctx, c, "n", func(n int64) (int64, error) {
		if outer {
			outer = false
			if _, err := Update(ctx, c, "n", func(n int64) (int64, error) { return n + 1, nil }); err != nil {
				return 0, err
			}
		}
		return n + 1, nil
	})
	require.NoError(t, err)
	require.EqualValues(t, updaters*each+2, n)
}

func TestFailedUpdatesChangeNothing(t *testing.T) {
	c, ctx := newClient(t, nil), t.Context()
	// Also an error that looks like a changed key is the function's.
	for _, failure := range []error{errors.New("no"), &ConditionError{Key: "k", cause: errors.New("another's")}} {
		calls := 0
		_, err := Update(ctx, c, "k", func(int64) (int64, error) {
			calls++
			require.Equal(t, 1, calls, "it is not repeated")
			return 1, failure
		})
		require.Equal(t, failure, err)
	}
	require.Empty(t, contents(t, c))
	got, err := UpdateFrom(ctx, c, "k", 5, func(n int) (int, error) { return n * 2, nil })
	require.NoError(t, err)
	require.Equal(t, 10, got)
	_, err = Update(ctx, c, "k", func(string) (string, error) { t.Error("called"); return "", nil })
	var wrong *TypeError
	require.ErrorAs(t, err, &wrong)

	// Another writer that is always faster.
	ctx, cancel := context.WithCancel(ctx)
	attempts := 0
	_, err = Update(ctx, c, "k", func(n int) (int, error) {
		if attempts++; attempts == 3 {
			defer cancel()
		}
		_, err := Add(t.Context(), c, "k", 1)
		return n, err
	})
	require.ErrorIs(t, err, context.Canceled)
	n, err := Get[int](t.Context(), c, "k")
	require.NoError(t, err)
	require.Equal(t, 13, n)
}

func TestConditionsAndTypedErrors(t *testing.T) {
	c, ctx := newClient(t, nil), t.Context()
	_, err := Get[int](ctx, c, "k")
	require.ErrorIs(t, err, ErrNotFound)
	requireCode(t, connect.CodeNotFound, err, `"k"`)
	id, err := Put(ctx, c, "k", 1, IfAbsent())
	require.NoError(t, err)
	var condition *ConditionError
	_, err = Put(ctx, c, "k", 2, IfAbsent())
	require.ErrorAs(t, err, &condition)
	require.Equal(t, "k", condition.Key)
	require.Equal(t, id, condition.ID)
	require.Zero(t, condition.Want)
	requireCode(t, connect.CodeAborted, err)
	_, err = c.Delete(ctx, "k", IfID(id+1))
	require.ErrorAs(t, err, &condition)
	require.Equal(t, int(id)+1, int(condition.Want))
	_, err = Put(ctx, c, "k", 2, IfID(id))
	require.NoError(t, err)

	var overflow *RangeError
	_, err = Add(ctx, c, "k", int64(1<<63-1))
	require.ErrorAs(t, err, &overflow)
	require.Equal(t, "k", overflow.Key)
	var wrong *TypeError
	_, err = Add(ctx, c, "k", 0.5)
	require.ErrorAs(t, err, &wrong)
	_, err = Append(ctx, c, "k", "text")
	require.ErrorAs(t, err, &wrong)
	require.Equal(t, "int64", wrong.Has)
	var limit *LimitError
	_, err = Put(ctx, c, strings.Repeat("k", maxKey+1), 1)
	require.ErrorAs(t, err, &limit)
	_, err = c.Entries(ctx, make([]string, maxOps+1)...)
	require.ErrorAs(t, err, &limit)
	_, err = Put(ctx, c, "k", 1, TTL(0))
	requireCode(t, connect.CodeInvalidArgument, err)
	_, err = Put(ctx, c, "k", 1, Sync())
	require.Error(t, err, "a storage in memory has no disk")

	n, err := Get[int](ctx, c, "k")
	require.NoError(t, err)
	require.Equal(t, 2, n, "none of them has changed anything")
}

func TestBatchesAreWhole(t *testing.T) {
	c, ctx := newClient(t, nil), t.Context()
	require.NoError(t, c.Batch(ctx))
	ids, err := c.BatchIDs(ctx, PutOp("a", 1), AddOp("a", 2), DeleteOp("b"), AppendOp("c", "x"), AppendOp("c", "y"), PutMessageOp("m", &storagev1.Entry{Key: "k"}))
	require.NoError(t, err)
	require.Equal(t, []uint64{1, 2, 0, 3, 4, 5}, ids)
	before := contents(t, c)
	err = c.Batch(ctx, PutOp("a", 100), DeleteOp("c"), AddOp("m", 1))
	var failed *BatchError
	require.ErrorAs(t, err, &failed)
	require.Equal(t, 2, failed.Index)
	require.Equal(t, "m", failed.Key)
	var wrong *TypeError
	require.ErrorAs(t, err, &wrong)
	err = c.Batch(ctx, PutOp("new", 1), PutOp("a", 1, IfAbsent()))
	var condition *ConditionError
	require.ErrorAs(t, err, &condition)
	require.Error(t, c.Batch(ctx, PutOp("new", 1), Sync()))
	require.Error(t, c.Batch(ctx, PutMessageOp("new", &storagev1.Entry{Key: "\xff"})))
	requireContents(t, before, c)
}

func TestManyKeysAndBothDirections(t *testing.T) {
	c, ctx := newClient(t, nil), t.Context()
	for i := range 2500 {
		_, err := Put(ctx, c, fmt.Sprintf("k/%04d", i), i)
		require.NoError(t, err)
	}
	values, err := GetMany[int](ctx, c, "k/0007", "none", "k/0003")
	require.NoError(t, err)
	require.Equal(t, map[string]int{"k/0007": 7, "k/0003": 3}, values)
	_, err = GetMany[string](ctx, c, "k/0007")
	var wrong *TypeError
	require.ErrorAs(t, err, &wrong)
	next := 2499
	for e, err := range c.Scan(ctx, "k/", Reverse()) {
		require.NoError(t, err)
		n, err := As[int](e)
		require.NoError(t, err)
		require.Equal(t, next, n)
		next--
	}
	require.Equal(t, -1, next)
	size, err := Append(ctx, c, "log", []byte("ab"))
	require.NoError(t, err)
	require.EqualValues(t, 2, size)
	size, err = Append(ctx, c, "log", []byte("c"))
	require.NoError(t, err)
	require.EqualValues(t, 3, size)
}

func TestJSONValuesBelongToTheirCallers(t *testing.T) {
	c, ctx := newClient(t, nil), t.Context()
	value, err := structpb.NewValue(map[string]any{"a": []any{1.5, "x", nil, true}})
	require.NoError(t, err)
	want := proto.CloneOf(value)
	_, err = Put(ctx, c, "j", value)
	require.NoError(t, err)
	value.GetStructValue().Fields["a"] = nil
	got, err := Get[*structpb.Value](ctx, c, "j")
	require.NoError(t, err)
	require.True(t, proto.Equal(want, got))
	got.GetStructValue().Fields["a"] = nil
	got, err = Get[*structpb.Value](ctx, c, "j")
	require.NoError(t, err)
	require.True(t, proto.Equal(want, got))
	_, err = Put[*structpb.Value](ctx, c, "null", nil)
	require.NoError(t, err)
	got, err = Get[*structpb.Value](ctx, c, "null")
	require.NoError(t, err)
	require.IsType(t, &structpb.Value_NullValue{}, got.GetKind())

	buffer := []byte("abc")
	ops := []Op{PutOp("b", buffer), AppendOp("b", buffer)}
	copy(buffer, "xyz")
	require.NoError(t, c.Batch(ctx, ops...))
	initial := []byte("init")
	changed, err := UpdateFrom(ctx, c, "new", initial, func(b []byte) ([]byte, error) { b[0] = 'X'; return b, nil })
	require.NoError(t, err)
	changed[1] = 'Y'
	require.Equal(t, "init", string(initial))
	values, err := GetMany[[]byte](ctx, c, "b", "new")
	require.NoError(t, err)
	require.Equal(t, map[string][]byte{"b": []byte("abcabc"), "new": []byte("Xnit")}, values)
}

// TestWatchLosesNothingAfterARead has writers change keys before, while and after they are read.
func TestWatchLosesNothingAfterARead(t *testing.T) {
	c := newClient(t, nil)
	const writers, each = 4, 500
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				if err := c.Batch(t.Context(), AddOp(fmt.Sprintf("n/%d/%d", w, i%7), 1), AddOp("sum", 1)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	defer wg.Wait()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	since, err := c.LastID(ctx)
	require.NoError(t, err)
	state := contents(t, c)
	last := since
	if sum, err := GetOr(ctx, c, "sum", 0); err == nil && sum == writers*each {
		t.Skip("skipped: the writers were faster")
	}
	for change, err := range c.Watch(ctx, "", Since(since)) {
		require.NoError(t, err)
		require.Equal(t, last+1, change.GetId(), "each change once, in order")
		last = change.GetId()
		state[change.GetKey()] = change.GetValue()
		if change.GetKey() == "sum" && change.GetValue().GetInt64Value() == writers*each {
			break
		}
	}
	wg.Wait()
	requireContents(t, state, c)
}

// breaking is a node that ends streams of changes, as one that is started again does.
type breaking struct {
	storagev1raylink.StorageNode

	after int   // how many responses
	with  error // how they end
}

func (b *breaking) Watch(ctx context.Context, req *storagev1.WatchRequest, stream storagev1raylink.StorageWatchServerStream) error {
	return b.StorageNode.Watch(ctx, req, &breakingStream{stream, b.after, b.with})
}

type breakingStream struct {
	storagev1raylink.StorageWatchServerStream

	left int
	with error
}

func (s *breakingStream) Send(res *storagev1.WatchResponse) error {
	if s.left--; s.left < 0 {
		return s.with
	}
	return s.StorageWatchServerStream.Send(res)
}

func TestWatchResumesWhereItWas(t *testing.T) {
	n, err := newNode(nil, 64<<20, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	node := New(storagev1raylink.NewLocalStorage(n))
	b := &breaking{n, 2, connect.NewError(connect.CodeUnavailable, "started again")}
	c := New(storagev1raylink.NewLocalStorage(b))
	ctx := t.Context()
	for i := range 5 {
		_, err := Put(ctx, node, "k", i)
		require.NoError(t, err)
	}
	var got []int
	for change, err := range c.Watch(ctx, "k", Exact(), Since(0)) {
		require.NoError(t, err)
		n, err := As[int](change)
		require.NoError(t, err)
		got = append(got, n)
		if n == 12 {
			break
		}
		if n >= 4 { // one response each, so that the stream breaks again and again
			_, err := Put(ctx, node, "k", n+1)
			require.NoError(t, err)
			_, err = Put(ctx, node, "k2", n+1)
			require.NoError(t, err)
		}
	}
	require.Equal(t, []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, got)

	b.with = connect.NewError(connect.CodeInternal, "broken")
	errs := 0
	for change, err := range c.Watch(ctx, "", Since(1)) {
		if err != nil {
			errs++
			requireCode(t, connect.CodeInternal, err, "watch", "broken")
			require.Nil(t, change)
		} else {
			_, err := Put(ctx, node, "k", 1)
			require.NoError(t, err)
		}
	}
	require.Equal(t, 1, errs, "other errors end it")

	for _, err := range c.Watch(ctx, "", Since(1<<40)) {
		var lost *HistoryLostError
		require.ErrorAs(t, err, &lost)
		require.EqualValues(t, 1<<40, lost.Since)
		requireCode(t, connect.CodeOutOfRange, err)
	}
	ctx, cancel := context.WithCancel(ctx)
	for _, err := range node.Watch(ctx, "", Since(1)) {
		if err != nil {
			require.ErrorIs(t, err, context.Canceled)
			break
		}
		cancel()
	}
	cancel()
}

// anyValue draws a value of any kind.
func anyValue() *rapid.Generator[*storagev1.Value] {
	text := rapid.String()
	return rapid.Custom(func(t *rapid.T) *storagev1.Value {
		switch rapid.IntRange(0, 6).Draw(t, "kind") {
		case 0:
			return valueOf(rapid.Int64().Draw(t, "int64"))
		case 1:
			return valueOf(rapid.Float64().Draw(t, "double"))
		case 2:
			return valueOf(rapid.Bool().Draw(t, "bool"))
		case 3:
			return valueOf(text.Draw(t, "string"))
		case 4:
			return valueOf(rapid.SliceOf(rapid.Byte()).Draw(t, "bytes"))
		case 5:
			return &storagev1.Value{Kind: &storagev1.Value_MessageValue{MessageValue: &anypb.Any{
				TypeUrl: "type.example/" + rapid.StringMatching(`[a-z.]{0,9}`).Draw(t, "type"), Value: rapid.SliceOf(rapid.Byte()).Draw(t, "message"),
			}}}
		}
		json, err := structpb.NewValue(rapid.SampledFrom([]any{
			nil, true, 1.5, "x", []any{}, map[string]any{}, map[string]any{"a": []any{nil, "b<>&\u2028"}},
		}).Draw(t, "json"))
		require.NoError(t, err)
		return valueOf(json)
	})
}

func TestSavedEntriesAreLoaded(t *testing.T) {
	directory := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		from, to, ctx := newClient(t, nil), newClient(t, nil), context.Background()
		stored := rapid.MapOf(rapid.StringMatching(`[ab<é"*]{1,3}`), anyValue()).Draw(t, "stored")
		for key, value := range stored {
			_, err := from.PutValue(ctx, key, value)
			require.NoError(t, err)
		}
		saved, err := from.Save(ctx, directory)
		require.NoError(t, err)
		require.Equal(t, Saved{uint64(len(stored)), uint64(len(stored))}, saved)
		_, err = Put(ctx, to, "other", 1)
		require.NoError(t, err)
		loaded, err := to.Load(ctx, directory)
		require.NoError(t, err)
		require.Len(t, stored, int(loaded.Entries))
		stored["other"] = valueOf(1)
		requireContents(t, stored, to)
	})
}

func TestOnlySelectedKeysAreSavedAndLoaded(t *testing.T) {
	c, ctx, directory := newClient(t, nil), t.Context(), filepath.Join(t.TempDir(), "made", "on demand")
	for _, key := range []string{"a", "run/1", "run/2", "z"} {
		_, err := Put(ctx, c, key, key)
		require.NoError(t, err)
	}
	_, err := Put(ctx, c, "brief", 1, TTL(time.Hour))
	require.NoError(t, err)
	_, err = c.Save(ctx, directory, Keys("a", "none"), Prefix("run/"))
	require.ErrorIs(t, err, ErrNotFound)
	require.ErrorContains(t, err, `"none"`)
	_, err = c.Load(ctx, directory)
	require.ErrorIs(t, err, os.ErrNotExist)
	saved, err := c.Save(ctx, directory, Keys("a", "brief"), Prefix("run/"), Prefix("none/"))
	require.NoError(t, err)
	require.EqualValues(t, 4, saved.Entries)
	files, err := os.ReadDir(directory)
	require.NoError(t, err)
	require.Len(t, files, 1)

	to := newClient(t, nil)
	_, err = to.Load(ctx, directory, Keys("z"))
	require.ErrorIs(t, err, ErrNotFound)
	require.Empty(t, contents(t, to))
	_, err = to.Load(ctx, directory, Keys("brief"), Prefix("run/2"))
	require.NoError(t, err)
	require.ElementsMatch(t, []string{"brief", "run/2"}, slices.Collect(maps.Keys(contents(t, to))))
	e, err := to.Entry(ctx, "brief")
	require.NoError(t, err)
	require.NotNil(t, e.GetExpires())

	// All or none.
	small := newClient(t, &storagev1.StorageConfig{MaxKeys: 2})
	_, err = small.Load(ctx, directory)
	var limit *LimitError
	require.ErrorAs(t, err, &limit)
	require.Empty(t, contents(t, small))
}

// TestDamagedFilesAreRefused damages a file in each byte, and cuts it off at each.
func TestDamagedFilesAreRefused(t *testing.T) {
	c, ctx, directory := newClient(t, nil), t.Context(), t.TempDir()
	for _, op := range []Op{PutOp("a", 1), PutOp("b", "text"), PutOp("c", []byte{1, 2}), PutMessageOp("d", &storagev1.Entry{Key: "k"})} {
		require.NoError(t, c.Batch(ctx, op))
	}
	_, err := c.Save(ctx, directory)
	require.NoError(t, err)
	path := filepath.Join(directory, savedName)
	good, err := os.ReadFile(path)
	require.NoError(t, err)
	to := newClient(t, nil)
	refused := func(content []byte, what string) {
		t.Helper()
		require.NoError(t, os.WriteFile(path, content, 0o600))
		_, err := to.Load(ctx, directory)
		var damaged *DamagedFileError
		require.ErrorAs(t, err, &damaged, what)
		require.Equal(t, path, damaged.File)
	}
	for i := range good {
		bad := slices.Clone(good)
		bad[i] ^= 1
		if strings.Contains(string(bad[:min(len(bad), 60)]), `"version":0`) {
			continue // another version is another error
		}
		refused(bad, fmt.Sprintf("byte %d is damaged", i))
		refused(good[:i], fmt.Sprintf("cut off after %d bytes", i))
	}
	refused(append(slices.Clone(good), good...), "twice")
	lines := strings.SplitAfter(string(good), "\n")
	refused([]byte(lines[0]+lines[2]+lines[1]+strings.Join(lines[3:], "")), "lines in another order")
	require.Empty(t, contents(t, to))
	require.NoError(t, os.WriteFile(path, []byte(strings.Replace(string(good), `"version":1`, `"version":2`, 1)), 0o600))
	_, err = to.Load(ctx, directory)
	require.ErrorContains(t, err, "version 2")
	require.NoError(t, os.Remove(path))
	require.NoError(t, os.Mkdir(path, 0o700))
	_, err = to.Load(ctx, directory)
	require.ErrorContains(t, err, "not a regular file")
}

func FuzzSavedFile(f *testing.F) {
	var b strings.Builder
	w := newSavedWriter(&b)
	require.NoError(f, w.begin(7, time.Unix(1, 0)))
	require.NoError(f, w.add(&storagev1.Entry{Key: "a", Id: 1, Value: valueOf(1), Expires: timestamppb.Now()}))
	require.NoError(f, w.add(&storagev1.Entry{Key: "b", Id: 2, Value: valueOf([]byte("x"))}))
	require.NoError(f, w.end())
	f.Add(b.String())
	f.Add(`{"format":"raylink storage","version":1,"id":7,"saved":"1970-01-01T00:00:01Z"}` + "\n" + `{"entries":0,"checksum":"crc32c:00000000"}` + "\n")
	f.Fuzz(func(t *testing.T, text string) {
		var again strings.Builder
		w := newSavedWriter(&again)
		require.NoError(t, w.begin(0, time.Time{}))
		var entries []*storagev1.Entry
		err := readSaved(strings.NewReader(text), "f", func(e *storagev1.Entry) error {
			entries = append(entries, e)
			return w.add(e)
		})
		if err != nil {
			return
		}
		require.NoError(t, w.end())
		n := 0
		require.NoError(t, readSaved(strings.NewReader(again.String()), "f", func(e *storagev1.Entry) error {
			require.True(t, proto.Equal(entries[n], e))
			n++
			return nil
		}))
		require.Len(t, entries, n)
	})
}

// failing is a node whose exports send one entry, and then do something.
type failing struct {
	storagev1raylink.UnimplementedStorageNode

	then func(ctx context.Context) error
}

func (f *failing) Export(ctx context.Context, _ *storagev1.ExportRequest, stream storagev1raylink.StorageExportServerStream) error {
	if err := stream.Send(&storagev1.ExportResponse{Id: 1, Entries: []*storagev1.Entry{{Key: "half", Value: valueOf(1)}}}); err != nil {
		return err
	}
	return f.then(ctx)
}

// TestKilledSaver is the process that TestFailingSaversLeaveTheOldFile kills.
func TestKilledSaver(t *testing.T) {
	if os.Getenv("STORAGE_TEST_SAVE") == "" {
		t.Skip("skipped: it is a process of another test")
	}
	c := New(storagev1raylink.NewLocalStorage(&failing{then: func(ctx context.Context) error {
		fmt.Println("saving")
		<-ctx.Done()
		return ctx.Err()
	}}))
	_, err := c.Save(t.Context(), ".")
	t.Error("not killed", err)
}

func TestFailingSaversLeaveTheOldFile(t *testing.T) {
	c, ctx, directory := newClient(t, nil), t.Context(), t.TempDir()
	_, err := Put(ctx, c, "old", 1)
	require.NoError(t, err)
	_, err = c.Save(ctx, directory)
	require.NoError(t, err)
	old := map[string]*storagev1.Value{"old": valueOf(1)}
	requireOld := func(files int) {
		t.Helper()
		to := newClient(t, nil)
		_, err := to.Load(ctx, directory)
		require.NoError(t, err)
		requireContents(t, old, to)
		entries, err := os.ReadDir(directory)
		require.NoError(t, err)
		require.Len(t, entries, files)
	}

	broken := New(storagev1raylink.NewLocalStorage(&failing{then: func(context.Context) error {
		return connect.NewError(connect.CodeUnavailable, "killed")
	}}))
	_, err = broken.Save(ctx, directory)
	requireCode(t, connect.CodeUnavailable, err, "save to "+directory, "killed")
	requireOld(1)

	cmd := exec.Command(os.Args[0], "-test.run=^TestKilledSaver$")
	cmd.Env = append(os.Environ(), "STORAGE_TEST_SAVE=1")
	cmd.Dir = directory
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	for lines := bufio.NewScanner(out); lines.Scan() && lines.Text() != "saving"; {
	}
	requireOld(2)
	waiting, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	_, err = c.Save(waiting, directory)
	cancel()
	require.ErrorContains(t, err, "waiting for another process that saves")
	require.NoError(t, cmd.Process.Kill())
	require.Error(t, cmd.Wait())
	requireOld(2)

	// The next one replaces what it has left.
	_, err = Put(ctx, c, "new", 2)
	require.NoError(t, err)
	_, err = c.Save(ctx, directory)
	require.NoError(t, err)
	old["new"] = valueOf(2)
	requireOld(1)
}

func TestConcurrentSaversWaitForEachOther(t *testing.T) {
	c, ctx, directory := newClient(t, nil), t.Context(), t.TempDir()
	_, err := Put(ctx, c, "k", strings.Repeat("x", 100_000))
	require.NoError(t, err)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 5 {
				if _, err := c.Save(ctx, directory); err != nil {
					t.Error(err)
				}
				if _, err := c.Load(ctx, directory); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	entries, err := os.ReadDir(directory)
	require.NoError(t, err)
	require.Len(t, entries, 1)
}
