package brain_test

import (
	"io"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connectproto"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/raylink/raylink/brain"
	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
)

func TestNodesDieWithTheirHostsConnection(t *testing.T) {
	s := start(t, brain.Options{Grace: 50 * time.Millisecond})
	at := host(7, "127.0.0.1:7")
	manager := s.register(t, "", "manager", at)
	child := s.register(t, manager.GetNid(), "worker", host(8, "127.0.0.1:8"))
	stream, res := s.attach(t, at, manager)
	require.Empty(t, res.GetUnknown())
	require.Equal(t, 10*time.Second, res.GetLease().AsDuration())

	require.NoError(t, stream.Send(&brainv1.AttachRequest{}))
	_, err := stream.Receive()
	require.NoError(t, err)
	require.NoError(t, stream.Close()) // without a goodbye

	err = s.gone(t, manager.GetPath())
	require.ErrorContains(t, err, "its host (pid 7 on m1) died: connection closed")
	require.ErrorContains(t, s.gone(t, child.GetNid()), "parent manager-0 died: its host (pid 7 on m1) died: connection closed")

	// The last record is a detail of the error.
	var connectErr *connect.Error
	require.ErrorAs(t, err, &connectErr)
	require.Len(t, connectErr.Details(), 1)
	detail, err := connectproto.UnmarshalErrorDetail(connectErr.Details()[0])
	require.NoError(t, err)
	last, ok := detail.(*nodev1.NodeRecord)
	require.True(t, ok)
	require.Equal(t, nodev1.NodeState_NODE_STATE_DEAD, last.GetState())
	require.Equal(t, manager.GetNid(), last.GetNid())

	// A host that attaches again gets the nids that are no longer its own.
	back, res := s.attach(t, at, manager)
	require.Equal(t, []string{manager.GetNid()}, res.GetUnknown())
	require.NoError(t, back.Send(&brainv1.AttachRequest{Goodbye: true}))
	_, err = back.Receive()
	require.Error(t, err)
}

func TestHostThatReattachesInTimeKeepsItsNodes(t *testing.T) {
	s := start(t, brain.Options{Grace: time.Minute})
	at := host(7, "127.0.0.1:7")
	node := s.register(t, "", "worker", at)
	first, _ := s.attach(t, at, node)
	require.NoError(t, first.Close())
	stream, res := s.attach(t, at, node)
	require.Empty(t, res.GetUnknown())
	_, err := s.lookup(t.Context(), node.GetPath())
	require.NoError(t, err)
	require.NoError(t, stream.Close())
}

func TestGoodbyeRemovesRemainingNodesAtOnce(t *testing.T) {
	s := start(t, brain.Options{Grace: time.Hour, Lease: time.Hour})
	at := host(7, "127.0.0.1:7")
	node := s.register(t, "", "worker", at)
	stream, _ := s.attach(t, at, node)
	require.NoError(t, stream.Send(&brainv1.AttachRequest{Goodbye: true}))
	_, err := stream.Receive()
	require.Error(t, err)
	require.ErrorContains(t, s.gone(t, node.GetPath()), "its host (pid 7 on m1) ended")
}

func TestReportedHostIsDeadWhenTheReportReturns(t *testing.T) {
	s := start(t, brain.Options{Grace: time.Hour, Lease: time.Hour})
	at := host(7, "127.0.0.1:7")
	node := s.register(t, "", "worker", at)
	stream, _ := s.attach(t, at, node)
	_, err := s.client.ReportHost(t.Context(), &brainv1.ReportHostRequest{HostId: at.GetId(), Cause: "killed by signal 9 (killed)"})
	require.NoError(t, err)
	_, err = s.lookup(t.Context(), node.GetPath())
	require.ErrorContains(t, err, "its host (pid 7 on m1) died: killed by signal 9 (killed)")
	_, err = stream.Receive()
	require.Equal(t, connect.CodeAborted, connect.CodeOf(err), "%v", err)

	_, err = s.client.ReportHost(t.Context(), &brainv1.ReportHostRequest{HostId: "7"})
	require.Equal(t, connect.CodeInvalidArgument, connect.CodeOf(err))
}

func TestSilentHostIsDeadAfterItsLease(t *testing.T) {
	s := start(t, brain.Options{Grace: 20 * time.Millisecond, Lease: 200 * time.Millisecond})
	at := host(7, "127.0.0.1:7")
	stream, _ := s.attach(t, at)
	node := s.register(t, "", "worker", at)
	require.ErrorContains(t, s.gone(t, node.GetPath()), "its host (pid 7 on m1) died: no sign of life for 200ms")
	_, err := stream.Receive()
	require.Equal(t, connect.CodeAborted, connect.CodeOf(err))
}

