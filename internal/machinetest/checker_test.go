package machinetest

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink/internal/proctest"
	"github.com/raylink/raylink/runtime"
)

var (
	steps = flag.Int("steps", 60, "how many creations, ends, kills and cuts TestNoResourceIsAllocatedTwiceOrLost makes")
	seed  = flag.Uint64("seed", 0, "the seed of random choices; 0 chooses one")
)

// capacity is what each machine of the checker's system has.
const capacity = "cpu=4,licence=2"

// ledger is what the test knows of nodes: what each has, and on which machine.
type ledger struct {
	nodes map[string]held
}

type held struct {
	machine       string
	pid           int
	cpu, licences int
}

// check verifies that no machine's nodes have more than the machine.
func (l *ledger) check() error {
	cpu, licences := make(map[string]int), make(map[string]int)
	for path, n := range l.nodes {
		if n.machine == "" {
			return fmt.Errorf("%s is on no machine", path)
		}
		cpu[n.machine] += n.cpu
		licences[n.machine] += n.licences
		if cpu[n.machine] > 4 || licences[n.machine] > 2 {
			return fmt.Errorf("%s has %d CPUs and %d licences allocated, and 4 and 2 of them", n.machine, cpu[n.machine], licences[n.machine])
		}
	}
	return nil
}

func TestTheLedgerDetectsDoubleAllocation(t *testing.T) {
	t.Parallel()
	l := &ledger{nodes: map[string]held{"a": {machine: "m1", cpu: 4}}}
	require.NoError(t, l.check())
	l.nodes["b"] = held{machine: "m2", cpu: 4, licences: 2}
	require.NoError(t, l.check())
	l.nodes["c"] = held{machine: "m1", cpu: 1}
	require.Error(t, l.check())
	l.nodes["c"] = held{machine: "m1", licences: 3}
	require.Error(t, l.check())
	l.nodes["c"] = held{}
	require.Error(t, l.check())
}

// Random creations, ends, kills of nodes and agents, and cuts: no resource is allocated twice, none
// is lost, and each creation that waits is served or fails with the reason.
func TestNoResourceIsAllocatedTwiceOrLost(t *testing.T) {
	r := proctest.Random(t, *seed)
	machine := runtime.MachineOptions{Resources: capacity}
	s := newSystem(t, machine, machine, machine)
	l := &ledger{nodes: make(map[string]held)}
	var waiting []*wait
	for range *steps {
		switch n := r.IntN(20); {
		case n < 9:
			waiting = append(waiting, s.beginCreation(r))
		case n < 15 && len(l.nodes) > 0:
			path := l.random(r)
			s.Must(order{Do: "stop", Path: path})
			delete(l.nodes, path)
		case n < 17 && len(l.nodes) > 0:
			path := l.random(r)
			proctest.Kill(t, l.nodes[path].pid)
			delete(l.nodes, path)
		case n < 18:
			waiting = s.restartAgent(r, machine, l, waiting)
		case n < 19:
			s.cutShortly(r)
		}
		waiting = s.collect(l, waiting, 0)
		require.NoError(t, l.check())
	}
	// What is left ends, and everything is free again: a creation that needs all of it is served.
	for len(l.nodes) > 0 || len(waiting) > 0 {
		for path := range l.nodes {
			s.Must(order{Do: "stop", Path: path})
			delete(l.nodes, path)
		}
		waiting = s.collect(l, waiting, 100*time.Millisecond)
		require.NoError(t, l.check())
	}
	all := s.Must(order{Do: "create", N: 3, Resources: capacity, Strategy: "one"})
	assert.Len(t, all.Nodes, 3, "a resource was lost")
}

// wait is a creation that has not returned.
type wait struct {
	order  order
	begun  time.Time
	answer <-chan answer
}

// beginCreation begins a creation of one to three nodes.
func (s *system) beginCreation(r *rand.Rand) *wait {
	o := order{Do: "create", N: 1 + r.IntN(3), Milliseconds: 3000, Strategy: []string{"", "spread", "pack", "one"}[r.IntN(4)]}
	o.Resources = []string{"cpu=1", "cpu=2", "cpu=4", "licence=1", "cpu=1,licence=1"}[r.IntN(5)]
	return &wait{order: o, begun: time.Now(), answer: s.Begin(o)}
}

// collect takes the answers that have come, or come within a time, and returns what still waits.
func (s *system) collect(l *ledger, waiting []*wait, most time.Duration) []*wait {
	s.t.Helper()
	limit := time.After(most)
	return slices.DeleteFunc(waiting, func(w *wait) bool {
		var a answer
		select {
		case a = <-w.answer:
		default:
			select {
			case a = <-w.answer:
			case <-limit:
				require.Less(s.t, time.Since(w.begun), proctest.Patience, "a creation neither returns nor ends with its context: %s", w.order)
				return false
			}
		}
		if a.Error != "" {
			s.t.Logf("%d x %s %s: %s", w.order.N, w.order.Resources, w.order.Strategy, firstLine(a.Error))
			require.True(s.t, slices.ContainsFunc([]string{
				w.order.Resources[:3], "machine", "died", "lost", "stopped", "keeper", "declared dead", "reached",
				"context deadline exceeded", // of the first call of one that was placed shortly before
			}, func(reason string) bool { return strings.Contains(a.Error, reason) }), "the reason is missing: %s", a.Error)
		}
		for _, n := range a.Nodes {
			h := held{machine: n.Allocated, pid: n.PID}
			for entry := range strings.SplitSeq(w.order.Resources, ",") {
				if amount, ok := strings.CutPrefix(entry, "cpu="); ok {
					h.cpu = int(amount[0] - '0')
				}
				if amount, ok := strings.CutPrefix(entry, "licence="); ok {
					h.licences = int(amount[0] - '0')
				}
			}
			l.nodes[n.Path] = h
		}
		return true
	})
}

func firstLine(text string) string {
	line, _, _ := strings.Cut(text, "\n")
	return line
}

func (l *ledger) random(r *rand.Rand) string {
	var paths []string
	for path := range l.nodes {
		paths = append(paths, path)
	}
	slices.Sort(paths)
	return paths[r.IntN(len(paths))]
}

// restartAgent kills or ends an agent, whose nodes end with it, and starts another one. It returns
// what still waits.
func (s *system) restartAgent(r *rand.Rand, machine runtime.MachineOptions, l *ledger, waiting []*wait) []*wait {
	s.t.Helper()
	m := s.network.Machines[1+r.IntN(2)]
	for len(waiting) > 0 { // what is being created there would have an unknown fate
		waiting = s.collect(l, waiting, 100*time.Millisecond)
	}
	if r.IntN(2) == 0 {
		s.agents[m.Name].Kill()
	} else {
		s.agents[m.Name].End()
	}
	s.awaitMachines(1)
	for path, n := range l.nodes {
		if n.machine == m.Name {
			awaitEnd(s.t, n.pid, proctest.Patience)
			delete(l.nodes, path)
		}
	}
	s.startAgent(m, machine, "")
	s.awaitMachines(2)
	return waiting
}

// cutShortly cuts a machine off for less than the lease.
func (s *system) cutShortly(r *rand.Rand) {
	m := s.network.Machines[1+r.IntN(2)]
	s.network.Cut(m)
	proctest.Pause(lease / 4)
	s.network.Restore(m)
}
