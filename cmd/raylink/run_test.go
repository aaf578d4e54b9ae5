package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink/internal/proctest"
)

// runTest is a place for runs: what is left of them would be in its directory.
type runTest struct {
	*testing.T

	temp string
	env  []string
}

func newRunTest(t *testing.T) *runTest {
	t.Helper()
	r := &runTest{T: t, temp: proctest.Directory(t, "rl")}
	r.env = environment("TMPDIR="+r.temp, "RAYLINK_DATA="+t.TempDir(), "RAYLINK_RUNTIME_DIR="+proctest.Directory(t, "rl"))
	return r
}

// start starts `raylink run`.
func (r *runTest) start(args ...string) *process {
	r.Helper()
	return background(r.T, r.env, filepath.Join(program, "raylink"), append([]string{"run"}, args...)...)
}

// raylink runs a command to its end.
func (r *runTest) raylink(args ...string) (stdout, stderr string, exit int) {
	r.Helper()
	cmd := exec.Command(filepath.Join(program, "raylink"), args...)
	cmd.Env = r.env
	return finish(r.T, cmd)
}

// nothingIsLeft waits until no process and no file of the runs is there.
func (r *runTest) nothingIsLeft() {
	r.Helper()
	require.EventuallyWithT(r.T, func(c *assert.CollectT) {
		assert.Empty(c, processesOf(r.temp))
		left, err := filepath.Glob(filepath.Join(r.temp, "*"))
		require.NoError(c, err)
		assert.Empty(c, left)
	}, patience, 20*time.Millisecond)
}

// processesOf returns the command lines of processes that have a directory in their environment.
func processesOf(directory string) []string {
	var lines []string
	all, _ := filepath.Glob("/proc/[0-9]*") // the pattern is valid
	for _, path := range all {
		environ, err := os.ReadFile(filepath.Join(path, "environ"))
		if err == nil && strings.Contains(string(environ), directory) {
			line, _ := os.ReadFile(filepath.Join(path, "cmdline")) // it may have ended
			lines = append(lines, filepath.Base(path)+" "+strings.ReplaceAll(string(line), "\x00", " "))
		}
	}
	return lines
}

// agentOf returns the process id of the agent of a machine.
func (r *runTest) agentOf(machine string) int {
	r.Helper()
	for _, line := range processesOf(r.temp) {
		if id, _, _ := strings.Cut(line, " "); strings.Contains(line, " agent ") && strings.Contains(line, "--name "+machine+" ") {
			var pid int
			require.NoError(r.T, json.Unmarshal([]byte(id), &pid))
			return pid
		}
	}
	require.Fail(r.T, "no agent of "+machine, processesOf(r.temp))
	return 0
}

// has waits until the run has printed a text.
func (r *runTest) has(p *process, text string) {
	r.Helper()
	require.Eventually(r.T, func() bool { return strings.Contains(p.stdout.String()+p.stderr.String(), text) }, patience, 10*time.Millisecond,
		"%s is not printed", text)
}

// ended waits until the run has ended, and returns its exit code.
func (r *runTest) ended(p *process) int {
	r.Helper()
	select {
	case <-p.ended:
	case <-time.After(patience):
		require.Fail(r.T, "it does not end")
	}
	return p.ProcessState.ExitCode()
}

func TestRunEndsWithItsProgramsExitCode(t *testing.T) {
	r := newRunTest(t)
	run := r.start("--group", "trainers:machines=1,cpus=1,label.role=trainer", "--group", "workers:machines=2,licence=2", "--",
		"sh", "-c", "raylink machines -o json; raylink tree; exit 7")
	assert.Equal(t, 7, r.ended(run))
	for _, want := range []string{
		"workers-1 has joined: ", "(3 of 3)", `"name":"trainers-0"`, `"labels":{"group":"trainers", "role":"trainer"}`, `"licence":"2000"`, "machine-2",
	} {
		assert.Contains(t, strings.ReplaceAll(run.stdout.String()+run.stderr.String(), `","role`, `", "role`), want)
	}
	r.nothingIsLeft()
}