func TestNoHostIsDeclaredDeadForBrainsAbsence(t *testing.T) {
	opts := brain.Options{Dir: "data", FS: vfs.NewMem(), Grace: 10 * time.Millisecond, Lease: time.Hour}
	first := start(t, opts)
	at := host(7, "127.0.0.1:7")
	node := first.register(t, "", "worker", at)
	stream, _ := first.attach(t, at, node)
	require.NoError(t, first.Close())
	_, err := stream.Receive()
	require.Equal(t, connect.CodeUnavailable, connect.CodeOf(err), "%v", err)
	_, err = first.client.Register(t.Context(), &brainv1.RegisterRequest{Type: "late"})
	require.Equal(t, connect.CodeUnavailable, connect.CodeOf(err))

	second := start(t, opts)
	_, err = second.lookup(t.Context(), node.GetPath())
	require.NoError(t, err)
	_, res := second.attach(t, at, node)
	require.Empty(t, res.GetUnknown())
	require.NoError(t, second.Close())

	// A host that does not attach again in time is declared dead.
	opts.Lease, opts.Reattach = 60*time.Millisecond, 40*time.Millisecond
	third := start(t, opts)
	require.ErrorContains(t, third.gone(t, node.GetPath()), "did not attach to Brain within 100ms")
}

func TestAttachRefusesHostsWithoutAnIdentity(t *testing.T) {
	s := start(t, brain.Options{})
	stream, err := s.client.Attach(t.Context())
	require.NoError(t, err)
	if err := stream.Send(&brainv1.AttachRequest{}); err != nil {
		require.ErrorIs(t, err, io.EOF, "the stream has ended already: Receive returns the reason")
	}
	_, err = stream.Receive()
	require.Equal(t, connect.CodeInvalidArgument, connect.CodeOf(err))
}

func TestWatchFollowsTheWholeTree(t *testing.T) {
	s := start(t, brain.Options{})
	first := s.register(t, "", "manager", nil)
	stream, err := s.client.Watch(t.Context())
	require.NoError(t, err)
	require.NoError(t, stream.Send(&brainv1.WatchRequest{All: true}))
	seen := make(map[string]*nodev1.NodeRecord)
	read := func() bool {
		res, err := stream.Receive()
		require.NoError(t, err)
		for _, rec := range res.GetNodes() {
			seen[rec.GetPath()] = rec
		}
		return res.GetSynced()
	}
	for !read() {
	}
	require.True(t, proto.Equal(first, seen["manager-0"]))
	s.register(t, first.GetNid(), "worker", host(3, "127.0.0.1:3"))
	for seen["manager-0/worker-0"].GetState() != nodev1.NodeState_NODE_STATE_RUNNING {
		require.False(t, read(), "synced was sent twice")
	}
	_, err = s.client.Remove(t.Context(), &brainv1.RemoveRequest{Nids: []string{first.GetNid()}, Cause: "stopped"})
	require.NoError(t, err)
	for seen["manager-0"].GetState() != nodev1.NodeState_NODE_STATE_DEAD {
		read()
	}
	require.Equal(t, "stopped", seen["manager-0"].GetCause())
	require.Equal(t, nodev1.NodeState_NODE_STATE_DEAD, seen["manager-0/worker-0"].GetState(), "children end before parents")
	require.NoError(t, stream.Close())
}

func TestWatchSendsTheCurrentRecordOfEachNid(t *testing.T) {
	s := start(t, brain.Options{})
	node := s.register(t, "", "worker", nil)
	stream, err := s.client.Watch(t.Context())
	require.NoError(t, err)
	unknown := "99999999-2222-4333-8444-555555555555"
	require.NoError(t, stream.Send(&brainv1.WatchRequest{Add: []string{node.GetNid(), unknown}}))
	require.NoError(t, stream.CloseSend()) // requests remain in effect
	seen := make(map[string]*nodev1.NodeRecord)
	for len(seen) < 2 {
		res, err := stream.Receive()
		require.NoError(t, err)
		for _, rec := range res.GetNodes() {
			seen[rec.GetNid()] = rec
		}
	}
	require.True(t, proto.Equal(node, seen[node.GetNid()]))
	require.Equal(t, nodev1.NodeState_NODE_STATE_DEAD, seen[unknown].GetState())
	require.Contains(t, seen[unknown].GetCause(), "no node with this nid")
	_, err = s.client.Update(t.Context(), &brainv1.UpdateRequest{Changes: []*brainv1.Change{{
		Nid: node.GetNid(), Incarnation: 1, State: nodev1.NodeState_NODE_STATE_RUNNING, Host: host(3, "127.0.0.1:3"),
	}}})
	require.NoError(t, err)
	res, err := stream.Receive()
	require.NoError(t, err)
	require.Equal(t, nodev1.NodeState_NODE_STATE_RUNNING, res.GetNodes()[0].GetState())
	require.NoError(t, s.Close())
	_, err = stream.Receive()
	require.Equal(t, connect.CodeUnavailable, connect.CodeOf(err))
}
