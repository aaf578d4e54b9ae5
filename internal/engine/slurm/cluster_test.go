package slurm_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	contractv1 "github.com/raylink/raylink/internal/contract/gen/contract/v1"
	"github.com/raylink/raylink/internal/contract/gen/contract/v1/contractv1raylink"
	"github.com/raylink/raylink/internal/engine"
	"github.com/raylink/raylink/internal/engine/slurm"
	"github.com/raylink/raylink/internal/proctest"
	"github.com/raylink/raylink/internal/slurmtest"
	"github.com/raylink/raylink/join"
	"github.com/raylink/raylink/runtime"
	"github.com/raylink/raylink/runtime/rundir"
)

// role is the variable that makes this binary the program of a run.
const role = "RAYLINK_TEST_SLURM_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(role) == "" {
		os.Exit(m.Run())
	}
	if err := program(); err != nil {
		fmt.Fprintln(os.Stderr, "the program:", err)
		os.Exit(1)
	}
}

// setUp makes a node that says on which machine it is.
func setUp(ctx context.Context, node *runtime.Node, _ *contractv1.ProbeConfig) (contractv1raylink.ProbeNode, error) {
	return struct {
		contractv1raylink.UnimplementedProbeNode
	}{}, runtime.SetAttribute(ctx, node, "machine", os.Getenv(rundir.MachineEnv))
}

// program creates a node on each machine, and prints where they are. Then it ends with the exit
// code of its first argument, or waits if that is `wait`.
func program() error {
	rt, err := join.Init(context.Background(), contractv1raylink.ProbeType(setUp))
	if err != nil {
		return err
	}
	n, err := strconv.Atoi(os.Args[2])
	if err != nil {
		return err
	}
	nodes, err := contractv1raylink.CreateProbeN(context.Background(), rt, n, nil, runtime.OnePerMachine())
	if err != nil {
		return err
	}
	var machines []string
	for _, node := range nodes {
		machines = append(machines, node.Ref().Attributes()["machine"].GetStringValue())
	}
	slices.Sort(machines)
	fmt.Println("machines:", strings.Join(machines, " "))
	if os.Args[1] == "wait" {
		select {}
	}
	exit, err := strconv.Atoi(os.Args[1])
	if err := errors.Join(err, rt.Close()); err != nil {
		return err
	}
	os.Exit(exit)
	return nil
}

// cluster is a cluster on which the tests run.
type cluster struct {
	*slurmtest.Cluster

	raylink, self string
}

// run is a running command of the cluster's user.
type run struct {
	t     *testing.T
	cmd   *exec.Cmd
	ended chan struct{}

	mu       sync.Mutex
	out, err bytes.Buffer
}

// writer adds to one of the outputs.
type writer struct {
	r *run
	b *bytes.Buffer
}

func (w writer) Write(p []byte) (int, error) {
	w.r.mu.Lock()
	defer w.r.mu.Unlock()
	return w.b.Write(p)
}

func (r *run) text() (stdout, stderr string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.out.String(), r.err.String()
}

func (c *cluster) start(t *testing.T, name string, args ...string) *run {
	t.Helper()
	r := &run{t: t, cmd: c.Command(name, args...), ended: make(chan struct{})}
	r.cmd.Env = append(r.cmd.Env, role+"=1")
	r.cmd.Stdout, r.cmd.Stderr = writer{r, &r.out}, writer{r, &r.err}
	require.NoError(t, r.cmd.Start())
	go func() {
		_ = r.cmd.Wait() // the test looks at the exit code
		close(r.ended)
	}()
	t.Cleanup(func() {
		select {
		case <-r.ended:
		default:
			_ = syscall.Kill(-r.cmd.Process.Pid, syscall.SIGTERM)
			select {
			case <-r.ended:
			case <-time.After(proctest.Patience):
				_ = syscall.Kill(-r.cmd.Process.Pid, syscall.SIGKILL)
				<-r.ended
			}
		}
		if t.Failed() {
			out, errs := r.text()
			t.Logf("%s printed:\n%s%s", strings.Join(r.cmd.Args, " "), out, errs)
		}
	})
	return r
}

// raylinkRun is `raylink run` of this binary as the program.
func (c *cluster) raylinkRun(flags string, program ...string) []string {
	args := append([]string{c.raylink, "run"}, strings.Fields(flags)...)
	return append(append(args, "--", c.self), program...)
}

