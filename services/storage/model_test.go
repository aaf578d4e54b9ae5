package storage

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"pgregory.net/rapid"

	storagev1 "github.com/raylink/raylink/gen/raylink/storage/v1"
)

// model is the reference implementation of the state.
type model struct {
	entries map[string]*storagev1.Entry
	changes []*storagev1.Change // all of them: the one with the id i is at i-1
}

func (m *model) clone() *model {
	return &model{entries: maps.Clone(m.entries), changes: slices.Clone(m.changes)}
}

func (m *model) last() uint64 { return uint64(len(m.changes)) }

func (m *model) id(key string) uint64 { return m.entries[key].GetId() }

// write makes one write; a nil value removes.
func (m *model) write(key string, value *storagev1.Value, expires int64) uint64 {
	id := m.last() + 1
	m.changes = append(m.changes, &storagev1.Change{Key: key, Value: value, Id: id, Expires: timestampOf(expires)})
	if value == nil {
		delete(m.entries, key)
	} else {
		m.entries[key] = &storagev1.Entry{Key: key, Value: value, Id: id, Expires: timestampOf(expires)}
	}
	return id
}

// apply makes the write of an operation and returns its id, or the code of the expected error.
func (m *model) apply(op *storagev1.Op) (uint64, connect.Code) {
	switch k := op.GetKind().(type) {
	case *storagev1.Op_Put:
		if !m.fulfills(k.Put.GetKey(), k.Put.GetCondition()) {
			return 0, connect.CodeAborted
		}
		expires := int64(0)
		if ttl := k.Put.GetTtl(); ttl != nil {
			expires = time.Now().Add(ttl.AsDuration()).UnixNano()
		}
		return m.write(k.Put.GetKey(), k.Put.GetValue(), expires), 0
	case *storagev1.Op_Delete:
		switch {
		case !m.fulfills(k.Delete.GetKey(), k.Delete.GetCondition()):
			return 0, connect.CodeAborted
		case m.id(k.Delete.GetKey()) == 0:
			return 0, 0
		}
		return m.write(k.Delete.GetKey(), nil, 0), 0
	case *storagev1.Op_Add:
		key, by := k.Add.GetKey(), k.Add.GetBy().GetInt64Value()
		stored := m.entries[key].GetValue()
		if stored != nil && kindOf(stored) != int64Kind {
			return 0, connect.CodeFailedPrecondition
		}
		from := stored.GetInt64Value()
		if by > 0 && from > math.MaxInt64-by || by < 0 && from < math.MinInt64-by {
			return 0, connect.CodeOutOfRange
		}
		return m.write(key, int64Value(from+by), 0), 0
	case *storagev1.Op_Append:
		stored := m.entries[k.Append.GetKey()].GetValue()
		if stored != nil && kindOf(stored) != stringKind {
			return 0, connect.CodeFailedPrecondition
		}
		return m.write(k.Append.GetKey(), valueOf(stored.GetStringValue()+k.Append.GetValue().GetStringValue()), 0), 0
	}
	panic("no operation")
}

func (m *model) fulfills(key string, c *storagev1.Condition) bool {
	return c == nil || m.id(key) == c.GetId()
}

func (m *model) list(prefix string) []*storagev1.Entry {
	var entries []*storagev1.Entry
	for key, e := range m.entries {
		if strings.HasPrefix(key, prefix) {
			entries = append(entries, e)
		}
	}
	slices.SortFunc(entries, func(a, b *storagev1.Entry) int { return strings.Compare(a.GetKey(), b.GetKey()) })
	return entries
}

// watcher collects what a watch sends.
type watcher struct {
	req  *storagev1.WatchRequest
	mu   sync.Mutex // guards got, at and err
	got  []*storagev1.Change
	at   uint64
	err  error
	stop context.CancelFunc
	done chan struct{}
}

// watch starts a watcher, and returns it after the first response.
func (r *running) watch(t require.TestingT, req *storagev1.WatchRequest) (*watcher, error) {
	ctx, cancel := context.WithCancel(context.Background())
	stream, err := r.Handle().Watch(ctx, req)
	require.NoError(t, err)
	first, err := stream.Receive()
	if err != nil {
		cancel()
		return nil, err
	}
	require.Empty(t, first.GetChanges())
	w := &watcher{req: req, at: first.GetId(), stop: cancel, done: make(chan struct{})}
	go func() {
		defer close(w.done)
		for {
			res, err := stream.Receive()
			w.mu.Lock()
			if err != nil {
				w.err = err
				w.mu.Unlock()
				return
			}
			w.got, w.at = append(w.got, res.GetChanges()...), res.GetId()
			w.mu.Unlock()
		}
	}()
	return w, nil
}

func (w *watcher) end() {
	w.stop()
	<-w.done
}

