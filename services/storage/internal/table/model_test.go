package table_test

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
	"pgregory.net/rapid"

	storagev1 "github.com/raylink/raylink/gen/raylink/storage/v1"
	"github.com/raylink/raylink/services/storage/internal/table"
)

func int64Value(n int64) *storagev1.Value {
	return &storagev1.Value{Kind: &storagev1.Value_Int64Value{Int64Value: n}}
}

func stringValue(s string) *storagev1.Value {
	return &storagev1.Value{Kind: &storagev1.Value_StringValue{StringValue: s}}
}

func bytesValue(b []byte) *storagev1.Value {
	return &storagev1.Value{Kind: &storagev1.Value_BytesValue{BytesValue: b}}
}

func jsonValue(v any) *storagev1.Value {
	j, err := structpb.NewValue(v)
	if err != nil {
		panic(err)
	}
	return &storagev1.Value{Kind: &storagev1.Value_JsonValue{JsonValue: j}}
}

func messageValue(m proto.Message) *storagev1.Value {
	a, err := anypb.New(m)
	if err != nil {
		panic(err)
	}
	return &storagev1.Value{Kind: &storagev1.Value_MessageValue{MessageValue: a}}
}

func genValue() *rapid.Generator[*storagev1.Value] {
	return rapid.Custom(func(t *rapid.T) *storagev1.Value {
		switch rapid.IntRange(1, 7).Draw(t, "kind") {
		case 1:
			return int64Value(rapid.Int64().Draw(t, "int64"))
		case 2:
			return &storagev1.Value{Kind: &storagev1.Value_DoubleValue{DoubleValue: rapid.Float64().Draw(t, "double")}}
		case 3:
			return &storagev1.Value{Kind: &storagev1.Value_BoolValue{BoolValue: rapid.Bool().Draw(t, "bool")}}
		case 4:
			return stringValue(rapid.StringN(-1, -1, 40).Draw(t, "string"))
		case 5:
			return bytesValue(rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(t, "bytes"))
		case 6:
			return messageValue(&storagev1.GetRequest{Key: rapid.StringN(-1, -1, 10).Draw(t, "key")})
		default:
			return jsonValue([]any{rapid.Bool().Draw(t, "json"), nil, "x"})
		}
	})
}

// state is what a table must have: a plain map.
type state map[string]*storagev1.Change

// group is the writes of one Apply, and the ids that it returned for removal.
type group struct {
	changes []*storagev1.Change
	records [][]byte
	removed []uint64
}

// model is a table beside everything that was ever written to it, and the log of its caller.
type model struct {
	limits table.Limits
	// colliding is set if the keys' hashes collide.
	colliding bool
	table     *table.Table
	// changes are all writes in order: that with the id n is changes[n-1].
	changes   []*storagev1.Change
	committed uint64
	pending   []group
	log       map[uint64][]byte
	snapshots []snapshot
	// longer is set once the history's limit was raised: what was dropped before is not known.
	longer bool
}

// snapshot is a snapshot and what it must have, in order.
type snapshot struct {
	*table.Snapshot

	entries []*storagev1.Change
}

// at returns the state after the write with an id.
func (m *model) at(id uint64) state {
	s := make(state)
	for _, c := range m.changes[:id] {
		if c.GetValue() == nil {
			delete(s, c.GetKey())
		} else {
			s[c.GetKey()] = c
		}
	}
	return s
}

func (m *model) last() uint64 { return uint64(len(m.changes)) }

var (
	keys     = rapid.SampledFrom([]string{"a", "ab", "abc", "b", "b/1", "b/2", "b\u00ff", "c", "a key that is longer than sixteen bytes", "\u00ff"})
	prefixes = rapid.SampledFrom([]string{"", "a", "ab", "b/", "b", "\u00ff", "\xff", "zz", "a key"})
)

