package rundir

import (
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestDataDir(t *testing.T) {
	t.Setenv("HOME", "/home/ada")
	t.Setenv("XDG_STATE_HOME", "")
	t.Setenv(DataEnv, "")
	dir, err := DataDir()
	require.NoError(t, err)
	assert.Equal(t, "/home/ada/.local/state/raylink", dir)

	t.Setenv("XDG_STATE_HOME", "not/absolute")
	dir, err = DataDir()
	require.NoError(t, err)
	assert.Equal(t, "/home/ada/.local/state/raylink", dir)

	t.Setenv("XDG_STATE_HOME", "/state")
	dir, err = DataDir()
	require.NoError(t, err)
	assert.Equal(t, "/state/raylink", dir)

	t.Setenv(DataEnv, "/data")
	dir, err = DataDir()
	require.NoError(t, err)
	assert.Equal(t, "/data", dir)

	t.Setenv(DataEnv, "")
	t.Setenv("XDG_STATE_HOME", "")
	t.Setenv("HOME", "")
	_, err = DataDir()
	require.ErrorContains(t, err, "set "+DataEnv)
}

func TestRunHasItsFoldersAndIsTheLatest(t *testing.T) {
	data := filepath.Join(t.TempDir(), "made", "as needed")
	t.Setenv(DataEnv, data)
	first, err := NewRun("")
	require.NoError(t, err)
	second, err := NewRun(data)
	require.NoError(t, err)
	assert.NotEqual(t, first.Path(), second.Path())
	for _, run := range []*Run{first, second} {
		for _, folder := range []string{run.Path(), run.Logs(), run.Models(), run.Variables(), run.Mapped()} {
			info, err := os.Stat(folder)
			require.NoError(t, err)
			assert.Equal(t, fs.ModeDir|0o700, info.Mode(), folder)
		}
		assert.Equal(t, filepath.Join(data, "runs", run.ID()), run.Path())
		assert.True(t, isRunID(run.ID()), run.ID())
	}
	latest, err := LatestRun("")
	require.NoError(t, err)
	assert.Equal(t, second.Path(), latest)
	link, err := os.Readlink(filepath.Join(data, "runs", "latest"))
	require.NoError(t, err)
	assert.Equal(t, second.ID(), link, "it can be moved with the directory")

	hosts, err := OpenRun(second.Path())
	require.NoError(t, err)
	assert.Equal(t, second.Models(), hosts.Models())
	for _, run := range []*Run{first, second, hosts} {
		require.NoError(t, run.Close())
	}
}

func TestLatestPointsToARunAtAnyTime(t *testing.T) {
	data := t.TempDir()
	first, err := NewRun(data)
	require.NoError(t, err)
	require.NoError(t, first.Close())
	var drivers sync.WaitGroup
	for range 4 {
		drivers.Go(func() {
			for range 20 {
				run, err := NewRun(data)
				if assert.NoError(t, err) {
					assert.NoError(t, run.Close())
				}
				latest, err := LatestRun(data)
				if assert.NoError(t, err) {
					assert.True(t, isRunID(filepath.Base(latest)), latest)
				}
			}
		})
	}
	drivers.Wait()
}

func TestOpenRunRefusesOtherDirectories(t *testing.T) {
	dir := t.TempDir()
	_, err := OpenRun(filepath.Join(dir, "nothing"))
	require.ErrorIs(t, err, fs.ErrNotExist)
	_, err = OpenRun(dir)
	require.ErrorContains(t, err, "is not a run directory")
	require.NoError(t, os.Symlink(dir, filepath.Join(dir, "link")))
	_, err = OpenRun(filepath.Join(dir, "link"))
	require.Error(t, err)
}

func TestRunsAreNotMadeWhereOthersCanWrite(t *testing.T) {
	data := t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(data, "runs"), 0o700))
	require.NoError(t, os.Chmod(filepath.Join(data, "runs"), 0o777))
	_, err := NewRun(data)
	require.ErrorIs(t, err, ErrNotPrivate)
	assert.ErrorContains(t, err, "chmod go-w")
}

func TestLogOfANode(t *testing.T) {
	run, err := NewRun(t.TempDir())
	require.NoError(t, err)
	defer func() { require.NoError(t, run.Close()) }()
	path, err := run.Log("manager-0/runner-0/learner-0")
	require.NoError(t, err)
	assert.Equal(t, filepath.Join(run.Logs(), "manager-0", "runner-0", "learner-0.log"), path)
	require.NoError(t, os.WriteFile(path, nil, 0o600), "its folder is there")
	_, err = run.Log("manager-0")
	require.NoError(t, err)
	for _, bad := range []string{"", ".", "..", "../x", "/etc/passwd", "a/../../b", "a/..", "a//b", "a\x00b"} {
		_, err := run.Log(bad)
		assert.Error(t, err, bad)
	}
}

func TestMappedFilesOfARunThatIsOverAreSwept(t *testing.T) {
	data := t.TempDir()
	driver := begin(t, "run "+data)
	path := driver.line()
	host, err := OpenRun(path)
	require.NoError(t, err)
	ring := filepath.Join(host.Mapped(), "ring")

	require.NoError(t, SweepRuns(data))
	require.FileExists(t, ring, "the run is on")
	driver.kill()
	require.NoError(t, SweepRuns(data))
	require.FileExists(t, ring, "a host still lives")
	require.NoError(t, host.Close())
	require.NoError(t, SweepRuns(data))
	require.NoFileExists(t, ring)
	require.DirExists(t, host.Logs(), "the rest remains")
	require.DirExists(t, host.Mapped())
}

func TestRunWhoseMakingWasCutShortIsSwept(t *testing.T) {
	data := t.TempDir()
	young, old := filepath.Join(data, "runs", hiddenPrefix+"young"), filepath.Join(data, "runs", hiddenPrefix+"old")
	require.NoError(t, os.MkdirAll(young, 0o700))
	require.NoError(t, os.MkdirAll(old, 0o700))
	past := time.Now().Add(-2 * birthTime)
	require.NoError(t, os.Chtimes(old, past, past))
	require.NoError(t, SweepRuns(data))
	require.DirExists(t, young, "it may get its name any moment")
	require.NoDirExists(t, old)
	require.NoError(t, SweepRuns(filepath.Join(data, "nothing yet")))
}