// machine is a storage and its model.
type machine struct {
	*running

	model   *model
	config  *storagev1.StorageConfig
	log     *fakeLog
	watcher *watcher
	since   uint64 // the id after which the watcher began
}

func requireEqualMessages[M proto.Message](t *rapid.T, want, got []M) {
	require.Len(t, got, len(want))
	for i := range want {
		require.True(t, proto.Equal(want[i], got[i]), "%d: %v is not %v", i, got[i], want[i])
	}
}

// check compares the storage with its model, which learns from it in which order entries have
// expired.
func (s *machine) check(t *rapid.T) {
	synctest.Wait()
	s.node.mu.Lock()
	newer, known := s.node.table.Since(s.model.last(), math.MaxInt)
	s.node.mu.Unlock()
	require.True(t, known)
	for _, c := range newer {
		require.True(t, c.Expired, "%v", c.Proto())
		at := s.model.entries[c.Key].GetExpires()
		require.NotNil(t, at)
		require.False(t, at.AsTime().After(time.Now()))
		s.model.write(c.Key, nil, 0)
		s.model.changes[len(s.model.changes)-1].Expired = true
	}
	for key, e := range s.model.entries {
		require.False(t, e.GetExpires() != nil && !e.GetExpires().AsTime().After(time.Now()), "%q is to expire", key)
	}
	s.watcher.mu.Lock()
	defer s.watcher.mu.Unlock()
	require.NoError(t, s.watcher.err)
	var want []*storagev1.Change
	for _, c := range s.model.changes[s.since:] {
		if matches(s.watcher.req, c.GetKey()) {
			want = append(want, c)
		}
	}
	requireEqualMessages(t, want, s.watcher.got)
}

// perform performs operations, as a batch or one alone by its own method.
func (s *machine) perform(ctx context.Context, ops []*storagev1.Op) (ids []uint64, err error) {
	h := s.Handle()
	if len(ops) != 1 {
		res, err := h.Batch(ctx, &storagev1.BatchRequest{Ops: ops})
		return res.GetIds(), err
	}
	var id uint64
	switch k := ops[0].GetKind().(type) {
	case *storagev1.Op_Put:
		var res *storagev1.PutResponse
		res, err = h.Put(ctx, k.Put)
		id = res.GetId()
	case *storagev1.Op_Delete:
		var res *storagev1.DeleteResponse
		res, err = h.Delete(ctx, k.Delete)
		id = res.GetId()
	case *storagev1.Op_Add:
		var res *storagev1.IncrResponse
		res, err = h.Incr(ctx, k.Add)
		id = res.GetId()
	case *storagev1.Op_Append:
		var res *storagev1.AppendResponse
		res, err = h.Append(ctx, k.Append)
		id = res.GetId()
	}
	return []uint64{id}, err
}

// ctx is that of all calls: one that ends belongs to a bubble of synctest.
var ctx = context.Background()

var (
	keys = rapid.StringMatching(`[ab]{1,2}`)
	ttls = rapid.OneOf(rapid.Just[*durationpb.Duration](nil), rapid.Map(rapid.IntRange(1, 5), func(s int) *durationpb.Duration {
		return durationpb.New(time.Duration(s) * time.Second)
	}))
	values = rapid.OneOf(
		rapid.Map(rapid.Int64(), valueOf[int64]), rapid.Map(rapid.Bool(), valueOf[bool]),
		rapid.Map(rapid.Float64(), valueOf[float64]), rapid.Map(rapid.String(), valueOf[string]))
)

// condition draws a condition, which is often fulfilled.
func (s *machine) condition(t *rapid.T, key string) *storagev1.Condition {
	switch rapid.IntRange(0, 5).Draw(t, "condition") {
	case 0:
		return &storagev1.Condition{Kind: &storagev1.Condition_Absent{Absent: true}}
	case 1:
		return &storagev1.Condition{Kind: &storagev1.Condition_Id{Id: s.model.id(key)}}
	case 2:
		return &storagev1.Condition{Kind: &storagev1.Condition_Id{Id: rapid.Uint64Range(0, s.model.last()+3).Draw(t, "id")}}
	}
	return nil
}

func (s *machine) op(t *rapid.T) *storagev1.Op {
	key := keys.Draw(t, "key")
	switch rapid.IntRange(0, 4).Draw(t, "kind") {
	case 0:
		return &storagev1.Op{Kind: &storagev1.Op_Delete{Delete: &storagev1.DeleteRequest{Key: key, Condition: s.condition(t, key)}}}
	case 1:
		by := rapid.OneOf(rapid.Int64Range(-3, 3), rapid.Int64()).Draw(t, "by")
		return &storagev1.Op{Kind: &storagev1.Op_Add{Add: &storagev1.IncrRequest{Key: key, By: valueOf(by)}}}
	case 2:
		text := rapid.StringMatching(`[xy]{0,2}`).Draw(t, "text")
		return &storagev1.Op{Kind: &storagev1.Op_Append{Append: &storagev1.AppendRequest{Key: key, Value: valueOf(text)}}}
	}
	return &storagev1.Op{Kind: &storagev1.Op_Put{Put: &storagev1.PutRequest{
		Key: key, Value: values.Draw(t, "value"), Condition: s.condition(t, key), Ttl: ttls.Draw(t, "ttl"),
	}}}
}

