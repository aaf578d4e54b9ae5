// Package slurmtest makes a Slurm cluster of real daemons for tests: munged, slurmctld and a slurmd
// for each of its nodes, which all are this machine under other names. Only tests import it.
//
// A test is skipped where the cluster can't be made; where the environment variable
// RAYLINK_TEST_SLURM is "required", it fails instead. It takes Linux, and Debian's packages
// slurm-wlm and munge (`make slurm`).
package slurmtest

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink/internal/proctest"
)

// requirement is the variable of the environment by which the cluster is required.
const requirement = "RAYLINK_TEST_SLURM"

// CPUs is how many processors each node has, whatever this machine has.
const CPUs = 2

// Cluster is a Slurm cluster. Its nodes are n0, n1, ….
type Cluster struct {
	// Shared is an empty directory for the jobs of tests, as one that all nodes share.
	Shared string

	t       testing.TB
	dir     string
	daemons []*exec.Cmd
	slurmds []*exec.Cmd // by node; they are daemons, too
	unguard func()
}

// New makes a cluster that ends with the test.
func New(t testing.TB, nodes int) *Cluster {
	t.Helper()
	for _, program := range []string{"munged", "slurmctld", "slurmd", "srun", "sbatch"} {
		if _, err := lookPath(program); err != nil {
			refuse(t, fmt.Errorf("%w (`make slurm` installs Debian's packages, as root)", err))
		}
	}
	dir := proctest.Directory(t, "rl-slurm-")
	c := &Cluster{Shared: filepath.Join(dir, "shared"), t: t, dir: dir}
	t.Cleanup(c.end)
	if err := c.start(nodes); err != nil {
		c.log()
		refuse(t, err)
	}
	return c
}

func refuse(t testing.TB, reason error) {
	t.Helper()
	if os.Getenv(requirement) == "required" {
		require.FailNow(t, fmt.Sprintf("there is no Slurm cluster for this test, and this environment requires one (%s): %v", requirement, reason))
	}
	t.Skipf("skipped: there is no Slurm cluster for this test: %v", reason)
}

// lookPath finds a program; daemons are in directories that a user's PATH may lack.
func lookPath(program string) (string, error) {
	path, err := exec.LookPath(program)
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if err != nil {
			path, err = exec.LookPath(filepath.Join(dir, program))
		}
	}
	return path, err
}

// start writes the configuration, and starts the daemons.
func (c *Cluster) start(nodes int) error {
	for _, d := range []string{"shared", "tmp", "munge", "state"} {
		if err := os.Mkdir(filepath.Join(c.dir, d), 0o700); err != nil {
			return err
		}
	}
	key := make([]byte, 128)
	if _, err := rand.Read(key); err != nil {
		return err
	}
	if err := os.WriteFile(c.path("munge/key"), key, 0o600); err != nil {
		return err
	}
	configuration, err := c.configuration(nodes)
	if err != nil {
		return err
	}
	if err := os.WriteFile(c.path("slurm.conf"), []byte(configuration), 0o600); err != nil {
		return err
	}
	munge := []string{"--foreground", "--force"}
	for _, file := range []string{"key-file=key", "socket=s", "pid-file=pid", "log-file=log", "seed-file=seed"} {
		option, name, _ := strings.Cut(file, "=")
		munge = append(munge, "--"+option+"="+c.path("munge/"+name))
	}
	if err := c.daemon("munged", munge...); err != nil {
		return err
	}
	if err := c.await("munge", "munge", "--socket="+c.path("munge/s"), "--no-input"); err != nil {
		return err
	}
	if err := c.daemon("slurmctld", "-D", "-i"); err != nil {
		return err
	}
	for i := range nodes {
		if err := c.daemon("slurmd", "-D", "-N", Node(i)); err != nil {
			return err
		}
		c.slurmds = append(c.slurmds, c.daemons[len(c.daemons)-1])
	}
	if err := c.guard(); err != nil {
		return err
	}
	return c.awaitIdle()
}

