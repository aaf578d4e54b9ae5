package raylink_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"google.golang.org/protobuf/types/known/durationpb"

	contractv1 "github.com/raylink/raylink/internal/contract/gen/contract/v1"
	"github.com/raylink/raylink/internal/contract/gen/contract/v1/contractv1raylink"
	"github.com/raylink/raylink/runtime"
	"github.com/raylink/raylink/runtime/rundir"
)

// driverMode makes this test binary a driver that is killed by the test: see TestMain.
const driverMode = "RAYLINK_TEST_DRIVER"

// runDriver creates a node with two children, prints the processes' ids, and blocks.
func runDriver(ctx context.Context) error {
	p, err := contractv1raylink.CreateProbe(ctx, driver, nil)
	if err != nil {
		return err
	}
	res, err := p.Spawn(ctx, &contractv1.SpawnRequest{Count: 2})
	if err != nil {
		return err
	}
	who, err := p.Who(ctx, nil)
	if err != nil {
		return err
	}
	pids := []int64{who.GetPid()}
	for _, ref := range res.GetChildren() {
		child, err := contractv1raylink.ProbeFrom(driver, ref)
		if err != nil {
			return err
		}
		who, err := child.Who(ctx, nil)
		if err != nil {
			return err
		}
		pids = append(pids, who.GetPid())
	}
	fmt.Println("pids", strings.Trim(fmt.Sprint(pids), "[]"))
	select {}
}

// runStuckDriver has a node whose set-up ignores its context and never ends.
func runStuckDriver(ctx context.Context) error {
	_, err := contractv1raylink.CreateProbe(ctx, driver, &contractv1.ProbeConfig{
		Print: "pids", Wait: durationpb.New(time.Hour), Deaf: true,
	}, runtime.ParentProcess(), runtime.NoWait())
	if err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

// runOrphaningDriver is killed during the set-up of its node, which ignores its context.
func runOrphaningDriver(ctx context.Context) error {
	_, err := contractv1raylink.CreateProbe(ctx, driver, &contractv1.ProbeConfig{
		Wait: durationpb.New(time.Hour), Deaf: true, PidFile: os.Getenv(driverMode + "_FILE"),
	})
	return err
}

// startDriver starts this test binary as a driver, by a shell command in which "$0" is the driver.
func startDriver(t *testing.T, mode, command string, env ...string) (cmd *exec.Cmd, pids []int64) {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	cmd = exec.Command("sh", "-c", command, self)
	cmd.Env = append(append(os.Environ(), driverMode+"="+mode, "RAYLINK_DATA="+t.TempDir()), env...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	line, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	go func() { _, _ = io.Copy(io.Discard, out) }()
	for _, f := range strings.Fields(line)[1:] {
		pid, err := strconv.ParseInt(f, 10, 64)
		require.NoError(t, err)
		pids = append(pids, pid)
	}
	return cmd, pids
}

func TestDriverStartedWithSIGINTIgnoredEndsByIt(t *testing.T) {
	t.Parallel()
	hosts := shortDir(t)
	cmd, pids := startDriver(t, "1", `trap "" INT; exec "$0"`, "RAYLINK_RUNTIME_DIR="+hosts)
	require.Len(t, pids, 3)
	require.NoError(t, cmd.Process.Signal(syscall.SIGINT))
	require.Error(t, cmd.Wait())
	assert.Equal(t, 128+int(syscall.SIGINT), cmd.ProcessState.ExitCode())
	gone(t, pids...)
	require.Eventually(t, func() bool { return len(leftIn(hosts)) == 0 }, patience, 5*time.Millisecond, "left behind: %v", leftIn(hosts))
}

// TestSecondSignalEndsAHangingDriver sends two different signals, so that the exit status shows
// which one ended the driver.
func TestSecondSignalEndsAHangingDriver(t *testing.T) {
	t.Parallel()
	for name, command := range map[string]string{"as usual": `exec "$0"`, "with SIGINT ignored": `trap "" INT; exec "$0"`} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cmd, _ := startDriver(t, "stuck", command, "RAYLINK_RUNTIME_DIR="+shortDir(t))
			require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
			ended := make(chan error, 1)
			go func() { ended <- cmd.Wait() }()
			// The first is handled at once, without a visible effect.
			again := time.NewTicker(20 * time.Millisecond)
			defer again.Stop()
			for {
				select {
				case err := <-ended:
					require.Error(t, err)
					status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus)
					require.True(t, ok)
					if status.Signaled() {
						assert.Equal(t, syscall.SIGINT, status.Signal())
					} else {
						assert.Equal(t, 128+int(syscall.SIGINT), status.ExitStatus())
					}
					return
				case <-again.C:
					_ = cmd.Process.Signal(syscall.SIGINT)
				}
			}
		})
	}
}

func TestOrphanEndsThoughItsSetUpIgnoresItsContext(t *testing.T) {
	t.Parallel()
	hosts, file := shortDir(t), t.TempDir()+"/pid"
	self, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), driverMode+"=orphan", driverMode+"_FILE="+file, "RAYLINK_DATA="+t.TempDir(), "RAYLINK_RUNTIME_DIR="+hosts)
	require.NoError(t, cmd.Start())
	pid := pidIn(t, file)
	require.NoError(t, cmd.Process.Kill())
	require.Error(t, cmd.Wait())
	gone(t, pid)
	require.NoError(t, rundir.SweepHosts(hosts)) // the next run removes the driver's own
	assert.Empty(t, leftIn(hosts))
}

func TestNothingIsLeftOfADriver(t *testing.T) {
	t.Parallel()
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGKILL} {
		t.Run(sig.String(), func(t *testing.T) {
			t.Parallel()
			data, hosts := t.TempDir(), shortDir(t)
			self, err := os.Executable()
			require.NoError(t, err)
			cmd := exec.Command(self)
			cmd.Env = append(os.Environ(), driverMode+"=1", "RAYLINK_DATA="+data, "RAYLINK_RUNTIME_DIR="+hosts)
			cmd.Stderr = os.Stderr
			out, err := cmd.StdoutPipe()
			require.NoError(t, err)
			require.NoError(t, cmd.Start())
			line, err := bufio.NewReader(out).ReadString('\n')
			if err != nil {
				_ = cmd.Wait()
			}
			require.NoError(t, err)
			go func() { _, _ = io.Copy(io.Discard, out) }()
			pids := []int64{int64(cmd.Process.Pid)}
			for _, f := range strings.Fields(line)[1:] {
				pid, err := strconv.ParseInt(f, 10, 64)
				require.NoError(t, err)
				pids = append(pids, pid)
			}
			require.Len(t, pids, 4)
			require.NoError(t, cmd.Process.Signal(sig))
			err = cmd.Wait()
			var exit *exec.ExitError
			require.ErrorAs(t, err, &exit)
			status, ok := exit.Sys().(syscall.WaitStatus)
			require.True(t, ok)
			assert.Equal(t, sig, status.Signal(), "the driver did not end by the signal")
			gone(t, pids...)
			require.Eventually(t, func() bool { return len(leftIn(hosts)) == 0 }, patience, 5*time.Millisecond, "left behind: %v", leftIn(hosts))
		})
	}
}

// shortDir is a directory whose path is short enough for sockets.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "rl") //nolint:usetesting // its path would be too long
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	return dir
}

// leftIn lists the files below a directory.
func leftIn(dir string) []string {
	var left []string
	_ = filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if err == nil && path != dir {
			left = append(left, path)
		}
		return nil // a file that vanishes meanwhile is not left
	})
	return left
}
