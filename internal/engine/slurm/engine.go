package slurm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/raylink/raylink/internal/engine"
)

// Engine provides the machines of the step or the allocation that this process is in, as one that
// is their head. It is for one run.
type Engine struct {
	env     Env
	raylink string
	meeting *meeting

	mu       sync.Mutex
	machines []agentMachine // once the run has asked for them
	request  engine.Request
	report   func(engine.Event)
	restarts int
	seen     map[int]bool // the tasks that have been there once
	lost     map[int]bool
	steps    []*step
	stopping bool
	waiters  sync.WaitGroup
}

// agentMachine is a machine of the run.
type agentMachine struct {
	start agentStart
	// component is that of a heterogeneous job, or -1.
	component int
}

// step is a step of the allocation that this process has started, by srun.
type step struct {
	process      *engine.Process
	first, count int

	mu   sync.Mutex
	said string // its last error
}

// Open prepares for a run in an allocation or a step. In a step the other tasks wait for their
// head, whatever becomes of it: Close must be called, also if there is no run after all. shared is
// a directory that all nodes see, and host the address at which the nodes reach this one.
func Open(env Env, shared, host, raylink string) (*Engine, error) {
	e := &Engine{env: env, raylink: raylink, seen: make(map[int]bool), lost: make(map[int]bool)}
	var err error
	directory := env.Meeting(shared)
	if env.Find() != InStep { // which may have several runs, and says to its tasks where they meet
		directory = filepath.Join(shared, fmt.Sprintf(".raylink-%s-%s", env.get("SLURM_JOB_ID"), engine.NewID()))
	}
	if e.meeting, err = openMeeting(directory, host, e.onEvent); err != nil {
		return nil, err
	}
	return e, nil
}

// Meeting is the directory in which the tasks of this step find their head. It differs between the
// uses of a job's id: by restarts of the job, and by srun's port.
func (e Env) Meeting(shared string) string {
	return filepath.Join(shared, fmt.Sprintf(".raylink-%s.%s-%s-%s", e.get("SLURM_JOB_ID"), e.get("SLURM_STEP_ID"),
		cmp.Or(e.get("SLURM_RESTART_COUNT"), "0"), e.get("SLURM_SRUN_COMM_PORT")))
}

// Check implements [engine.Engine]: an allocation has the nodes that it has.
func (e *Engine) Check(_ context.Context, groups []engine.Group) error {
	return e.env.CheckGroups(groups)
}

// CheckGroups returns an error if the step or the allocation is not of these groups.
func (e Env) CheckGroups(groups []engine.Group) error {
	components, err := e.Machines()
	if err != nil {
		return err
	}
	total := 0
	for _, n := range components {
		total += n
	}
	what := fmt.Sprintf("the allocation %s has %d nodes", e.get("SLURM_JOB_ID"), total)
	if e.Find() == InStep {
		what = fmt.Sprintf("the step %s.%s has %d tasks beside the head", e.get("SLURM_JOB_ID"), e.get("SLURM_STEP_ID"), total)
	}
	if asked := engine.Total(groups); asked != total {
		return fmt.Errorf("slurm: %s, and the run asks for %d machines: they must match; without --machines and --group there are as many as there can be", what, asked)
	}
	if len(components) == 1 {
		return nil
	}
	if len(groups) != len(components) {
		return fmt.Errorf("slurm: the heterogeneous job %s has %d components, and the run %d groups: each group needs one", e.get("SLURM_JOB_ID"), len(components), len(groups))
	}
	for i, g := range groups {
		if g.Machines != components[i] {
			return fmt.Errorf("slurm: the component %d of the heterogeneous job has %d nodes, and the group %s %d machines", i, components[i], g.Name, g.Machines)
		}
	}
	return nil
}

// Start implements [engine.Engine].
func (e *Engine) Start(ctx context.Context, request engine.Request, report func(engine.Event)) (func(context.Context) error, error) {
	components, err := e.env.Machines()
	if err != nil {
		return nil, err
	}
	e.mu.Lock()
	e.request, e.report, e.restarts = request, report, request.Restarts
	for i, g := range request.Groups {
		component := -1
		if len(components) > 1 {
			component = i
		}
		for n := range g.Machines {
			e.machines = append(e.machines, agentMachine{component: component, start: agentStart{
				Name: g.MachineName(n), Brain: request.Brain, Token: request.Token, Flags: g.AgentFlags(n), Resources: g.Resources.String(),
			}})
		}
	}
	here := make([]int, 0, len(e.seen))
	for number := range e.seen {
		here = append(here, number)
	}
	e.mu.Unlock()
	for _, number := range here {
		e.startAgent(number)
	}
	if e.env.Find() == InStep {
		return e.Close, nil
	}
	first := 0
	for i, n := range components {
		if len(components) == 1 {
			i = -1
		}
		if err := e.launch(i, first, n, ""); err != nil {
			return nil, errors.Join(err, e.Close(ctx))
		}
		first += n
	}
	return e.Close, nil
}

// startAgent has a task start its agent, if the run has begun.
func (e *Engine) startAgent(number int) {
	e.mu.Lock()
	begun := number >= 0 && number < len(e.machines)
	var start agentStart
	if begun {
		start = e.machines[number].start
	}
	e.mu.Unlock()
	if begun {
		e.meeting.tell(number, message{Start: &start})
	}
}

