package ray_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink/internal/proctest"
)

// rayMode is `required` where the tests may not be skipped.
const rayMode = "RAYLINK_TEST_RAY"

// patience bounds how long a test waits for an event that must come.
const patience = 90 * time.Second

// cluster is a Ray cluster of three nodes on this machine, and the place of all files of the runs.
type cluster struct {
	*testing.T

	python, bin, temp  string
	env                []string
	in                 io.WriteCloser
	out                *bufio.Scanner
	address, dashboard string
}

// answer is a line of testdata/cluster.py.
type answer struct {
	Address   string   `json:"address"`
	Dashboard string   `json:"dashboard"`
	Actors    []string `json:"actors"`
	Groups    []string `json:"groups"`
}

// startCluster builds the programs and starts the cluster.
func startCluster(t *testing.T) *cluster {
	t.Helper()
	root, err := filepath.Abs("../../..")
	require.NoError(t, err)
	c := &cluster{T: t, python: filepath.Join(root, ".cache", "ray", "venv", "bin", "python")}
	if err := exec.CommandContext(t.Context(), c.python, "-c", "import ray").Run(); err != nil {
		if os.Getenv(rayMode) == "required" {
			require.NoError(t, err, "%s has no Ray: make ray", c.python)
		}
		t.Skipf("%s has no Ray (make ray): %v", c.python, err)
	}
	c.bin, c.temp = t.TempDir(), proctest.Directory(t, "rl")
	for _, entry := range os.Environ() {
		if !strings.HasPrefix(entry, "RAY") && !strings.HasPrefix(entry, "PATH=") {
			c.env = append(c.env, entry)
		}
	}
	// What Python has compiled is kept beside Ray, and not beside the project's own sources.
	c.env = append(c.env, "TMPDIR="+c.temp, "RAYLINK_RUNTIME_DIR="+proctest.Directory(t, "rl"), "RAYLINK_PYTHON="+c.python,
		"PYTHONPATH="+filepath.Join(root, "clients", "python"), "PYTHONDONTWRITEBYTECODE=", "PYTHONPYCACHEPREFIX="+filepath.Join(root, ".cache", "ray", "compiled"),
		"RAY_USAGE_STATS_ENABLED=0", "RAY_raylet_start_wait_time_s=120", "PATH="+c.bin+":"+os.Getenv("PATH"))
	cmd := c.command(c.python, filepath.Join("testdata", "cluster.py"), "3", "1")
	cmd.Env = append(cmd.Env, "RAYLINK_TEST_SESSION="+c.temp+"/") // so that Ray's processes are found at the end
	cmd.Stderr = new(bytes.Buffer)
	c.in, err = cmd.StdinPipe()
	require.NoError(t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	c.out = bufio.NewScanner(out)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = c.in.Close() // the cluster ends
		assert.NoError(t, cmd.Wait(), cmd.Stderr)
		proctest.KillLeft(c.temp) // of Ray's own, which leaves some behind
	})
	build := exec.CommandContext(t.Context(), "go", "build", "-o", c.bin, "./cmd/raylink", "./examples/counter")
	build.Dir = root
	text, err := build.CombinedOutput() // while the cluster starts
	require.NoError(t, err, string(text))
	first := c.answer()
	c.address, c.dashboard = first.Address, first.Dashboard
	return c
}

func (c *cluster) answer() answer {
	c.Helper()
	var a answer
	require.True(c.T, c.out.Scan(), "the cluster has ended: %v", c.out.Err())
	require.NoError(c.T, json.Unmarshal(c.out.Bytes(), &a))
	return a
}

// do sends a command to the cluster.
func (c *cluster) do(format string, args ...any) answer {
	c.Helper()
	_, err := fmt.Fprintf(c.in, format+"\n", args...)
	require.NoError(c.T, err)
	return c.answer()
}

func (c *cluster) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Env, cmd.WaitDelay = slices.Concat(c.env, []string{"RAY_ADDRESS=" + c.address}), 5*time.Second
	return cmd
}

// part is the cluster for one part of the test, whose runs have directories of their own.
func (c *cluster) part(t *testing.T) *cluster {
	t.Helper()
	part := *c
	part.T, part.temp = t, filepath.Join(c.temp, "part-"+filepath.Base(t.Name()))
	require.NoError(t, os.Mkdir(part.temp, 0o700))
	part.env = slices.Concat(c.env, []string{"TMPDIR=" + part.temp, "RAYLINK_DATA=" + t.TempDir()})
	return &part
}

// process is a command that runs.
type process struct {
	*exec.Cmd

	c     *cluster
	ended chan struct{}
	mu    sync.Mutex
	text  strings.Builder
}

// Write implements [io.Writer] for what the process prints.
func (p *process) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.text.Write(b)
}

func (p *process) printed() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.text.String()
}

