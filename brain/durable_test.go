package brain_test

import (
	"fmt"
	"log/slog"
	"sync/atomic"
	"testing"

	"connectrpc.com/connect/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink/brain"
	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
)

func TestAcknowledgedRegistrationsSurviveKill(t *testing.T) {
	for range 3 {
		acknowledged, lost := lostByKill(t)
		require.Empty(t, lost, "%d of %d acknowledged registrations are lost", len(lost), acknowledged)
	}
}

func TestDirectoryInUseByAnotherBrainIsRefused(t *testing.T) {
	dir := t.TempDir()
	cmd, _ := child(t, dir)
	_, err := brain.Open(brain.Options{Dir: dir, Logger: slog.New(slog.DiscardHandler)})
	require.ErrorContains(t, err, "in use by another Brain")
	require.ErrorContains(t, err, fmt.Sprintf("pid %d", cmd.Process.Pid))
	require.ErrorContains(t, err, dir)
}

// brokenDisk fails all writes once it is broken.
type brokenDisk struct{ broken atomic.Bool }

// MaybeError implements errorfs.Injector.
func (d *brokenDisk) MaybeError(op errorfs.Op) error {
	if d.broken.Load() && op.Kind.ReadOrWrite() == errorfs.OpIsWrite {
		return errorfs.ErrInjected
	}
	return nil
}

// String implements fmt.Stringer.
func (d *brokenDisk) String() string { return "broken disk" }

func TestFailedCommitIsReportedAndNotVisible(t *testing.T) {
	disk, memory := new(brokenDisk), vfs.NewCrashableMem()
	s := start(t, brain.Options{Dir: "data", FS: errorfs.Wrap(memory, disk)})
	before := s.register(t, "", "worker", nil)
	stream, err := s.client.Watch(t.Context())
	require.NoError(t, err)
	require.NoError(t, stream.Send(&brainv1.WatchRequest{All: true}))
	for synced := false; !synced; {
		res, err := stream.Receive()
		require.NoError(t, err)
		synced = res.GetSynced()
	}

	disk.broken.Store(true)
	_, err = s.client.Register(t.Context(), &brainv1.RegisterRequest{Type: "worker", Alias: "lost"})
	require.Equal(t, connect.CodeUnavailable, connect.CodeOf(err))
	require.ErrorContains(t, err, "could not keep the change")
	<-s.Failed()
	require.Error(t, s.Err())

	// Readers see acknowledged changes only; changes are refused even when the disk works again.
	disk.broken.Store(false)
	_, err = s.client.Register(t.Context(), &brainv1.RegisterRequest{Type: "worker"})
	require.Equal(t, connect.CodeUnavailable, connect.CodeOf(err))
	_, err = s.lookup(t.Context(), "lost")
	require.Equal(t, connect.CodeNotFound, connect.CodeOf(err))
	list, err := s.client.List(t.Context(), &brainv1.ListRequest{})
	require.NoError(t, err)
	require.Equal(t, describe(list.GetNodes()[:1]), describe(list.GetNodes()))
	require.Equal(t, before.GetNid(), list.GetNodes()[0].GetNid())
	require.NoError(t, stream.Close())

	again := start(t, brain.Options{Dir: "data", FS: memory.CrashClone(vfs.CrashCloneCfg{})})
	rec, err := again.lookup(t.Context(), before.GetPath())
	require.NoError(t, err)
	require.Equal(t, before.GetNid(), rec.GetNid())
}