func TestNothingIsLeftOfARunWhoseHeadWasKilled(t *testing.T) {
	r := newRunTest(t)
	run := r.start("--machines", "2", "--", "sh", "-c", "raylink machines; echo begun; exec sleep 600")
	r.has(run, "begun")
	for _, line := range processesOf(r.temp) {
		assert.NotContains(t, line, "rl1.", "a secret is no argument")
	}
	run.end(syscall.SIGKILL)
	require.EventuallyWithT(t, func(c *assert.CollectT) { assert.Empty(c, processesOf(r.temp)) }, patience, 20*time.Millisecond)
}

func TestInterruptedRunStopsInOrder(t *testing.T) {
	r := newRunTest(t)
	saved := filepath.Join(t.TempDir(), "saved")
	run := r.start("--checkpoint", "raylink tree > "+saved, "--", "sh", "-c", `trap 'echo stopped; exit 5' TERM; echo begun; while :; do sleep 0.05; done`)
	r.has(run, "begun")
	require.NoError(t, run.Process.Signal(syscall.SIGINT))
	assert.Equal(t, 5, r.ended(run))
	assert.Contains(t, run.stdout.String(), "stopped", "the program could end in order")
	tree, err := os.ReadFile(saved)
	require.NoError(t, err)
	assert.Contains(t, string(tree), "machine-0", "the checkpoint ran while the system was there")
	r.nothingIsLeft()
}

func TestSecondInterruptEndsARunAtOnce(t *testing.T) {
	r := newRunTest(t)
	run := r.start("--", "sh", "-c", `trap '' TERM; echo begun; while :; do sleep 0.05; done`)
	r.has(run, "begun")
	require.NoError(t, run.Process.Signal(syscall.SIGTERM))
	r.has(run, "the run stops in order")
	require.NoError(t, run.Process.Signal(syscall.SIGTERM))
	r.ended(run)
	require.EventuallyWithT(t, func(c *assert.CollectT) { assert.Empty(c, processesOf(r.temp)) }, patience, 20*time.Millisecond)
}

func TestLostMachineEndsTheRunOrIsReplaced(t *testing.T) {
	for name, restarts := range map[string]string{"ends": "0", "replaced": "1"} {
		t.Run(name, func(t *testing.T) {
			r := newRunTest(t)
			run := r.start("--machines", "2", "--restart-machines", restarts, "--", "sh", "-c", "echo begun; exec sleep 600")
			r.has(run, "begun")
			require.NoError(t, syscall.Kill(r.agentOf("machines-1"), syscall.SIGKILL))
			if restarts == "0" {
				assert.Equal(t, exitFailed, r.ended(run))
				assert.Contains(t, run.stderr.String(), "raylink: the machine machines-1 is lost: its agent has ended: it was ended by a signal: killed")
			} else {
				r.has(run, "machines-1 is lost: its agent has ended: it was ended by a signal: killed; it is asked for again")
				r.has(run, "machines-1 has left")
				require.Eventually(t, func() bool { return strings.Count(run.stderr.String(), "machines-1 has joined") == 2 }, patience, 10*time.Millisecond)
				assert.Equal(t, 128+int(syscall.SIGTERM), run.end(syscall.SIGTERM).ExitCode())
			}
			r.nothingIsLeft()
		})
	}
}

func TestDetachedRun(t *testing.T) {
	r := newRunTest(t)
	type listed struct {
		Runs []struct {
			ID    string `json:"id"`
			State string `json:"state"`
		} `json:"runs"`
	}
	states := func() map[string]string {
		stdout, stderr, exit := r.raylink("runs", "-o", "json")
		require.Zero(t, exit, stderr)
		var all listed
		require.NoError(t, json.Unmarshal([]byte(stdout), &all))
		states := make(map[string]string)
		for _, run := range all.Runs {
			states[run.ID] = run.State
		}
		return states
	}
	detach := func(script string) string {
		stdout, stderr, exit := r.raylink("run", "--detach", "--machines", "2", "--", "sh", "-c", script)
		require.Zero(t, exit, stderr)
		return strings.TrimSpace(stdout)
	}
	one := detach("echo hello; while test ! -e " + filepath.Join(r.temp, "go") + "; do sleep 0.05; done; exit 3")
	assert.Equal(t, map[string]string{one: "running"}, states())
	attached := background(t, r.env, filepath.Join(program, "raylink"), "attach", one)
	r.has(attached, "hello")
	require.NoError(t, os.WriteFile(filepath.Join(r.temp, "go"), nil, 0o600))
	assert.Equal(t, 3, r.ended(attached))
	assert.Contains(t, attached.stdout.String(), "(2 of 2)")
	require.NoError(t, os.Remove(filepath.Join(r.temp, "go")))

	two := detach("exec sleep 600")
	stdout, stderr, exit := r.raylink("stop", two)
	require.Zero(t, exit, stderr)
	assert.Equal(t, two+": ended\n", stdout)
	three := detach("exec sleep 600")
	_, stderr, exit = r.raylink("stop", "--now", three)
	require.Zero(t, exit, stderr)
	assert.Equal(t, map[string]string{one: "ended", two: "ended", three: "vanished"}, states())
	_, stderr, exit = r.raylink("attach", three)
	assert.Equal(t, exitFailed, exit)
	assert.Contains(t, stderr, "has vanished: its head was killed")
	require.EventuallyWithT(t, func(c *assert.CollectT) { assert.Empty(c, processesOf(r.temp)) }, patience, 20*time.Millisecond)
}