// start starts a command.
func (c *cluster) start(t *testing.T, cmd *exec.Cmd) *process {
	t.Helper()
	p := &process{Cmd: cmd, c: c, ended: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = p, p
	require.NoError(t, cmd.Start())
	go func() {
		defer close(p.ended)
		_ = cmd.Wait() // see exit
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it has ended, unless the test has failed
		<-p.ended
		if t.Failed() {
			t.Log(p.printed())
		}
	})
	return p
}

// run starts `raylink run --on ray` with arguments.
func (c *cluster) run(t *testing.T, args ...string) *process {
	t.Helper()
	return c.start(t, c.command(filepath.Join(c.bin, "raylink"), append([]string{"run", "--on", "ray"}, args...)...))
}

// has waits until the process has printed a text.
func (p *process) has(t *testing.T, text string) {
	t.Helper()
	require.Eventually(t, func() bool { return strings.Contains(p.printed(), text) }, patience, 10*time.Millisecond, "%s is not printed", text)
}

// exit waits until the process has ended, and returns its exit code.
func (p *process) exit(t *testing.T) int {
	t.Helper()
	select {
	case <-p.ended:
	case <-time.After(patience):
		require.Fail(t, "it does not end")
	}
	return p.ProcessState.ExitCode()
}

// nothingIsLeft waits until no actor, placement group, process or file of any run is there.
func (c *cluster) nothingIsLeft(t *testing.T) {
	t.Helper()
	require.EventuallyWithT(t, func(collect *assert.CollectT) {
		for _, pattern := range []string{"raylink-*", "part-*/*"} { // of the agents, and of the heads
			files, err := filepath.Glob(filepath.Join(c.temp, pattern))
			require.NoError(collect, err)
			assert.Empty(collect, files)
		}
		assert.Empty(collect, c.processes())
	}, patience, 50*time.Millisecond)
	left := c.do("left")
	assert.Empty(t, left.Actors)
	assert.Empty(t, left.Groups)
}

// processes returns the command lines of agents, heads, Brains and nodes.
func (c *cluster) processes() []string {
	var lines []string
	all, _ := filepath.Glob("/proc/[0-9]*")
	for _, path := range all {
		environ, err := os.ReadFile(filepath.Join(path, "environ"))
		line, _ := os.ReadFile(filepath.Join(path, "cmdline")) // it may have ended
		text := strings.ReplaceAll(string(line), "\x00", " ")
		if err == nil && strings.Contains(string(environ), "TMPDIR="+c.temp) && (strings.Contains(text, "raylink") || strings.Contains(text, "counter ")) {
			lines = append(lines, filepath.Base(path)+" "+text)
		}
	}
	return lines
}

// TestRay has one cluster, because Ray takes long to start. Its parts run side by side, but for the
// one that takes nodes away.
func TestRay(t *testing.T) {
	c := startCluster(t)
	t.Run("runs", func(t *testing.T) {
		for _, part := range []struct {
			name string
			test func(c *cluster, t *testing.T)
		}{
			{"exit code", (*cluster).testExitCode},
			{"refusals", (*cluster).testRefusals},
			{"interrupt", (*cluster).testInterrupt},
			{"head killed", (*cluster).testHeadKilled},
			{"Python", (*cluster).testPython},
			{"job", (*cluster).testJob},
			{"job stopped", (*cluster).testJobStopped},
		} {
			t.Run(part.name, func(t *testing.T) {
				t.Parallel()
				part.test(c.part(t), t)
			})
		}
	})
	c.nothingIsLeft(t)
	t.Run("node lost", func(t *testing.T) { c.part(t).testNodeLost(t) })
	c.nothingIsLeft(t)
}

func (c *cluster) testExitCode(t *testing.T) {
	run := c.run(t, "--group", "trainers:machines=1,cpus=2,licence=1,label.role=trainer", "--group", "workers:machines=2", "--",
		"sh", "-c", "raylink machines -o json; exit 7")
	assert.Equal(t, 7, run.exit(t))
	text := run.printed()
	for _, want := range []string{"(3 of 3)", `"name":"trainers-0"`, `"licence":"1000"`, `"cpu":"2000"`, `"role":"trainer"`, "ray.io/node-id"} {
		assert.Contains(t, text, want)
	}
	assert.NotContains(t, text, "level=WARN")
	nodes := make(map[string]bool)
	for _, part := range strings.Split(text, "ray.io/node-id=")[1:] {
		nodes[part[:56]] = true
	}
	assert.Len(t, nodes, 3, "each machine is a node of its own")
}