func (r *run) exit() int {
	r.t.Helper()
	select {
	case <-r.ended:
	case <-time.After(2 * proctest.Patience):
		require.Fail(r.t, "it does not end", strings.Join(r.cmd.Args, " "))
	}
	return r.cmd.ProcessState.ExitCode()
}

// await waits for a text in the output.
func (r *run) await(text string) {
	r.t.Helper()
	for begin := time.Now(); ; proctest.Pause(proctest.Poll) {
		if out, errs := r.text(); strings.Contains(out+errs, text) {
			return
		}
		select {
		case <-r.ended:
			require.Fail(r.t, "it has ended without printing "+text)
		default:
		}
		require.Less(r.t, time.Since(begin), proctest.Patience, "it does not print %s", text)
	}
}

func (r *run) signal(s syscall.Signal) {
	r.t.Helper()
	require.NoError(r.t, r.cmd.Process.Signal(s))
}

// killTask kills the process of a task, which runs raylink with some arguments.
func (c *cluster) killTask(t *testing.T, arguments, rank string) {
	t.Helper()
	for pid, title := range c.Processes("SLURM_PROCID=" + rank + "\x00") {
		if strings.HasPrefix(title, c.raylink+" ") && strings.Contains(title, " "+arguments+" ") {
			proctest.Kill(t, pid)
			return
		}
	}
	require.Fail(t, "there is no task "+rank)
}

func TestOnCluster(t *testing.T) {
	c := &cluster{Cluster: slurmtest.New(t, 3)}
	c.raylink = filepath.Join(t.TempDir(), "raylink")
	build := exec.Command("go", "build", "-o", c.raylink, "../../../cmd/raylink")
	out, err := build.CombinedOutput()
	require.NoError(t, err, string(out))
	c.self, err = os.Executable()
	require.NoError(t, err)
	// Slurm looks at time limits twice a minute, so that this job runs beside the others.
	limited := c.beginTimeLimit(t)
	for _, test := range []struct {
		name string
		run  func(t *testing.T, c *cluster)
	}{
		{"symmetric", testSymmetric},
		{"allocation", testAllocation},
		{"batch", testBatch},
		{"heterogeneous", testHeterogeneous},
		{"errors", testErrors},
		{"limits", testLimits},
		{"mismatch", testMismatch},
		{"pending", testPending},
		{"interrupt", testInterrupt},
		{"interrupt twice", testInterruptTwice},
		{"killed task of a step", testKilledTaskOfStep},
		{"killed task is replaced", testKilledTaskIsReplaced},
		{"killed daemon of steps", testKilledDaemonOfSteps},
		{"lost node", testLostNode},
		{"killed head", testKilledHead},
		{"submitter dies", testSubmitterDies},
		{"detached", testDetached},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, c) })
	}
	t.Run("time limit", func(t *testing.T) { limited(t) })
	// What a process that was killed has left on its node is removed by the next run there. Slurm
	// kills tasks some time after it has ended their job.
	require.Eventually(t, func() bool {
		jobs, err := c.Command("squeue", "--noheader").Output()
		return err == nil && len(jobs) == 0 && len(c.Processes("")) == 0
	}, proctest.Patience, 50*time.Millisecond, "jobs or processes are left")
	r := c.start(t, c.raylink, c.raylinkRun("--on local --join-timeout 1ns", "0", "0")[1:]...)
	assert.Equal(t, 1, r.exit())
	c.NothingIsLeft(t)
}

func testSymmetric(t *testing.T, c *cluster) {
	r := c.start(t, "srun", append([]string{"--nodes=3", "--ntasks=3", "--cpus-per-task=1"}, c.raylinkRun("", "4", "3")...)...)
	assert.Equal(t, 4, r.exit())
	out, errs := r.text()
	assert.Equal(t, "machines: n0 n1 n2\n", out)
	assert.Contains(t, errs, "machines-1 has joined: 1 CPU,")
}

func testAllocation(t *testing.T, c *cluster) {
	r := c.start(t, "salloc", append([]string{"--nodes=2", "--cpus-per-task=1"}, c.raylinkRun("", "0", "3")...)...)
	assert.Equal(t, 0, r.exit())
	out, _ := r.text()
	assert.Regexp(t, `^machines:  n\d n\d\n$`, out, "the shell of salloc is on no node")
}

