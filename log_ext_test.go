package raylink_test

import (
	"os"
	"path/filepath"
	"testing"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink"
	"github.com/raylink/raylink/internal/contract"
	"github.com/raylink/raylink/runtime"
)

// TestDriversLogIsInTheRunDirectory checks that it is beside those of the nodes, with a time on
// each line and without secrets.
func TestDriversLogIsInTheRunDirectory(t *testing.T) {
	closedByDefault(t)
	t.Setenv("RAYLINK_LOG", "debug")
	rt, err := raylink.Start(patient(t), append(contract.Types(), runtime.WithData(t.TempDir()))...)
	require.NoError(t, err)
	create(t, rt, runtime.OwnProcess())
	logs, token := rt.RunDirectory().Logs(), tokenOf(t, rt)
	require.NoError(t, rt.Close())
	for file, says := range map[string]string{"driver.log": "host started", "probe-0.log": "host started"} {
		text, err := os.ReadFile(filepath.Join(logs, file))
		require.NoError(t, err)
		assert.Contains(t, string(text), says, file)
		assert.Regexp(t, `(?m)^(time=)?\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d`, string(text), file)
		assert.NotContains(t, string(text), token, file)
	}
}

func TestLogLevelsThatCantBeParsedAreRefused(t *testing.T) {
	t.Setenv("RAYLINK_LOG", "verbose")
	_, err := raylink.Start(patient(t), runtime.WithData(t.TempDir()))
	require.Equal(t, connect.CodeInvalidArgument, connect.CodeOf(err), "%v", err)
	assert.Contains(t, err.Error(), `RAYLINK_LOG is "verbose"`)
}

// TestOldRunsArePruned starts more systems than runs are kept.
func TestOldRunsArePruned(t *testing.T) {
	t.Parallel()
	data := t.TempDir()
	var first, last string
	for range 5 {
		rt, err := raylink.Start(patient(t), runtime.WithData(data), runtime.WithKeepRuns(2))
		require.NoError(t, err)
		last = rt.RunDirectory().Path()
		if first == "" {
			first = rt.RunDirectory().Path()
			require.NoError(t, os.WriteFile(filepath.Join(first, "keep"), nil, 0o600))
		}
		require.NoError(t, rt.Close())
	}
	runs, err := filepath.Glob(filepath.Join(data, "runs", "2*"))
	require.NoError(t, err)
	// The two newest at the start of the last run, which is one of them, and the marked one.
	assert.Len(t, runs, 3)
	assert.Contains(t, runs, last)
	assert.Contains(t, runs, first)
}
