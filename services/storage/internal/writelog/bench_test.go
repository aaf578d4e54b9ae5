package writelog

import (
	"fmt"
	"os"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// BenchmarkCommit commits groups of writes of 40 bytes, whose predecessors are removed.
func BenchmarkCommit(b *testing.B) {
	for _, mode := range []string{"async", "sync"} {
		for _, size := range []int{1, 16, 64} {
			b.Run(fmt.Sprintf("%s/group=%d", mode, size), func(b *testing.B) {
				l, err := Open(Options{Dir: b.TempDir(), Sync: mode == "sync", Logger: quiet}, nil)
				require.NoError(b, err)
				records, remove := make([]Record, size), make([]uint64, 0, size)
				value := make([]byte, 40)
				last := uint64(0)
				for b.Loop() {
					remove = remove[:0]
					for i := range records {
						last++
						records[i] = Record{ID: last, Change: value}
						if last > 65536 {
							remove = append(remove, last-65536)
						}
					}
					require.NoError(b, l.Commit(records, remove))
				}
				b.ReportMetric(float64(size)*float64(b.N)/b.Elapsed().Seconds(), "writes/s")
				b.StopTimer()
				require.NoError(b, l.Close())
			})
		}
	}
}

// BenchmarkOpen opens a directory with a million records, after a kill, and reports the memory that
// the log takes afterwards.
func BenchmarkOpen(b *testing.B) {
	dir := b.TempDir() + "/data"
	l, err := Open(Options{Dir: dir, Logger: quiet}, nil)
	require.NoError(b, err)
	records := make([]Record, 1000)
	value := make([]byte, 40)
	for id := uint64(0); id < 1_000_000; {
		for i := range records {
			id++
			records[i] = Record{ID: id, Change: value}
		}
		require.NoError(b, l.Commit(records, nil))
	}
	copied := b.TempDir() + "/data"
	require.NoError(b, l.Sync())
	require.NoError(b, os.CopyFS(copied, os.DirFS(dir)))
	require.NoError(b, l.Close())
	debug.FreeOSMemory()
	before := resident(b)
	n := 0
	begin := time.Now()
	l, err = Open(Options{Dir: copied, Logger: quiet}, func(Record) error { n++; return nil })
	require.NoError(b, err)
	first := time.Since(begin)
	require.Equal(b, 1_000_000, n)
	peak := resident(b) - before
	debug.FreeOSMemory()
	collected := resident(b) - before
	require.NoError(b, l.Close())
	for b.Loop() {
		l, err := Open(Options{Dir: copied, Logger: quiet}, func(Record) error { return nil })
		require.NoError(b, err)
		require.NoError(b, l.Close())
	}
	b.ReportMetric(float64(first.Milliseconds()), "ms/first")
	b.ReportMetric(float64(peak), "MiB")
	b.ReportMetric(float64(collected), "MiB-after-GC")
}

// resident returns the resident private memory of this process in MiB.
func resident(b *testing.B) (mib int) {
	b.Helper()
	status, err := os.ReadFile("/proc/self/status")
	require.NoError(b, err)
	for line := range strings.Lines(string(status)) {
		if _, err := fmt.Sscanf(line, "RssAnon: %d kB", &mib); err == nil {
			return mib / 1024
		}
	}
	return 0
}