// write draws operations, and compares what they do with the model.
func (s *machine) write(t *rapid.T, ops []*storagev1.Op) {
	next := s.model.clone()
	want := []uint64{}
	code, failed := connect.Code(0), 0
	for i, op := range ops {
		var id uint64
		if id, code = next.apply(op); code != 0 {
			failed = i
			break
		}
		want = append(want, id)
	}
	ids, err := s.perform(ctx, ops)
	if code != 0 {
		require.Equal(t, code, connect.CodeOf(err), "%v", err)
		var of *connect.Error
		var op storagev1.FailedOp
		if require.ErrorAs(t, err, &of); len(ops) != 1 {
			require.True(t, detail(of, &op), "%v", err)
			require.EqualValues(t, failed, op.GetIndex())
			require.Equal(t, keyOf(ops[failed]), op.GetKey())
		}
		if code == connect.CodeAborted {
			var condition *ConditionError
			require.ErrorAs(t, typed(err), &condition)
			require.Equal(t, keyOf(ops[failed]), condition.Key)
			require.Equal(t, next.id(condition.Key), condition.ID)
		}
		return
	}
	require.NoError(t, err)
	require.Equal(t, want, append([]uint64{}, ids...))
	s.model = next
}

func (s *machine) read(t *rapid.T) {
	key := keys.Draw(t, "key")
	res, err := s.Handle().Get(ctx, &storagev1.GetRequest{Key: key})
	if e := s.model.entries[key]; e == nil {
		require.ErrorIs(t, typed(err), ErrNotFound)
	} else {
		require.NoError(t, err)
		require.True(t, proto.Equal(e, &storagev1.Entry{Key: key, Value: res.GetValue(), Id: res.GetId(), Expires: res.GetExpires()}))
	}
	id, err := s.ID(ctx, key)
	require.NoError(t, err)
	require.Equal(t, s.model.id(key), id)
	several := rapid.SliceOfN(keys, 0, 4).Draw(t, "keys")
	many, err := s.Handle().GetMany(ctx, &storagev1.GetManyRequest{Keys: several})
	require.NoError(t, err)
	var want []*storagev1.Entry
	for _, key := range several {
		if e := s.model.entries[key]; e != nil {
			want = append(want, e)
		}
	}
	requireEqualMessages(t, want, many.GetEntries())
}

func (s *machine) list(t *rapid.T) {
	prefix, reverse := rapid.StringMatching(`[ab]{0,2}`).Draw(t, "prefix"), rapid.Bool().Draw(t, "reverse")
	size := rapid.Int32Range(0, 5).Draw(t, "size")
	after, token := prefix+rapid.StringMatching(`[ab]{0,2}`).Draw(t, "after"), ""
	want := s.model.list(prefix)
	if reverse {
		slices.Reverse(want)
	}
	if after != "" {
		token = tokenAfter(after)
		want = slices.DeleteFunc(want, func(e *storagev1.Entry) bool {
			return !reverse && e.GetKey() <= after || reverse && e.GetKey() >= after
		})
	}
	res, err := s.Handle().List(ctx, &storagev1.ListRequest{Prefix: prefix, PageSize: size, PageToken: token, Reverse: reverse})
	require.NoError(t, err)
	more := size > 0 && len(want) > int(size)
	if more {
		want = want[:size]
	}
	require.Equal(t, more, res.GetNextPageToken() != "")
	requireEqualMessages(t, want, res.GetEntries())
}

// export compares what is exported with the model, and imports it again.
func (s *machine) export(t *rapid.T) {
	several := rapid.SliceOfN(keys, 0, 3).Draw(t, "keys")
	prefixes := rapid.SliceOfN(rapid.StringMatching(`[ab]{0,2}`), 0, 2).Draw(t, "prefixes")
	stream, err := s.Handle().Export(ctx, &storagev1.ExportRequest{Keys: several, Prefixes: prefixes})
	require.NoError(t, err)
	var got []*storagev1.Entry
	for {
		res, err := stream.Receive()
		if err != nil {
			break
		}
		require.Equal(t, s.model.last(), res.GetId())
		got = append(got, res.GetEntries()...)
	}
	want := slices.DeleteFunc(s.model.list(""), func(e *storagev1.Entry) bool {
		return !slices.Contains(several, e.GetKey()) &&
			!slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(e.GetKey(), p) })
	})
	requireEqualMessages(t, want, got)

	back, err := s.Handle().Import(ctx)
	require.NoError(t, err)
	for _, e := range got {
		require.NoError(t, back.Send(&storagev1.ImportRequest{Entries: []*storagev1.Entry{e}}))
	}
	res, err := back.CloseAndReceive()
	require.NoError(t, err)
	require.EqualValues(t, len(want), res.GetEntries())
	for _, e := range want {
		expires := int64(0)
		if e.GetExpires() != nil {
			expires = e.GetExpires().AsTime().UnixNano()
		}
		require.LessOrEqual(t, s.model.write(e.GetKey(), e.GetValue(), expires), res.GetId())
	}
}

