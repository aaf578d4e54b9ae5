package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
	"github.com/raylink/raylink/runtime/rundir"
)

// Run is one run of a program.
type Run struct {
	// Engine provides the machines of Groups, and up to Restarts of them again after a loss.
	Engine   Engine
	Groups   []Group
	Restarts int
	// Listen is the address that Brain listens on; it decides whether the run is encrypted.
	Listen string
	// Program and Args are what runs as the driver. Its environment has RAYLINK_BRAIN.
	Program string
	Args    []string
	// Checkpoint is a command of the shell that runs before the driver is asked to stop because the
	// run is interrupted, with RAYLINK_BRAIN; empty for none.
	Checkpoint string
	// Join bounds how long the machines may take to join.
	Join time.Duration
	// Raylink is the executable of the command line.
	Raylink string
	// Directory is the run's own, readable by the user alone, for Brain's data and the files of the
	// engine. The caller removes it.
	Directory string

	Stdin          io.Reader
	Stdout, Stderr io.Writer
	// Say prints a line about the run. Calls are not concurrent.
	Say func(line string)

	say sync.Mutex
}

// brainStart bounds how long Brain may take until it serves.
const brainStart = 30 * time.Second

// Do runs the program and returns its exit code once everything has been taken down. The first end
// of ctx stops the run in order: checkpoint, driver, agents, Brain. An error says why there is no
// exit code, or why the run has ended before its program.
func (r *Run) Do(ctx context.Context) (exit int, err error) {
	if err := r.Engine.Check(ctx, r.Groups); err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("interrupted before anything was started: %w", err)
		}
		return 0, err
	}
	if l, ok := r.Engine.(Listener); ok && r.Listen == "" {
		r.Listen = l.Listen()
	}
	// What has to be stopped is stopped in order although ctx has ended.
	stopping := context.WithoutCancel(ctx)
	brain, err := r.startBrain(ctx)
	if err != nil {
		return 0, err
	}
	defer brain.process.Stop(stopping)

	lost := make(chan error, 1)
	joined := newArrivals(r)
	watching, unwatch := context.WithCancel(ctx)
	var watcher sync.WaitGroup
	watcher.Go(func() { watchMachines(watching, brain.address, brain.token, joined.update) })
	defer watcher.Wait()
	defer unwatch()
	request := Request{
		Brain: brain.address, Token: brain.token, Groups: r.Groups, Restarts: r.Restarts, Directory: r.Directory, Raylink: r.Raylink,
		Output: r.Stderr,
	}
	stop, err := r.Engine.Start(ctx, request, func(e Event) { r.onEvent(e, lost) })
	if err != nil {
		return 0, err
	}
	defer func() {
		unwatch() // machines that leave now have no news
		err = errors.Join(err, stop(stopping))
	}()
	if err := r.await(ctx, joined, brain, lost); err != nil {
		return 0, err
	}
	return r.drive(ctx, brain, lost)
}

// Planner is an engine that can say what it would be asked for.
type Planner interface {
	// Plan returns it as text: a script, a job, manifests.
	Plan(request Request) string
}

// Plan returns what Do would start, as text.
func (r *Run) Plan() string {
	var b strings.Builder
	fmt.Fprintf(&b, "raylink brain --attached --listen %s\n", r.Listen)
	request := Request{Brain: "BRAIN", Groups: r.Groups, Restarts: r.Restarts, Raylink: r.Raylink}
	if planner, ok := r.Engine.(Planner); ok {
		b.WriteString(planner.Plan(request))
	}
	fmt.Fprintf(&b, "RAYLINK_BRAIN=BRAIN %s\n", strings.Join(append([]string{r.Program}, r.Args...), " "))
	return b.String()
}

// onEvent reports an event, and ends the run if a machine is lost for good.
func (r *Run) onEvent(e Event, lost chan<- error) {
	text := "the engine has failed: " + e.Cause
	if e.Machine != "" {
		text = fmt.Sprintf("the machine %s is lost: %s", e.Machine, e.Cause)
	}
	if e.Again {
		r.sayf("%s; it is asked for again", text)
		return
	}
	r.sayf("%s", text)
	select {
	case lost <- errors.New(text):
	default: // the first one is the reason
	}
}

func (r *Run) sayf(format string, args ...any) {
	r.say.Lock()
	defer r.say.Unlock()
	r.Say(fmt.Sprintf(format, args...))
}

// await waits until all machines have joined.
func (r *Run) await(ctx context.Context, joined *arrivals, brain *brainProcess, lost <-chan error) error {
	late := time.NewTimer(r.Join)
	defer late.Stop()
	select {
	case <-joined.all:
		return nil
	case err := <-lost:
		return err
	case <-brain.process.Done():
		return errors.New("Brain has ended: " + brain.process.Ended())
	case <-ctx.Done():
		return fmt.Errorf("interrupted while waiting for the machines: %w", ctx.Err())
	case <-late.C:
		return fmt.Errorf("%s did not join within %v", joined.missing(), r.Join)
	}
}

