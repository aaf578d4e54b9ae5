package rundir

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestHostDirectoryIsPrivateShortAndRemoved(t *testing.T) {
	base := filepath.Join(shortDir(t), "raylink")
	host, err := NewHost(base)
	require.NoError(t, err)
	for _, dir := range []string{base, host.Path(), host.Scratch()} {
		require.NoError(t, checkPrivate(dir))
	}
	info, err := os.Stat(filepath.Join(host.Path(), nonceFile))
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o600), info.Mode())

	listener, err := net.Listen("unix", host.Socket())
	require.NoError(t, err)
	require.NoError(t, listener.Close())
	require.NoError(t, os.WriteFile(filepath.Join(host.Scratch(), "x"), nil, 0o600))

	require.NoError(t, host.Close())
	require.NoError(t, host.Close(), "closing twice is no error")
	entries, err := os.ReadDir(base)
	require.NoError(t, err)
	assert.Empty(t, entries)
}

func TestRuntimeDir(t *testing.T) {
	ours := filepath.Join("/tmp", "raylink-"+strconv.Itoa(os.Geteuid()))
	t.Setenv(RuntimeEnv, "")
	t.Setenv("XDG_RUNTIME_DIR", "")
	assert.Equal(t, ours, RuntimeDir())

	xdg := shortDir(t)
	t.Setenv("XDG_RUNTIME_DIR", xdg)
	assert.Equal(t, filepath.Join(xdg, "raylink"), RuntimeDir())
	require.NoError(t, os.Chmod(xdg, 0o755))
	assert.Equal(t, ours, RuntimeDir(), "others can read it")

	long := filepath.Join(xdg, strings.Repeat("long", 20))
	require.NoError(t, os.Mkdir(long, 0o700))
	t.Setenv("XDG_RUNTIME_DIR", long)
	assert.Equal(t, ours, RuntimeDir(), "it is too long for a socket")
	t.Setenv("XDG_RUNTIME_DIR", filepath.Join(xdg, "missing"))
	assert.Equal(t, ours, RuntimeDir())

	t.Setenv(RuntimeEnv, long)
	assert.Equal(t, long, RuntimeDir(), "the requested directory is used")
	_, err := NewHost("")
	require.ErrorContains(t, err, "too long for a Unix socket", "or refused")
}