// launch starts a step of agents in the allocation: one task on each node, or one on a node.
func (e *Engine) launch(component, first, count int, node string) error {
	n := strconv.Itoa(count)
	// The job's own resources are shared with its other steps, of which a task may have been
	// replaced.
	args := []string{
		"--overlap", "--nodes=" + n, "--ntasks=" + n, "--ntasks-per-node=1", "--input=none", "--mpi=none", "--unbuffered",
		"--kill-on-bad-exit=0", "--wait=0", "--job-name=raylink-agents",
	}
	if component >= 0 {
		args = append(args, fmt.Sprintf("--het-group=%d", component))
	}
	if cpus := e.env.cpus(component); cpus > 0 {
		args = append(args, fmt.Sprintf("--cpus-per-task=%d", cpus))
	}
	if node != "" {
		args = append(args, "--nodelist="+node)
	}
	args = append(args, e.raylink, TaskCommand, "--directory", e.meeting.directory, "--first", strconv.Itoa(first))
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.stopping {
		return nil
	}
	s := &step{first: first, count: count}
	output := e.request.Output
	process, err := engine.StartAttached("", nil, func(line string) {
		s.note(line)
		_, _ = fmt.Fprintln(output, line) // a terminal that is gone loses lines
	}, "srun", args...)
	if err != nil {
		return fmt.Errorf("slurm: starting a step: %w", err)
	}
	s.process = process
	e.steps = append(e.steps, s)
	for i := range count {
		delete(e.seen, first+i)
	}
	e.waiters.Go(func() { e.await(s) })
	return nil
}

// TaskCommand is the command of the command line that runs a [Task] of an allocation's step.
const TaskCommand = "slurm-task"

// note keeps what srun says about an error.
func (s *step) note(line string) {
	if _, text, ok := strings.Cut(line, "error: "); ok && strings.HasPrefix(line, "srun: ") {
		s.mu.Lock()
		s.said = text
		s.mu.Unlock()
	}
}

// await reports the tasks of a step that has ended before they were there.
func (e *Engine) await(s *step) {
	<-s.process.Done()
	s.mu.Lock()
	cause := s.process.Ended()
	if s.said != "" {
		cause = s.said
	}
	s.mu.Unlock()
	for i := range s.count {
		e.mu.Lock()
		missing := !e.seen[s.first+i] && !e.stopping
		e.mu.Unlock()
		if missing {
			e.lose(s.first+i, "Slurm has not started its agent: "+cause, false)
		}
	}
}

// onEvent is what becomes of a task.
func (e *Engine) onEvent(number int, node string, what event, cause string) {
	switch what {
	case arrived:
		e.mu.Lock()
		e.seen[number] = true
		e.mu.Unlock()
		e.startAgent(number)
	case agentEnded:
		if e.lose(number, fmt.Sprintf("its agent on the node %s has ended: %s", node, cause), true) {
			e.startAgent(number)
		}
	case taskEnded:
		if e.env.Find() == InStep {
			e.lose(number, cause+"; Slurm can't start a task of a step again", false)
			return
		}
		if e.lose(number, cause, true) {
			if err := e.launch(e.machines[number].component, number, 1, node); err != nil {
				e.lose(number, err.Error(), false)
			}
		}
	}
}

// lose reports the loss of a machine, and returns whether it is to be provided again.
func (e *Engine) lose(number int, cause string, possible bool) bool {
	e.mu.Lock()
	if e.stopping || number < 0 || number >= len(e.machines) || e.lost[number] {
		e.mu.Unlock()
		return false
	}
	again := possible && e.restarts > 0
	if again {
		e.restarts--
	} else {
		e.lost[number] = true
	}
	name, report := e.machines[number].start.Name, e.report
	e.mu.Unlock()
	report(engine.Event{Machine: name, Cause: cause, Again: again})
	return again
}

const (
	// leaveTime is how long the tasks may take to stop their agents: longer than each of these.
	leaveTime = 40 * time.Second
	// arriveTime is how long tasks of a step that were not there when the run ended may take to
	// come, so that they are stopped rather than left to wait.
	arriveTime = 15 * time.Second
	// stepTime is how long srun may take to end after its tasks.
	stepTime = 5 * time.Second
)

// Close stops the tasks, and what has been started for the run. It can be called again.
func (e *Engine) Close(ctx context.Context) error {
	e.mu.Lock()
	if e.stopping {
		e.mu.Unlock()
		return nil
	}
	e.stopping = true
	steps := e.steps
	e.mu.Unlock()
	leaving, cancel := context.WithTimeout(ctx, leaveTime)
	defer cancel()
	late := time.Now().Add(arriveTime)
	e.meeting.release(leaving, func() bool { return e.allCame() || time.Now().After(late) })
	for _, s := range steps {
		s.end(ctx)
	}
	err := e.meeting.close()
	e.waiters.Wait()
	return err
}

// allCame reports whether no task is still to come.
func (e *Engine) allCame() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.env.Find() == InStep {
		return len(e.seen) >= e.env.tasks()-1
	}
	return true // srun ends those that are not there yet
}

// end waits until srun has ended, which is asked to cancel what its step still has.
func (s *step) end(ctx context.Context) {
	late := time.NewTimer(stepTime)
	defer late.Stop()
	select {
	case <-s.process.Done():
		return
	case <-late.C:
	case <-ctx.Done():
	}
	s.process.Signal(syscall.SIGTERM)
	s.process.Stop(ctx)
}