func (c *cluster) testRefusals(t *testing.T) {
	for _, test := range []struct {
		name, want string
		args       []string
		env        string
	}{
		{"no Python", "nothing-like-python was not found", nil, "RAYLINK_PYTHON=nothing-like-python"},
		{"no package", "has no package raylink", nil, "PYTHONPATH="},
		{"no cluster", "there is no cluster to connect to at 127.0.0.1:1: ", nil, "RAY_ADDRESS=127.0.0.1:1"},
		{"no resource", "no node of the cluster has a resource 'rockets'; there are CPU, Licence, memory", []string{"--resources", "rockets=1"}, ""},
		{"no node with room", "no node of the cluster has {CPU: 5}, so that Ray could never place it", []string{"--cpus", "5"}, ""},
		{"no room together", "4 machines need 16 of CPU, and the cluster has 12", []string{"--cpus", "4", "--machines", "4"}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			cmd := c.command(filepath.Join(c.bin, "raylink"), append(append([]string{"run", "--on", "ray"}, test.args...), "--", "sh", "-c", "echo started")...)
			cmd.Env = append(cmd.Env, test.env)
			run := c.start(t, cmd)
			assert.NotZero(t, run.exit(t))
			assert.Contains(t, run.printed(), test.want)
			assert.NotContains(t, run.printed(), "Brain serves", "nothing is started")
		})
	}
}

func (c *cluster) testHeadKilled(t *testing.T) {
	run := c.run(t, "--machines", "2", "--", "sh", "-c", "echo begun; exec sleep 600")
	run.has(t, "\nbegun\n")
	for _, line := range c.processes() {
		assert.NotContains(t, line, "rl1.", "a secret is no argument")
	}
	require.NoError(t, run.Process.Kill())
	run.exit(t)
	// The head's own directory is what it can't remove.
	left, err := filepath.Glob(filepath.Join(c.temp, "raylink-run-*"))
	require.NoError(t, err)
	for _, path := range left {
		require.NoError(t, os.RemoveAll(path))
	}
}

func (c *cluster) testPython(t *testing.T) {
	script := filepath.Join("testdata", "system.py")
	run := c.start(t, c.command(c.python, script))
	assert.Equal(t, 0, run.exit(t))
	assert.Contains(t, run.printed(), "the node counts to 5")
	assert.Contains(t, run.printed(), "no room: ray: no node of the cluster has {CPU: 50}")
}

// raylink starts a command whose cluster is Ray's dashboard.
func (c *cluster) raylink(t *testing.T, args ...string) *process {
	t.Helper()
	cmd := c.command(filepath.Join(c.bin, "raylink"), args...)
	cmd.Env = append(cmd.Env, "RAY_ADDRESS=http://"+c.dashboard)
	return c.start(t, cmd)
}

// submit leaves a job behind, and returns its id.
func (c *cluster) submit(t *testing.T, script string) string {
	t.Helper()
	run := c.raylink(t, "run", "--on", "ray", "--machines", "2", "--detach", "--", "sh", "-c", script)
	require.Equal(t, 0, run.exit(t), run.printed())
	return strings.TrimSpace(run.printed())
}

func (c *cluster) testJob(t *testing.T) {
	attached := c.raylink(t, "attach", c.submit(t, "echo \"it's up\"; exit 7"))
	assert.Equal(t, 7, attached.exit(t))
	assert.Contains(t, attached.printed(), "it's up")
	assert.Contains(t, attached.printed(), "(2 of 2)")
}

func (c *cluster) testJobStopped(t *testing.T) {
	id := c.submit(t, "trap 'echo in order; exit 5' TERM; echo begun; while :; do sleep 0.1; done")
	attached := c.raylink(t, "attach", id)
	attached.has(t, "\nbegun\n")
	runs := c.raylink(t, "runs")
	require.Equal(t, 0, runs.exit(t))
	assert.Regexp(t, id+` +ray +running`, runs.printed())
	stop := c.raylink(t, "stop", id)
	assert.Equal(t, 0, stop.exit(t), stop.printed())
	assert.NotZero(t, attached.exit(t))
	assert.Contains(t, attached.printed(), "in order")
}

func (c *cluster) testInterrupt(t *testing.T) {
	run := c.run(t, "--machines", "3", "--", "sh", "-c", "trap 'exit 5' TERM; echo begun; while :; do sleep 0.1; done")
	run.has(t, "\nbegun\n")
	require.NoError(t, run.Process.Signal(syscall.SIGINT))
	assert.Equal(t, 5, run.exit(t), "it is stopped in order")
}

func (c *cluster) testNodeLost(t *testing.T) {
	run := c.run(t, "--machines", "3", "--restart-machines", "1", "--", "sh", "-c", "echo begun; exec sleep 600")
	run.has(t, "\nbegun\n")
	c.do("kill 0")
	run.has(t, "it is asked for again")
	assert.Regexp(t, `the machine machines-\d is lost: Ray: .*node`, run.printed())
	c.do("add")
	require.Eventually(t, func() bool { return strings.Count(run.printed(), "(3 of 3)") == 2 }, patience, 20*time.Millisecond, "the machine is back")
	c.do("kill 0")
	assert.NotZero(t, run.exit(t), "nothing is asked for again")
	assert.Equal(t, 2, strings.Count(run.printed(), "raylink run: the machine "))
}
