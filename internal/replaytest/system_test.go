package replaytest

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink/internal/proctest"
)

// system is a Brain in a process of its own, and actors.
type system struct {
	t       *testing.T
	dir     string
	address string
	history *events
}

// process is a process that executes orders.
type process struct {
	*proctest.Worker[order, answer]

	// role is that of its actors, and tasks what it does.
	role  string
	tasks []string
	// stopped is set while the process is stopped.
	stopped bool
}

// newSystem starts a Brain.
func newSystem(t *testing.T) *system {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("this test needs /proc")
	}
	s := &system{
		t: t, dir: proctest.Directory(t, "rlre"), address: proctest.FreeAddress(t),
		history: &events{t: t, begin: time.Now(), counts: make(map[string]map[string]int64), changed: make(chan struct{})},
	}
	t.Cleanup(s.history.report)
	for _, dir := range []string{s.rings(), s.records()} {
		require.NoError(t, os.Mkdir(dir, 0o700))
	}
	proctest.StartServing(t, "Brain", s.command(brainRole))
	return s
}

func (s *system) rings() string   { return filepath.Join(s.dir, "rings") }
func (s *system) records() string { return filepath.Join(s.dir, "records") }

// command makes a command for a process.
func (s *system) command(what string) *exec.Cmd {
	cmd := proctest.Command(role+"="+what,
		"RAYLINK_BRAIN="+s.address, listen+"="+s.address, "RAYLINK_TOKEN=replay", records+"="+s.records(),
		"RAYLINK_DATA="+filepath.Join(s.dir, "d"), "RAYLINK_RUNTIME_DIR="+filepath.Join(s.dir, "r"))
	if os.Getenv("RAYLINK_LOG") == "" {
		cmd.Env = append(cmd.Env, "RAYLINK_LOG=error") // deaths are expected
	}
	cmd.Stderr = os.Stderr
	return cmd
}

// actor starts an actor.
func (s *system) actor(name, role string, tasks ...string) *process {
	s.t.Helper()
	return &process{
		Worker: proctest.StartWorker[order](s.t, name, s.command(role), s.history.add), role: role, tasks: tasks,
	}
}

// events collects the events of all processes, and what the test did.
type events struct {
	t     *testing.T
	begin time.Time
	seed  uint64

	mu sync.Mutex // guards the fields below
	// did is the schedule.
	did []string
	// faults are what must not happen, troubles errors that may pass.
	faults, troubles []string
	// counts are those of each process's tasks.
	counts map[string]map[string]int64
	// released is how many calls that waited have ended, of each process.
	released map[string]int
	// changed is closed at the next event.
	changed chan struct{}
}

// didf adds to the schedule.
func (h *events) didf(format string, args ...any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.did = append(h.did, fmt.Sprintf("%8.3f ", time.Since(h.begin).Seconds())+fmt.Sprintf(format, args...))
}

// report prints what happened if the test has failed.
func (h *events) report() {
	if !h.t.Failed() {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.t.Logf("repeat it with -seed=%d -rows=%d -kills=%d; what was done:\n%s\nerrors, at last: %q\ncounts: %v",
		h.seed, *rows, *kills, strings.Join(h.did, "\n"), h.troubles[max(0, len(h.troubles)-10):], h.counts)
}

// add adds an event of a process.
func (h *events) add(process string, a answer) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch a.Event {
	case progressEvent:
		if h.counts[process] == nil {
			h.counts[process] = make(map[string]int64)
		}
		maps.Copy(h.counts[process], a.Counts)
	case releasedEvent:
		if h.released == nil {
			h.released = make(map[string]int)
		}
		h.released[process]++
		fallthrough
	case troubleEvent:
		h.troubles = append(h.troubles[max(0, len(h.troubles)-100):], fmt.Sprintf("%s: %s: %s", process, a.Code, a.Error))
	default:
		h.faults = append(h.faults, fmt.Sprintf("%s: %s %s", process, a.Code, a.Error))
	}
	close(h.changed)
	h.changed = make(chan struct{})
}

// check fails the test if something happened that must not.
func (h *events) check() {
	h.t.Helper()
	h.mu.Lock()
	faults := slices.Clone(h.faults)
	h.mu.Unlock()
	if len(faults) > 0 {
		require.Fail(h.t, faults[0], "and %d more: %q", len(faults)-1, faults[1:min(len(faults), 4)])
	}
}

// await waits until a condition holds, which is checked after every event with mu held.
func (h *events) await(limit time.Duration, what string, ok func() bool) {
	h.t.Helper()
	timeout := time.After(limit)
	for {
		h.mu.Lock()
		done, changed := ok(), h.changed
		h.mu.Unlock()
		h.check()
		if done {
			return
		}
		select {
		case <-changed:
		case <-timeout:
			require.Fail(h.t, what, "within %v", limit)
		}
	}
}

// progress waits until all tasks of the given names have made progress in processes that are not
// stopped; the names of all if there are none.
func (h *events) progress(what string, processes []*process, names ...string) {
	h.t.Helper()
	before := make(map[string]map[string]int64)
	h.mu.Lock()
	for name, counts := range h.counts {
		before[name] = maps.Clone(counts)
	}
	h.mu.Unlock()
	for _, p := range processes {
		for _, task := range p.tasks {
			if p.stopped || task == "starve" || len(names) > 0 && !slices.Contains(names, task) {
				continue
			}
			h.await(*stuck, fmt.Sprintf("hang: the task %q of %s makes no progress %s", task, p.Name, what), func() bool {
				return h.counts[p.Name][task] > before[p.Name][task]
			})
		}
	}
}
