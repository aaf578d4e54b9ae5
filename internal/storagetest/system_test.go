package storagetest

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink/internal/proctest"
)

// system is a Brain in a process of its own, its supervised storage, and workers.
type system struct {
	t       *testing.T
	dir     string
	address string
	brain   *proctest.Process
	history *history
	// durability is that of the storage.
	durability string
	// silent is set if the log output of processes that start is discarded, because it is expected.
	silent bool
}

// process is a process that executes orders.
type process struct {
	*proctest.Process

	t *testing.T

	mu      sync.Mutex // guards the fields below, and writes to the input
	next    int
	waiting map[int]chan answer
}

// newSystem starts a Brain, and returns when its storage is up.
func newSystem(t *testing.T, durability string) *system {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("this test needs /proc")
	}
	dir := proctest.Directory(t, "rlst")
	s := &system{t: t, dir: dir, history: newHistory(t), address: proctest.FreeAddress(t), durability: durability}
	s.startBrain()
	return s
}

// startBrain starts a Brain, and returns when it serves.
func (s *system) startBrain() {
	s.t.Helper()
	s.brain = proctest.StartServing(s.t, "Brain", s.command(brainRole))
}

// command makes a command for a process.
func (s *system) command(what string) *exec.Cmd {
	cmd := proctest.Command(role+"="+what,
		"RAYLINK_BRAIN="+s.address, listen+"="+s.address, "RAYLINK_TOKEN=storage", durability+"="+s.durability,
		"RAYLINK_DATA="+s.data(), "RAYLINK_RUNTIME_DIR="+filepath.Join(s.dir, "r"))
	if os.Getenv("RAYLINK_LOG") == "" {
		cmd.Env = append(cmd.Env, "RAYLINK_LOG=error") // deaths are expected
	}
	if !s.silent {
		cmd.Stderr = os.Stderr
	}
	return cmd
}

// data is the data directory.
func (s *system) data() string { return filepath.Join(s.dir, "d") }

// workers starts processes, and returns when they have reached the storage.
func (s *system) workers(count int) []*process {
	s.t.Helper()
	all := make([]*process, count)
	for i := range all {
		all[i] = s.worker()
	}
	for _, p := range all {
		p.must(order{Do: "status"})
	}
	return all
}

// worker starts a process that joins.
func (s *system) worker() *process {
	s.t.Helper()
	p := &process{t: s.t, waiting: make(map[int]chan answer)}
	serving := make(chan struct{})
	p.Process = proctest.Start(s.t, s.command(workerRole), func(child *proctest.Process, out io.Reader) {
		child.Name = fmt.Sprint("worker ", child.PID())
		_ = proctest.Lines(out, func(a answer) {
			switch {
			case a.ID != 0:
				p.mu.Lock()
				c := p.waiting[a.ID]
				delete(p.waiting, a.ID)
				p.mu.Unlock()
				c <- a
			case a.Event == "serving":
				close(serving)
			default:
				s.history.add(child.Name, a)
			}
		})
	})
	select {
	case <-serving:
	case <-p.Ended():
		require.NoError(s.t, p.Err(), "%s ended", p.Name)
	case <-time.After(proctest.Patience):
		require.Fail(s.t, "a process does not serve", p.Name)
	}
	return p
}

// begin gives an order, whose answer is received later.
func (p *process) begin(o order) <-chan answer {
	c := make(chan answer, 1)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.next++
	o.ID = p.next
	p.waiting[o.ID] = c
	line, err := json.Marshal(o)
	if err == nil {
		_, err = p.Input.Write(append(line, '\n'))
	}
	if err != nil {
		c <- answer{Error: fmt.Sprintf("%s takes no orders: %v", p.Name, err), Code: "dead"}
	}
	return c
}

// do gives an order, and returns the answer.
func (p *process) do(o order) answer {
	select {
	case a := <-p.begin(o):
		return a
	case <-p.Ended():
		return answer{Error: p.Name + " has ended", Code: "dead"}
	case <-time.After(proctest.Patience + 5*time.Second):
		return answer{Error: fmt.Sprintf("%s did not answer the order to %s", p.Name, o.Do), Code: "silent"}
	}
}

// must gives an order that must succeed.
func (p *process) must(o order) answer {
	p.t.Helper()
	a := p.do(o)
	require.Empty(p.t, a.Error, "%s: %s", p.Name, o.Do)
	return a
}

// eventually repeats an order until its answer is as expected.
func (p *process) eventually(limit time.Duration, o order, ok func(answer) bool, what string) answer {
	p.t.Helper()
	var a answer
	begin := time.Now()
	for time.Since(begin) < limit {
		if a = p.do(o); ok(a) {
			return a
		}
		proctest.Pause(proctest.Poll)
	}
	require.Fail(p.t, what, "%s: %s, within %v; at last: %+v", p.Name, o.Do, limit, a)
	return a
}

// storage returns the process of the storage, as the worker sees it.
func (p *process) storage() int {
	p.t.Helper()
	return p.eventually(proctest.Patience, order{Do: "info"}, func(a answer) bool { return a.Error == "" && a.PID != 0 }, "no storage").PID
}
