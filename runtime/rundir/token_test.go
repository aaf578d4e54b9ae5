package rundir

import (
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// inRuntimeDir gives the test a runtime directory of its own.
func inRuntimeDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "rl") //nolint:usetesting // a socket's path must be short
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	t.Setenv(RuntimeEnv, dir)
	return dir
}

func TestTokenIsFoundWhileItsProcessLives(t *testing.T) {
	dir := inRuntimeDir(t)
	host, err := NewHost("")
	require.NoError(t, err)
	token := NewToken()
	require.Len(t, token, 64)
	path, err := host.PublishToken(token, "127.0.0.1:6800")
	require.NoError(t, err)
	require.Equal(t, filepath.Join(dir, "tokens", "127.0.0.1:6800"), path)
	written, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, token+"\n", string(written))
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	for _, address := range []string{"127.0.0.1:6800", "localhost:6800", "[::1]:6800", "127.0.0.1:06800"} {
		found, _, err := FindToken(address)
		require.NoError(t, err, address)
		require.Equal(t, token, found)
	}
	for _, address := range []string{"127.0.0.1:6801", "192.0.2.1:6800", "../../x:1", "nonsense", ""} {
		_, _, err := FindToken(address)
		require.ErrorIs(t, err, ErrNoToken, address)
		require.ErrorContains(t, err, "but at 127.0.0.1:6800")
	}
	require.NoError(t, host.Close())
	_, _, err = FindToken("127.0.0.1:6800")
	require.ErrorIs(t, err, ErrNoToken)
}

func TestTokenOfAllInterfacesIsFoundByThisMachinesAddresses(t *testing.T) {
	inRuntimeDir(t)
	host, err := NewHost("")
	require.NoError(t, err)
	defer func() { require.NoError(t, host.Close()) }()
	_, err = host.PublishToken("t", "brain.example:6800", "0.0.0.0:6800")
	require.NoError(t, err)
	name, err := os.Hostname()
	require.NoError(t, err)
	for _, address := range []string{"brain.example:6800", "0.0.0.0:6800", "127.0.0.1:6800", name + ":6800"} {
		_, _, err := FindToken(address)
		require.NoError(t, err, address)
	}
	_, _, err = FindToken("other.example:6800")
	require.ErrorIs(t, err, ErrNoToken)
}

func TestTokenOfADeadProcessIsReplacedAndSwept(t *testing.T) {
	dir := inRuntimeDir(t)
	dead, err := NewHost("")
	require.NoError(t, err)
	_, err = dead.PublishToken("old", "127.0.0.1:1", "127.0.0.1:2")
	require.NoError(t, err)
	next, err := NewHost("")
	require.NoError(t, err)
	defer func() { require.NoError(t, next.Close()) }()
	_, err = next.PublishToken("new", "127.0.0.1:1")
	require.NoError(t, err)
	found, _, err := FindToken("127.0.0.1:1")
	require.NoError(t, err)
	require.Equal(t, "new", found)
	require.NoError(t, dead.lock.release()) // as when it is killed
	require.NoError(t, SweepHosts(""))
	_, _, err = FindToken("127.0.0.1:2")
	require.ErrorIs(t, err, ErrNoToken)
	third, err := NewHost("")
	require.NoError(t, err)
	_, err = third.PublishToken("third", "127.0.0.1:3")
	require.NoError(t, err)
	require.NoError(t, third.Close())
	_, err = os.Lstat(filepath.Join(dir, "tokens", "127.0.0.1:2"))
	require.ErrorIs(t, err, os.ErrNotExist, "a link to a process that is gone stays")
}