func TestRunRefusals(t *testing.T) {
	r := newRunTest(t)
	for _, c := range []struct {
		args []string
		exit int
		want string
	}{
		{[]string{"sh"}, exitUsage, "stands after --"},
		{[]string{"--on", "nomad", "--", "true"}, exitUsage, `there is no engine "nomad"; the engines are local, slurm, ray, kubernetes`},
		{[]string{"--", "no-such-program"}, exitFailed, `exec: "no-such-program": executable file not found in $PATH`},
		{[]string{"--cpus", "4096", "--", "true"}, exitFailed, "local: the group machines asks for cpu=4096 on each machine, and this machine has "},
		{[]string{"--group", "a", "--group", "a:cpus=1", "--", "true"}, exitUsage, "two groups with the name a"},
		{[]string{"--group", "A:cpus=1", "--", "true"}, exitUsage, "lower-case letters"},
		{[]string{"--group", "a:machine=2", "--", "true"}, exitUsage, "machines is meant"},
		{[]string{"--group", "a:machines=8000", "--group", "b:machines=8000", "--", "true"}, exitUsage, "there are 16000 machines: at most 8192"},
		{[]string{"--machines", "0", "--", "true"}, exitUsage, "it must be from 1 to 8192"},
		{[]string{"--machines", "9000", "--", "true"}, exitUsage, "it must be from 1 to 8192"},
		{[]string{"--restart-machines", "-1", "--", "true"}, exitUsage, "it must not be negative"},
		{[]string{"--join-timeout", "0s", "--", "true"}, exitUsage, "it must be positive"},
		{[]string{"--detach", "--gpus", "4096", "--", "true"}, exitFailed, "asks for gpu=4096"},
		{[]string{"--listen", "127.0.0.1:x", "--", "true"}, exitFailed, "raylink: starting Brain: listening on 127.0.0.1:x: "},
		{[]string{"--join-timeout", "1ns", "--machines", "2", "--", "true"}, exitFailed, "machines-0, machines-1 did not join within 1ns"},
	} {
		_, stderr, exit := r.raylink(append([]string{"run"}, c.args...)...)
		assert.Equal(t, c.exit, exit, "%v: %s", c.args, stderr)
		assert.Contains(t, stderr, c.want, "%v", c.args)
	}
	for _, command := range []string{"attach", "stop"} {
		_, stderr, exit := r.raylink(command, "nosuchid")
		assert.Equal(t, exitUsage, exit)
		assert.Contains(t, stderr, `there is no run "nosuchid"; see raylink runs`)
	}
	r.nothingIsLeft()
}

func TestDryRunPrintsWhatWouldBeStarted(t *testing.T) {
	r := newRunTest(t)
	stdout, stderr, exit := r.raylink("run", "--dry-run", "--group", "workers:machines=2,cpus=0.5", "--", "true", "--workers", "4")
	require.Zero(t, exit, stderr)
	path, err := exec.LookPath("true")
	require.NoError(t, err)
	assert.Equal(t, `raylink brain --attached --listen 127.0.0.1:0
raylink agent --attached --brain BRAIN --listen 127.0.0.1:0 --name workers-0 --label group=workers --resources cpu=0.5
raylink agent --attached --brain BRAIN --listen 127.0.0.1:0 --name workers-1 --label group=workers --resources cpu=0.5
RAYLINK_BRAIN=BRAIN `+path+` --workers 4
`, stdout)
	r.nothingIsLeft()
}
