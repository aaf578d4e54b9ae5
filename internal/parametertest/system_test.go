package parametertest

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink/internal/proctest"
)

// system is a Brain in a process of its own, its supervised captain, and machines.
type system struct {
	t       *testing.T
	dir     string
	address string
	brain   *proctest.Process
	history *history
}

// home is the machine of Brain and of the captain.
const home = "home"

// process is a process that executes orders.
type process struct {
	*proctest.Worker[order, answer]

	t       *testing.T
	machine string
}

// newSystem starts a Brain, and returns when its captain is up.
func newSystem(t *testing.T) *system {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("this test needs /proc")
	}
	dir := proctest.Directory(t, "rlps")
	s := &system{t: t, dir: dir, history: newHistory(t), address: proctest.FreeAddress(t)}
	s.startBrain()
	return s
}

// startBrain starts a Brain, and returns when it serves.
func (s *system) startBrain() {
	s.t.Helper()
	s.brain = proctest.StartServing(s.t, "Brain", s.command(brainRole, home))
}

// command makes a command for a process of a machine. Each machine has directories of its own.
func (s *system) command(what, machine string) *exec.Cmd {
	cmd := proctest.Command(role+"="+what,
		"RAYLINK_BRAIN="+s.address, listen+"="+s.address, "RAYLINK_TOKEN=parameters", "RAYLINK_MACHINE="+machine,
		"RAYLINK_DATA="+s.data(machine), "RAYLINK_RUNTIME_DIR="+filepath.Join(s.dir, machine, "r"))
	if os.Getenv("RAYLINK_LOG") == "" {
		cmd.Env = append(cmd.Env, "RAYLINK_LOG=error") // deaths are expected
	}
	cmd.Stderr = os.Stderr
	return cmd
}

// data is the data directory of a machine.
func (s *system) data(machine string) string { return filepath.Join(s.dir, machine, "d") }

// machine starts a process on a machine, with a client of the captain, and returns when it serves.
func (s *system) machine(name string) *process {
	s.t.Helper()
	p := s.joiner(name)
	p.Must(order{Do: "open"})
	return p
}

// machines starts a process on each of several machines.
func (s *system) machines(names ...string) []*process {
	s.t.Helper()
	all := make([]*process, len(names))
	for i, name := range names {
		all[i] = s.joiner(name)
	}
	for _, p := range all {
		p.Must(order{Do: "open"})
	}
	return all
}

// joiner starts a process on a machine.
func (s *system) joiner(name string) *process {
	s.t.Helper()
	return &process{t: s.t, machine: name, Worker: proctest.StartWorker[order](s.t, name, s.command(machineRole, name), s.history.add)}
}

// captain returns the process of the captain, as the machine sees it.
func (p *process) captain() int {
	p.t.Helper()
	return p.Eventually(proctest.Patience, order{Do: "captain"}, func(a answer) bool { return a.Error == "" && a.PID != 0 }, "no captain").PID
}

// files returns the sizes of the files of parameters on a machine, by path.
func (s *system) files(machine string) map[string]int64 {
	found := make(map[string]int64)
	_ = filepath.WalkDir(s.data(machine), func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil //nolint:nilerr // it was removed meanwhile
		}
		if ext := filepath.Ext(path); ext == ".params" || ext == ".draft" {
			if info, err := d.Info(); err == nil {
				found[strings.TrimPrefix(path, s.data(machine))] = info.Size()
			}
		}
		return nil
	})
	return found
}

// awaitFiles waits until the files of parameters on a machine are as expected.
func (s *system) awaitFiles(machine string, limit time.Duration, what string, ok func(map[string]int64) bool) {
	s.t.Helper()
	begin := time.Now()
	for !ok(s.files(machine)) {
		if time.Since(begin) > limit {
			require.Fail(s.t, what, "on %s within %v: %v", machine, limit, s.files(machine))
		}
		proctest.Pause(proctest.Poll)
	}
}
