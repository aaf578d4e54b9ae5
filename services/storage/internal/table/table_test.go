package table_test

import (
	"fmt"
	"iter"
	"maps"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	storagev1 "github.com/raylink/raylink/gen/raylink/storage/v1"
	"github.com/raylink/raylink/internal/invariants"
	"github.com/raylink/raylink/services/storage/internal/table"
)

// unlimited has a history of one change.
var unlimited = table.Limits{Keys: large, Bytes: large, History: 1, HistoryBytes: large, MaxValue: large}

// put stores a value durably.
func put(t testing.TB, s *table.Table, key string, v *storagev1.Value) {
	t.Helper()
	_, _, err := s.Apply(nil, nil, []table.Write{{Key: key, Value: v}})
	require.NoError(t, err)
	s.Committed(s.LastID())
}

// restore restores a change.
func restore(s *table.Table, c *storagev1.Change) error {
	encoded, err := proto.MarshalOptions{Deterministic: true}.Marshal(c)
	if err != nil {
		panic(err)
	}
	return s.Restore(c.GetId(), encoded)
}

func remove(t testing.TB, s *table.Table, key string) {
	t.Helper()
	put(t, s, key, nil)
}

func TestBoundsAreNamedAndChangeNothing(t *testing.T) {
	t.Parallel()
	limits := table.Limits{Keys: 2, Bytes: 400, History: 10, HistoryBytes: large, MaxValue: 200}
	s := table.New(limits)
	put(t, s, "a", int64Value(1))
	put(t, s, "b", int64Value(2))
	before := s.Usage()
	for _, c := range []struct {
		name   string
		writes []table.Write
		bound  table.Bound
		limit  uint64
		needs  uint64
		text   string
	}{
		{
			"keys",
			[]table.Write{{Key: "a", Value: int64Value(3)}, {Key: "c", Value: int64Value(3)}},
			table.KeysBound, 2, 3,
			`store "c": the storage's limit is 2 keys, and it would need 3`,
		},
		{
			"bytes",
			[]table.Write{{Key: "b"}, {Key: "a", Value: bytesValue(make([]byte, 190))}, {Key: "c", Value: bytesValue(make([]byte, 190))}},
			table.BytesBound, 400, 2*224 + 3*28, `store "c": the storage's limit is 400 bytes, and it would need 532`,
		},
		{
			"value",
			[]table.Write{{Key: "b"}, {Key: "a", Value: bytesValue(make([]byte, 198))}},
			table.ValueBound, 200, 201,
			`store "a": the value has 201 bytes, and the limit is 200`,
		},
	} {
		_, _, err := s.Apply(nil, nil, c.writes)
		var limit *table.LimitError
		require.ErrorAs(t, err, &limit, c.name)
		require.Equal(t, table.LimitError{Bound: c.bound, Key: c.writes[len(c.writes)-1].Key, Limit: c.limit, Needs: c.needs}, *limit)
		require.EqualError(t, err, c.text)
		require.Equal(t, before, s.Usage())
		e, _ := s.Get("a")
		require.EqualValues(t, 1, e.Value.Int64())
	}
	for _, w := range []table.Write{
		{Key: ""}, {Key: strings.Repeat("k", table.MaxKey+1), Value: int64Value(1)}, {Key: "a", Value: &storagev1.Value{}},
	} {
		_, _, err := s.Apply(nil, nil, []table.Write{{Key: "b"}, w})
		require.Error(t, err)
		require.Equal(t, before, s.Usage())
	}

	_, _, err := s.Apply(nil, nil, []table.Write{{Key: "c", Value: int64Value(3)}, {Key: "a"}})
	require.NoError(t, err, "what counts is the number of keys after all writes")
}

