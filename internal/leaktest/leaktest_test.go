package leaktest

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestLeftFilesAreFound leaves a file open, and closes it.
func TestLeftFilesAreFound(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("needs /proc")
	}
	path := filepath.Join(t.TempDir(), "file")
	before := take()
	f, err := os.Create(path)
	require.NoError(t, err)
	require.Equal(t, []string{"1 x open file " + path}, before.left(0))
	time.AfterFunc(20*time.Millisecond, func() { _ = f.Close() })
	require.Empty(t, before.left(patience), "it waits")
}

// recorder is a test that fails.
type recorder struct {
	cleanups []func()
	failed   bool
}

func (*recorder) Helper()                 {}
func (r *recorder) Cleanup(f func())      { r.cleanups = append(r.cleanups, f) }
func (r *recorder) Errorf(string, ...any) { r.failed = true }

// TestChecksAreOnePerTest has a test that calls Check again once it has opened something.
func TestChecksAreOnePerTest(t *testing.T) {
	r := &recorder{}
	Check(r)
	Check(r)
	require.Len(t, r.cleanups, 1)
	r.cleanups[0]()
	require.False(t, r.failed)
}