// awaitIdle waits until all nodes are idle.
func (c *Cluster) awaitIdle() error {
	idle := fmt.Sprintf(`test "$(sinfo --noheader --partition=main --states=idle --format=%%D)" = %d`, len(c.slurmds))
	return c.await("the nodes", "sh", "-c", idle)
}

// KillSteps kills the daemons of the steps on a node (slurmstepd), and nothing else there.
func (c *Cluster) KillSteps(t testing.TB, node int) {
	t.Helper()
	steps := make(map[int]bool)
	for pid := range c.Processes("SLURMD_NODENAME=" + Node(node) + "\x00") {
		if p := parent(pid); strings.HasPrefix(title(p), "slurmstepd: ") {
			steps[p] = true
		}
	}
	require.NotEmpty(t, steps, "there are no steps on the node %s", Node(node))
	for pid := range steps {
		proctest.Kill(t, pid)
	}
}

// KillNode kills all that runs on a node, Slurm's own daemon first, as the loss of a machine does.
// The function that it returns has Slurm declare the node dead, as it does itself after its
// SlurmdTimeout, and starts it again.
func (c *Cluster) KillNode(t testing.TB, node int) (replace func()) {
	t.Helper()
	slurmd := c.slurmds[node]
	require.NoError(t, slurmd.Process.Kill())
	_ = slurmd.Wait() // it was killed
	c.KillSteps(t, node)
	// No process has time to report the end of its child.
	for _, pid := range slices.Sorted(maps.Keys(c.Processes("SLURMD_NODENAME=" + Node(node) + "\x00"))) {
		_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended
	}
	return func() {
		t.Helper()
		c.Must("scontrol", "update", "NodeName="+Node(node), "State=DOWN", "Reason=killed")
		c.daemons = slices.DeleteFunc(c.daemons, func(d *exec.Cmd) bool { return d == slurmd })
		require.NoError(t, c.daemon("slurmd", "-D", "-N", Node(node)))
		c.slurmds[node] = c.daemons[len(c.daemons)-1]
		c.unguard()
		require.NoError(t, c.guard())
		c.Must("scontrol", "update", "NodeName="+Node(node), "State=RESUME")
		require.NoError(t, c.awaitIdle())
	}
}

// parent returns the parent of a process, or 0.
func parent(pid int) int {
	stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)) // it may have ended
	_, after, _ := strings.Cut(string(stat), ") ")
	fields := strings.Fields(after)
	if len(fields) < 2 || fields[0] == "Z" {
		return 0
	}
	id, _ := strconv.Atoi(fields[1])
	return id
}

// title returns the command line of a process.
func title(pid int) string {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)) // it may have ended
	return strings.ReplaceAll(string(text), "\x00", " ")
}

// Node is the name of a node.
func Node(i int) string { return "n" + strconv.Itoa(i) }

func (c *Cluster) path(name string) string { return filepath.Join(c.dir, name) }

