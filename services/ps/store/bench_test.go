package store

import (
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	psv1 "github.com/raylink/raylink/gen/raylink/ps/v1"
	"github.com/raylink/raylink/services/internal/mapfile"
)

// benchSize is the size of the parameters of benchmarks.
const benchSize = 256 << 20

// pushFilled pushes a version as a process of the machine does.
func pushFilled(b *testing.B, s *Store, id uint64, parameters []byte) {
	b.Helper()
	v := &psv1.Version{Tag: "w", Id: id, Size: uint64(len(parameters))}
	d, err := s.Reserve(v, "")
	require.NoError(b, err)
	require.NoError(b, d.Lend())
	sum, err := Fill(d.Path(), parameters)
	require.NoError(b, err)
	require.NoError(b, d.Reclaim(sum))
	published, err := s.Publish(d, v)
	require.NoError(b, err)
	require.True(b, published)
}

func benchStore(b *testing.B) *Store {
	b.Helper()
	s, err := Open(b.TempDir(), Options{})
	require.NoError(b, err)
	b.Cleanup(func() { require.NoError(b, s.Remove()) })
	return s
}

// readLines reads each cache line.
func readLines(parameters []byte) (sum byte) {
	for i := 0; i < len(parameters); i += 64 {
		sum += parameters[i]
	}
	return sum
}

// BenchmarkPush fills a draft and publishes it, and copies into mapped memory with one checksum for
// comparison.
func BenchmarkPush(b *testing.B) {
	parameters := content(1, benchSize)
	b.Run("store", func(b *testing.B) {
		s := benchStore(b)
		for id := uint64(1); id <= 3; id++ {
			pushFilled(b, s, id, parameters)
		}
		b.SetBytes(benchSize)
		id := uint64(3)
		for b.Loop() {
			id++
			pushFilled(b, s, id, parameters)
		}
	})
	b.Run("copy", func(b *testing.B) {
		s := benchStore(b)
		file, err := mapfile.Create(filepath.Join(s.Directory(), "copy"), benchSize)
		require.NoError(b, err)
		mapping, err := mapfile.Map(file, benchSize, mapfile.ReadWrite)
		require.NoError(b, err)
		copy(mapping, parameters)
		b.SetBytes(benchSize)
		for b.Loop() {
			var sum uint32
			for from := 0; from < benchSize; from += ChunkSize {
				chunk := parameters[from : from+ChunkSize]
				copy(mapping[from:], chunk)
				sum = update(sum, chunk)
			}
		}
		require.NoError(b, mapfile.Unmap(mapping))
		require.NoError(b, file.Close())
	})
}

// BenchmarkPullNew pulls and reads a new version each time, and reads the mapped memory again for
// comparison.
func BenchmarkPullNew(b *testing.B) {
	parameters := content(1, benchSize)
	s := benchStore(b)
	r, err := NewReader(s.Directory(), "w")
	require.NoError(b, err)
	var id uint64
	var pulls, pullReads, reads []time.Duration
	for b.Loop() {
		id++
		pushFilled(b, s, id, parameters)
		start := time.Now()
		p, err := r.Pull()
		require.NoError(b, err)
		pulls = append(pulls, time.Since(start))
		readLines(p.Bytes())
		pullReads = append(pullReads, time.Since(start))
		start = time.Now()
		readLines(p.Bytes())
		reads = append(reads, time.Since(start))
		require.NoError(b, p.Release())
	}
	for name, all := range map[string][]time.Duration{"pull": pulls, "pull+read": pullReads, "read": reads} {
		slices.Sort(all)
		b.ReportMetric(float64(all[len(all)/2].Microseconds()), name+"-p50-µs")
	}
	require.NoError(b, r.Close())
}
