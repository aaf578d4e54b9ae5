package machinetest

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink/internal/proctest"
	"github.com/raylink/raylink/runtime"
)

// A machine leaves while nodes are set up there: they are placed again, on another one, unless they
// were to be on that machine.
func TestNodesArePlacedAgainWhenTheirMachineLeaves(t *testing.T) {
	trainer := runtime.Labels{"role": "trainer"}
	large, small := runtime.MachineOptions{Labels: trainer, Resources: "cpu=8"}, runtime.MachineOptions{Labels: trainer, Resources: "cpu=2"}
	s := newSystem(t, runtime.MachineOptions{Resources: "cpu=1"}, large, small)
	// From now on the first machine has the largest share of free resources.
	s.Must(order{Do: "create", On: "m2", Resources: "cpu=1"})
	for how, leave := range map[string]func(*proctest.Process){"ended": (*proctest.Process).End, "killed": (*proctest.Process).Kill} {
		printed := how + ", while this node was set up"
		movable := s.Begin(order{Do: "create", Resources: "cpu=1", Labels: trainer, Wait: time.Second, Print: printed})
		bound := s.Begin(order{Do: "create", On: "m1", Wait: time.Second, Print: printed})
		s.awaitLines(printed, 4) // each prints two
		leave(s.agents["m1"])
		placed := <-movable
		require.Empty(t, placed.Error, how)
		assert.Equal(t, "m2", placed.Nodes[0].Machine, how)
		assert.Equal(t, int64(1), s.Must(order{Do: "add", Path: placed.Nodes[0].Path}).Sum)
		refused := <-bound
		assert.NotEmpty(t, refused.Error, "%s: the node was to be on the machine that has left, and is on %v", how, refused.Nodes)
		s.Must(order{Do: "stop", Path: placed.Nodes[0].Path})
		s.awaitMachines(1)
		s.startAgent(s.network.Machines[1], large, "")
		s.awaitMachines(2)
	}
}

// A gang is placed again as a whole, and waits for room like any other.
func TestAGangIsPlacedAgainAsAWhole(t *testing.T) {
	s := newSystem(t, runtime.MachineOptions{Resources: "cpu=1"}, runtime.MachineOptions{Resources: "cpu=2"}, runtime.MachineOptions{Resources: "cpu=2"})
	filler := s.Must(order{Do: "create", On: "m0", Resources: "cpu=1"})
	gang := s.Begin(order{Do: "create", N: 2, Resources: "cpu=1", Strategy: "one", Wait: time.Second, Print: "one of a gang"})
	s.awaitLines("one of a gang", 4)
	s.agents["m1"].End()
	select {
	case a := <-gang:
		require.Fail(t, "there is one machine with room for two that need one each", "%+v", a)
	case <-time.After(500 * time.Millisecond):
	}
	s.Must(order{Do: "stop", Path: filler.Nodes[0].Path})
	a := <-gang
	require.Empty(t, a.Error)
	assert.ElementsMatch(t, []string{"m0", "m2"}, []string{a.Nodes[0].Machine, a.Nodes[1].Machine})
	assert.Len(t, s.Must(order{Do: "children"}).Nodes, 3+len(a.Nodes), "an agent, two system nodes, the gang: nothing else is left")
}

// awaitLines waits until nodes have printed so many lines with a text.
func (s *system) awaitLines(text string, n int) {
	s.t.Helper()
	require.Eventually(s.t, func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		lines := 0
		for _, printed := range s.lines {
			for _, line := range printed {
				if line == text || line == "to the error output: "+text {
					lines++
				}
			}
		}
		return lines >= n
	}, proctest.Patience, proctest.Poll, "%q is not printed", text)
}
