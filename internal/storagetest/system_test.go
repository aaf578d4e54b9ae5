package storagetest

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

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
	*proctest.Worker[order, answer]

	t *testing.T
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
		p.Must(order{Do: "status"})
	}
	return all
}

// worker starts a process that joins.
func (s *system) worker() *process {
	s.t.Helper()
	return &process{t: s.t, Worker: proctest.StartWorker[order](s.t, "worker", s.command(workerRole), s.history.add)}
}

// storage returns the process of the storage, as the worker sees it.
func (p *process) storage() int {
	p.t.Helper()
	return p.Eventually(proctest.Patience, order{Do: "info"}, func(a answer) bool { return a.Error == "" && a.PID != 0 }, "no storage").PID
}