// configuration is slurm.conf: https://slurm.schedmd.com/slurm.conf.html.
func (c *Cluster) configuration(nodes int) (string, error) {
	me, err := user.Current()
	if err != nil {
		return "", err
	}
	host, err := os.Hostname()
	if err != nil {
		return "", err
	}
	port := func() string {
		_, port, err := net.SplitHostPort(proctest.FreeAddress(c.t))
		require.NoError(c.t, err)
		return port
	}
	var b strings.Builder
	for _, line := range []string{
		"ClusterName=raylink", "SlurmctldHost=" + host + "(127.0.0.1)", "SlurmctldPort=" + port(),
		"SlurmUser=" + me.Username, "SlurmdUser=" + me.Username,
		"AuthType=auth/munge", "AuthInfo=socket=" + c.path("munge/s"),
		"StateSaveLocation=" + c.path("state"), "SlurmdSpoolDir=" + c.path("spool-%n"),
		"SlurmctldPidFile=" + c.path("slurmctld.pid"), "SlurmdPidFile=" + c.path("slurmd-%n.pid"),
		"SlurmctldLogFile=" + c.path("slurmctld.log"), "SlurmdLogFile=" + c.path("slurmd-%n.log"),
		// Several slurmds share this machine, and what they have is what the configuration says.
		"SlurmdParameters=config_overrides", "ProctrackType=proctrack/linuxproc", "TaskPlugin=task/none",
		"SelectType=select/cons_tres", "SelectTypeParameters=CR_CPU_Memory", "SwitchType=switch/none", "MpiDefault=none",
		"AccountingStorageType=accounting_storage/none", "JobAcctGatherType=jobacct_gather/none", "JobCompType=jobcomp/none",
		// Tests wait for the scheduler.
		"DefMemPerCPU=500", "SchedulerParameters=sched_interval=1,sched_min_interval=0,bf_interval=1,batch_sched_delay=0",
		"KillWait=2", "MessageTimeout=3", "ReturnToService=2", "SlurmctldTimeout=30", "SlurmdTimeout=30",
		"PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP",
		"PartitionName=small Nodes=ALL MaxNodes=1 MaxTime=10 MaxMemPerNode=1000 State=UP",
		"PartitionName=closed Nodes=ALL AllowAccounts=friends State=UP",
	} {
		fmt.Fprintln(&b, line)
	}
	for i := range nodes {
		fmt.Fprintf(&b, "NodeName=%s NodeHostname=%s NodeAddr=%s Port=%s CPUs=%d RealMemory=4000 State=UNKNOWN\n", Node(i), host, address(), port(), CPUs)
	}
	return b.String(), nil
}

// address is an address of this machine beyond loopback, as the nodes of a cluster have, if there
// is one.
func address() string {
	all, _ := net.InterfaceAddrs()
	for _, a := range all {
		if n, ok := a.(*net.IPNet); ok && n.IP.IsGlobalUnicast() && n.IP.To4() != nil {
			return n.IP.String()
		}
	}
	return "127.0.0.1"
}

// Env is the environment of the cluster's users.
func (c *Cluster) Env(more ...string) []string {
	env := make([]string, 0, len(os.Environ()))
	for _, entry := range os.Environ() {
		if !strings.HasPrefix(entry, "RAYLINK_") && !strings.HasPrefix(entry, "SLURM_") {
			env = append(env, entry)
		}
	}
	env = append(env, "SLURM_CONF="+c.path("slurm.conf"), "TMPDIR="+c.path("tmp"), "RAYLINK_DATA="+c.path("data"), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	return append(env, more...)
}

// guard starts a process that kills the daemons when this one dies without ending them.
func (c *Cluster) guard() error {
	args := make([]string, 0, 3+len(c.daemons))
	args = append(args, "-c", `cat > /dev/null; kill -9 "$@"`, "guard")
	for _, d := range c.daemons {
		args = append(args, strconv.Itoa(d.Process.Pid))
	}
	guard := exec.Command("sh", args...) //nolint:noctx // it ends with this process
	guard.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	in, err := guard.StdinPipe()
	if err != nil {
		return err
	}
	if err := guard.Start(); err != nil {
		return err
	}
	c.unguard = func() {
		_ = guard.Process.Kill() // before its input ends
		_ = guard.Wait()
		_ = in.Close()
	}
	return nil
}

// daemon starts a daemon.
func (c *Cluster) daemon(program string, args ...string) error {
	path, err := lookPath(program)
	if err != nil {
		return err
	}
	cmd := exec.Command(path, args...) //nolint:noctx // it is ended in order
	cmd.Env = c.Env()
	cmd.Dir = c.dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is for the test, which ends it
	if err := cmd.Start(); err != nil {
		return err
	}
	c.daemons = append(c.daemons, cmd)
	return nil
}

// await runs a command until it succeeds.
func (c *Cluster) await(what, name string, args ...string) error {
	for begin := time.Now(); ; proctest.Pause(50 * time.Millisecond) {
		out, err := c.command(name, args...).CombinedOutput()
		if err == nil {
			return nil
		}
		if time.Since(begin) > proctest.Patience {
			return fmt.Errorf("%s did not begin to serve within %v: %w: %s", what, proctest.Patience, err, bytes.TrimSpace(out))
		}
	}
}

func (c *Cluster) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...) //nolint:noctx // it ends with the cluster
	cmd.Env = c.Env()
	return cmd
}

