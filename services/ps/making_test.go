package ps

import (
	"context"
	"errors"
	"sync"
	"testing"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/require"

	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
	machinev1 "github.com/raylink/raylink/gen/raylink/machine/v1"
	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	psv1 "github.com/raylink/raylink/gen/raylink/ps/v1"
)

// makers creates the officers of a system's captain, as the test says.
type makers struct {
	*system

	running sync.WaitGroup
	// asked gets each machine for which an officer is to be created, and results what comes of it.
	asked   chan string
	results chan error
	// ended ends the node that was created last.
	ended chan struct{}
}

func newMakers(t *testing.T, config *psv1.CaptainConfig) *makers {
	m := &makers{system: newSystem(t, config), asked: make(chan string), results: make(chan error), ended: make(chan struct{})}
	t.Cleanup(func() { // before the captain ends
		m.join()
		m.running.Wait()
	})
	return m
}

// join makes the machines of the system those with the given agents, which are named "MACHINE by
// KEEPER" in pairs, and one without an agent.
func (m *makers) join(pairs ...string) {
	machines := []*brainv1.MachineUse{{Machine: &machinev1.Machine{Id: "driver's"}, Keeper: &nodev1.HostInfo{Id: "driver"}}}
	for i := 0; i < len(pairs); i += 2 {
		machines = append(machines, &brainv1.MachineUse{
			Machine: &machinev1.Machine{Id: pairs[i], Agent: true}, Keeper: &nodev1.HostInfo{Id: pairs[i+1]},
		})
	}
	m.captain.follow(context.Background(), &m.running, machines, m.create)
}

func (m *makers) create(ctx context.Context, machine string) (officerNode, error) {
	select {
	case m.asked <- machine:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	select {
	case err := <-m.results:
		return m, err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Ended implements [officerNode].
func (m *makers) Ended(ctx context.Context) error {
	select {
	case <-m.ended:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Record implements [officerNode].
func (m *makers) Record() *nodev1.NodeRecord { return &nodev1.NodeRecord{Cause: "killed"} }

// locate asks the captain as a client of a machine does.
func (m *makers) locate(machine string) *psv1.LocateResponse {
	m.t.Helper()
	res, err := m.captain.Locate(m.t.Context(), &psv1.LocateRequest{Machine: machine})
	require.NoError(m.t, err)
	return res
}

func TestCaptainMakesOfficersWhereAgentsAre(t *testing.T) {
	m := newMakers(t, nil)
	m.join(home, "own", "a", "1")
	require.True(t, m.locate("a").GetComing())
	require.False(t, m.locate("a").GetWanted(), "a process of the machine hosts none")
	require.True(t, m.locate("driver's").GetWanted())
	require.Equal(t, "a", <-m.asked)

	// A failure lets processes of the machine host it until the next attempt.
	m.results <- errors.New("the program is another platform's")
	require.Equal(t, "a", <-m.asked)
	require.True(t, m.locate("a").GetComing())
	m.results <- nil
	m.enlist("a", nil)
	m.join(home, "own", "a", "1") // something else has changed
	m.ended <- struct{}{}
	require.Equal(t, "a", <-m.asked, "another one for the one that has ended")
	m.join(home, "own", "a", "2")
	m.kill("a")
	require.Equal(t, "a", <-m.asked, "the machine has joined again")
	m.results <- nil
	m.join(home, "own")
	require.False(t, m.locate("a").GetComing(), "the machine has left")
}

// A machine whose officer a process of its own hosts gets one when that has ended.
func TestCaptainMakesNoSecondOfficer(t *testing.T) {
	m := newMakers(t, nil)
	m.enlist("a", nil)
	m.join("a", "1", "b", "1")
	require.Equal(t, "b", <-m.asked)
	require.True(t, m.locate("a").GetWanted())
	m.enlist("b", nil) // that of a process which was faster
	m.results <- connect.NewError(connect.CodeAlreadyExists, "another process hosts the officer of machine b")
	m.eventually(func() bool { return !m.locate("b").GetComing() })
	m.kill("a")
	require.Equal(t, "a", <-m.asked)
	m.results <- nil
	m.kill("b")
	require.Equal(t, "b", <-m.asked)
}

func TestOfficersThatCaptainsMakeAreBounded(t *testing.T) {
	m := newMakers(t, &psv1.CaptainConfig{MaxOfficers: 1})
	m.join("a", "1", "b", "1")
	first := <-m.asked
	other := map[string]string{"a": "b", "b": "a"}[first]
	require.False(t, m.locate(other).GetWanted())
	require.False(t, m.locate(other).GetComing())
	m.results <- nil
	m.join(other, "1")
	require.Equal(t, other, <-m.asked)
}