func testBatch(t *testing.T, c *cluster) {
	r := c.start(t, c.raylinkRun("")[0], c.raylinkRun("--on slurm --machines 3 --cpus 1 --memory 1GiB", "5", "3")[1:]...)
	assert.Equal(t, 5, r.exit())
	out, errs := r.text()
	assert.Equal(t, "machines: n0 n1 n2\n", out)
	assert.Contains(t, errs, "has joined: 1 CPU, 1 GiB, labels group=machines")
}

func testHeterogeneous(t *testing.T, c *cluster) {
	r := c.start(t, c.raylink, c.raylinkRun("--on slurm --group trainers:machines=1,label.role=trainer --group workers:machines=2,cpus=1", "0", "3")[1:]...)
	assert.Equal(t, 0, r.exit())
	out, errs := r.text()
	assert.Equal(t, "machines: n0 n1 n2\n", out)
	assert.Contains(t, errs, "trainers-0 has joined")
	assert.Contains(t, errs, "labels group=trainers,role=trainer")
	assert.Contains(t, errs, "workers-1 has joined: 1 CPU")
}

func testErrors(t *testing.T, c *cluster) {
	for flags, want := range map[string]string{
		"--partition nope":      "Invalid partition name specified",
		"--machines 4":          "Requested node configuration is not available",
		"--cpus 3":              "Requested node configuration is not available",
		"--gpus 1":              "Invalid generic resource (gres) specification",
		"--time yesterday":      "Invalid --time specification",
		"--sbatch=--nonsense":   "nonsense",
		"--gres licence:2":      "Invalid generic resource (gres) specification",
		"--memory 10GiB":        "Requested node configuration is not available",
		"--sbatch=constraint=a": "must begin with a dash",
	} {
		c.refuses(t, flags, want)
	}
	r := c.start(t, "env", append([]string{"PATH=/nowhere"}, c.raylinkRun("--on slurm", "0", "1")...)...)
	assert.Equal(t, 1, r.exit())
	_, errs := r.text()
	assert.Contains(t, errs, "there is no sbatch here")
}

// refuses fails the test unless a run ends with an error of one line before it is a job.
func (c *cluster) refuses(t *testing.T, flags, want string) {
	t.Helper()
	r := c.start(t, c.raylink, c.raylinkRun("--on slurm "+flags, "0", "1")[1:]...)
	assert.Equal(t, 1, r.exit(), flags)
	_, errs := r.text()
	assert.Contains(t, errs, want, flags)
	assert.Contains(t, errs, "raylink: slurm: ")
	assert.Equal(t, 1, strings.Count(errs, "\n"), "an error of one line: %s", errs)
}

// What a partition allows for one job is checked when it is submitted, or else by the scheduler.
func testLimits(t *testing.T, c *cluster) {
	for flags, want := range map[string]string{
		"--partition small --time 11": "since it could only wait for ever: PartitionTimeLimit",
		"--partition closed":          "since it could only wait for ever: Job's account not known, so it can't use this partition (closed allows friends)",
	} {
		r := c.start(t, c.raylink, c.raylinkRun("--on slurm "+flags, "0", "1")[1:]...)
		assert.Equal(t, 1, r.exit(), flags)
		out, errs := r.text()
		assert.Contains(t, errs, want)
		assert.Empty(t, out, "the program has run")
	}
	c.Must("sh", "-c", `echo EnforcePartLimits=ALL >> "$SLURM_CONF"; scontrol reconfigure`)
	for flags, want := range map[string]string{
		"--partition small --machines 2":   "Node count specification invalid",
		"--partition small --time 11":      "Requested time limit is invalid (missing or exceeds some limit)",
		"--partition small --memory 2GiB":  "Memory required by task is not available",
		"--partition closed":               "Invalid account or account/partition combination specified",
		"--partition closed --account foe": "Invalid account or account/partition combination specified",
	} {
		c.refuses(t, flags, want)
	}
}

func testMismatch(t *testing.T, c *cluster) {
	r := c.start(t, "srun", append([]string{"--nodes=3", "--ntasks=3", "--cpus-per-task=1"}, c.raylinkRun("--machines 3", "0", "1")...)...)
	assert.Equal(t, 1, r.exit())
	_, errs := r.text()
	assert.Equal(t, 1, strings.Count(errs, "has 2 tasks beside the head, and the run asks for 3 machines"), errs)
}