// fail makes the next commits fail: writes fail and change nothing, until the disk can be used
// again.
func (s *machine) fail(t *rapid.T) {
	if s.log == nil {
		return
	}
	s.log.fail(errors.New("the disk is on fire"))
	for range rapid.IntRange(1, 3).Draw(t, "attempts") {
		_, err := Put(ctx, s.Client, keys.Draw(t, "key"), 1)
		var failing *WritesFailError
		require.ErrorAs(t, typed(err), &failing)
		require.Equal(t, connect.CodeUnavailable, connect.CodeOf(err))
		status, err := s.Handle().Status(ctx, nil)
		require.NoError(t, err)
		require.Contains(t, status.GetFailure(), "on fire")
		require.Equal(t, s.model.last(), status.GetLastId())
		s.read(t)
	}
	s.log.fail(nil)
	time.Sleep(2 * maxReopen) //nolint:forbidigo // in a bubble of synctest
	synctest.Wait()
	status, err := s.Handle().Status(ctx, nil)
	require.NoError(t, err)
	require.Empty(t, status.GetFailure())
}

// restart starts the storage again with what its log has, and the watcher where it was.
func (s *machine) restart(t *rapid.T) {
	if s.log == nil {
		return
	}
	s.watcher.end()
	s.end()
	s.running = start(t, s.config, s.log)
	s.watchAgain(t, s.watcher.req, s.watcher.at)
}

func (s *machine) watchAgain(t *rapid.T, req *storagev1.WatchRequest, since uint64) {
	req.Since = &since
	w, err := s.watch(t, req)
	require.NoError(t, err)
	s.watcher, s.since = w, since
}

func (s *machine) rewatch(t *rapid.T) {
	s.watcher.end()
	req := &storagev1.WatchRequest{Prefix: rapid.StringMatching(`[ab]{0,2}`).Draw(t, "prefix")}
	req.Exact = req.GetPrefix() != "" && rapid.Bool().Draw(t, "exact")
	s.watchAgain(t, req, rapid.Uint64Range(0, s.model.last()).Draw(t, "since"))
}

// inBubble runs fn in a bubble of synctest. Rapid ends a test by a panic.
func inBubble(t *testing.T, rt *rapid.T, fn func(t *rapid.T)) {
	var panicked any
	synctest.Test(t, func(*testing.T) {
		defer func() { panicked = recover() }()
		fn(rt)
	})
	switch {
	case panicked == nil:
	case fmt.Sprintf("%T", panicked) == "rapid.invalidData":
		panic(panicked) // rapid distinguishes failures by the line of the panic
	default:
		panic(panicked)
	}
}

func TestStorageMatchesModel(t *testing.T) {
	for name, durability := range map[string]storagev1.Durability{"memory": inMemory, "async": async, "sync": synced} {
		t.Run(name, func(t *testing.T) {
			rapid.Check(t, func(rt *rapid.T) {
				inBubble(t, rt, func(t *rapid.T) {
					s := &machine{model: &model{entries: map[string]*storagev1.Entry{}}, config: &storagev1.StorageConfig{Durability: durability}}
					if durability != inMemory {
						s.log = newFakeLog()
					}
					s.running = start(t, s.config, s.log)
					defer func() { s.end() }()
					s.watchAgain(t, &storagev1.WatchRequest{}, 0)
					defer func() { s.watcher.end() }()
					t.Repeat(map[string]func(*rapid.T){
						"":        s.check,
						"write":   func(t *rapid.T) { s.write(t, []*storagev1.Op{s.op(t)}) },
						"batch":   func(t *rapid.T) { s.write(t, rapid.SliceOfN(rapid.Custom(s.op), 0, 5).Draw(t, "ops")) },
						"read":    s.read,
						"list":    s.list,
						"export":  s.export,
						"fail":    s.fail,
						"restart": s.restart,
						"watch":   s.rewatch,
						"sleep": func(t *rapid.T) {
							ms := rapid.IntRange(1, 3000).Draw(t, "ms")
							time.Sleep(time.Duration(ms) * time.Millisecond) //nolint:forbidigo // in a bubble of synctest
						},
					})
				})
			})
		})
	}
}