func (m *model) apply(t *rapid.T) {
	before, writes := m.at(m.last()), []table.Write(nil)
	after, g := maps.Clone(before), group{}
	var expected []uint64
	id := m.last()
	for range rapid.IntRange(1, 4).Draw(t, "writes") {
		w := table.Write{Key: keys.Draw(t, "key")}
		c := &storagev1.Change{Key: w.Key}
		if rapid.IntRange(0, 2).Draw(t, "remove") > 0 {
			w.Value = genValue().Draw(t, "value")
			w.Expires = max(0, rapid.Int64Range(-3, 5).Draw(t, "expires")*500_000_000)
			c.Value = proto.CloneOf(w.Value)
			c.Expires = table.Entry{Expires: w.Expires}.Proto().GetExpires()
		} else {
			w.Expired = rapid.Bool().Draw(t, "expired")
			c.Expired = w.Expired
		}
		writes = append(writes, w)
		if _, ok := after[w.Key]; !ok && w.Value == nil {
			expected = append(expected, 0)
			continue
		}
		id++
		c.Id = id
		expected = append(expected, id)
		g.changes = append(g.changes, c)
		if w.Value == nil {
			delete(after, w.Key)
		} else {
			after[w.Key] = c
		}
	}
	usage := m.table.Usage()
	changes, removed, err := m.table.Apply(nil, nil, writes)
	if n := uint64(len(after)); n > m.limits.Keys && n > uint64(len(before)) {
		var limit *table.LimitError
		require.ErrorAs(t, err, &limit)
		require.Equal(t, table.KeysBound, limit.Bound)
		require.Equal(t, n, limit.Needs)
		require.Equal(t, m.limits.Keys, limit.Limit)
		require.Equal(t, usage, m.table.Usage())
		return
	}
	require.NoError(t, err)
	g.removed = removed
	for i, c := range changes {
		require.Equal(t, expected[i], c.ID)
		if c.ID != 0 {
			g.records = append(g.records, c.AppendProto(nil))
		}
	}
	if len(g.changes) == 0 {
		require.Empty(t, removed, "ids are removed with a commit")
		return
	}
	if len(m.pending) == 0 { // then exactly the records that are needed remain
		log := maps.Clone(m.log)
		for _, id := range removed {
			delete(log, id)
		}
		needed := make(map[uint64][]byte)
		for _, c := range before {
			needed[c.GetId()] = nil
		}
		for id := usage.Oldest + 1; id <= m.committed; id++ {
			needed[id] = nil
		}
		require.Equal(t, slices.Sorted(maps.Keys(needed)), slices.Sorted(maps.Keys(log)), "removed %v", removed)
	}
	m.pending = append(m.pending, g)
	m.changes = append(m.changes, g.changes...)
}

// commit writes some of the pending groups to the log as one.
func (m *model) commit(t *rapid.T) {
	n := rapid.IntRange(0, len(m.pending)).Draw(t, "groups")
	m.store(n)
	m.table.Committed(m.committed)
}

// store makes the first n pending groups durable.
func (m *model) store(n int) {
	for _, g := range m.pending[:n] {
		for i, c := range g.changes {
			m.log[c.GetId()] = g.records[i]
			m.committed = c.GetId()
		}
		for _, id := range g.removed {
			delete(m.log, id)
		}
	}
	m.pending = m.pending[n:]
}

// rollback undoes the latest groups: those that were not given to the log yet.
func (m *model) rollback(t *rapid.T) {
	n := rapid.IntRange(0, len(m.pending)).Draw(t, "groups")
	m.pending = m.pending[:n]
	m.undo()
}

// undo undoes the writes that are not committed or pending any more.
func (m *model) undo() {
	last := m.committed
	if n := len(m.pending); n > 0 {
		changes := m.pending[n-1].changes
		last = changes[len(changes)-1].GetId()
	}
	m.changes = m.changes[:last]
	m.table.Rollback(last)
}

// fail commits some of the pending groups with an error: the log may have the writes or not, and is
// repaired.
func (m *model) fail(t *rapid.T) {
	if rapid.Bool().Draw(t, "written") {
		committed := m.committed
		m.store(rapid.IntRange(0, len(m.pending)).Draw(t, "groups"))
		m.committed = committed
		maps.DeleteFunc(m.log, func(id uint64, _ []byte) bool { return id > committed })
	}
	m.pending = nil
	m.undo()
}

