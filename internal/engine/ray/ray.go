// Package ray runs programs over the nodes of a Ray cluster.
//
// The engine is one process of Python, `python -m raylink.ray agents` of clients/python, which is a
// driver of Ray's: one placement group with a bundle for each machine, and one actor for each
// bundle, which runs an agent as its child. It is started by Check, so that what it finds is still
// true when the agents are started, and ends with this process, whatever ends that; with it Ray
// removes the placement group and the actors.
//
//	ray.go      the engine of a head that is on a node of the cluster
//	request.go  what is asked of Ray
//	jobs.go     runs that were submitted as jobs
package ray

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"

	"github.com/raylink/raylink/internal/engine"
)

// Environment variables.
const (
	// PythonEnv is the Python that has Ray; python3 by default.
	PythonEnv = "RAYLINK_PYTHON"
	// addressEnv is Ray's own: the address of the cluster, or of its dashboard.
	addressEnv = "RAY_ADDRESS"
	// jobEnv is set by Ray in the processes of a job.
	jobEnv = "RAY_JOB_ID"
)

// Options are what a user can say about Ray beyond the groups of machines.
type Options struct {
	// Strategy is how Ray places the bundles: STRICT_SPREAD, SPREAD, PACK or STRICT_PACK. The
	// default is the first if the cluster has a node for each machine, else the second.
	Strategy string
	// Wait is set where nodes that are not there yet may be added, by an autoscaler: the machines
	// that were asked for are not compared with the nodes.
	Wait bool
}

// Engine is a run's connection to a Ray cluster. It serves one run.
type Engine struct {
	Options

	process *engine.Process
	answers chan event // what the process answers to Check
	listen  string

	mu      sync.Mutex
	request *engine.Request // nil before Start
	report  func(engine.Event)
	said    []string // the latest lines that are no events
	stopped bool
}

// IsInside reports whether this process is in an allocation of Ray: a job, or a process whose
// environment names the cluster.
func IsInside() bool { return os.Getenv(jobEnv) != "" || os.Getenv(addressEnv) != "" }

// event is a line of the process.
type event struct {
	Event    string `json:"event"`
	Error    string `json:"error"`
	Listen   string `json:"listen"`
	Strategy string `json:"strategy"`
	Machine  string `json:"machine"`
	Line     string `json:"line"`
	Cause    string `json:"cause"`
	Again    bool   `json:"again"`
}

// Events of the process.
const (
	eventChecked = "checked"
	eventRefused = "refused"
	eventFailed  = "failed"
	eventOutput  = "output"
	eventNote    = "note"
	eventLost    = "lost"
)

