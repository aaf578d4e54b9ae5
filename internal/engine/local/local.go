// Package local is the engine that is always there: this machine. Each machine of a run is an agent
// with an identity, directories and resources of its own, so that nothing goes by shared memory or
// Unix sockets which would not go between computers. Tests and newcomers use it.
package local

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/raylink/raylink/internal/engine"
	"github.com/raylink/raylink/internal/machine"
)

// Engine starts agents on this machine.
type Engine struct{}

// Check implements [engine.Engine]: no machine may have more than this one.
func (Engine) Check(_ context.Context, groups []engine.Group) error {
	found, err := machine.Detect()
	if err != nil {
		return fmt.Errorf("local: finding out what this machine has: %w", err)
	}
	has := found.Resources()
	for _, g := range groups {
		for _, resource := range []string{machine.CPU, machine.GPU, machine.Memory} {
			if asked := g.Resources[resource]; asked > has[resource] {
				return fmt.Errorf("local: the group %s asks for %s on each machine, and this machine has %s",
					g.Name, machine.Resources{resource: asked}, has.Summary())
			}
		}
	}
	return nil
}

// Start implements [engine.Engine].
func (Engine) Start(ctx context.Context, request engine.Request, report func(engine.Event)) (func(context.Context) error, error) {
	e := &agents{request: request, report: report, restarts: request.Restarts}
	for _, g := range request.Groups {
		for i := range g.Machines {
			name := g.MachineName(i)
			flags := agentFlags(g, i)
			process, err := e.start(name, flags)
			if err != nil {
				return nil, errors.Join(err, e.stop(ctx))
			}
			e.watchers.Go(func() { e.watch(process, name, flags) })
		}
	}
	return e.stop, nil
}

// agentFlags are the flags of an agent. That it listens on loopback is no mistake here.
func agentFlags(g engine.Group, number int) []string {
	return slices.Concat([]string{"--listen", "127.0.0.1:0"}, g.AgentFlags(number), engine.ResourceFlags(g.Resources))
}

// Plan implements [engine.Planner].
func (Engine) Plan(request engine.Request) string {
	var b strings.Builder
	for _, g := range request.Groups {
		for i := range g.Machines {
			fmt.Fprintf(&b, "raylink agent --attached --brain %s %s\n", request.Brain, strings.Join(agentFlags(g, i), " "))
		}
	}
	return b.String()
}

// agents are the agents of a run.
type agents struct {
	request  engine.Request
	report   func(engine.Event)
	watchers sync.WaitGroup

	mu       sync.Mutex
	restarts int
	running  []*engine.Process
	started  int
	stopped  bool
}

// errStopped is the error of an agent that is started after the run has been stopped.
var errStopped = errors.New("local: the run is stopped")

// start starts an agent. Each has an identity of its own, also one that replaces another.
func (a *agents) start(name string, flags []string) (*engine.Process, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.stopped {
		return nil, errStopped
	}
	a.started++
	number := strconv.Itoa(a.started)
	agent := &engine.Agent{
		Raylink: a.request.Raylink, Brain: a.request.Brain, Token: a.request.Token, Name: name, Flags: flags,
		Identity:  name + "-" + strconv.Itoa(os.Getpid()) + "-" + number,
		Directory: filepath.Join(a.request.Directory, number),
		Output:    func(line string) { _, _ = fmt.Fprintln(a.request.Output, line) }, // a terminal that is gone loses lines
	}
	process, err := agent.Start()
	if err != nil {
		return nil, fmt.Errorf("local: %w", err)
	}
	a.running = append(a.running, process)
	return process, nil
}

// watch reports the end of an agent, and starts another as long as there are restarts.
func (a *agents) watch(process *engine.Process, name string, flags []string) {
	for {
		<-process.Done()
		if a.isStopped() {
			return
		}
		event := engine.Event{Machine: name, Cause: "its agent has ended: " + process.Ended(), Again: a.restart()}
		a.report(event)
		if !event.Again {
			return
		}
		var err error
		if process, err = a.start(name, flags); errors.Is(err, errStopped) {
			return
		} else if err != nil {
			a.report(engine.Event{Machine: name, Cause: err.Error()})
			return
		}
	}
}

// restart takes one of the restarts.
func (a *agents) restart() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.restarts--
	return a.restarts >= 0
}

func (a *agents) isStopped() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.stopped
}

// stop stops all agents.
func (a *agents) stop(ctx context.Context) error {
	a.mu.Lock()
	a.stopped = true
	running := a.running
	a.mu.Unlock()
	var stopped sync.WaitGroup
	for _, process := range running {
		stopped.Go(func() { process.Stop(ctx) })
	}
	stopped.Wait()
	a.watchers.Wait()
	return nil
}
