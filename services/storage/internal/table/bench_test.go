package table_test

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	storagev1 "github.com/raylink/raylink/gen/raylink/storage/v1"
	"github.com/raylink/raylink/services/storage/internal/table"
)

const million = 1_000_000

// defaults are a storage's default limits.
var defaults = table.Limits{Keys: 1 << 20, Bytes: 1 << 30, History: 1 << 16, HistoryBytes: 64 << 20, MaxValue: 4 << 20}

// names returns a million keys of 16 bytes in random order.
func names() []string {
	names := make([]string, million)
	for i, n := range rand.Perm(million) {
		names[i] = fmt.Sprintf("episodes/%07d", n)
	}
	return names
}

// shuffled returns copies in another order, which are adjacent in memory as those of a request are.
func shuffled(names []string) []string {
	other := make([]string, len(names))
	for i, from := range rand.Perm(len(names)) {
		other[i] = strings.Clone(names[from])
	}
	return other
}

func filled(b *testing.B, names []string) *table.Table {
	b.Helper()
	s := table.New(defaults)
	for _, name := range names {
		put(b, s, name, int64Value(1))
	}
	return s
}

// BenchmarkGet reads random ones of a million keys, in another order than they were stored.
func BenchmarkGet(b *testing.B) {
	names := names()
	s := filled(b, names)
	names = shuffled(names)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if _, ok := s.Get(names[i%million]); !ok {
			b.Fatal("the key is missing")
		}
	}
}

// writer applies and commits one write at a time.
type writer struct {
	table   *table.Table
	changes []table.Change
	removed []uint64
	writes  [1]table.Write
}

func (w *writer) put(t testing.TB, key string, value *storagev1.Value) {
	var err error
	w.writes[0] = table.Write{Key: key, Value: value}
	if w.changes, w.removed, err = w.table.Apply(w.changes[:0], w.removed[:0], w.writes[:]); err != nil {
		t.Fatal(err)
	}
	w.table.Committed(w.table.LastID())
}

// BenchmarkOverwrite overwrites random ones of a million keys with an int64, and commits each
// write.
func BenchmarkOverwrite(b *testing.B) {
	names := names()
	w := writer{table: filled(b, names)}
	names = shuffled(names)
	value := int64Value(2)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		w.put(b, names[i%million], value)
	}
}

// BenchmarkInsert adds keys in random order to half a million, up to a million.
func BenchmarkInsert(b *testing.B) {
	names := names()
	value := int64Value(2)
	var w writer
	b.ReportAllocs()
	for i := million; b.Loop(); i++ {
		if i == million {
			b.StopTimer()
			i = million / 2
			w.table = filled(b, names[:i])
			b.StartTimer()
		}
		w.put(b, names[i], value)
	}
}

// BenchmarkCounter overwrites one key.
func BenchmarkCounter(b *testing.B) {
	w := writer{table: table.New(defaults)}
	value := int64Value(2)
	b.ReportAllocs()
	for b.Loop() {
		w.put(b, "episodes", value)
	}
}

// BenchmarkSnapshot is how long the table can't be used while a million entries are selected.
func BenchmarkSnapshot(b *testing.B) {
	s := filled(b, names())
	b.ReportAllocs()
	for b.Loop() {
		s.Snapshot(table.Selector{Prefix: true})
	}
}

// BenchmarkRemove removes most of a million keys, and reports how long the longest step takes, in
// which the index is made smaller.
func BenchmarkRemove(b *testing.B) {
	names := names()
	for b.Loop() {
		w := writer{table: filled(b, names)}
		longest := time.Duration(0)
		for _, name := range names[million/10:] {
			start := time.Now()
			w.put(b, name, nil)
			longest = max(longest, time.Since(start))
		}
		b.ReportMetric(float64(longest.Nanoseconds()), "longest-ns")
	}
}

// BenchmarkRestore restores a million records, and sorts their keys.
func BenchmarkRestore(b *testing.B) {
	names := names()
	records := make([][]byte, million)
	for i, name := range names {
		c := table.Change{Entry: table.Entry{Key: name, ID: uint64(i + 1)}}
		full := c.Proto()
		full.Value = int64Value(int64(i))
		records[i], _ = proto.Marshal(full)
	}
	b.ReportAllocs()
	restored := time.Duration(0)
	for b.Loop() {
		s := table.New(defaults)
		start := time.Now()
		for i, r := range records {
			if err := s.Restore(uint64(i+1), r); err != nil {
				b.Fatal(err)
			}
		}
		restored += time.Since(start)
		s.Order()
		u := s.Usage()
		b.ReportMetric(float64(u.Bytes)/float64(u.Keys), "bytes/key")
		runtime.KeepAlive(s)
	}
	b.ReportMetric(float64(restored.Nanoseconds())/float64(b.N), "restore-ns/op")
}
