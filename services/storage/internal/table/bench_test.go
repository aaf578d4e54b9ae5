package table_test

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"

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

func filled(b *testing.B, names []string) *table.Table {
	b.Helper()
	s := table.New(defaults)
	for _, name := range names {
		put(b, s, name, int64Value(1))
	}
	return s
}

// BenchmarkGet reads random ones of a million keys.
func BenchmarkGet(b *testing.B) {
	names := names()
	s := filled(b, names)
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		if _, ok := s.Get(names[i%million]); !ok {
			b.Fatal("the key is missing")
		}
	}
}

// BenchmarkApply overwrites random ones of a million keys with an int64, and commits each write.
func BenchmarkApply(b *testing.B) {
	names := names()
	s := filled(b, names)
	value, writes := int64Value(2), make([]table.Write, 1)
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		writes[0] = table.Write{Key: names[i%million], Value: value}
		if _, _, err := s.Apply(writes); err != nil {
			b.Fatal(err)
		}
		s.Committed(s.LastID())
	}
}

// BenchmarkCounter overwrites one key.
func BenchmarkCounter(b *testing.B) {
	s := table.New(defaults)
	value, writes := int64Value(2), make([]table.Write, 1)
	b.ReportAllocs()
	for range b.N {
		writes[0] = table.Write{Key: "episodes", Value: value}
		if _, _, err := s.Apply(writes); err != nil {
			b.Fatal(err)
		}
		s.Committed(s.LastID())
	}
}

// BenchmarkRestore decodes and restores a million records.
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
	for b.Loop() {
		s := table.New(defaults)
		for _, r := range records {
			c := new(storagev1.Change)
			if err := proto.Unmarshal(r, c); err != nil {
				b.Fatal(err)
			}
			if err := s.Restore(c); err != nil {
				b.Fatal(err)
			}
		}
		u := s.Usage()
		b.ReportMetric(float64(u.Bytes)/float64(u.Keys), "bytes/key")
		runtime.KeepAlive(s)
	}
}
