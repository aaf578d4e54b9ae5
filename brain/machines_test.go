package brain_test

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink/brain"
	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
	"github.com/raylink/raylink/gen/raylink/brain/v1/brainv1connect"
	machinev1 "github.com/raylink/raylink/gen/raylink/machine/v1"
	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
)

// machineHost is a host on a machine of its own.
func machineHost(pid int32) *nodev1.HostInfo {
	at := host(pid, fmt.Sprint("10.0.0.1:", pid))
	at.Machine = fmt.Sprint("id-", pid)
	return at
}

func machineOf(at *nodev1.HostInfo, cpus, gpus int) *machinev1.Machine {
	m := &machinev1.Machine{
		Id: at.GetMachine(), Name: fmt.Sprint("machine-", at.GetPid()), Platform: &machinev1.Platform{Os: "linux", Arch: "amd64"},
		Resources: map[string]int64{"cpu": int64(cpus) * 1000, "memory": 16 << 30}, Agent: true,
	}
	if gpus > 0 {
		m.Resources["gpu"] = int64(gpus) * 1000
	}
	for i := range gpus {
		m.Gpus = append(m.Gpus, strconv.Itoa(i))
	}
	return m
}

// keep attaches a host that keeps a machine.
func (s *system) keep(t *testing.T, at *nodev1.HostInfo, m *machinev1.Machine, nodes ...*nodev1.NodeRecord) brainv1connect.BrainServiceAttachClientStream {
	t.Helper()
	stream, err := s.client.Attach(t.Context())
	require.NoError(t, err)
	req := &brainv1.AttachRequest{Host: at, Machine: m}
	for _, n := range nodes {
		req.Nodes = append(req.Nodes, &nodev1.NodeRef{Nid: n.GetNid(), Incarnation: n.GetIncarnation()})
	}
	require.NoError(t, stream.Send(req))
	_, err = stream.Receive()
	require.NoError(t, err)
	return stream
}

func (s *system) machines(t *testing.T, name string) []*brainv1.MachineUse {
	t.Helper()
	res, err := s.client.ListMachines(t.Context(), &brainv1.ListMachinesRequest{Machine: name})
	require.NoError(t, err)
	return res.GetMachines()
}

func needs(gpus int64) *nodev1.Place {
	return &nodev1.Place{Resources: map[string]int64{"gpu": gpus * 1000}}
}

// place registers nodes below the root.
func (s *system) place(ctx context.Context, count uint32, place *nodev1.Place) (*brainv1.RegisterResponse, error) {
	return s.client.Register(ctx, &brainv1.RegisterRequest{Type: "worker", Service: "test.v1.Test", Count: count, Place: place})
}

func (s *system) remove(t *testing.T, nodes ...*nodev1.NodeRecord) {
	t.Helper()
	req := new(brainv1.RemoveRequest)
	for _, n := range nodes {
		req.Nids = append(req.Nids, n.GetNid())
	}
	_, err := s.client.Remove(t.Context(), req)
	require.NoError(t, err)
}

func TestMachinesJoinAndLeaveWithTheirKeepers(t *testing.T) {
	s := start(t, brain.Options{Grace: 20 * time.Millisecond})
	require.Empty(t, s.machines(t, ""))
	ends := map[string]func(*nodev1.HostInfo, brainv1connect.BrainServiceAttachClientStream){
		"goodbye": func(_ *nodev1.HostInfo, stream brainv1connect.BrainServiceAttachClientStream) {
			require.NoError(t, stream.Send(&brainv1.AttachRequest{Goodbye: true}))
			_, err := stream.Receive()
			require.Error(t, err)
		},
		"death": func(_ *nodev1.HostInfo, stream brainv1connect.BrainServiceAttachClientStream) {
			require.NoError(t, stream.Close())
		},
		"report": func(at *nodev1.HostInfo, _ brainv1connect.BrainServiceAttachClientStream) {
			_, err := s.client.ReportHost(t.Context(), &brainv1.ReportHostRequest{HostId: at.GetId(), Cause: "killed"})
			require.NoError(t, err)
		},
	}
	before := time.Now().Add(-time.Second)
	for name, end := range ends {
		at := machineHost(1)
		stream := s.keep(t, at, machineOf(at, 4, 2))
		for _, where := range []string{"", "id-1", "machine-1"} {
			list := s.machines(t, where)
			require.Len(t, list, 1)
			require.Equal(t, at.GetId(), list[0].GetKeeper().GetId())
			require.Equal(t, "10.0.0.1:1", list[0].GetKeeper().GetAddress())
			require.WithinRange(t, list[0].GetJoined().AsTime(), before, time.Now().Add(time.Second))
		}
		_, err := s.client.ListMachines(t.Context(), &brainv1.ListMachinesRequest{Machine: "machine-2"})
		require.Equal(t, connect.CodeNotFound, connect.CodeOf(err))
		require.ErrorContains(t, err, `no machine has the name or the id "machine-2"; there are machine-1`)
		end(at, stream)
		require.Eventually(t, func() bool { return len(s.machines(t, "")) == 0 }, patience, 5*time.Millisecond, "%s: the machine is still there", name)
	}
}

