package machinetest

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink/internal/proctest"
	"github.com/raylink/raylink/runtime"
)

// awaitGone waits until a node is not in the system any more.
func (s *system) awaitGone(n node) {
	s.t.Helper()
	s.Eventually(proctest.Patience, order{Do: "add", Path: n.Path, Milliseconds: 1000}, func(a answer) bool { return a.Code == "not_found" },
		n.Path+" is still there")
}

// Nodes in agents' processes are placed, called, stopped and accounted for like others. Where the
// driver keeps the machine they are in its process.
func TestNodesInTheProcessesOfAgents(t *testing.T) {
	s := newSystem(t, runtime.MachineOptions{Resources: "cpu=4"}, runtime.MachineOptions{Resources: "cpu=4,gpu=0"}, runtime.MachineOptions{Resources: "cpu=4"})
	pids := map[string]int{"m0": s.PID(), "m1": s.agents["m1"].PID(), "m2": s.agents["m2"].PID()}
	gang := s.Must(order{Do: "create", N: 6, InAgent: true, Strategy: "spread", Resources: "cpu=2"}).Nodes
	where := make(map[string]int)
	for _, n := range gang {
		where[n.Machine]++
		assert.Equal(t, n.Allocated, n.Machine)
		assert.Equal(t, pids[n.Machine], n.PID, "it has a process of its own")
		assert.Equal(t, "cpu=2", n.Attributes["has"])
		assert.Equal(t, int64(1), s.Must(order{Do: "add", Path: n.Path}).Sum)
	}
	assert.Equal(t, map[string]int{"m0": 2, "m1": 2, "m2": 2}, where)

	// There is room for another one when one has ended, and the others go on.
	waiting := s.Begin(order{Do: "create", InAgent: true, Resources: "cpu=2"})
	s.Must(order{Do: "stop", Path: gang[5].Path})
	got := <-waiting
	require.Empty(t, got.Error)
	assert.Equal(t, gang[5].Machine, got.Nodes[0].Machine)
	s.awaitGone(gang[5])
	for _, n := range gang[:5] {
		assert.Equal(t, int64(2), s.Must(order{Do: "add", Path: n.Path}).Sum)
		s.Must(order{Do: "stop", Path: n.Path})
	}
	s.Must(order{Do: "stop", Path: got.Nodes[0].Path})

	failed := s.Do(order{Do: "create", On: "m1", InAgent: true, Fail: "no data set"})
	assert.Contains(t, failed.Error, "no data set")
	assert.Equal(t, "unknown", failed.Code)
	late := s.Do(order{Do: "create", On: "m1", InAgent: true, Wait: time.Minute, Milliseconds: 300})
	assert.Equal(t, "deadline_exceeded", late.Code, late.Error)
	gpu := s.Do(order{Do: "create", InAgent: true, Resources: "gpu=1"})
	assert.Contains(t, gpu.Error, "nodes with GPUs need processes of their own")
	// What has failed has left nothing: all of the agent is free.
	s.Must(order{Do: "create", On: "m1", InAgent: true, Resources: "cpu=4"})

	// A thousand of them cost no processes.
	many := s.Must(order{Do: "create", N: 1000, On: "m2", InAgent: true})
	assert.Len(t, many.Nodes, 1000)
	assert.Equal(t, int64(1), s.Must(order{Do: "add", Path: many.Nodes[999].Path}).Sum)
	require.NoError(t, s.agents["m1"].Err())
}

// A node in an agent's process ends with its parent, with its agent, and when its machine can't be
// reached for the lease; the agent goes on.
func TestNodesInAgentsProcessesEndWithWhatTheyDependOn(t *testing.T) {
	s := newSystem(t, runtime.MachineOptions{}, runtime.MachineOptions{}, runtime.MachineOptions{})
	parent := s.Must(order{Do: "create", On: "m1"}).Nodes[0]
	child := s.Must(order{Do: "create", On: "m2", InAgent: true, Below: parent.Path}).Nodes[0]
	require.Equal(t, s.agents["m2"].PID(), child.PID)
	require.NoError(t, kill(parent.PID))
	s.awaitGone(child)

	n := s.Must(order{Do: "create", On: "m2", InAgent: true}).Nodes[0]
	s.network.Cut(s.network.Machines[2])
	s.awaitGone(n)
	s.network.Restore(s.network.Machines[2])
	s.awaitMachines(2)
	again := s.Must(order{Do: "create", On: "m2", InAgent: true}).Nodes[0]
	assert.Equal(t, s.agents["m2"].PID(), again.PID, "the agent has ended")

	s.agents["m2"].Kill()
	s.awaitGone(again)
	stopped := s.Must(order{Do: "create", On: "m1", InAgent: true}).Nodes[0]
	s.agents["m1"].End()
	s.awaitGone(stopped)
}