func testPending(t *testing.T, c *cluster) {
	r := c.start(t, c.raylink, c.raylinkRun("--on slurm --sbatch=--begin=now+1hour", "0", "1")[1:]...)
	r.await("is pending: BeginTime")
	r.signal(syscall.SIGINT)
	assert.Equal(t, 1, r.exit())
	_, errs := r.text()
	assert.Contains(t, errs, "has ended: CANCELLED")
}

func testInterrupt(t *testing.T, c *cluster) {
	note := filepath.Join(t.TempDir(), "checkpoint")
	args := c.raylinkRun("--on slurm --machines 2 --cpus 1", "wait", "2")
	args = slices.Insert(args, 2, "--checkpoint", "echo $RAYLINK_BRAIN > "+note)
	r := c.start(t, c.raylink, args[1:]...)
	r.await("machines: n")
	r.signal(syscall.SIGINT)
	assert.Equal(t, 128+int(syscall.SIGTERM), r.exit())
	text, err := os.ReadFile(note)
	require.NoError(t, err, "there was no checkpoint")
	assert.NotEmpty(t, strings.TrimSpace(string(text)))
}

func testInterruptTwice(t *testing.T, c *cluster) {
	args := []string{"run", "--on", "slurm", "--cpus", "1", "--", "/bin/sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.1; done"}
	r := c.start(t, c.raylink, args...)
	r.await("ready")
	r.signal(syscall.SIGINT)
	r.await("the run stops in order")
	begin := time.Now()
	r.signal(syscall.SIGINT)
	assert.Equal(t, 1, r.exit())
	assert.Less(t, time.Since(begin), 20*time.Second, "the program would have half a minute")
}

func testKilledTaskOfStep(t *testing.T, c *cluster) {
	r := c.start(t, "srun", append([]string{"--nodes=3", "--ntasks=3", "--cpus-per-task=1"}, c.raylinkRun("--restart-machines 3", "wait", "2")...)...)
	r.await("machines: n")
	c.killTask(t, "run --restart-machines", "1")
	assert.NotZero(t, r.exit())
	_, errs := r.text()
	assert.Contains(t, errs, "the machine machines-0 is lost: its task has ended on the node n1; Slurm can't start a task of a step again")
}

func testKilledTaskIsReplaced(t *testing.T, c *cluster) {
	r := c.start(t, c.raylink, c.raylinkRun("--on slurm --machines 2 --cpus 1 --restart-machines 1", "wait", "2")[1:]...)
	r.await("machines: n")
	c.killTask(t, slurm.TaskCommand, "1")
	r.await("the machine machines-1 is lost: its task has ended on the node n")
	r.await("it is asked for again")
	r.await("machines-1 has left")
	for begin := time.Now(); ; proctest.Pause(proctest.Poll) {
		if _, errs := r.text(); strings.Count(errs, "machines-1 has joined") == 2 {
			break
		}
		require.Less(t, time.Since(begin), proctest.Patience, "the machine does not return")
	}
	c.killTask(t, "--first 1", "0") // the one that has replaced it
	assert.Equal(t, 1, r.exit())
	_, errs := r.text()
	assert.Contains(t, errs, "raylink: the machine machines-")
}

// Slurm's daemon of the step is not needed by what runs in it.
func testKilledDaemonOfSteps(t *testing.T, c *cluster) {
	r := c.start(t, c.raylink, c.raylinkRun("--on slurm --machines 3 --cpus 1", "wait", "3")[1:]...)
	r.await("machines: n")
	c.KillSteps(t, 2)
	r.signal(syscall.SIGINT)
	assert.Equal(t, 128+int(syscall.SIGTERM), r.exit())
	_, errs := r.text()
	assert.NotContains(t, errs, "is lost")
	assert.Empty(t, c.Processes("SLURMD_NODENAME="+slurmtest.Node(2)+"\x00"), "the agent has ended without Slurm's doing")
}

