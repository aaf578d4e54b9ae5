package machinetest

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink/internal/nettest"
	"github.com/raylink/raylink/internal/proctest"
	"github.com/raylink/raylink/runtime"
)

// newEncryptedSystem starts a driver of a system with TLS. Agents need its address and its token.
func newEncryptedSystem(t *testing.T, agents int) *system {
	t.Helper()
	s := newDriver(t, runtime.MachineOptions{}, agents, encrypted+"=1")
	s.env = append(s.env, "RAYLINK_TOKEN="+s.Must(order{Do: "token"}).Line, listen+"=")
	return s
}

// address is that of a node's host.
func address(t *testing.T, n node) netip.AddrPort {
	t.Helper()
	a, err := netip.ParseAddrPort(n.Address)
	require.NoError(t, err)
	return a
}

// awaitAgent waits until an agent serves, and returns its node.
func (s *system) awaitAgent(path string) (agent node) {
	s.t.Helper()
	s.Eventually(proctest.Patience, order{Do: "children"}, func(a answer) bool {
		i := slices.IndexFunc(a.Nodes, func(n node) bool { return n.Path == path && n.Address != "" })
		if i >= 0 {
			agent = a.Nodes[i]
		}
		return i >= 0
	}, "the agent has no address")
	return agent
}

// startAgentWith starts an agent with further variables.
func (s *system) startAgentWith(m *nettest.Machine, env ...string) {
	s.t.Helper()
	before := s.env
	s.env = append(append([]string(nil), before...), env...)
	defer func() { s.env = before }()
	s.startAgent(m, runtime.MachineOptions{}, "")
}

// Processes on a machine with a range of ports use no others: the agent, and what is launched there
// by another machine's host. Their address is that by which the machine reaches Brain. When all
// ports are in use, a creation fails with that reason.
func TestPortRange(t *testing.T) {
	s := newEncryptedSystem(t, 1)
	m := s.network.Machines[1]
	s.startAgentWith(m, "RAYLINK_PORT_RANGE=7000-7003")
	s.awaitMachines(1)
	ports := make(map[uint16]string)
	check := func(n node) {
		at := address(t, n)
		assert.Equal(t, m.IP.String(), at.Addr().String(), n.Path)
		assert.GreaterOrEqual(t, at.Port(), uint16(7000), n.Path)
		assert.LessOrEqual(t, at.Port(), uint16(7003), n.Path)
		assert.Empty(t, ports[at.Port()], "two processes have one port")
		ports[at.Port()] = n.Path
	}
	check(s.awaitAgent("machine-0"))
	// The officer of the parameter server has one, too.
	for range 4 {
		a := s.Do(order{Do: "create", On: m.Name})
		if a.Error != "" {
			require.Contains(t, a.Error, "all ports of the range 7000-7003 are in use: each process takes one, so widen it (RAYLINK_PORT_RANGE)")
			require.GreaterOrEqual(t, len(ports), 2)
			return
		}
		check(a.Nodes[0])
	}
	t.Fatal("there are more processes than ports")
}

// An agent's advertised address is that of the nodes that are launched there.
func TestAdvertisedAddress(t *testing.T) {
	s := newEncryptedSystem(t, 1)
	m := s.network.Machines[1]
	other := netip.MustParseAddr(m.IP.String())
	for range 50 {
		other = other.Next()
	}
	out, err := m.Command("ip", "addr", "add", other.String()+"/24", "dev", "eth0").CombinedOutput()
	require.NoError(t, err, "%s", out)
	s.startAgentWith(m, "RAYLINK_LISTEN=0.0.0.0:0", "RAYLINK_ADVERTISE="+other.String()+":0")
	s.awaitMachines(1)
	a := s.Must(order{Do: "create", On: m.Name})
	assert.Equal(t, other, address(t, a.Nodes[0]).Addr())
	assert.Equal(t, int64(1), s.Must(order{Do: "add", Path: a.Nodes[0].Path}).Sum)
	assert.Equal(t, other, address(t, s.awaitAgent("machine-0")).Addr())
}
