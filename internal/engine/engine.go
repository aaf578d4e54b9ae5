// Package engine runs a program as the driver of a system over machines that an engine provides: a
// Ray cluster, a Slurm allocation, Kubernetes, or this machine. The engine starts agents, agents
// start nodes; scheduling, quotas and machines remain the engine's. docs/clusters.md is for users.
//
// A run has one head, which [Run] is: it starts Brain, asks the engine for machines, waits until
// each has joined, runs the program, and takes everything down in the reverse order.
//
//	engine.go    what an engine is: [Engine], [Group], [Request]
//	group.go     groups of machines as text
//	run.go       the life of a run
//	agent.go     an agent that is a child of this process
//	process.go   the processes of a run, and how they end with it
//	machines.go  which machines have joined Brain
//	record.go    the records of runs, for `raylink runs`, `attach` and `stop`
//
// Nothing of a run outlives its head: each process that the head starts holds the read end of a
// pipe (see [Attach]) and ends when the head does, whatever ended that. The secret of a run goes
// through the same pipe: it is in no argument and no environment.
package engine

import (
	"context"
	"fmt"
	"io"

	"github.com/raylink/raylink/internal/machine"
)

// Engine provides the machines of runs.
type Engine interface {
	// Check returns an error, in the engine's own words, if it can't provide what is asked for: it
	// is not there, has no room, or does not know a resource. It starts nothing.
	Check(ctx context.Context, groups []Group) error

	// Start starts an agent for each machine of the request. It returns once they have been asked
	// for; report is called, on any goroutine, with what becomes of them, until stop has returned.
	// When ctx ends or stop is called, all agents end: stop lets them stop their nodes first, and
	// returns once nothing is left on the engine.
	Start(ctx context.Context, request Request, report func(Event)) (stop func(context.Context) error, err error)
}

// Listener is an engine that knows where its machines can reach Brain.
type Listener interface {
	// Listen returns the address that Brain should listen on if the user names none. It is called
	// after Check.
	Listen() string
}

// Group is a number of machines that are alike.
type Group struct {
	// Name is the value of the label [GroupLabel] of the machines.
	Name string `json:"name"`
	// Machines is how many there are, at least 1.
	Machines int `json:"machines"`
	// Resources replace what an agent finds; without those that are absent.
	Resources machine.Resources `json:"resources,omitempty"`
	// Labels are further labels of the machines.
	Labels machine.Labels `json:"labels,omitempty"`
}

// GroupLabel is the label by which nodes can require the machines of a group.
const GroupLabel = "group"

// AgentFlags returns the flags of `raylink agent` for the machine with a number in the group, from
// 0: its name and labels. What it has is the engine's to say, see [ResourceFlags].
func (g Group) AgentFlags(number int) []string {
	flags := make([]string, 0, 4+2*len(g.Labels))
	flags = append(flags, "--name", g.MachineName(number), "--label", GroupLabel+"="+g.Name)
	for _, label := range g.Labels.Texts() {
		flags = append(flags, "--label", label)
	}
	return flags
}

// MachineName is the name of the machine with a number in the group, from 0.
func (g Group) MachineName(number int) string { return fmt.Sprintf("%s-%d", g.Name, number) }

// Total is how many machines the groups have.
func Total(groups []Group) int {
	total := 0
	for _, g := range groups {
		total += g.Machines
	}
	return total
}

// Request is what a run asks of its engine.
type Request struct {
	// Brain is the address that agents join.
	Brain string
	// Token is the secret of the run. It must not be passed in arguments or environments.
	Token string
	// Groups are the machines.
	Groups []Group
	// Restarts is how many machines that were lost may be asked for again, together.
	Restarts int
	// Directory is for files of the engine; it is removed after the run.
	Directory string
	// Raylink is the executable of the command line.
	Raylink string
	// Output gets what the engine and the agents print, line by line.
	Output io.Writer
}

// Event is a change of one machine, or of all if Machine is empty.
type Event struct {
	// Machine is its name.
	Machine string
	// Cause says in words why the machine is lost, or why it is asked for again.
	Cause string
	// Again is set if the engine provides the machine again.
	Again bool
}