// findPython returns the Python that has Ray.
func findPython() (string, error) {
	names := []string{"python3", "python"}
	if name := os.Getenv(PythonEnv); name != "" {
		names = []string{name}
	}
	for _, name := range names {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("ray: Ray needs Python, and %s was not found: %s names the one to use", strings.Join(names, " or "), PythonEnv)
}

// Check implements [engine.Engine].
func (e *Engine) Check(ctx context.Context, groups []engine.Group) error {
	python, err := findPython()
	if err != nil {
		return err
	}
	request, err := json.Marshal(checkRequest{Bundles: bundles(groups), Strategy: e.Strategy, Wait: e.Wait})
	if err != nil {
		return err
	}
	e.answers = make(chan event, 1)
	if e.process, err = engine.StartAttached(string(request), nil, e.line, python, "-m", "raylink.ray", "agents"); err != nil {
		return fmt.Errorf("ray: starting Python: %w", err)
	}
	select {
	case answer := <-e.answers:
		if answer.Event != eventChecked {
			return errors.New("ray: " + answer.Error)
		}
		e.listen = answer.Listen
		return nil
	case <-e.process.Done():
		select {
		case answer := <-e.answers:
			return errors.New("ray: " + answer.Error)
		default:
		}
		return errors.New("ray: " + withoutPackage(python, e.lastLine()))
	case <-ctx.Done():
		now, cancel := context.WithCancel(ctx)
		cancel()
		e.process.Stop(now)
		return ctx.Err()
	}
}

// withoutPackage says what to do about a Python that lacks the package, or returns the text.
func withoutPackage(python, said string) string {
	if strings.Contains(said, "No module named") {
		return fmt.Sprintf("%s has no package raylink (%s): pip install 'raylink[ray]', or set %s to a Python that has it", python, said, PythonEnv)
	}
	return "Python has ended: " + said
}

// Listen implements [engine.Listener].
func (e *Engine) Listen() string { return e.listen }

// Start implements [engine.Engine].
func (e *Engine) Start(_ context.Context, request engine.Request, report func(engine.Event)) (func(context.Context) error, error) {
	e.mu.Lock()
	e.request, e.report = &request, report
	e.mu.Unlock()
	text, err := json.Marshal(startRequestOf(request))
	if err != nil {
		return nil, err
	}
	if err := e.process.Send(string(text)); err != nil {
		return nil, fmt.Errorf("ray: Ray's driver: %s: %s: %w", e.process.Ended(), e.lastLine(), err)
	}
	var watcher sync.WaitGroup
	watcher.Go(func() {
		<-e.process.Done()
		if !e.isStopped() {
			report(engine.Event{Cause: "Ray's driver: " + e.process.Ended() + ": " + e.lastLine()})
		}
	})
	return func(ctx context.Context) error {
		e.mu.Lock()
		e.stopped = true
		e.mu.Unlock()
		e.process.Stop(ctx)
		watcher.Wait()
		return nil
	}, nil
}

func (e *Engine) isStopped() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.stopped
}

// line handles a line of the process.
func (e *Engine) line(text string) {
	var v event
	if !strings.HasPrefix(text, `{"event"`) || json.Unmarshal([]byte(text), &v) != nil {
		e.remember(text)
		return
	}
	e.mu.Lock()
	request, report, stopped := e.request, e.report, e.stopped
	e.mu.Unlock()
	switch v.Event {
	case eventChecked, eventRefused, eventFailed:
		if request == nil {
			e.answers <- v // there is one answer
		} else {
			e.remember(v.Error)
		}
	case eventOutput:
		_, _ = fmt.Fprintf(request.Output, "%s: %s\n", v.Machine, v.Line) // a terminal that is gone loses lines
	case eventNote:
		_, _ = fmt.Fprintf(request.Output, "ray: %s\n", v.Line)
	case eventLost:
		if !stopped {
			report(engine.Event{Machine: v.Machine, Cause: v.Cause, Again: v.Again})
		}
	}
}

// remembered is how many lines of Ray's are kept for an error.
const remembered = 20

// remember keeps a line in case that the process fails: Ray prints much that is of no use else.
func (e *Engine) remember(text string) {
	if strings.TrimSpace(text) == "" {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.said = append(e.said, text)
	e.said = e.said[max(0, len(e.said)-remembered):]
}

func (e *Engine) lastLine() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.said) == 0 {
		return "it has printed nothing"
	}
	return strings.TrimSpace(e.said[len(e.said)-1])
}

// Plan implements [engine.Planner].
func (e *Engine) Plan(request engine.Request) string {
	var b strings.Builder
	strategy := e.Strategy
	if strategy == "" {
		strategy = "STRICT_SPREAD if there is a node for each machine, else SPREAD"
	}
	fmt.Fprintf(&b, "placement group, strategy %s:\n", strategy)
	asked := bundles(request.Groups)
	for i, m := range startRequestOf(request).Machines {
		text, err := json.Marshal(asked[i])
		if err != nil {
			text = []byte(err.Error())
		}
		fmt.Fprintf(&b, "  bundle %d %s\n    actor: raylink agent --attached --brain %s %s\n", i, text, request.Brain, strings.Join(m.Flags, " "))
	}
	return b.String()
}
