package machinetest

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink/gen/raylink/ps/v1/psv1raylink"
	replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"
	"github.com/raylink/raylink/gen/raylink/replay/v1/replayv1raylink"
	"github.com/raylink/raylink/gen/raylink/storage/v1/storagev1raylink"
	tensorv1 "github.com/raylink/raylink/gen/raylink/tensor/v1"
	contractv1 "github.com/raylink/raylink/internal/contract/gen/contract/v1"
	"github.com/raylink/raylink/internal/contract/gen/contract/v1/contractv1raylink"
	"github.com/raylink/raylink/internal/proctest"
	"github.com/raylink/raylink/runtime"
	"github.com/raylink/raylink/services/ps"
	"github.com/raylink/raylink/services/replay"
	"github.com/raylink/raylink/services/storage"
)

// use executes an order that uses a service, in the driver or in a node.
func use(ctx context.Context, from runtime.Finder, o order) (a answer, err error) {
	switch o.Do {
	case "push", "pull":
		captain, err := psv1raylink.FindCaptain(ctx, from, runtime.Path("ps-0"))
		if err != nil {
			return a, err
		}
		client, err := ps.Open(ctx, captain)
		if err != nil {
			return a, err
		}
		defer client.Close() //nolint:errcheck // the result is there
		a.Mapped = client.Mapped()
		if o.Do == "push" {
			_, err := client.Push(ctx, "policy", []byte(o.Print), ps.WaitFor(ps.All))
			return a, err
		}
		parameters, err := client.Pull(ctx, "policy")
		if err != nil {
			return a, err
		}
		a.Line = string(parameters.Bytes())
		return a, parameters.Release()
	case "officers":
		captain, err := psv1raylink.FindCaptain(ctx, from, runtime.Path("ps-0"))
		if err != nil {
			return a, err
		}
		records, err := captain.Ref().Children(ctx)
		for _, rec := range records {
			a.Nodes = append(a.Nodes, described(rec))
		}
		return a, err
	case "count":
		node, err := storagev1raylink.FindStorage(ctx, from, runtime.Path("storage-0"))
		if err != nil {
			return a, err
		}
		a.Sum, err = storage.Add(ctx, storage.New(node), "count", int64(1))
		return a, err
	case "rows":
		return useReplay(ctx, from, o)
	}
	return a, fmt.Errorf("no service is used by %q", o.Do)
}

// useReplay writes N rows to a replay, and samples as many.
func useReplay(ctx context.Context, from runtime.Finder, o order) (a answer, err error) {
	node, err := replayv1raylink.FindReplay(ctx, from, runtime.Path("replay-0"))
	if err != nil {
		return a, err
	}
	client, err := replay.OpenClient(ctx, node)
	if err != nil {
		return a, err
	}
	defer client.Close() //nolint:errcheck // the result is there
	a.Mapped = client.Mapped()
	rows, err := client.NewBatch(o.N)
	if err != nil {
		return a, err
	}
	for i := range o.N {
		binary.NativeEndian.PutUint64(rows.Bytes(0)[8*i:], 7)
	}
	if _, err := client.Writer().Append(ctx, rows); err != nil {
		return a, err
	}
	sampled, err := client.NewBatch(0)
	if err != nil {
		return a, err
	}
	if err := client.Reader(nil).Sample(ctx, o.N, sampled); err != nil {
		return a, err
	}
	for i := range sampled.Rows() {
		a.Sum += int64(binary.NativeEndian.Uint64(sampled.Bytes(0)[8*i:]))
	}
	return a, nil
}

// createReplay creates a replay on the driver's machine.
func createReplay(ctx context.Context, parent runtime.Parent) error {
	_, err := replayv1raylink.CreateReplay(ctx, parent, &replayv1.ReplayConfig{
		Capacity: 1000, Columns: []*tensorv1.Column{replay.Column[int64]("x")},
	})
	return err
}

// useAt has a node execute an order that uses a service.
func useAt(ctx context.Context, from runtime.Finder, o order) (a answer, err error) {
	p, err := contractv1raylink.FindProbe(ctx, from, runtime.Path(o.Path))
	if err != nil {
		return a, err
	}
	payload, err := json.Marshal(o)
	if err != nil {
		return a, err
	}
	res, err := p.Echo(ctx, &contractv1.EchoRequest{Payload: payload})
	if err != nil {
		return a, err
	}
	return a, json.Unmarshal(res.GetPayload(), &a)
}