// reopen builds the table from the log, with a history that may be longer than the log's. It may be
// written to before its keys are in order.
func (m *model) reopen(t *rapid.T) {
	if more := rapid.Uint64Range(0, 10).Draw(t, "longer history"); more > 0 {
		m.limits.History += more
		m.longer = true
	}
	m.pending, m.changes, m.snapshots = nil, m.changes[:m.committed], nil
	m.table = m.restored(t)
	if rapid.Bool().Draw(t, "ordered") {
		m.table.Order()
	}
	for range rapid.IntRange(0, 2).Draw(t, "writes at once") {
		m.apply(t)
		m.commit(t)
		m.rollback(t)
	}
}

// newTable returns an empty table.
func (m *model) newTable() *table.Table {
	if m.colliding {
		return table.NewColliding(m.limits)
	}
	return table.New(m.limits)
}

// restored returns the table that the log's records make.
func (m *model) restored(t require.TestingT) *table.Table {
	restored := m.newTable()
	for _, id := range slices.Sorted(maps.Keys(m.log)) {
		require.NoError(t, restored.Restore(id, m.log[id]))
	}
	return restored
}

func (m *model) snapshot(t *rapid.T) {
	var selectors []table.Selector
	var entries []*storagev1.Change
	now := m.at(m.last())
	for range rapid.IntRange(1, 2).Draw(t, "selectors") {
		s := table.Selector{Text: keys.Draw(t, "key")}
		if s.Prefix = rapid.Bool().Draw(t, "by prefix"); s.Prefix {
			s.Text = prefixes.Draw(t, "prefix")
		}
		selectors = append(selectors, s)
		for _, key := range slices.Sorted(maps.Keys(now)) {
			if key == s.Text || s.Prefix && strings.HasPrefix(key, s.Text) {
				entries = append(entries, now[key])
			}
		}
	}
	m.snapshots = append(m.snapshots[max(0, len(m.snapshots)-1):], snapshot{m.table.Snapshot(selectors...), entries})
}

// check compares the table, its snapshots and a table from the log with the model.
func (m *model) check(t *rapid.T) {
	now := m.at(m.last())
	requireState(t, now, m.table, "table")
	m.table.Check()
	m.checkUsage(t, now)
	m.checkReads(t, now)
	m.checkExpiry(t, now)
	for _, s := range m.snapshots {
		got := slices.Collect(s.Entries())
		require.Len(t, got, len(s.entries), "snapshot")
		for i, e := range got {
			requireEntry(t, s.entries[i], e)
		}
	}
	restored := m.restored(t)
	requireState(t, m.at(m.committed), restored, "from the log")
	require.Equal(t, m.committed, restored.LastID())
	require.Equal(t, m.committed, restored.CommittedID())
	require.LessOrEqual(t, restored.Usage().Oldest, m.table.Usage().Oldest, "watchers resume after a restart too")
	restored.Check()
}

func (m *model) checkUsage(t *rapid.T, now state) {
	u := m.table.Usage()
	require.Equal(t, uint64(len(now)), u.Keys)
	require.Equal(t, m.last(), u.LastID)
	require.Equal(t, m.committed, u.CommittedID)
	length := m.committed - u.Oldest
	require.LessOrEqual(t, length, max(m.limits.History, 1))
	if m.committed > 0 {
		require.NotZero(t, length, "the last change is known")
	}
	if length > 1 {
		require.LessOrEqual(t, u.HistoryBytes, m.limits.HistoryBytes)
	}
	if m.limits.HistoryBytes == large && !m.longer {
		require.GreaterOrEqual(t, length, min(m.limits.History, m.committed), "watchers resume after a restart too")
	}
}

