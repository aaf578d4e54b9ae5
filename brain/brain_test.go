package brain_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink/brain"
	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
)

func TestHelloNegotiatesAVersionAndRefusesOthers(t *testing.T) {
	s := start(t, brain.Options{Lease: 7 * time.Second})
	res, err := s.client.Hello(t.Context(), &brainv1.HelloRequest{MinVersion: 1, MaxVersion: 9})
	require.NoError(t, err)
	require.EqualValues(t, 1, res.GetVersion())
	require.Equal(t, 7*time.Second, res.GetLease().AsDuration())
	require.Equal(t, "BRAIN", res.GetRoot().GetPath())
	require.Equal(t, s.ID(), res.GetBrainId())

	_, err = s.client.Hello(t.Context(), &brainv1.HelloRequest{MinVersion: 7, MaxVersion: 9})
	require.Equal(t, connect.CodeFailedPrecondition, connect.CodeOf(err))
	require.ErrorContains(t, err, "7 to 9")
	require.ErrorContains(t, err, "1 to 1")

	root, err := s.lookup(t.Context(), "BRAIN")
	require.NoError(t, err)
	require.Equal(t, res.GetRoot().GetNid(), root.GetNid())
}

func TestRestartPreservesRecords(t *testing.T) {
	opts := brain.Options{Dir: "data", FS: vfs.NewMem()}
	first := start(t, opts)
	ctx := t.Context()
	manager := first.register(t, "", "manager", host(1, "127.0.0.1:1"))
	worker := first.register(t, manager.GetNid(), "worker", host(2, "127.0.0.1:2"))
	gone := first.register(t, manager.GetNid(), "worker", nil)
	_, err := first.client.Remove(ctx, &brainv1.RemoveRequest{Nids: []string{gone.GetNid()}, Cause: "stopped by its owner"})
	require.NoError(t, err)
	retried := &brainv1.RegisterRequest{Type: "replay", Alias: "buffer", RequestId: "11111111-1111-4111-8111-111111111111"}
	replay, err := first.client.Register(ctx, retried)
	require.NoError(t, err)
	before, err := first.client.List(ctx, &brainv1.ListRequest{})
	require.NoError(t, err)
	hello, err := first.client.Hello(ctx, &brainv1.HelloRequest{MinVersion: 1, MaxVersion: 1})
	require.NoError(t, err)
	require.NoError(t, first.Close())

	second := start(t, opts)
	after, err := second.client.List(ctx, &brainv1.ListRequest{})
	require.NoError(t, err)
	require.Equal(t, describe(before.GetNodes()), describe(after.GetNodes()))
	again, err := second.client.Register(ctx, retried)
	require.NoError(t, err)
	require.Equal(t, replay.GetNodes()[0].GetNid(), again.GetNodes()[0].GetNid(), "a retried request returns the same node")
	next := second.register(t, manager.GetNid(), "worker", nil)
	require.Equal(t, "manager-0/worker-2", next.GetPath(), "an index was reused")
	require.Greater(t, next.GetRevision(), replay.GetNodes()[0].GetRevision())
	_, err = second.lookup(ctx, gone.GetPath())
	require.ErrorContains(t, err, "stopped by its owner")
	rec, err := second.lookup(ctx, worker.GetPath())
	require.NoError(t, err)
	require.EqualValues(t, 2, rec.GetHost().GetPid())
	res, err := second.client.Hello(ctx, &brainv1.HelloRequest{MinVersion: 1, MaxVersion: 1})
	require.NoError(t, err)
	require.Equal(t, hello.GetBrainId(), res.GetBrainId())
	require.Equal(t, hello.GetRoot().GetNid(), res.GetRoot().GetNid())
	require.EqualValues(t, 2, res.GetRoot().GetIncarnation())
}

func describe(nodes []*nodev1.NodeRecord) []string {
	lines := make([]string, 0, len(nodes))
	for _, n := range nodes {
		lines = append(lines, fmt.Sprintf("%s %s %v %q host %d revision %d", n.GetPath(), n.GetNid(), n.GetState(), n.GetAlias(), n.GetHost().GetPid(), n.GetRevision()))
	}
	return lines
}

func TestConcurrentRegistrationsShareNoIndex(t *testing.T) {
	s := start(t, brain.Options{})
	var wg sync.WaitGroup
	var mu sync.Mutex
	paths := make(map[string]bool)
	for range 16 {
		wg.Go(func() {
			for range 25 {
				res, err := s.Service().Register(context.Background(), &brainv1.RegisterRequest{Type: "worker", Count: 3})
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				for _, n := range res.GetNodes() {
					if paths[n.GetPath()] {
						t.Errorf("%s was registered twice", n.GetPath())
					}
					paths[n.GetPath()] = true
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	for i := range 16 * 25 * 3 {
		require.True(t, paths[fmt.Sprintf("worker-%d", i)], "there is no worker-%d", i)
	}
}

func TestOptionsFormatWithTheirDefaults(t *testing.T) {
	s := start(t, brain.Options{})
	require.Equal(t, `dir = (in memory)
lease = 10s
grace = 750ms
reattach = 5s
host = 
max_nodes = 1048576
max_attribute_bytes = 16384
tombstones = 4096
tombstone_age = 1h0m0s
requests = 16384
request_age = 10m0s
dial = 3s
`, s.Options().String())
	_, err := brain.Open(brain.Options{Lease: -1})
	require.ErrorContains(t, err, "Lease is negative")
}