func TestInvalidMachineIsRefused(t *testing.T) {
	s := start(t, brain.Options{})
	at := machineHost(1)
	stream, err := s.client.Attach(t.Context())
	require.NoError(t, err)
	require.NoError(t, stream.Send(&brainv1.AttachRequest{Host: at, Machine: machineOf(machineHost(2), 1, 0)}))
	_, err = stream.Receive()
	require.Equal(t, connect.CodeInvalidArgument, connect.CodeOf(err))
	require.ErrorContains(t, err, `its keeper is on the machine "id-1"`)
	require.Empty(t, s.machines(t, ""))
}

func TestWatchMachines(t *testing.T) {
	s := start(t, brain.Options{Grace: 20 * time.Millisecond})
	stream, err := s.client.WatchMachines(t.Context(), &brainv1.WatchMachinesRequest{})
	require.NoError(t, err)
	until := func(count int, agent bool) {
		for {
			res, err := stream.Receive()
			require.NoError(t, err)
			if len(res.GetMachines()) == count && (count == 0 || res.GetMachines()[0].GetMachine().GetAgent() == agent) {
				return
			}
		}
	}
	until(0, true)
	at, other := machineHost(1), machineHost(2)
	s.keep(t, at, machineOf(at, 4, 0))
	until(1, true)
	second := s.keep(t, other, machineOf(other, 4, 0))
	until(2, true)
	changed := machineOf(at, 4, 0)
	changed.Agent = false
	s.keep(t, at, changed)
	until(2, false)
	require.NoError(t, second.Close())
	until(1, false)
	require.NoError(t, s.Close())
	_, err = stream.Receive()
	require.Equal(t, connect.CodeUnavailable, connect.CodeOf(err))
}

// TestSlowWatcherOfMachinesGetsTheNewest has a watcher that does not read while machines change.
func TestSlowWatcherOfMachinesGetsTheNewest(t *testing.T) {
	s := start(t, brain.Options{})
	stream, err := s.client.WatchMachines(t.Context(), &brainv1.WatchMachinesRequest{})
	require.NoError(t, err)
	at := machineHost(1)
	for i := range 300 {
		m := machineOf(at, i+1, 0)
		m.Labels = make(map[string]string)
		for j := range 60 {
			m.Labels[fmt.Sprint("label-", j)] = "x"
		}
		require.NoError(t, s.keep(t, at, m).Close())
	}
	messages := 0
	for cpus := int64(0); cpus != 300_000; messages++ {
		res, err := stream.Receive()
		require.NoError(t, err)
		if list := res.GetMachines(); len(list) > 0 {
			require.Greater(t, list[0].GetMachine().GetResources()["cpu"], cpus, "an older state was sent after a newer one")
			cpus = list[0].GetMachine().GetResources()["cpu"]
		}
	}
	t.Logf("300 changes in %d messages", messages)
}

