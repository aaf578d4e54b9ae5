package dirlock

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// childEnv makes the test binary a process that locks a directory until its input ends.
const childEnv = "DIRLOCK_CHILD"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		_, err := Lock(vfs.Default, dir)
		fmt.Println(err)
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestDirectoryIsOfOneProcess(t *testing.T) {
	dir := t.TempDir()
	for _, kill := range []bool{true, false} {
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), childEnv+"="+dir)
		in, err := cmd.StdinPipe()
		require.NoError(t, err)
		out, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		line, err := bufio.NewReader(out).ReadString('\n')
		require.NoError(t, err)
		require.Equal(t, "<nil>\n", line, "what a dead process has locked is free")

		for range 2 {
			_, err = Lock(vfs.Default, dir)
			var held *HeldError
			require.ErrorAs(t, err, &held)
			require.Equal(t, dir, held.Dir)
			require.Equal(t, cmd.Process.Pid, held.PID)
			require.ErrorContains(t, err, dir)
		}
		if kill {
			require.NoError(t, cmd.Process.Kill())
		} else {
			require.NoError(t, in.Close())
		}
		_ = cmd.Wait() // it may have been killed
	}
	lock, err := Lock(vfs.Default, dir)
	require.NoError(t, err)
	require.NoError(t, lock.Close())
}

func TestDirectoryIsLockedOnceInAProcess(t *testing.T) {
	dir := t.TempDir()
	lock, err := Lock(vfs.Default, dir)
	require.NoError(t, err)
	for range 2 { // the refusal does not release it
		_, err = Lock(vfs.Default, dir)
		var held *HeldError
		require.ErrorAs(t, err, &held)
		require.Equal(t, os.Getpid(), held.PID)
	}
	require.NoError(t, lock.Close())
	lock, err = Lock(vfs.Default, dir)
	require.NoError(t, err)
	require.NoError(t, lock.Close())
}

func TestDirectoryThatCannotBeLocked(t *testing.T) {
	_, err := Lock(vfs.Default, t.TempDir()+"/missing")
	require.ErrorIs(t, err, unix.ENOENT)
	require.NotErrorAs(t, err, new(*HeldError))
}