func TestHostIsNotMadeInAnUnsafePlace(t *testing.T) {
	dir := shortDir(t)
	place := func(name string) string { return filepath.Join(dir, name) }
	require.NoError(t, os.Mkdir(place("target"), 0o700))
	require.NoError(t, os.Symlink(place("target"), place("link")))
	require.NoError(t, os.WriteFile(place("file"), nil, 0o600))
	require.NoError(t, os.Mkdir(place("open"), 0o700))
	require.NoError(t, os.Chmod(place("open"), 0o770))
	require.NoError(t, os.Mkdir(place("shared"), 0o700))
	require.NoError(t, os.Chmod(place("shared"), 0o777))
	require.NoError(t, os.Mkdir(place("used"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(place("used"), "file"), nil, 0o644))
	require.NoError(t, os.Mkdir(place("tmp"), 0o700))
	require.NoError(t, os.Chmod(place("tmp"), 0o777|os.ModeSticky))
	own := "use one of your own, such as %s/raylink-" + strconv.Itoa(os.Geteuid())
	for base, reason := range map[string]string{
		place("used"):        fmt.Sprintf(own, place("used")), // restricting its mode would not help
		place("tmp"):         fmt.Sprintf(own, place("tmp")),
		place("link"):        "a symbolic link",
		place("file"):        "a file",
		place("open"):        "chmod 700",
		place("shared/mine"): "others can rename what is in it",
	} {
		_, err := NewHost(base)
		require.ErrorIs(t, err, ErrNotPrivate, base)
		require.ErrorContains(t, err, reason)
		require.ErrorIs(t, SweepHosts(base), ErrNotPrivate, base)
		_, err = LockPath(base, "officer")
		require.ErrorIs(t, err, ErrNotPrivate, base)
	}
	entries, err := os.ReadDir(place("target"))
	require.NoError(t, err)
	assert.Empty(t, entries)

	if os.Geteuid() == 0 {
		require.NoError(t, os.Mkdir(place("foreign"), 0o700))
		require.NoError(t, os.Chown(place("foreign"), 12345, -1))
		_, err := NewHost(place("foreign"))
		require.ErrorIs(t, err, ErrNotPrivate)
		require.ErrorContains(t, err, "belongs to user 12345")
		require.ErrorContains(t, err, "use one that only you can use (RAYLINK_RUNTIME_DIR)")
	}
}

func TestKilledHostIsSwept(t *testing.T) {
	base := shortDir(t)
	alive, killed := begin(t, "host "+base), begin(t, "host "+base)
	alivePath, killedPath := alive.line(), killed.line()
	require.NoError(t, SweepHosts(base))
	require.DirExists(t, killedPath)

	killed.kill()
	// Unexpected files in there must not mislead the sweep.
	outside := shortDir(t)
	require.NoError(t, os.WriteFile(filepath.Join(outside, "precious"), nil, 0o600))
	require.NoError(t, os.Symlink(outside, filepath.Join(killedPath, "scratch", "link")))
	require.NoError(t, os.Symlink(outside, filepath.Join(base, "aaaaaaaa")))
	require.NoError(t, os.Mkdir(filepath.Join(base, "another user's"), 0o700))
	require.NoError(t, SweepHosts(base))
	require.NoDirExists(t, killedPath)
	require.DirExists(t, alivePath)
	require.FileExists(t, filepath.Join(outside, "precious"))
	require.DirExists(t, filepath.Join(base, "another user's"))
}

func TestStoppedHostIsAlive(t *testing.T) {
	base := shortDir(t)
	host := begin(t, "host "+base)
	path := host.line()
	require.NoError(t, host.cmd.Process.Signal(syscall.SIGSTOP))
	require.NoError(t, SweepHosts(base))
	require.DirExists(t, path)
}

func TestHostsAreMadeClosedAndSweptConcurrently(t *testing.T) {
	base := shortDir(t)
	bystander := begin(t, "host "+base)
	path := bystander.line()
	churners := make([]*another, 0, 4)
	for range cap(churners) {
		churners = append(churners, begin(t, "churn "+base))
	}
	for _, p := range churners {
		require.Equal(t, "churned", p.line())
	}
	require.NoError(t, SweepHosts(base))
	entries, err := os.ReadDir(base)
	require.NoError(t, err)
	require.Len(t, entries, 1)
	assert.Equal(t, filepath.Base(path), entries[0].Name())
}

// A sweeper that removes a directory before its maker has locked it costs the maker one attempt.
func TestMakerSurvivesAnEarlySweeper(t *testing.T) {
	base := shortDir(t)
	stop := make(chan struct{})
	var sweeper sync.WaitGroup
	sweeper.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			entries, _ := os.ReadDir(base)
			for _, entry := range entries {
				// One in four, so that ten attempts are enough.
				if id, hidden := strings.CutPrefix(entry.Name(), hiddenPrefix); hidden && id[0] < 'i' {
					assert.NoError(t, sweepOne(filepath.Join(base, entry.Name()), os.RemoveAll))
				}
			}
		}
	})
	for range 300 {
		host, err := NewHost(base)
		if assert.NoError(t, err) {
			assert.True(t, Proves("", host.Path(), host.Nonce()))
			assert.NoError(t, host.Close())
		}
	}
	close(stop)
	sweeper.Wait()
}