// drive runs the program.
func (r *Run) drive(ctx context.Context, brain *brainProcess, lost <-chan error) (exit int, err error) {
	cmd := exec.Command(r.Program, r.Args...) //nolint:noctx // it is asked to stop first
	cmd.Env = append(os.Environ(), "RAYLINK_BRAIN="+brain.address)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = r.Stdin, r.Stdout, r.Stderr
	driver, err := startDriver(cmd)
	if err != nil {
		return 0, fmt.Errorf("starting the program: %w", err)
	}
	select {
	case <-driver.Done():
		return driver.exitCode(), nil
	case <-ctx.Done():
		r.sayf("interrupted: the run stops in order")
		r.checkpoint(context.WithoutCancel(ctx), brain)
	case err = <-lost:
	case <-brain.process.Done():
		err = errors.New("Brain has ended: " + brain.process.Ended())
	}
	driver.Stop(context.WithoutCancel(ctx))
	return driver.exitCode(), err
}

// checkpointTime bounds the checkpoint: engines kill what does not end soon after their signal.
const checkpointTime = time.Minute

// checkpoint runs the command that saves what the run has reached.
func (r *Run) checkpoint(ctx context.Context, brain *brainProcess) {
	if r.Checkpoint == "" {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, checkpointTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", r.Checkpoint)
	cmd.Env = append(os.Environ(), "RAYLINK_BRAIN="+brain.address)
	cmd.Stdout, cmd.Stderr = r.Stdout, r.Stderr
	if err := cmd.Run(); err != nil {
		r.sayf("the checkpoint has failed: %v", err)
	}
}

// brainProcess is the run's Brain.
type brainProcess struct {
	process        *Process
	address, token string
}

// startBrain starts Brain and waits until it serves.
func (r *Run) startBrain(ctx context.Context) (*brainProcess, error) {
	type serving struct {
		Address   string `json:"address"`
		TokenFile string `json:"token_file"`
	}
	data := filepath.Join(r.Directory, "brain")
	first := make(chan string, 1)
	output := func(line string) {
		select {
		case first <- line:
		default:
			r.sayf("Brain: %s", line)
		}
	}
	process, err := StartAttached("", nil, output, r.Raylink, "brain", "--attached", "-o", "json", "--data", data, "--listen", r.Listen)
	if err != nil {
		return nil, fmt.Errorf("starting Brain: %w", err)
	}
	fail := func(err error) (*brainProcess, error) {
		process.Stop(context.WithoutCancel(ctx))
		return nil, fmt.Errorf("starting Brain: %w", err)
	}
	late := time.NewTimer(brainStart)
	defer late.Stop()
	var s serving
	select {
	case line := <-first:
		if err := json.Unmarshal([]byte(line), &s); err != nil || s.Address == "" {
			return fail(brainError(line))
		}
	case <-process.Done():
		select {
		case line := <-first:
			return fail(brainError(line))
		default:
			return fail(errors.New(process.Ended()))
		}
	case <-ctx.Done():
		return fail(fmt.Errorf("interrupted: %w", ctx.Err()))
	case <-late.C:
		return fail(fmt.Errorf("it does not serve within %v", brainStart))
	}
	// Machines join a system with TLS by a token of its CA, and one on loopback by the only one.
	token, err := rundir.ReadToken(filepath.Join(data, "pki", "join.token"))
	if errors.Is(err, fs.ErrNotExist) {
		token, err = rundir.ReadToken(s.TokenFile)
	}
	if err != nil {
		return fail(err)
	}
	r.sayf("Brain serves at %s; waiting for %d machines", s.Address, Total(r.Groups))
	return &brainProcess{process, s.Address, token}, nil
}

// brainError is the error of a Brain that has printed a line, and does not serve.
func brainError(line string) error {
	var printed struct {
		Error struct {
			Message string `json:"message"`
		} `json:"error"`
	}
	if err := json.Unmarshal([]byte(line), &printed); err == nil && printed.Error.Message != "" {
		return errors.New(printed.Error.Message)
	}
	return errors.New(line)
}

// arrivals says which machines have joined and left.
type arrivals struct {
	run      *Run
	all      <-chan struct{} // closed when all have joined once, by complete
	complete func()

	mu     sync.Mutex
	wanted map[string]bool   // whether it has joined once, by name
	there  map[string]string // the ids of the agents that are there, by name of the machine
}

func newArrivals(r *Run) *arrivals {
	all := make(chan struct{})
	a := &arrivals{run: r, all: all, complete: sync.OnceFunc(func() { close(all) }), wanted: make(map[string]bool), there: make(map[string]string)}
	for _, g := range r.Groups {
		for i := range g.Machines {
			a.wanted[g.MachineName(i)] = false
		}
	}
	return a
}

func (a *arrivals) update(machines map[string]*brainv1.MachineUse) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for name, id := range a.there {
		if use := machines[name]; use == nil || use.GetKeeper().GetId() != id {
			delete(a.there, name)
			a.run.sayf("%s has left", name)
		}
	}
	for name, use := range machines {
		if _, ours := a.wanted[name]; !ours || a.there[name] != "" {
			continue
		}
		a.wanted[name], a.there[name] = true, use.GetKeeper().GetId()
		a.run.sayf("%s has joined: %s (%d of %d)", name, describe(use), len(a.there), len(a.wanted))
	}
	if len(a.missingNames()) == 0 {
		a.complete()
	}
}

// missingNames returns the machines that have not joined yet.
func (a *arrivals) missingNames() []string {
	var names []string
	for _, g := range a.run.Groups {
		for i := range g.Machines {
			if name := g.MachineName(i); !a.wanted[name] {
				names = append(names, name)
			}
		}
	}
	return names
}

func (a *arrivals) missing() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return strings.Join(a.missingNames(), ", ")
}