// A storage whose limits were lowered can be emptied.
func TestWritesThatShrinkAreAllowedOverTheLimit(t *testing.T) {
	t.Parallel()
	s := table.New(table.Limits{Keys: 1, Bytes: 1, History: 10, HistoryBytes: large, MaxValue: 200})
	for i, key := range []string{"a", "b", "c"} {
		require.NoError(t, restore(s, &storagev1.Change{Key: key, Id: uint64(i + 1), Value: bytesValue(make([]byte, 100))}))
	}
	put(t, s, "a", int64Value(1))
	remove(t, s, "b")
	_, _, err := s.Apply(nil, nil, []table.Write{{Key: "a", Value: bytesValue(make([]byte, 30))}})
	require.Error(t, err)
}

// A caller may reuse what it has passed, and modify what it gets.
func TestValuesBelongToTheirCaller(t *testing.T) {
	t.Parallel()
	s := table.New(unlimited)
	b := []byte("value")
	put(t, s, "k", bytesValue(b))
	b[0] = 'X'
	e, _ := s.Get("k")
	e.Value.Proto().GetBytesValue()[0] = 'Y'
	e, _ = s.Get("k")
	require.Equal(t, "value", string(e.Value.Proto().GetBytesValue()))
}

// TestSnapshotIsReadWhileTheTableIsWritten is for the race detector too.
func TestSnapshotIsReadWhileTheTableIsWritten(t *testing.T) {
	t.Parallel()
	s := table.New(unlimited)
	const n = 2000
	for i := range n {
		put(t, s, fmt.Sprint("key", i), int64Value(0))
	}
	var readers sync.WaitGroup
	for range 3 {
		snapshot := s.Snapshot(table.Selector{Prefix: true})
		sum := int64(0)
		for e := range s.Scan("", "", false) {
			sum += e.Value.Int64()
		}
		readers.Go(func() {
			keys, got := 0, int64(0)
			for e := range snapshot.Entries() {
				keys++
				got += e.Value.Int64()
			}
			if keys != n || got != sum {
				t.Errorf("the snapshot has %d keys and the sum %d instead of %d and %d", keys, got, n, sum)
			}
		})
		for i := range n {
			put(t, s, fmt.Sprint("key", i), int64Value(rand.Int64N(1000)))
		}
	}
	readers.Wait()
}

// What AppendProto writes is what protobuf reads.
func TestChangesAreEncodedAsProtobufDoes(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		s := table.New(unlimited)
		w := table.Write{Key: rapid.StringN(1, 20, 300).Draw(t, "key"), Value: genValue().Draw(t, "value")}
		w.Expires = rapid.OneOf(rapid.Just(int64(0)), rapid.Int64()).Draw(t, "expires")
		changes, _, err := s.Apply(nil, nil, []table.Write{w, {Key: w.Key, Expired: rapid.Bool().Draw(t, "expired")}})
		require.NoError(t, err)
		for _, c := range changes {
			decoded := new(storagev1.Change)
			require.NoError(t, proto.Unmarshal(c.AppendProto(nil), decoded))
			require.True(t, proto.Equal(c.Proto(), decoded))
			require.Len(t, c.AppendProto(nil), proto.Size(c.Proto()))
		}
		require.True(t, proto.Equal(w.Value, changes[0].Proto().GetValue()))
	})
}

func TestRestoreRefusesWhatIsNeverWritten(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]*storagev1.Change{
		"follows change 5": {Key: "k", Id: 5, Value: int64Value(1)},
		"a key has 1 to":   {Id: 6, Value: int64Value(1)},
		"the value has no": {Key: "k", Id: 6, Value: &storagev1.Value{}},
		"an expired entry": {Key: "k", Id: 6, Value: int64Value(1), Expired: true},
		"a removal has no": {Key: "k", Id: 6, Expires: &timestamppb.Timestamp{Seconds: 1}},
		"is not one that":  {Key: "k", Id: 6, Value: int64Value(1), Expires: &timestamppb.Timestamp{Seconds: 1 << 35}},
		"after 9999-12-31": {Key: "k", Id: 6, Value: int64Value(1), Expires: &timestamppb.Timestamp{Seconds: math.MaxInt64}},
	} {
		s := table.New(unlimited)
		require.NoError(t, restore(s, &storagev1.Change{Key: "k", Id: 5, Value: int64Value(1)}))
		before := s.Usage()
		require.ErrorContains(t, restore(s, c), name)
		require.Equal(t, before, s.Usage())
	}
}

