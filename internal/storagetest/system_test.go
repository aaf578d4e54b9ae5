package storagetest

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// system is a Brain in a process of its own, its supervised storage, and workers.
type system struct {
	t       *testing.T
	dir     string
	address string
	brain   *process
	history *history
	// durability is that of the storage.
	durability string
	// silent is set if the log output of processes that start is discarded, because it is expected.
	silent bool
}

// process is a process of the test. It ends with its input, at the latest when the test has died.
type process struct {
	t     *testing.T
	name  string
	cmd   *exec.Cmd
	in    io.WriteCloser
	ended chan struct{} // closed after Wait
	err   error         // of Wait; set before ended is closed
	// rough is set if the process was killed: its end is not checked.
	rough bool

	mu      sync.Mutex // guards the fields below, and writes to in
	next    int
	waiting map[int]chan answer
}

// newSystem starts a Brain, and returns when its storage is up.
func newSystem(t *testing.T, durability string) *system {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("this test needs /proc")
	}
	dir, err := os.MkdirTemp("/tmp", "rlst") //nolint:usetesting // short: Unix sockets are to fit
	require.NoError(t, err)
	s := &system{t: t, dir: dir, history: newHistory(t), durability: durability}
	t.Cleanup(func() {
		left := s.killLeft()
		assert.Empty(t, left, "processes have outlived Brain")
		assert.NoError(t, os.RemoveAll(dir))
	})
	l, err := net.Listen("tcp", "127.0.0.1:0") // a free port, on which Brain can be started again
	require.NoError(t, err)
	s.address = l.Addr().String()
	require.NoError(t, l.Close())
	s.startBrain()
	return s
}

// startBrain starts a Brain, and returns when it serves.
func (s *system) startBrain() {
	s.t.Helper()
	cmd := s.command(brainRole)
	in, err := cmd.StdinPipe()
	require.NoError(s.t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(s.t, err)
	p := &process{t: s.t, name: "Brain", cmd: cmd, in: in, ended: make(chan struct{})}
	s.brain = p
	require.NoError(s.t, cmd.Start())
	s.t.Cleanup(p.end)
	line, err := bufio.NewReader(out).ReadString('\n')
	go p.wait()
	require.Equal(s.t, "serving", strings.TrimSpace(line), "Brain's output: %v", err)
}

// command makes a command for a process.
func (s *system) command(what string) *exec.Cmd {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), role+"="+what,
		"RAYLINK_BRAIN="+s.address, listen+"="+s.address, "RAYLINK_TOKEN=storage", durability+"="+s.durability,
		"RAYLINK_DATA="+s.data(), "RAYLINK_RUNTIME_DIR="+filepath.Join(s.dir, "r"))
	if os.Getenv("RAYLINK_LOG") == "" {
		cmd.Env = append(cmd.Env, "RAYLINK_LOG=error") // deaths are expected
	}
	if !s.silent {
		cmd.Stderr = os.Stderr
	}
	// A stopped process in a group of its own is continued if the test dies.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
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
	cmd := s.command(workerRole)
	in, err := cmd.StdinPipe()
	require.NoError(s.t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(s.t, err)
	p := &process{t: s.t, cmd: cmd, in: in, ended: make(chan struct{}), waiting: make(map[int]chan answer)}
	require.NoError(s.t, cmd.Start())
	p.name = fmt.Sprintf("worker %d", cmd.Process.Pid)
	serving := make(chan struct{})
	go func() {
		_ = lines(out, func(a answer) {
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
				s.history.add(p.name, a)
			}
		})
		p.wait()
	}()
	s.t.Cleanup(p.end)
	select {
	case <-serving:
	case <-p.ended:
		require.NoError(s.t, p.err, "%s ended", p.name)
	case <-time.After(patience):
		require.Fail(s.t, "a worker does not serve", p.name)
	}
	return p
}

func (p *process) wait() {
	p.err = p.cmd.Wait()
	close(p.ended)
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
		_, err = p.in.Write(append(line, '\n'))
	}
	if err != nil {
		c <- answer{Error: fmt.Sprintf("%s takes no orders: %v", p.name, err), Code: "dead"}
	}
	return c
}

