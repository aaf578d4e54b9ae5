package raylink_test

import (
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	psv1 "github.com/raylink/raylink/gen/raylink/ps/v1"
	"github.com/raylink/raylink/gen/raylink/ps/v1/psv1raylink"
	"github.com/raylink/raylink/gen/raylink/storage/v1/storagev1raylink"
	"github.com/raylink/raylink/runtime"
	"github.com/raylink/raylink/services/ps"
	"github.com/raylink/raylink/services/storage"
)

func TestSystemHasAStorageAndAParameterServer(t *testing.T) {
	t.Parallel()
	ctx := patient(t)
	rt := system(t)
	other := joined(t, rt)
	handle, err := storagev1raylink.FindStorage(ctx, other, runtime.Path("storage-0"))
	require.NoError(t, err)
	_, err = storage.Put(ctx, storage.New(handle), "episodes", int64(7))
	require.NoError(t, err)
	local, err := storagev1raylink.FindStorage(ctx, rt, runtime.Path("storage-0"))
	require.NoError(t, err)
	n, err := storage.Get[int64](ctx, storage.New(local), "episodes")
	require.NoError(t, err)
	assert.Equal(t, int64(7), n)

	captain, err := psv1raylink.FindCaptain(ctx, other, runtime.Path("ps-0"))
	require.NoError(t, err)
	client, err := ps.Open(ctx, captain)
	require.NoError(t, err)
	defer func() { require.NoError(t, client.Close()) }()
	assert.True(t, client.Mapped(), "on one machine parameters are read in place")
	_, err = client.Push(ctx, "policy", []byte("weights"), nil)
	require.NoError(t, err)
	children, err := captain.Ref().Children(ctx)
	require.NoError(t, err)
	require.Len(t, children, 1)
	assert.Equal(t, "ps-0/officer-0", children[0].GetPath())
}

// secondMachine makes this test binary a process of another machine that joins a system: see TestMain.
const secondMachine = "RAYLINK_TEST_SECOND_MACHINE"

// TestEachMachineHasOneOfficer gives two processes a machine of their own, and kills the one that hosts its officer.
func TestEachMachineHasOneOfficer(t *testing.T) {
	t.Parallel()
	ctx := patient(t)
	rt := system(t)
	captain, err := psv1raylink.FindCaptain(ctx, rt, runtime.Path("ps-0"))
	require.NoError(t, err)
	self, err := os.Executable()
	require.NoError(t, err)
	hosts := shortDir(t)
	processes := make(map[int32]*exec.Cmd)
	for range 2 {
		cmd := exec.CommandContext(ctx, self)
		cmd.Env = append(os.Environ(), secondMachine+"=1", "RAYLINK_BRAIN="+rt.Address(), "RAYLINK_MACHINE=another", "RAYLINK_DATA="+t.TempDir(), "RAYLINK_RUNTIME_DIR="+hosts)
		cmd.Stderr = os.Stderr
		require.NoError(t, cmd.Start())
		processes[int32(cmd.Process.Pid)] = cmd
		t.Cleanup(func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		})
	}
	var home int32
	officer := func() bool {
		children, err := captain.Ref().Children(ctx)
		if err != nil || len(children) != 2 {
			return false
		}
		pid := children[1].GetHost().GetPid()
		if pid == home || pid == 0 {
			return false
		}
		home = pid
		return true
	}
	require.Eventually(t, officer, patience, 10*time.Millisecond, "the other machine got no officer")
	require.Contains(t, processes, home)
	require.NoError(t, processes[home].Process.Kill())
	require.Eventually(t, officer, patience, 10*time.Millisecond, "no other process took over")
	require.Contains(t, processes, home)
	require.NoError(t, processes[home].Process.Kill())
	require.Eventually(t, func() bool {
		found, err := captain.Locate(ctx, &psv1.LocateRequest{Machine: "another"})
		return err == nil && found.GetOfficer() == nil
	}, patience, 10*time.Millisecond, "the captain still counts on an officer that has departed")
}