// TestRestoreRefusesDamagedRecords: a record that is cut off, or has a wrong bit, is refused, or is
// what protobuf decodes.
func TestRestoreRefusesDamagedRecords(t *testing.T) {
	t.Parallel()
	s := table.New(unlimited)
	changes, _, err := s.Apply(nil, nil, []table.Write{
		{Key: "key", Value: int64Value(-300)},
		{Key: "k\u00e9y", Value: stringValue("t\u00e9xt")},
		{Key: "k", Value: bytesValue([]byte("bytes")), Expires: 1_500_000_000},
		{Key: "key", Value: messageValue(&storagev1.GetRequest{Key: "k"}), Expires: -1},
		{Key: "key", Value: jsonValue([]any{1.0, "x", nil})},
		{Key: "b", Value: &storagev1.Value{Kind: &storagev1.Value_BoolValue{BoolValue: true}}},
		{Key: "d", Value: &storagev1.Value{Kind: &storagev1.Value_DoubleValue{DoubleValue: 0.1}}},
		{Key: "key", Expired: true},
	})
	require.NoError(t, err)
	accepted := 0
	check := func(record []byte, id uint64, damaged bool) {
		c := new(storagev1.Change)
		decoded := proto.Unmarshal(record, c)
		if decoded == nil {
			id = c.GetId()
		}
		s := table.New(unlimited)
		if err := s.Restore(id, record); err != nil {
			require.True(t, damaged, "a record that was written is refused: %v", err)
			require.Equal(t, table.New(unlimited).Usage(), s.Usage())
			return
		}
		accepted++
		require.NoError(t, decoded, "protobuf does not decode %x", record)
		changes, ok := s.Since(c.GetId()-1, 1)
		require.True(t, ok)
		require.True(t, proto.Equal(c, changes[0].Proto()), "%x is %v, but restored as %v", record, c, changes[0].Proto())
	}
	for _, c := range changes {
		record := c.AppendProto(nil)
		check(record, c.ID, false)
		for i := range record {
			check(record[:i], c.ID, true)
			for bit := range 8 {
				damaged := slices.Clone(record)
				damaged[i] ^= 1 << bit
				check(damaged, c.ID, true)
			}
			check(slices.Concat(record, record[i:]), c.ID, true)
			check(slices.Concat(record[:i], record[i+1:]), c.ID, true)
			check(slices.Insert(slices.Clone(record), i, 0x80), c.ID, true)
		}
	}
	require.Greater(t, accepted, len(changes), "a wrong bit in a text can't be noticed")
	for text, record := range map[string]string{
		"a field occurs twice":        "\x0a\x01k\x0a\x01k\x18\x01",
		"fields are not in order":     "\x18\x01\x0a\x01k",
		"the field 6 with":            "\x0a\x01k\x18\x01\x30\x01",
		"the value has two types":     "\x0a\x01k\x12\x04\x08\x01\x18\x01\x18\x01",
		"neither 0 nor 1":             "\x0a\x01k\x12\x02\x18\x02\x18\x01",
		"the record has the id 2":     "\x0a\x01k\x18\x02",
		"a string is not UTF-8":       "\x0a\x01\xff\x18\x01",
		"the field 8 with":            "\x0a\x01k\x12\x02\x40\x02\x18\x01",
		"the field 3 with the wire t": "\x0a\x01k\x12\x03\x1a\x01k\x18\x01",
	} {
		require.ErrorContains(t, table.New(unlimited).Restore(1, []byte(record)), text)
	}
}

// An entry that is overwritten again and again with a time leaves nothing behind.
func TestOverwrittenExpiriesLeaveNothingBehind(t *testing.T) {
	t.Parallel()
	s := table.New(unlimited)
	for i := range int64(100) {
		_, _, err := s.Apply(nil, nil, []table.Write{{Key: "k", Value: int64Value(i), Expires: 1000 + i}})
		require.NoError(t, err)
		s.Committed(s.LastID())
	}
	require.Equal(t, []string{"k"}, s.Expired(math.MaxInt64, 10))
	put(t, s, "k", int64Value(0))
	require.Empty(t, s.Expired(math.MaxInt64, 10))
}

