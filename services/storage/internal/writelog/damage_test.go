package writelog

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

// openFiles returns the number of open files of this process.
func openFiles(t *testing.T) int {
	t.Helper()
	files, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip("open files are counted on Linux only:", err)
	}
	return len(files)
}

// sample makes a directory that has tables, and records in its write-ahead log, as a kill or as
// Close leaves it.
func sample(t *testing.T, killed bool) (dir string, records map[uint64]string) {
	t.Helper()
	dir = t.TempDir() + "/data"
	records = written(1, 600)
	for id := uint64(1); id <= 600; id += 200 {
		l, _ := mustRead(t, Options{Dir: dir, removeAtOnce: 2})
		for i := id; i < id+200; i += 5 {
			require.NoError(t, commit(l, i, i+3, i, i+1))
			require.NoError(t, commit(l, i+4, i+4)) // with this group they are removed
			delete(records, i)
			delete(records, i+1)
		}
		if killed && id > 400 {
			dir = copyOf(t, dir)
		}
		require.NoError(t, l.Close())
	}
	return dir, records
}

// TestDamagedDataAreDetected damages one file at a time: a byte is changed, the end is cut off, or
// the file is missing.
func TestDamagedDataAreDetected(t *testing.T) {
	leaked := goleak.IgnoreCurrent()
	files := openFiles(t)
	for _, killed := range []bool{false, true} {
		dir, records := sample(t, killed)
		l, found := mustRead(t, Options{Dir: copyOf(t, dir)})
		require.Equal(t, records, found)
		require.NoError(t, l.Close())
		names, err := filepath.Glob(dir + "/*")
		require.NoError(t, err)
		detected := 0
		for _, name := range names {
			for range 8 {
				damaged := copyOf(t, dir)
				what := damage(t, filepath.Join(damaged, filepath.Base(name)))
				before, err := filepath.Glob(damaged + "/*.[ls][os][gt]")
				require.NoError(t, err)
				l, found, err := read(t, Options{Dir: damaged})
				if err == nil {
					require.Equal(t, records, found, "killed %t, %s: %s", killed, name, what)
					if err := l.Close(); err != nil { // it is in what was removed, and is found after Open
						require.ErrorAs(t, err, new(*DamagedError), "%s: %s", name, what)
					}
					continue
				}
				detected++
				require.ErrorContains(t, err, damaged)
				require.NotContains(t, err.Error(), "\n", "the error is to be one line")
				require.Equal(t, 1, strings.Count(err.Error(), "the data in the directory")+strings.Count(err.Error(), "newer version"), "%v", err)
				require.LessOrEqual(t, strings.Count(err.Error(), "mismatch"), 1, "the error says it twice: %v", err)
				require.True(t, errors.As(err, new(*DamagedError)) || errors.As(err, new(*FormatError)), "%s: %s: %v", name, what, err)
				for _, kept := range before {
					require.FileExists(t, kept, "a failed opening removed a file")
				}
				_, _, err = read(t, Options{Dir: damaged})
				require.Error(t, err, "%s: %s: it was detected only once", name, what)
			}
		}
		require.Greater(t, detected, 20)
	}
	goleak.VerifyNone(t, leaked)
	require.Equal(t, files, openFiles(t))
}

func copyOf(t *testing.T, dir string) string {
	t.Helper()
	copied := t.TempDir() + "/data"
	require.NoError(t, os.CopyFS(copied, os.DirFS(dir)))
	return copied
}

// damage damages a file at random.
func damage(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(name)
	require.NoError(t, err)
	switch kind := rand.IntN(10); {
	case kind == 0 || len(data) == 0:
		require.NoError(t, os.Remove(name))
		return "removed"
	case kind < 4:
		n := rand.Int64N(int64(len(data)))
		require.NoError(t, os.Truncate(name, n))
		return "truncated"
	}
	i := rand.IntN(len(data))
	data[i] ^= 1 << rand.IntN(8)
	require.NoError(t, os.WriteFile(name, data, 0o600))
	return "a bit was flipped"
}