// TestTokenThatOthersCouldHaveModified is not trusted, whatever part of its path others could
// modify.
func TestTokenThatOthersCouldHaveModified(t *testing.T) {
	for name, spoil := range map[string]func(t *testing.T, dir, path string, host *Host){
		"mode": func(t *testing.T, _, _ string, host *Host) {
			require.NoError(t, os.Chmod(filepath.Join(host.Path(), "token"), 0o644))
		},
		"folder": func(t *testing.T, dir, _ string, _ *Host) {
			require.NoError(t, os.Chmod(filepath.Join(dir, "tokens"), 0o755))
		},
		"directory": func(t *testing.T, dir, _ string, _ *Host) { require.NoError(t, os.Chmod(dir, 0o777)) },
		"link elsewhere": func(t *testing.T, dir, path string, _ *Host) {
			other := filepath.Join(dir, "other")
			require.NoError(t, os.WriteFile(other, []byte("mine"), 0o600))
			require.NoError(t, os.Remove(path))
			require.NoError(t, os.Symlink(other, path))
		},
		"link in its place": func(t *testing.T, dir, _ string, host *Host) {
			other := filepath.Join(dir, "other")
			require.NoError(t, os.WriteFile(other, []byte("mine"), 0o600))
			require.NoError(t, os.Remove(filepath.Join(host.Path(), "token")))
			require.NoError(t, os.Symlink(other, filepath.Join(host.Path(), "token")))
		},
		"owner": func(t *testing.T, _, _ string, host *Host) {
			if os.Geteuid() != 0 {
				t.Skip("only root can give a file away")
			}
			require.NoError(t, os.Chown(filepath.Join(host.Path(), "token"), 65534, 65534))
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := inRuntimeDir(t)
			host, err := NewHost("")
			require.NoError(t, err)
			defer func() { require.NoError(t, host.Close()) }()
			path, err := host.PublishToken("secret", "127.0.0.1:6800")
			require.NoError(t, err)
			spoil(t, dir, path, host)
			token, _, err := FindToken("127.0.0.1:6800")
			require.Error(t, err)
			assert.Empty(t, token)
			assert.NotContains(t, err.Error(), "secret")
			assert.NotContains(t, err.Error(), "mine")
		})
	}
}

func TestKeptTokenStaysTheSame(t *testing.T) {
	data := filepath.Join(t.TempDir(), "not", "there")
	var makers sync.WaitGroup
	tokens := make([]string, 8)
	for i := range tokens {
		makers.Go(func() {
			var err error
			tokens[i], err = KeptToken(data)
			assert.NoError(t, err)
		})
	}
	makers.Wait()
	for _, token := range tokens {
		require.Equal(t, tokens[0], token)
	}
	entries, err := os.ReadDir(data)
	require.NoError(t, err)
	require.Len(t, entries, 1, "something was left behind")

	path := filepath.Join(data, "token")
	require.NoError(t, os.Chmod(path, 0o640))
	_, err = KeptToken(data)
	require.ErrorIs(t, err, ErrNotPrivate)
	require.ErrorContains(t, err, "remove the file")
	require.NoError(t, os.Remove(path))
	require.NoError(t, os.WriteFile(path, nil, 0o600))
	_, err = KeptToken(data)
	require.ErrorContains(t, err, "is empty")
}

// TestPlaceOfAnotherUserIsSkipped checks that its content is not read.
func TestPlaceOfAnotherUserIsSkipped(t *testing.T) {
	base := t.TempDir()
	dirs := []string{filepath.Join(base, "a"), filepath.Join(base, "b"), filepath.Join(base, "c")}
	require.Equal(t, dirs[0], firstUsable(dirs))
	require.NoError(t, os.Symlink(base, dirs[0]))
	require.Equal(t, dirs[1], firstUsable(dirs), "a symbolic link")
	require.NoError(t, os.WriteFile(dirs[1], nil, 0o600))
	require.Equal(t, dirs[2], firstUsable(dirs), "a file")
	require.NoError(t, os.Mkdir(dirs[2], 0o700))
	require.Equal(t, dirs[2], firstUsable(dirs))
	require.NoError(t, os.Remove(dirs[0]))
	require.Equal(t, dirs[2], firstUsable(dirs), "the place in use is kept, although an earlier one is free again")
	if os.Geteuid() == 0 {
		require.NoError(t, os.Chown(dirs[2], 65534, 65534))
		require.Equal(t, dirs[0], firstUsable(dirs), "another user's")
	}
}

func TestRuntimeDirOfAnotherUserIsSkipped(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give a directory away")
	}
	dir := inRuntimeDir(t)
	require.Equal(t, dir, RuntimeDir())
	require.NoError(t, os.Chown(dir, 65534, 65534))
	t.Setenv("XDG_RUNTIME_DIR", "")
	require.Equal(t, firstUsable(sharedDirs()), RuntimeDir())
}

func TestRuntimeDirForAllIsRefusedUnchanged(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.Chmod(dir, 0o777|os.ModeSticky))
	_, err := NewHost(dir)
	require.ErrorIs(t, err, ErrNotPrivate)
	require.ErrorContains(t, err, "use one of your own, such as "+dir+"/raylink")
	require.NotContains(t, err.Error(), "chmod")
}