func (m *model) checkReads(t *rapid.T, now state) {
	key := keys.Draw(t, "key")
	e, ok := m.table.Get(key)
	require.Equal(t, now[key] != nil, ok)
	if ok {
		requireEntry(t, now[key], e)
	}
	pending := uint64(0)
	for _, c := range m.changes[m.committed:] {
		if c.GetKey() == key {
			pending = c.GetId()
		}
	}
	require.Equal(t, pending, m.table.Pending(key))

	since, limit := rapid.Uint64Range(0, m.last()+2).Draw(t, "since"), rapid.IntRange(0, 5).Draw(t, "limit")
	changes, ok := m.table.Since(since, limit)
	require.Equal(t, since >= m.table.Usage().Oldest && since <= m.committed, ok)
	if ok {
		expected := m.changes[since:m.committed]
		expected = expected[:min(limit, len(expected))]
		require.Len(t, changes, len(expected))
		for i, c := range changes {
			require.True(t, proto.Equal(expected[i], c.Proto()), "expected %v, got %v", expected[i], c.Proto())
		}
	}

	prefix, after, reverse := prefixes.Draw(t, "prefix"), "", rapid.Bool().Draw(t, "reverse")
	if rapid.Bool().Draw(t, "continues") {
		after = keys.Draw(t, "after")
	}
	var expected, got []string
	for key := range now {
		if strings.HasPrefix(key, prefix) && (after == "" || !reverse && key > after || reverse && key < after) {
			expected = append(expected, key)
		}
	}
	slices.Sort(expected)
	if reverse {
		slices.Reverse(expected)
	}
	for e := range m.table.Scan(prefix, after, reverse) {
		got = append(got, e.Key)
	}
	require.Equal(t, expected, got, "prefix %q, after %q, reverse %t", prefix, after, reverse)
}

func (m *model) checkExpiry(t *rapid.T, now state) {
	var expiring []*storagev1.Change
	for _, c := range now {
		if c.GetExpires() != nil {
			expiring = append(expiring, c)
		}
	}
	slices.SortFunc(expiring, func(a, b *storagev1.Change) int {
		return cmp.Or(a.GetExpires().AsTime().Compare(b.GetExpires().AsTime()), cmp.Compare(a.GetId(), b.GetId()))
	})
	at, ok := m.table.NextExpiry()
	require.Equal(t, len(expiring) > 0, ok)
	if ok {
		require.Equal(t, expiring[0].GetExpires().AsTime().UnixNano(), at)
	}
	limit, until := rapid.IntRange(0, 4).Draw(t, "limit"), rapid.Int64Range(0, 5).Draw(t, "now")*500_000_000
	var expected []string
	for _, c := range expiring {
		if len(expected) < limit && c.GetExpires().AsTime().UnixNano() <= until {
			expected = append(expected, c.GetKey())
		}
	}
	require.Equal(t, expected, m.table.Expired(until, limit))
}

// requireState compares all entries.
func requireState(t require.TestingT, expected state, got *table.Table, what string) {
	all := slices.Collect(got.Scan("", "", false))
	var names []string
	for _, e := range all {
		names = append(names, e.Key)
	}
	require.Equal(t, slices.Sorted(maps.Keys(expected)), names, what)
	for _, e := range all {
		requireEntry(t, expected[e.Key], e)
	}
}

func requireEntry(t require.TestingT, expected *storagev1.Change, e table.Entry) {
	want := &storagev1.Entry{Key: expected.GetKey(), Value: expected.GetValue(), Id: expected.GetId(), Expires: expected.GetExpires()}
	require.True(t, proto.Equal(want, e.Proto()), "expected %v, got %v", want, e.Proto())
}

const large = 1 << 40

// TestTableMatchesModel: after any writes, commits that succeed or fail, rollbacks and restarts,
// the table has what a map has, and the records that remain in the log make the committed state
// again.
func TestTableMatchesModel(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		m := &model{log: make(map[uint64][]byte), limits: table.Limits{
			Keys:         rapid.Uint64Range(1, 12).Draw(t, "keys"),
			Bytes:        large,
			History:      rapid.Uint64Range(0, 12).Draw(t, "history"),
			HistoryBytes: rapid.SampledFrom([]uint64{0, 100, 500, large}).Draw(t, "history bytes"),
			MaxValue:     1000,
		}}
		m.colliding = rapid.Bool().Draw(t, "colliding")
		m.table = m.newTable()
		t.Repeat(map[string]func(*rapid.T){
			"":         m.check,
			"apply":    m.apply,
			"apply2":   m.apply,
			"apply3":   m.apply,
			"commit":   m.commit,
			"commit2":  m.commit,
			"rollback": m.rollback,
			"fail":     m.fail,
			"reopen":   m.reopen,
			"snapshot": m.snapshot,
		})
	})
}