// The machine is dead before Slurm knows that.
func testLostNode(t *testing.T, c *cluster) {
	r := c.start(t, c.raylink, c.raylinkRun("--on slurm --machines 3 --cpus 1 --restart-machines 1", "wait", "3")[1:]...)
	r.await("machines: n")
	replace := c.KillNode(t, 2)
	r.await("the machine machines-2 is lost: its task has ended on the node n2; it is asked for again")
	r.await("raylink: the machine machines-2 is lost: Slurm has not started its agent: ")
	replace() // until then Slurm waits for it
	assert.Equal(t, 1, r.exit())
}

// Nothing is left of a step whose head is killed: its agents notice that at once.
func testKilledHead(t *testing.T, c *cluster) {
	r := c.start(t, "srun", append([]string{"--nodes=3", "--ntasks=3", "--cpus-per-task=1"}, c.raylinkRun("", "wait", "2")...)...)
	r.await("machines: n")
	c.killTask(t, "run --", "0")
	assert.NotZero(t, r.exit())
	left, err := filepath.Glob(filepath.Join(c.Shared, ".raylink-*.*"))
	require.NoError(t, err)
	for _, d := range left { // a killed head removes nothing
		require.NoError(t, os.RemoveAll(d))
	}
}

// submission is a run of this binary as a job.
func (c *cluster) submission(program ...string) *slurm.Submission {
	return &slurm.Submission{
		Raylink: c.raylink, Program: c.self, Args: program, Name: "test",
		Groups: []engine.Group{{Name: "machines", Machines: 1, Resources: map[string]int64{"cpu": 1000}}},
	}
}

// inCluster has the package's commands be those of the cluster's user.
func (c *cluster) inCluster(t *testing.T) {
	t.Helper()
	for _, entry := range c.Env(role + "=1") {
		name, value, _ := strings.Cut(entry, "=")
		t.Setenv(name, value)
	}
}

func testSubmitterDies(t *testing.T, c *cluster) {
	c.inCluster(t)
	j, err := c.submission("wait", "1").Submit(t.Context(), c.Shared, "dies", 100*time.Millisecond)
	require.NoError(t, err)
	// Submit has written the file once, and no process writes it again.
	var out, errs bytes.Buffer
	exit, err := j.Follow(t.Context(), &out, &errs, 0, func(string) {})
	require.NoError(t, err)
	assert.NotZero(t, exit)
	assert.Contains(t, errs.String(), "the process that has submitted the job is gone")
	require.NoError(t, j.Remove())
}

func testDetached(t *testing.T, c *cluster) {
	r := c.start(t, c.raylink, c.raylinkRun("--on slurm --detach --cpus 1", "wait", "1")[1:]...)
	require.Equal(t, 0, r.exit())
	id, _ := r.text()
	id = strings.TrimSpace(id)
	attached := c.start(t, c.raylink, "attach", id)
	attached.await("machines: n")
	assert.Regexp(t, id+" +slurm +running", c.Must(c.raylink, "runs"))
	assert.Equal(t, id+": ended\n", c.Must(c.raylink, "stop", id))
	assert.Equal(t, 128+int(syscall.SIGTERM), attached.exit())
	assert.Regexp(t, id+" +slurm +ended +143", c.Must(c.raylink, "runs"))
	again := c.start(t, c.raylink, "attach", id)
	assert.Equal(t, 128+int(syscall.SIGTERM), again.exit(), "also when the job is gone")
	out, _ := again.text()
	assert.Contains(t, out, "machines: n")
}

// beginTimeLimit begins a run with a time limit, and returns its test.
func (c *cluster) beginTimeLimit(t *testing.T) func(t *testing.T) {
	t.Helper()
	note := filepath.Join(t.TempDir(), "checkpoint")
	args := c.raylinkRun("--on slurm --cpus 1 --time 10", "wait", "1")
	args = slices.Insert(args, 2, "--checkpoint", "echo saved > "+note)
	r := c.start(t, c.raylink, args[1:]...)
	r.await("machines: n")
	// The limit is as near as the signal is before it.
	c.Must("sh", "-c", `scontrol update TimeLimit=2 JobId="$(squeue --noheader --format=%i)"`)
	return func(t *testing.T) {
		r.t = t
		assert.Equal(t, 128+int(syscall.SIGTERM), r.exit())
		text, err := os.ReadFile(note)
		require.NoError(t, err, "there was no checkpoint")
		assert.Equal(t, "saved\n", string(text))
	}
}
