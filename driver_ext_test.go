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

	contractv1 "github.com/raylink/raylink/internal/contract/gen/contract/v1"
	"github.com/raylink/raylink/internal/contract/gen/contract/v1/contractv1raylink"
)

// driverMode makes this test binary a driver that is to be killed: see TestMain.
const driverMode = "RAYLINK_TEST_DRIVER"

// runDriver creates a node with two children, says the processes' ids, and waits for its end.
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
		return nil // what vanishes while we look is not left
	})
	return left
}