// Echo implements the node: it executes an order.
func (p *probe) Echo(ctx context.Context, req *contractv1.EchoRequest) (*contractv1.EchoResponse, error) {
	var o order
	if err := json.Unmarshal(req.GetPayload(), &o); err != nil {
		return nil, connect.NewError(connect.CodeInvalidArgument, err.Error())
	}
	a, err := use(ctx, p.node, o)
	if err != nil {
		return nil, err
	}
	payload, err := json.Marshal(a)
	return &contractv1.EchoResponse{Payload: payload}, err
}

// awaitOfficers waits until exactly these machines have an officer each, on the driver's machine in
// its process, and on others where the captain has placed it. It returns them by machine.
func (s *system) awaitOfficers(machines ...string) map[string]node {
	s.t.Helper()
	found := make(map[string]node)
	s.Eventually(proctest.Patience, order{Do: "officers"}, func(a answer) bool {
		clear(found)
		for _, n := range a.Nodes {
			found[n.Machine] = n
		}
		for _, machine := range machines {
			if o, there := found[machine]; !there || machine != "m0" && o.Allocated != machine {
				return false
			}
		}
		return len(a.Nodes) == len(machines)
	}, fmt.Sprintf("the machines with an officer are %v", machines))
	return found
}

// awaitPull pulls on the machine of a node, or of the driver, until its officer's copy is used.
func (s *system) awaitPull(path, want string) {
	s.t.Helper()
	s.Eventually(proctest.Patience, order{Do: "pull", Path: path}, func(a answer) bool {
		return a.Error == "" && a.Mapped && a.Line == want
	}, "parameters are pulled from the machine's officer")
}

// The captain creates an officer on each machine that joins, and the machine's processes use that.
func TestOfficersFollowMachines(t *testing.T) {
	s := newSystem(t, runtime.MachineOptions{}, runtime.MachineOptions{}, runtime.MachineOptions{})
	var probes []node
	for _, machine := range []string{"m1", "m2"} {
		probes = append(probes, s.Must(order{Do: "create", On: machine}).Nodes[0])
	}
	// At once: the officers may be there or on their way.
	s.Must(order{Do: "push", Print: "weights"})
	for _, p := range probes {
		s.awaitPull(p.Path, "weights")
	}
	officers := s.awaitOfficers("m0", "m1", "m2")
	for _, p := range probes {
		o := officers[p.Machine]
		assert.NotEqual(t, p.PID, o.PID)
	}
	s.Must(order{Do: "push", Print: "other weights"})
	for _, p := range probes {
		s.awaitPull(p.Path, "other weights")
	}
	assert.Equal(t, officers, s.awaitOfficers("m0", "m1", "m2"), "no client has made another officer")

	// An officer that dies is replaced, and so is one whose machine leaves and joins again.
	require.NoError(t, kill(officers["m1"].PID))
	s.Eventually(proctest.Patience, order{Do: "officers"}, func(a answer) bool {
		for _, n := range a.Nodes {
			if n.Machine == "m1" && n.PID != officers["m1"].PID {
				return true
			}
		}
		return false
	}, "another officer on m1")
	again := s.awaitOfficers("m0", "m1", "m2")
	assert.Equal(t, officers["m2"], again["m2"])
	s.awaitPull(probes[0].Path, "other weights")
	s.agents["m1"].Kill()
	awaitEnd(t, again["m1"].PID, 2*lease+5*time.Second)
	s.awaitOfficers("m0", "m2")
	s.Must(order{Do: "push", Print: "newer weights"})
	s.startAgent(s.network.Machines[1], runtime.MachineOptions{}, "")
	s.awaitOfficers("m0", "m1", "m2")
	s.awaitPull(s.Must(order{Do: "create", On: "m1"}).Nodes[0].Path, "newer weights")

	// A machine that leaves has its officer end first.
	s.agents["m2"].End()
	awaitEnd(t, again["m2"].PID, proctest.Patience)
	s.awaitOfficers("m0", "m1")
}

// Memory is not shared between machines, even where their file system is.
func TestReplayAndStorageFromAnotherMachine(t *testing.T) {
	s := newSystem(t, runtime.MachineOptions{}, runtime.MachineOptions{})
	s.Must(order{Do: "create replay"})
	here := s.Must(order{Do: "create"}).Nodes[0]
	require.Equal(t, "m0", here.Machine)
	there := s.Must(order{Do: "create", On: "m1"}).Nodes[0]
	for i, p := range []node{here, there} {
		a := s.Must(order{Do: "rows", Path: p.Path, N: 10})
		assert.Equal(t, int64(70), a.Sum)
		assert.Equal(t, p.Machine == "m0", a.Mapped, "rows on %s", p.Machine)
		assert.Equal(t, int64(1+i), s.Must(order{Do: "count", Path: p.Path}).Sum)
	}
	assert.Equal(t, int64(3), s.Must(order{Do: "count"}).Sum)
}