// Command makes a command of the cluster's user in the shared directory.
func (c *Cluster) Command(name string, args ...string) *exec.Cmd {
	cmd := c.command(name, args...)
	cmd.Dir = c.Shared
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return cmd
}

// Must runs a command, which must succeed, and returns its output.
func (c *Cluster) Must(name string, args ...string) string {
	c.t.Helper()
	out, err := c.Command(name, args...).CombinedOutput()
	require.NoError(c.t, err, "%s %s: %s", name, strings.Join(args, " "), out)
	return string(out)
}

// Processes returns the processes of jobs, and what the test has started of the cluster's user, by
// id: those that are no daemons and have a text in their environment.
func (c *Cluster) Processes(text string) map[int]string {
	daemons := make(map[int]bool)
	for _, d := range c.daemons {
		daemons[d.Process.Pid] = true
	}
	found := make(map[int]string)
	files, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, file := range files {
		env, err := os.ReadFile(file)
		if err != nil || !bytes.Contains(env, []byte(c.dir+"/")) || !bytes.Contains(env, []byte(text)) {
			continue
		}
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		by := parent(pid)
		if by == 0 || daemons[pid] {
			continue
		}
		name := title(pid)
		if daemons[by] && strings.HasSuffix(strings.TrimSpace(name), "slurmscriptd") {
			continue
		}
		found[pid] = name
	}
	return found
}

// NothingIsLeft fails the test unless all jobs, their processes and their files end soon.
func (c *Cluster) NothingIsLeft(t testing.TB) {
	t.Helper()
	var jobs string
	var processes map[int]string
	var files []string
	for begin := time.Now(); time.Since(begin) < proctest.Patience; proctest.Pause(50 * time.Millisecond) {
		out, _ := c.Command("squeue", "--noheader").CombinedOutput()
		jobs, processes, files = string(out), c.Processes(""), nil
		for _, pattern := range []string{"shared/*", "shared/.*", "tmp/*"} {
			found, _ := filepath.Glob(c.path(pattern))
			files = append(files, found...)
		}
		if jobs == "" && len(processes)+len(files) == 0 {
			return
		}
	}
	assert.Empty(t, jobs, "a job is left")
	assert.Empty(t, processes, "processes are left")
	assert.Empty(t, files, "files are left")
}

// end cancels what is left, and ends the daemons.
func (c *Cluster) end() {
	if c.t.Failed() {
		c.log()
	}
	if len(c.daemons) > 1 {
		ctx, cancel := context.WithTimeout(context.Background(), proctest.Patience)
		defer cancel()
		cancelAll := exec.CommandContext(ctx, "sh", "-c", `scancel --full --signal=KILL --user="$(id -un)"; scancel --user="$(id -un)"`)
		cancelAll.Env = c.Env()
		_ = cancelAll.Run() // there may be none
	}
	if c.unguard != nil {
		c.unguard()
	}
	for len(c.daemons) > 0 {
		d := c.daemons[len(c.daemons)-1]
		c.daemons = c.daemons[:len(c.daemons)-1]
		ended := make(chan struct{})
		go func() {
			_ = d.Wait() // it gets a signal
			close(ended)
		}()
		_ = d.Process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(proctest.Patience):
			assert.NoError(c.t, errors.Join(errors.New("a daemon does not end: "+d.Path), d.Process.Kill()))
			<-ended
		}
	}
}

// log shows the ends of the daemons' logs.
func (c *Cluster) log() {
	files, _ := filepath.Glob(c.path("*.log"))
	for _, file := range files {
		text, _ := os.ReadFile(file)
		const most = 2000
		c.t.Logf("%s:\n%s", filepath.Base(file), text[max(0, len(text)-most):])
	}
}