// TestManyKeysStayInOrder: the order has all keys, of any length, however they were stored and
// after most of them are removed. The model's tables are too small to split or merge a part of the
// index.
func TestManyKeysStayInOrder(t *testing.T) {
	t.Parallel()
	const n = 20_000
	for name, key := range map[string]func(i int) string{
		"ascending":  func(i int) string { return fmt.Sprintf("key/%06d", i) },
		"descending": func(i int) string { return fmt.Sprintf("key/%06d", n-i) },
		"random":     func(i int) string { return strconv.Itoa((i * 7919) % n) },
		"long": func(i int) string {
			return strings.Repeat("long", i%50) + strings.Repeat("\x00", i%3) + strconv.Itoa((i*7919)%n)
		},
		"prefixes": func(i int) string { return strings.Repeat("k", i%1000+1) + strings.Repeat("\x00", i/1000) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, stored, log := table.New(unlimited), make(map[string]bool), [][]byte(nil)
			write := func(key string, v *storagev1.Value) {
				changes, _, err := s.Apply(nil, nil, []table.Write{{Key: key, Value: v}})
				require.NoError(t, err)
				s.Committed(s.LastID())
				log = append(log, changes[0].AppendProto(nil))
				if stored[key] = true; v == nil {
					delete(stored, key)
				}
			}
			check := func(s *table.Table) {
				t.Helper()
				s.Check()
				sorted := slices.Sorted(maps.Keys(stored))
				require.Equal(t, sorted, keysOf(s.Scan("", "", false)))
				require.Equal(t, sorted, keysOf(s.Snapshot(table.Selector{Prefix: true}).Entries()))
				downwards := keysOf(s.Scan("", "", true))
				slices.Reverse(downwards)
				require.Equal(t, sorted, downwards)
				for i := 0; i < n; i += n / 20 {
					after := key(i)
					at, found := slices.BinarySearch(sorted, after)
					_, ok := s.Get(after)
					require.Equal(t, found, ok)
					if found {
						at++
					}
					require.True(t, slices.Equal(sorted[at:], keysOf(s.Scan("", after, false))))
					under := slices.DeleteFunc(slices.Clone(sorted), func(k string) bool { return !strings.HasPrefix(k, after) })
					require.True(t, slices.Equal(under, keysOf(s.Snapshot(table.Selector{Text: after, Prefix: true}).Entries())))
				}
			}
			for i := range n {
				write(key(i), int64Value(int64(i)))
			}
			require.Len(t, stored, n)
			check(s)
			full := s.Usage().Bytes
			for i := range n {
				if i%10 != 0 {
					write(key(i), nil)
				}
			}
			check(s)
			require.Less(t, s.Usage().Bytes, full/4, "the index is smaller than it was")
			for i := range n / 2 {
				if !stored[key(i)] {
					write(key(i), int64Value(0))
				}
			}
			check(s)
			restored := table.New(unlimited)
			for i, record := range log {
				require.NoError(t, restored.Restore(uint64(i+1), record))
			}
			check(restored)
		})
	}
}

func keysOf(entries iter.Seq[table.Entry]) []string {
	var keys []string
	for e := range entries {
		keys = append(keys, e.Key)
	}
	return keys
}

// A write of an existing key allocates its record, and nothing else.
func TestOverwritingAllocatesOnce(t *testing.T) { //nolint:paralleltest // it counts allocations
	if invariants.RaceEnabled {
		t.Skip("the race detector allocates too")
	}
	w := writer{table: table.New(table.Limits{Keys: 10, Bytes: large, History: 10, HistoryBytes: large, MaxValue: 100})}
	value := int64Value(1)
	for range 100 {
		w.put(t, "key", value)
	}
	require.LessOrEqual(t, testing.AllocsPerRun(1000, func() { w.put(t, "key", value) }), 1.0)
}

