package ps

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink/runtime/rundir"
)

// A process that takes an officer over finds the files of the one that died, whose record may have
// been shorter or longer than the one before.
func TestRecordNamesTheLastDirectory(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.Chmod(dir, 0o700))
	t.Setenv(rundir.RuntimeEnv, dir)
	record, err := copyRecord("copy")
	require.NoError(t, err)
	require.Empty(t, previousDirectory(record), "no process hosted the officer before")
	for _, name := range []string{"a", strings.Repeat("long", 30), "b"} {
		path := filepath.Join(dir, name)
		require.NoError(t, recordDirectory("copy", path))
		require.Empty(t, previousDirectory(record), "the directory isn't there")
		require.NoError(t, os.Mkdir(path, 0o700))
		require.Equal(t, path, previousDirectory(record))
	}
	for _, damaged := range []string{"", "\x00", "relative\x00", filepath.Join(dir, "b"), filepath.Join(dir, "none") + "\x00"} {
		require.NoError(t, os.WriteFile(record, []byte(damaged), 0o600))
		require.Empty(t, previousDirectory(record), "%q", damaged)
	}
}
