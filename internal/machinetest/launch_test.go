package machinetest

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink/internal/proctest"
	"github.com/raylink/raylink/runtime"
)

func isAlive(pid int) bool { return syscall.Kill(pid, 0) == nil }

func kill(pid int) error { return syscall.Kill(pid, syscall.SIGKILL) }

// One gang over three machines: each node runs where Brain has placed it, is called from the
// driver, prints at the driver, and ends with its stop.
func TestNodesRunOnOtherMachines(t *testing.T) {
	s := newSystem(t, runtime.MachineOptions{Resources: "cpu=1"}, runtime.MachineOptions{Resources: "cpu=2"}, runtime.MachineOptions{Resources: "cpu=2"})
	a := s.Must(order{Do: "create", N: 5, Resources: "cpu=1", Print: "a line"})
	where := make(map[string]int)
	for _, n := range a.Nodes {
		where[n.Machine]++
		assert.Equal(t, n.Allocated, n.Machine)
		assert.Equal(t, n.Machine, n.Attributes["machine"])
		assert.Equal(t, "cpu=1", n.Attributes["has"])
		assert.Empty(t, n.Attributes["token"], "a secret is in a child's environment")
		assert.Subset(t, s.printed(n.Path), []string{"a line", "to the error output: a line"}, n.Path)
		assert.Equal(t, int64(1), s.Must(order{Do: "add", Path: n.Path}).Sum)
		run := s.network.Machines[0].Data
		if n.Machine != "m0" {
			run = map[string]string{"m1": s.network.Machines[1].Data, "m2": s.network.Machines[2].Data}[n.Machine]
		}
		assert.Contains(t, n.Attributes["run"], run, "a run directory of another machine")
		log, err := os.ReadFile(filepath.Join(s.Must(order{Do: "run"}).Run, "logs", n.Path+".log"))
		require.NoError(t, err)
		assert.Contains(t, string(log), "a line")
	}
	assert.Equal(t, map[string]int{"m0": 1, "m1": 2, "m2": 2}, where)

	// There is no room for another one until one ends.
	waiting := s.Begin(order{Do: "create", Resources: "cpu=1"})
	select {
	case a := <-waiting:
		require.Fail(t, "a node has what others have", "%+v", a)
	case <-time.After(200 * time.Millisecond):
	}
	s.Must(order{Do: "stop", Path: a.Nodes[4].Path})
	got := <-waiting
	require.Empty(t, got.Error)
	assert.Equal(t, a.Nodes[4].Machine, got.Nodes[0].Machine)
	awaitEnd(t, a.Nodes[4].PID, proctest.Patience)
}

func TestErrorsOfSetupsComeFromOtherMachines(t *testing.T) {
	s := newSystem(t, runtime.MachineOptions{}, runtime.MachineOptions{Name: "gpu1", Labels: runtime.Labels{"role": "trainer"}})
	failed := s.Do(order{Do: "create", On: "gpu1", Fail: "no data set"})
	assert.Contains(t, failed.Error, "setting up probe-0: no data set")
	died := s.Do(order{Do: "create", Labels: map[string]string{"role": "trainer"}, Print: "last words", Exit: true})
	assert.Contains(t, died.Error, "exited with code 7")
	assert.Contains(t, died.Error, "last words")
	impossible := s.Do(order{Do: "create", Resources: "gpu=3"})
	assert.Contains(t, impossible.Error, "gpu=3")
	assert.Contains(t, impossible.Error, "gpu1")
	assert.Equal(t, "failed_precondition", impossible.Code)
	lacking := s.Do(order{Do: "create", On: "nowhere"})
	assert.Contains(t, lacking.Error, "nowhere")
	assert.Contains(t, s.Do(order{Do: "create", On: "gpu1", Here: true}).Error, "gpu1")
	near := s.Must(order{Do: "create", On: "gpu1"})
	assert.Equal(t, "m1", s.Must(order{Do: "create", Near: near.Nodes[0].Path}).Nodes[0].Machine)
	below := s.Must(order{Do: "create", Below: near.Nodes[0].Path, N: 2})
	for _, n := range below.Nodes {
		assert.Equal(t, "m1", n.Machine, "a child is on its parent's machine")
	}
	s.Must(order{Do: "stop", Path: near.Nodes[0].Path})
	for _, n := range below.Nodes {
		awaitEnd(t, n.PID, proctest.Patience)
	}
}

// The agent runs another program than the driver: the node's is sent.
func TestProgramsTravel(t *testing.T) {
	s := newDriver(t, runtime.MachineOptions{}, 1)
	// The same program, but another file: the agent needs the driver's.
	self, err := os.Executable()
	require.NoError(t, err)
	content, err := os.ReadFile(self)
	require.NoError(t, err)
	other := filepath.Join(t.TempDir(), "another-program")
	require.NoError(t, os.WriteFile(other, append(content, 0), 0o700))
	s.startAgent(s.network.Machines[1], runtime.MachineOptions{Name: "far"}, other)
	s.awaitMachines(1)
	begin := time.Now()
	first := s.Must(order{Do: "create", On: "far", N: 3})
	t.Logf("the first launch took %v", time.Since(begin))
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", first.Nodes[0].PID))
	require.NoError(t, err)
	assert.Contains(t, exe, filepath.Join(s.network.Machines[1].Data, "programs"))
	kept, err := filepath.Glob(filepath.Join(s.network.Machines[1].Data, "programs", "*"))
	require.NoError(t, err)
	assert.Len(t, kept, 2, "a program and the lock: %v", kept)
	begin = time.Now()
	s.Must(order{Do: "create", On: "far"})
	t.Logf("the next launch took %v", time.Since(begin))
}

