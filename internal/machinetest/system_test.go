package machinetest

import (
	"encoding/json"
	"io"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink/internal/nettest"
	"github.com/raylink/raylink/internal/proctest"
	"github.com/raylink/raylink/runtime"
)

// port is Brain's, on its machine.
const port = ":6800"

// system is a driver with an embedded Brain on the first machine of a network, and agents on
// others.
type system struct {
	*proctest.Worker[order, answer]

	t       *testing.T
	network *nettest.Network
	// env are variables of all processes.
	env    []string
	agents map[string]*proctest.Process

	mu    sync.Mutex
	lines map[string][]string // of output, by the node's path
}

// newSystem starts a driver, and an agent on each of some further machines.
func newSystem(t *testing.T, driver runtime.MachineOptions, agents ...runtime.MachineOptions) *system {
	t.Helper()
	s := newDriver(t, driver, len(agents))
	for i, agent := range agents {
		s.startAgent(s.network.Machines[1+i], agent, "")
	}
	s.awaitMachines(len(agents))
	return s
}

// newDriver starts a driver on the first machine of a network with some others.
func newDriver(t *testing.T, driver runtime.MachineOptions, others int, env ...string) *system {
	t.Helper()
	s := &system{t: t, network: nettest.New(t, 1+others), env: env, agents: make(map[string]*proctest.Process), lines: make(map[string][]string)}
	home := s.network.Machines[0]
	cmd := home.Self(role+"="+driverRole, listen+"="+home.IP.String()+port, descriptionOf(t, driver))
	cmd.Env = append(cmd.Env, env...)
	s.Worker = proctest.StartWorker[order, answer](t, "driver", cmd, func(_ string, a answer) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.lines[a.From] = append(s.lines[a.From], a.Line)
	})
	return s
}

// startAgent starts an agent on a machine: this binary, or another program.
func (s *system) startAgent(m *nettest.Machine, what runtime.MachineOptions, program string) *proctest.Process {
	s.t.Helper()
	cmd := m.Self(role+"="+agentRole, listen+"="+m.IP.String()+":0", brainAt+"="+s.network.Machines[0].IP.String()+port, descriptionOf(s.t, what))
	cmd.Env = append(cmd.Env, s.env...)
	if program != "" {
		cmd.Args[len(cmd.Args)-1] = program
	}
	s.agents[m.Name] = proctest.Start(s.t, cmd, func(_ *proctest.Process, out io.Reader) { proctest.UntilEnd(out) })
	return s.agents[m.Name]
}

func descriptionOf(t *testing.T, what runtime.MachineOptions) string {
	t.Helper()
	text, err := json.Marshal(what) //nolint:musttag // both ends are this struct
	require.NoError(t, err)
	return description + "=" + string(text)
}

// awaitMachines waits until there are nodes of so many agents.
func (s *system) awaitMachines(n int) {
	s.t.Helper()
	s.Eventually(proctest.Patience, order{Do: "children"}, func(a answer) bool {
		there := 0
		for _, n := range a.Nodes {
			if match, _ := filepath.Match("machine-*", n.Path); match {
				there++
			}
		}
		return there == n
	}, "agents join or leave")
}

// printed returns the lines that a node has printed.
func (s *system) printed(path string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.lines[path]...)
}

// awaitEnd waits for the end of a process.
func awaitEnd(t *testing.T, pid int, limit time.Duration) {
	t.Helper()
	require.Eventually(t, func() bool { return !isAlive(pid) }, limit, proctest.Poll, "process %d has not ended", pid)
}
