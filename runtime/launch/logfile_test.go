package launch

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestLogIsRotatedBySize writes far more than is kept, by several goroutines and across a
// reopening.
func TestLogIsRotatedBySize(t *testing.T) {
	path := filepath.Join(t.TempDir(), "node.log")
	const limit, line = 1000, "0123456789abcdef\n"
	for range 2 {
		log, err := OpenLog(path)
		require.NoError(t, err)
		log.limit = limit
		var writers sync.WaitGroup
		for range 4 {
			writers.Go(func() {
				for range 100 {
					_, err := log.Write([]byte(line))
					assert.NoError(t, err)
				}
			})
		}
		writers.Wait()
		require.NoError(t, log.Close())
		require.NoError(t, log.Close())
		_, err = log.Write([]byte(line))
		require.ErrorIs(t, err, os.ErrClosed)
	}
	files, err := filepath.Glob(path + "*")
	require.NoError(t, err)
	require.Equal(t, []string{path, path + ".1", path + ".2"}, files)
	for _, file := range files {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		assert.LessOrEqual(t, len(text), limit)
		assert.Empty(t, strings.ReplaceAll(string(text), line, ""), "a line was truncated")
		info, err := os.Stat(file)
		require.NoError(t, err)
		assert.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	}
}

// TestLineLongerThanALogIsKeptWhole has a log with one line, which can't be made shorter.
func TestLineLongerThanALogIsKeptWhole(t *testing.T) {
	path := filepath.Join(t.TempDir(), "node.log")
	log, err := OpenLog(path)
	require.NoError(t, err)
	log.limit = 10
	for i := range 2 {
		_, err := fmt.Fprintf(log, "%d %s\n", i, strings.Repeat("x", 100))
		require.NoError(t, err)
	}
	require.NoError(t, log.Close())
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	assert.True(t, strings.HasPrefix(string(text), "1 xxx"))
}