func TestRegistrationsWaitForRoom(t *testing.T) {
	s := start(t, brain.Options{})
	at := machineHost(1)
	s.keep(t, at, machineOf(at, 4, 2))
	first, err := s.place(t.Context(), 2, needs(1))
	require.NoError(t, err)
	require.Len(t, first.GetMachines(), 1)
	require.Equal(t, at.GetId(), first.GetMachines()[0].GetKeeper().GetId())
	require.Equal(t, map[string]int64{"gpu": 2000}, first.GetMachines()[0].GetUsed())

	// The error of a wait that ended by its deadline reaches the caller.
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, err = s.place(ctx, 1, needs(1))
	require.Equal(t, connect.CodeDeadlineExceeded, connect.CodeOf(err))
	require.ErrorContains(t, err, "a node with gpu=1 can't be placed now: the machine that could have it lacks gpu (0 of 2 free); nodes that have it: worker-")
	require.ErrorContains(t, err, "worker-0 (gpu=1 on machine-1)")
	require.ErrorContains(t, err, "worker-1 (gpu=1 on machine-1)")

	done := make(chan *brainv1.RegisterResponse)
	go func() {
		res, err := s.place(t.Context(), 2, needs(1))
		if err != nil {
			t.Error(err)
		}
		done <- res
	}()
	s.remove(t, first.GetNodes()[0])
	s.remove(t, first.GetNodes()[1])
	res := <-done
	require.Len(t, res.GetNodes(), 2)
	require.Equal(t, "worker-2", res.GetNodes()[0].GetPath(), "a registration that was given up has left a trace")
	_, err = s.place(t.Context(), 1, needs(3))
	require.Equal(t, connect.CodeFailedPrecondition, connect.CodeOf(err))
	require.ErrorContains(t, err, "a node with gpu=3 can never be placed: machine-1 has cpu=4, gpu=2, memory=16GiB")
}

// waiting starts registrations that wait, and returns their results. They have arrived in order.
func (s *system) waiting(t *testing.T, ctx context.Context, count int, id func(i int) string) []chan error { //nolint:revive // t comes first
	t.Helper()
	results := make([]chan error, count)
	for i := range results {
		results[i] = make(chan error, 1)
		go func() {
			_, err := s.Service().Register(ctx, &brainv1.RegisterRequest{Type: "worker", Place: needs(1), RequestId: id(i)})
			results[i] <- err
		}()
	}
	return results
}

func noID(int) string { return "" }

// allWait waits until a number of registrations wait, by the error of one that is behind them.
func (s *system) allWait(t *testing.T, count int) {
	t.Helper()
	require.Eventually(t, func() bool { return s.Waiting() == count }, patience, 5*time.Millisecond, "%d registrations should wait", count)
}

func TestThousandWaitingRegistrationsAreServed(t *testing.T) {
	s := start(t, brain.Options{})
	at := machineHost(1)
	s.keep(t, at, machineOf(at, 4, 4))
	_, err := s.place(t.Context(), 4, needs(1))
	require.NoError(t, err)
	results := s.waiting(t, t.Context(), 1000, noID)
	s.allWait(t, 1000)
	for served := 0; served < 1000; {
		list, err := s.client.List(t.Context(), &brainv1.ListRequest{})
		require.NoError(t, err)
		require.LessOrEqual(t, len(list.GetNodes()), 4)
		served += len(list.GetNodes())
		s.remove(t, list.GetNodes()...)
	}
	for _, result := range results {
		require.NoError(t, <-result)
	}
	require.Zero(t, s.Waiting())
}

func TestWaitEndsWithItsCall(t *testing.T) {
	s := start(t, brain.Options{})
	at := machineHost(1)
	s.keep(t, at, machineOf(at, 4, 1))
	holder, err := s.place(t.Context(), 1, needs(1))
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	results := s.waiting(t, ctx, 10, noID)
	remote := make(chan error, 1)
	go func() {
		_, err := s.place(ctx, 1, needs(1))
		remote <- err
	}()
	s.allWait(t, 11)
	cancel()
	for _, result := range results {
		err := <-result
		require.Equal(t, connect.CodeCanceled, connect.CodeOf(err))
		require.ErrorContains(t, err, "worker-0 (gpu=1 on machine-1)")
	}
	require.Error(t, <-remote)
	s.allWait(t, 0)
	s.remove(t, holder.GetNodes()...)
	list, err := s.client.List(t.Context(), &brainv1.ListRequest{})
	require.NoError(t, err)
	require.Empty(t, list.GetNodes(), "a registration was placed whose caller is gone")
}

