package rundir

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestOldRunsArePruned checks that the newest runs are kept, and marked ones, used ones, and files
// of no run.
func TestOldRunsArePruned(t *testing.T) {
	data := t.TempDir()
	runs := filepath.Join(data, "runs")
	made := func(name string, files ...string) {
		require.NoError(t, os.MkdirAll(filepath.Join(runs, name), 0o700))
		require.NoError(t, fillRun(filepath.Join(runs, name)))
		for _, file := range files {
			require.NoError(t, os.WriteFile(filepath.Join(runs, name, file), nil, 0o600))
		}
	}
	made("20260101T000000Z-aaaaaaaa", "logs/x.log")
	made("20260102T000000Z-aaaaaaaa", KeepMark)
	made("20260103T000000Z-aaaaaaaa")
	made("20260104T000000Z-aaaaaaaa")
	made("20260105T000000Z-aaaaaaaa")
	made("mine")
	running, err := OpenRun(filepath.Join(runs, "20260103T000000Z-aaaaaaaa"))
	require.NoError(t, err)
	now, err := NewRun(data)
	require.NoError(t, err)
	require.NoError(t, PruneRuns(data, 2))

	left := func() (names []string) {
		entries, err := os.ReadDir(runs)
		require.NoError(t, err)
		for _, entry := range entries {
			names = append(names, entry.Name())
		}
		return names
	}
	assert.Equal(t, []string{
		"20260102T000000Z-aaaaaaaa", "20260103T000000Z-aaaaaaaa", "20260105T000000Z-aaaaaaaa", now.ID(), "latest", "mine",
	}, left())
	require.NoError(t, running.Close())
	require.NoError(t, PruneRuns(data, 2))
	assert.NotContains(t, left(), "20260103T000000Z-aaaaaaaa")
	latest, err := LatestRun(data)
	require.NoError(t, err)
	assert.Equal(t, now.Path(), latest)
	require.NoError(t, now.Close())
	require.NoError(t, PruneRuns(filepath.Join(data, "none"), 2))
}

// TestRunsOfOneSecondArePrunedInOrder makes several runs within a second, beside one whose name has
// no fraction, as earlier versions made them.
func TestRunsOfOneSecondArePrunedInOrder(t *testing.T) {
	data := t.TempDir()
	var made []string
	for range 20 {
		run, err := NewRun(data)
		require.NoError(t, err)
		require.NoError(t, run.Close())
		made = append(made, run.ID())
	}
	// The time of the last, truncated to its second, is older than the others of that second.
	second, _, _ := strings.Cut(made[19], ".")
	require.NoError(t, os.Mkdir(filepath.Join(data, "runs", second+"Z-zzzzzzzz"), 0o700))
	require.NoError(t, PruneRuns(data, 1))
	left, err := filepath.Glob(filepath.Join(data, "runs", "2*"))
	require.NoError(t, err)
	assert.Equal(t, []string{filepath.Join(data, "runs", made[19])}, left)
}