func TestAgentThatIsKilledTakesItsNodesWithIt(t *testing.T) {
	s := newSystem(t, runtime.MachineOptions{Resources: "cpu=1"}, runtime.MachineOptions{Resources: "cpu=2"})
	a := s.Must(order{Do: "create", On: "m1", N: 2, Resources: "cpu=1"})
	agent := s.agents["m1"]
	waiting := s.Begin(order{Do: "create", Resources: "cpu=2"})
	proctest.Pause(100 * time.Millisecond)
	agent.Kill()
	for _, n := range a.Nodes {
		awaitEnd(t, n.PID, 2*lease+5*time.Second)
		got := s.Do(order{Do: "add", Path: n.Path})
		assert.Contains(t, got.Error, "agent", "the cause of a node's death")
	}
	got := <-waiting
	assert.NotEmpty(t, got.Error, "what waits can't be placed any more")
	t.Log(got.Error)
	s.awaitMachines(0)
}

func TestStoppedAgentStopsItsNodesFirst(t *testing.T) {
	s := newSystem(t, runtime.MachineOptions{}, runtime.MachineOptions{})
	a := s.Must(order{Do: "create", On: "m1", N: 2})
	s.agents["m1"].End()
	for _, n := range a.Nodes {
		awaitEnd(t, n.PID, proctest.Patience)
	}
	s.awaitMachines(0)
	assert.NotEmpty(t, s.Do(order{Do: "add", Path: a.Nodes[0].Path}).Error)
}

// An agent that is ended while it joins has not failed.
func TestAgentsEndAtAnyTime(t *testing.T) {
	s := newDriver(t, runtime.MachineOptions{}, 1)
	for i := range 12 {
		agent := s.startAgent(s.network.Machines[1], runtime.MachineOptions{}, "")
		proctest.Pause(time.Duration(i) * 10 * time.Millisecond)
		agent.End()
	}
	s.awaitMachines(0)
}

func TestNothingIsLeftOfADriverThatWasKilled(t *testing.T) {
	s := newSystem(t, runtime.MachineOptions{}, runtime.MachineOptions{})
	a := s.Must(order{Do: "create", On: "m1", N: 2, Children: 1})
	s.Kill()
	for _, n := range a.Nodes {
		awaitEnd(t, n.PID, 10*lease)
	}
	require.NoError(t, s.agents["m1"].Err(), "the agent has ended too")
}

// A cut that is shorter than the lease is only a pause; a longer one ends the nodes on both sides.
func TestCuts(t *testing.T) {
	s := newSystem(t, runtime.MachineOptions{}, runtime.MachineOptions{})
	a := s.Must(order{Do: "create", On: "m1"}).Nodes[0]
	s.network.Cut(s.network.Machines[1])
	proctest.Pause(lease / 2)
	s.network.Restore(s.network.Machines[1])
	s.Eventually(proctest.Patience, order{Do: "add", Path: a.Path, Milliseconds: 1000}, func(a answer) bool { return a.Error == "" }, "the node is called")
	require.Equal(t, a.PID, s.Must(order{Do: "describe", Path: a.Path}).Nodes[0].PID)

	s.network.Cut(s.network.Machines[1])
	s.Eventually(proctest.Patience, order{Do: "add", Path: a.Path, Milliseconds: 1000}, func(a answer) bool { return a.Code == "not_found" }, "the node is dead")
	awaitEnd(t, a.PID, proctest.Patience)
	s.awaitMachines(0)
	s.network.Restore(s.network.Machines[1])
	s.awaitMachines(1)
	assert.Equal(t, "m1", s.Must(order{Do: "create", On: "m1"}).Nodes[0].Machine)
}

// Without a token of their own, systems beyond loopback are encrypted. An agent needs the address
// of Brain and the token, and its nodes nothing: they listen where Brain is reached from.
func TestNodesOnOtherMachinesOverTLS(t *testing.T) {
	s := newDriver(t, runtime.MachineOptions{}, 1, encrypted+"=1")
	secret := s.Must(order{Do: "token"}).Line
	require.Contains(t, secret, "rl1.")
	s.env = append(s.env, "RAYLINK_TOKEN="+secret, listen+"=")
	s.startAgent(s.network.Machines[1], runtime.MachineOptions{}, "")
	s.awaitMachines(1)
	a := s.Must(order{Do: "create", N: 2, Strategy: "spread", Children: 1, Print: "encrypted"})
	where := make(map[string]int)
	for _, n := range a.Nodes {
		where[n.Machine]++
		assert.Empty(t, n.Attributes["token"], "a secret is in a child's environment")
		assert.Contains(t, s.printed(n.Path), "encrypted")
		assert.Equal(t, int64(1), s.Must(order{Do: "add", Path: n.Path}).Sum)
	}
	assert.Equal(t, map[string]int{"m0": 1, "m1": 1}, where)
}