func TestWaitEndsByWithdrawal(t *testing.T) {
	s := start(t, brain.Options{})
	at := machineHost(1)
	s.keep(t, at, machineOf(at, 4, 1))
	_, err := s.place(t.Context(), 1, needs(1))
	require.NoError(t, err)
	id := func(i int) string { return fmt.Sprintf("11111111-1111-4111-8111-1111111111%02d", i) }
	results := s.waiting(t, t.Context(), 2, id)
	s.allWait(t, 2)
	_, err = s.client.Remove(t.Context(), &brainv1.RemoveRequest{RequestIds: []string{id(0), id(1)}, Cause: "withdrawn"})
	require.NoError(t, err)
	for _, result := range results {
		err := <-result
		require.Equal(t, connect.CodeCanceled, connect.CodeOf(err))
		require.ErrorContains(t, err, "was withdrawn while it waited")
	}
}

func TestCloseEndsWaits(t *testing.T) {
	s := start(t, brain.Options{})
	at := machineHost(1)
	s.keep(t, at, machineOf(at, 4, 1))
	_, err := s.place(t.Context(), 1, needs(1))
	require.NoError(t, err)
	results := s.waiting(t, t.Context(), 20, noID)
	s.allWait(t, 20)
	require.NoError(t, s.Close())
	for _, result := range results {
		require.Equal(t, connect.CodeUnavailable, connect.CodeOf(<-result))
	}
}

// TestRequestsWaitForKeepersThatAreExpectedBack restarts a Brain whose machines are impossible for
// a request until their keepers have attached again.
func TestRequestsWaitForKeepersThatAreExpectedBack(t *testing.T) {
	opts := brain.Options{Dir: "data", FS: vfs.NewMem(), Lease: time.Minute}
	first := start(t, opts)
	at := machineHost(1)
	agent := first.register(t, "", "machine", at)
	first.keep(t, at, machineOf(at, 4, 2), agent)
	held, err := first.place(t.Context(), 1, needs(1))
	require.NoError(t, err)
	require.NoError(t, first.Close())

	second := start(t, opts)
	require.Empty(t, second.machines(t, ""))
	results := second.waiting(t, t.Context(), 1, noID)
	second.allWait(t, 1)
	second.keep(t, at, machineOf(at, 4, 2), agent)
	require.NoError(t, <-results[0])
	use := second.machines(t, "machine-1")[0]
	require.Equal(t, map[string]int64{"gpu": 2000}, use.GetUsed())
	require.EqualValues(t, 2, use.GetNodes())
	rec, err := second.lookup(t.Context(), held.GetNodes()[0].GetPath())
	require.NoError(t, err)
	require.Equal(t, []uint32{0}, rec.GetAllocation().GetGpus())
	_, err = second.place(t.Context(), 1, needs(3))
	require.Equal(t, connect.CodeFailedPrecondition, connect.CodeOf(err), "all hosts are back")
}

// TestGangsRaceForGPUs has many callers register and remove gangs; no GPU has two nodes.
func TestGangsRaceForGPUs(t *testing.T) {
	s := start(t, brain.Options{})
	for pid := range int32(4) {
		at := machineHost(pid + 1)
		s.keep(t, at, machineOf(at, 4, 2))
	}
	var mu sync.Mutex
	taken := make(map[string]string)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for range 30 {
				res, err := s.Service().Register(context.Background(), &brainv1.RegisterRequest{Type: "worker", Count: uint32(i%4 + 1), Place: needs(1)})
				if err != nil {
					t.Error(err)
					return
				}
				remove := new(brainv1.RemoveRequest)
				mu.Lock()
				for _, n := range res.GetNodes() {
					gpu := fmt.Sprint(n.GetAllocation().GetMachine(), " ", n.GetAllocation().GetGpus())
					if taken[gpu] != "" {
						t.Errorf("%s was given to %s and %s", gpu, taken[gpu], n.GetPath())
					}
					taken[gpu] = n.GetPath()
					remove.Nids = append(remove.Nids, n.GetNid())
				}
				for _, n := range res.GetNodes() {
					delete(taken, fmt.Sprint(n.GetAllocation().GetMachine(), " ", n.GetAllocation().GetGpus()))
				}
				mu.Unlock()
				if _, err := s.Service().Remove(context.Background(), remove); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	for _, use := range s.machines(t, "") {
		require.Empty(t, use.GetUsed())
		require.Zero(t, use.GetNodes())
	}
}