// do gives an order, and returns the answer.
func (p *process) do(o order) answer {
	select {
	case a := <-p.begin(o):
		return a
	case <-p.ended:
		return answer{Error: p.name + " has ended", Code: "dead"}
	case <-time.After(patience + 5*time.Second):
		return answer{Error: fmt.Sprintf("%s did not answer the order to %s", p.name, o.Do), Code: "silent"}
	}
}

// must gives an order that must succeed.
func (p *process) must(o order) answer {
	p.t.Helper()
	a := p.do(o)
	require.Empty(p.t, a.Error, "%s: %s", p.name, o.Do)
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
		pause(poll)
	}
	require.Fail(p.t, what, "%s: %s, within %v; at last: %+v", p.name, o.Do, limit, a)
	return a
}

// kill kills the process, and waits for its end.
func (p *process) kill() {
	p.t.Helper()
	p.rough = true
	require.NoError(p.t, p.cmd.Process.Kill())
	<-p.ended
}

// end ends the process gracefully, and checks that it ended well.
func (p *process) end() {
	_ = p.in.Close()
	select {
	case <-p.ended:
	case <-time.After(patience):
		_ = p.cmd.Process.Kill()
		<-p.ended
		assert.Fail(p.t, "a process did not end", p.name)
	}
	if !p.rough {
		assert.NoError(p.t, p.err, "%s", p.name)
	}
}

// storage returns the process of the storage, as the worker sees it.
func (p *process) storage() int {
	p.t.Helper()
	return p.eventually(patience, order{Do: "info"}, func(a answer) bool { return a.Error == "" && a.PID != 0 }, "no storage").PID
}

// killPID kills a process, if it still exists.
func killPID(t *testing.T, pid int) {
	t.Helper()
	require.Greater(t, pid, 1)
	if err := syscall.Kill(pid, syscall.SIGKILL); !errors.Is(err, syscall.ESRCH) {
		require.NoError(t, err)
	}
}

// stopPID stops a process, and waits until all of its threads have stopped.
func stopPID(t *testing.T, pid int) {
	t.Helper()
	require.Greater(t, pid, 1)
	require.NoError(t, syscall.Kill(pid, syscall.SIGSTOP))
	runs := func() bool {
		files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
		for _, file := range files {
			// The state follows the name, which is in parentheses.
			stat, err := os.ReadFile(file)
			if err == nil && !strings.Contains(string(stat), ") T ") {
				return true
			}
		}
		return false
	}
	for begin := time.Now(); runs(); pause(time.Millisecond) {
		require.Less(t, time.Since(begin), patience, "process %d does not stop", pid)
	}
}

// continuePID continues a process that was stopped.
func continuePID(t *testing.T, pid int) {
	t.Helper()
	require.NoError(t, syscall.Kill(pid, syscall.SIGCONT))
}

// killLeft kills the processes that have outlived the system, and returns them.
func (s *system) killLeft() []string {
	left := func() map[int]string {
		found := make(map[int]string)
		files, _ := filepath.Glob("/proc/[0-9]*/environ")
		for _, file := range files {
			env, err := os.ReadFile(file)
			if err != nil || !strings.Contains(string(env), s.dir+"/") {
				continue
			}
			if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file))); err == nil && pid != os.Getpid() {
				title, _ := os.ReadFile(filepath.Join(filepath.Dir(file), "cmdline"))
				found[pid] = strings.ReplaceAll(string(title), "\x00", " ")
			}
		}
		return found
	}
	begin := time.Now()
	for len(left()) > 0 && time.Since(begin) < 5*time.Second {
		pause(poll)
	}
	var texts []string
	for pid, title := range left() {
		texts = append(texts, fmt.Sprint(pid, " ", title))
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	return texts
}

// random returns a source of random choices, and logs its seed.
func random(t *testing.T) *rand.Rand {
	t.Helper()
	n := *seed
	if n == 0 {
		n = rand.Uint64()
	}
	t.Logf("-seed=%d", n)
	return rand.New(rand.NewPCG(n, 1))
}