// TestUsageIsTheHeapsGrowth: what is counted is what the entries really take.
func TestUsageIsTheHeapsGrowth(t *testing.T) { //nolint:paralleltest // it measures the process's heap
	if invariants.RaceEnabled {
		t.Skip("the race detector takes memory too")
	}
	const n = 200_000
	for _, c := range []struct {
		name    string
		length  int // of keys
		ordered bool
		value   func(i int) *storagev1.Value
	}{
		{"int64", 16, false, func(i int) *storagev1.Value { return int64Value(int64(i)) }},
		{"short", 6, true, func(i int) *storagev1.Value { return int64Value(int64(i)) }},
		{"bytes", 16, true, func(int) *storagev1.Value { return bytesValue(make([]byte, 300)) }},
		{"json", 40, false, func(i int) *storagev1.Value { return jsonValue([]any{float64(i), "x"}) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			key := func(i int) string { return fmt.Sprintf("%0*d", c.length, i) }
			order := rand.Perm(n)
			if c.ordered {
				slices.Sort(order)
			}
			base := heap()
			s := table.New(unlimited)
			check := func(what string) {
				t.Helper()
				grown, u := heap()-base, s.Usage()
				t.Logf("%s: counted %d, heap %d: %.2f; a key takes %d", what, u.Bytes, grown, float64(u.Bytes)/float64(grown), grown/u.Keys)
				require.InEpsilon(t, grown, u.Bytes, 0.2, what)
			}
			for _, i := range order {
				put(t, s, key(i), c.value(i))
			}
			check("stored")
			for i := range n / 2 {
				put(t, s, key(2*i), c.value(i))
			}
			check("overwritten")
			for i := range n {
				if i%3 != 0 {
					remove(t, s, key(i))
				}
			}
			check("removed")
			for i := range n {
				_, _, err := s.Apply(nil, nil, []table.Write{{Key: key(i), Value: c.value(i), Expires: int64(n - i)}})
				require.NoError(t, err)
				s.Committed(s.LastID())
			}
			check("expiring")
			for i := range n {
				put(t, s, key(i), int64Value(0))
			}
			check("shrunk")
			runtime.KeepAlive(s)
			runtime.KeepAlive(order)
		})
	}
}

// TestHistoryUsageIsTheHeapsGrowth: the history takes what is counted beside the entries.
func TestHistoryUsageIsTheHeapsGrowth(t *testing.T) { //nolint:paralleltest // it measures the process's heap
	if invariants.RaceEnabled {
		t.Skip("the race detector takes memory too")
	}
	const n = 200_000
	for name, write := range map[string]func(i int) table.Write{
		"one-counter":  func(i int) table.Write { return table.Write{Key: "a key of 16 byte", Value: int64Value(int64(i))} },
		"one-text":     func(int) table.Write { return table.Write{Key: "k", Value: stringValue(strings.Repeat("x", 100))} },
		"current-keys": func(i int) table.Write { return table.Write{Key: fmt.Sprint("key", i), Value: int64Value(0)} },
		"removed-keys": func(i int) table.Write {
			w := table.Write{Key: fmt.Sprint("key", i/2)}
			if i%2 == 0 {
				w.Value = int64Value(0)
			}
			return w
		},
	} {
		t.Run(name, func(t *testing.T) {
			limits := unlimited
			limits.History = n
			base := heap()
			s := table.New(limits)
			check := func(what string) {
				t.Helper()
				grown, u := heap()-base, s.Usage()
				t.Logf("%s: counted %d+%d, heap %d", what, u.Bytes, u.HistoryBytes, grown)
				require.InEpsilon(t, grown, u.Bytes+u.HistoryBytes, 0.2, what)
			}
			for i := range n / 2 {
				_, _, err := s.Apply(nil, nil, []table.Write{write(i)})
				require.NoError(t, err)
				s.Committed(s.LastID())
			}
			check("half full")
			for i := range n {
				_, _, err := s.Apply(nil, nil, []table.Write{write(n/2 + i)})
				require.NoError(t, err)
				s.Committed(s.LastID())
			}
			check("full")
			runtime.KeepAlive(s)
		})
	}
}

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