func TestNonceProvesASharedFileSystem(t *testing.T) {
	base := shortDir(t)
	host, err := NewHost(base)
	require.NoError(t, err)
	other, err := NewHost(base)
	require.NoError(t, err)
	require.NotEqual(t, host.Nonce(), other.Nonce())
	assert.True(t, Proves("", host.Path(), host.Nonce()))
	assert.False(t, Proves("", host.Path(), other.Nonce()))
	assert.False(t, Proves("", host.Path(), ""))
	assert.False(t, Proves("", host.Path(), host.Nonce()[:10]))
	assert.False(t, Proves("", host.Path(), host.Nonce()+"0"))
	assert.False(t, Proves("", base, host.Nonce()))
	assert.False(t, Proves("", "", host.Nonce()))
	assert.False(t, Proves("", filepath.Join(base, "nowhere"), host.Nonce()))
	t.Setenv(MachineEnv, "here")
	assert.True(t, Proves("here", host.Path(), host.Nonce()))
	assert.False(t, Proves("there", host.Path(), host.Nonce()), "a file system that machines share is no shared memory")
	t.Chdir(base)
	assert.False(t, Proves("", filepath.Base(host.Path()), host.Nonce()), "a relative path means something else elsewhere")
	require.NoError(t, host.Close())
	assert.False(t, Proves("", host.Path(), host.Nonce()))
	require.NoError(t, other.Close())
}

func TestHostileDirectoriesProveNothing(t *testing.T) {
	nonce := strings.Repeat("n", minNonce)
	for name, place := range map[string]func(dir, file string) error{
		"empty":           func(_, _ string) error { return nil },
		"a symbolic link": func(dir, file string) error { return os.Symlink(filepath.Join(dir, "..", "real"), file) },
		"a named pipe":    func(_, file string) error { return syscall.Mkfifo(file, 0o600) },
		"a device":        func(_, file string) error { return os.Symlink("/dev/zero", file) },
		"a folder":        func(_, file string) error { return os.Mkdir(file, 0o700) },
		"too much":        func(_, file string) error { return os.WriteFile(file, []byte(nonce+"more"), 0o600) },
		"endless": func(_, file string) error {
			if err := os.WriteFile(file, []byte(nonce), 0o600); err != nil {
				return err
			}
			return os.Truncate(file, 1<<40)
		},
		"open to others": func(dir, file string) error {
			if err := os.WriteFile(file, []byte(nonce), 0o600); err != nil {
				return err
			}
			return os.Chmod(dir, 0o755)
		},
	} {
		t.Run(name, func(t *testing.T) {
			base := shortDir(t)
			dir := filepath.Join(base, "host")
			require.NoError(t, os.WriteFile(filepath.Join(base, "real"), []byte(nonce), 0o600))
			require.NoError(t, os.Mkdir(dir, 0o700))
			require.NoError(t, place(dir, filepath.Join(dir, nonceFile)))
			assert.False(t, Proves("", dir, nonce))
		})
	}
	t.Run("reached by a link", func(t *testing.T) {
		base := shortDir(t)
		host, err := NewHost(base)
		require.NoError(t, err)
		require.NoError(t, os.Symlink(host.Path(), filepath.Join(base, "link")))
		assert.False(t, Proves("", filepath.Join(base, "link"), host.Nonce()))
		require.NoError(t, host.Close())
	})
}

func TestHiddenHostIsSparedForAMinute(t *testing.T) {
	base := shortDir(t)
	hidden := filepath.Join(base, hiddenPrefix+"abcdefgh")
	require.NoError(t, os.Mkdir(hidden, 0o700))
	require.NoError(t, SweepHosts(base))
	require.DirExists(t, hidden)
	past := time.Now().Add(-2 * birthTime)
	require.NoError(t, os.Chtimes(hidden, past, past))
	lock, err := lockDir(hidden, exclusive)
	require.NoError(t, err)
	require.NoError(t, SweepHosts(base))
	require.DirExists(t, hidden, "its maker is slow, but alive")
	require.NoError(t, lock.release())
	require.NoError(t, SweepHosts(base))
	require.NoDirExists(t, hidden)
}

// TestSweepHostsMakesNoDirectory sweeps where a run has removed its runtime directory.
func TestSweepHostsMakesNoDirectory(t *testing.T) {
	base := filepath.Join(t.TempDir(), "run", "s")
	require.NoError(t, SweepHosts(base))
	assert.NoDirExists(t, filepath.Dir(base))
}
