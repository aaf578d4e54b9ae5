// Package services_test tests the services as users run them: in processes of their own.
package services_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/raylink/raylink"
	psv1 "github.com/raylink/raylink/gen/raylink/ps/v1"
	"github.com/raylink/raylink/gen/raylink/ps/v1/psv1raylink"
	replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"
	"github.com/raylink/raylink/gen/raylink/replay/v1/replayv1raylink"
	"github.com/raylink/raylink/gen/raylink/storage/v1/storagev1raylink"
	tensorv1 "github.com/raylink/raylink/gen/raylink/tensor/v1"
	"github.com/raylink/raylink/runtime"
	"github.com/raylink/raylink/services/ps"
	"github.com/raylink/raylink/services/replay"
	"github.com/raylink/raylink/services/storage"
)

// driver is the system of this test binary. Its nodes have processes of their own.
var driver *raylink.Runtime

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	// By default the race detector delays the exit of every process by a second.
	if err := os.Setenv("GORACE", "atexit_sleep_ms=0"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	// A node's process runs this binary too, and inherits the driver's directory.
	if os.Getenv("RAYLINK_DATA") == "" {
		data, err := os.MkdirTemp("", "raylink-test")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer func() { _ = os.RemoveAll(data) }()
		if err := os.Setenv("RAYLINK_DATA", data); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	var err error
	driver, err = raylink.Init(context.Background(), storage.Type(), replay.Type(), ps.Type(), ps.OfficerType())
	if err != nil {
		fmt.Fprintln(os.Stderr, "Init:", err)
		return 1
	}
	code := m.Run()
	if err := driver.Close(); err != nil {
		fmt.Fprintln(os.Stderr, "Close:", err)
		code = 1
	}
	if left := mapped(); len(left) > 0 {
		fmt.Fprintln(os.Stderr, "mapped files were leaked:", left)
		code = 1
	}
	if err := goleak.Find(); err != nil {
		fmt.Fprintln(os.Stderr, "goroutines were leaked:", err)
		code = 1
	}
	return code
}

// mapped returns the mapped files of live nodes.
func mapped() []string {
	found, err := filepath.Glob(filepath.Join(os.Getenv("RAYLINK_DATA"), "*", "*", "mapped", "*"))
	if err != nil {
		panic(err)
	}
	more, err := filepath.Glob(filepath.Join(os.Getenv("RAYLINK_DATA"), "*", "mapped", "*"))
	if err != nil {
		panic(err)
	}
	return append(append(found, more...), parameterFiles()...)
}

// parameterFiles returns the directories of the parameters of captains.
func parameterFiles() []string {
	found, err := filepath.Glob(filepath.Join(os.Getenv("RAYLINK_DATA"), "parameters", "*"))
	if err != nil {
		panic(err)
	}
	return found
}

func pidOf(t *testing.T, ref runtime.Ref) int {
	t.Helper()
	info, err := ref.Info(t.Context())
	require.NoError(t, err)
	pid := int(info.GetRecord().GetHost().GetPid())
	require.NotEqual(t, os.Getpid(), pid, "the node has a process of its own")
	return pid
}

func TestStorageFromAnotherProcess(t *testing.T) {
	ctx := t.Context()
	handle, err := storagev1raylink.CreateStorage(ctx, driver, nil)
	require.NoError(t, err)
	pidOf(t, handle.Ref())
	s := storage.New(handle)
	for i := range 100 {
		n, err := storage.Add(ctx, s, "steps", 2)
		require.NoError(t, err)
		require.Equal(t, 2*(i+1), n)
	}
	_, err = storage.Get[string](ctx, s, "steps")
	var wrong *storage.TypeError
	require.ErrorAs(t, err, &wrong)
	_, err = storage.Get[int](ctx, s, "stops")
	require.Equal(t, connect.CodeNotFound, connect.CodeOf(err))
	require.ErrorContains(t, err, "stops")
	require.NoError(t, handle.Ref().Stop(ctx))
}

func TestReplayOfAnotherProcessIsMapped(t *testing.T) {
	ctx := t.Context()
	handle, err := replayv1raylink.CreateReplay(ctx, driver, &replayv1.ReplayConfig{
		Capacity: 1000, Columns: []*tensorv1.Column{replay.Column[int64]("n"), replay.Column[float32]("x", 3)},
	})
	require.NoError(t, err)
	pid := pidOf(t, handle.Ref())
	c, err := replay.OpenClient(ctx, handle)
	require.NoError(t, err)
	require.True(t, c.Mapped())
	require.NotEmpty(t, mapped())

	b, err := c.NewBatch(10)
	require.NoError(t, err)
	w, h := c.Writer(), c.Reader(rand.New(rand.NewPCG(1, 2)))
	for i := range 150 {
		n, err := replay.Values[int64](b, "n")
		require.NoError(t, err)
		for j := range n {
			n[j] = int64(10*i + j)
		}
		_, err = w.Append(ctx, b)
		require.NoError(t, err)
	}
	require.NoError(t, h.Sample(ctx, 64, b))
	n, err := replay.Values[int64](b, "n")
	require.NoError(t, err)
	for i, s := range b.Sequences() {
		require.Equal(t, int64(s), n[i])
		require.GreaterOrEqual(t, s, uint64(500))
	}

	// The node sees rows written to the mapping, and serves clients that can't map it.
	res, err := handle.Newest(ctx, &replayv1.NewestRequest{Rows: 3})
	require.NoError(t, err)
	require.Equal(t, []uint64{1497, 1498, 1499}, res.GetBatch().GetSequence())
	_, err = handle.Write(ctx, &replayv1.WriteRequest{Batch: res.GetBatch()})
	require.NoError(t, err)
	require.NoError(t, h.Newest(ctx, 1, b))
	require.Equal(t, []uint64{1502}, b.Sequences())
	_, err = handle.Write(ctx, &replayv1.WriteRequest{Batch: &replayv1.Batch{Rows: 1}})
	require.Equal(t, connect.CodeInvalidArgument, connect.CodeOf(err), "%v", err)

	require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
	patient, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for err = nil; err == nil && patient.Err() == nil; {
		_, err = w.Append(patient, b)
	}
	require.NoError(t, patient.Err())
	require.Equal(t, connect.CodeUnavailable, connect.CodeOf(err), "%v", err)
	require.ErrorContains(t, err, "no longer served")
	require.NoError(t, c.Close())
}

func TestParametersOfAnotherProcessAreMapped(t *testing.T) {
	ctx := t.Context()
	before := len(parameterFiles())
	handle, err := psv1raylink.CreateCaptain(ctx, driver, &psv1.CaptainConfig{HeldVersions: 1})
	require.NoError(t, err)
	pid := pidOf(t, handle.Ref())
	children, err := handle.Ref().Children(ctx)
	require.NoError(t, err)
	require.Len(t, children, 1)
	require.Equal(t, "officer-0", children[0].GetName())

	c, err := ps.Open(ctx, handle)
	require.NoError(t, err)
	require.True(t, c.Mapped())
	weights := make([]byte, 1<<20)
	for i := range 10 {
		weights[len(weights)-1] = byte(i)
		v, err := c.Push(ctx, "policy", weights, ps.Info("step", "x"))
		require.NoError(t, err)
		id, err := c.ID(ctx, "policy")
		require.NoError(t, err)
		require.Equal(t, v.GetId(), id, "a completed push is visible")
	}
	p, err := c.Pull(ctx, "policy")
	require.NoError(t, err)
	require.Equal(t, weights, p.Bytes())
	res, err := handle.Pull(ctx, &psv1.PullRequest{Tag: "policy"})
	require.NoError(t, err)
	require.Equal(t, weights, res.GetParameters())

	require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
	patient, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for err = nil; err == nil && patient.Err() == nil; {
		_, err = c.ID(patient, "policy")
	}
	require.ErrorIs(t, err, ps.ErrEnded)
	_, err = c.Push(patient, "policy", weights)
	require.ErrorIs(t, err, ps.ErrEnded)
	require.Equal(t, weights, p.Bytes(), "pulled parameters outlive the officer")
	require.NoError(t, p.Release())
	require.Eventually(t, func() bool { return len(parameterFiles()) == before }, 5*time.Second, 10*time.Millisecond)
	require.NoError(t, c.Close())
}

// Processes that open a replay's file have other working directories.
func TestRelativeReplayDirectoryBecomesAbsolute(t *testing.T) {
	ctx := t.Context()
	directory := t.TempDir()
	t.Chdir(directory)
	handle, err := replayv1raylink.CreateReplay(ctx, driver, &replayv1.ReplayConfig{
		Capacity: 10, Directory: ".", Columns: []*tensorv1.Column{replay.Column[int32]("n")},
	})
	require.NoError(t, err)
	t.Chdir(t.TempDir())
	buffer, err := replay.OpenClient(ctx, handle)
	require.NoError(t, err)
	require.True(t, buffer.Mapped())
	files, err := os.ReadDir(directory)
	require.NoError(t, err)
	require.Len(t, files, 1)
	require.NoError(t, buffer.Close())
	require.NoError(t, handle.Ref().Stop(ctx))
}

func TestInvalidReplayFailsWithReason(t *testing.T) {
	_, err := replayv1raylink.CreateReplay(t.Context(), driver, &replayv1.ReplayConfig{Capacity: 1})
	require.Equal(t, connect.CodeInvalidArgument, connect.CodeOf(err), "%v", err)
	require.ErrorContains(t, err, "no columns")
}
