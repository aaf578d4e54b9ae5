package storagetest

import (
	"bytes"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/pprof"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink/internal/proctest"
)

// usage is what a storage's process has.
type usage struct {
	goroutines int
	// stacks are those of the goroutines, names those of the files.
	stacks string
	names  []string
	// files are the open files, but those of the storage's data, of which Pebble has as many as it
	// needs. locks are those on files.
	files, locks int
}

// goroutineFile is the file in which a process writes its goroutines when it gets SIGUSR1.
func goroutineFile(dir string, pid int) string {
	return filepath.Join(dir, fmt.Sprint("goroutines.", pid))
}

// writeGoroutines writes the goroutines of this process at each SIGUSR1.
func writeGoroutines() {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGUSR1)
	for range signals {
		var stacks bytes.Buffer
		_ = pprof.Lookup("goroutine").WriteTo(&stacks, 2) // a buffer does not fail
		name := goroutineFile(filepath.Dir(os.Getenv("RAYLINK_RUNTIME_DIR")), os.Getpid())
		if err := os.WriteFile(name+".new", stacks.Bytes(), 0o600); err == nil {
			_ = os.Rename(name+".new", name) // the test waits for it
		}
	}
}

// usage returns what the storage's process has now.
func (s *system) usage(pid int) (u usage) {
	s.t.Helper()
	file := goroutineFile(s.dir, pid)
	require.NoError(s.t, syscall.Kill(pid, syscall.SIGUSR1))
	for begin := time.Now(); ; proctest.Pause(proctest.Poll) {
		stacks, err := os.ReadFile(file)
		if err == nil {
			u.stacks = string(stacks)
			break
		}
		require.Less(s.t, time.Since(begin), proctest.Patience, "process %d does not write its goroutines: %v", pid, err)
	}
	require.NoError(s.t, os.Remove(file))
	for stack := range strings.SplitSeq(u.stacks, "\n\n") {
		// Pebble compacts when it has something to do.
		if strings.HasPrefix(stack, "goroutine ") && !strings.Contains(stack, "pebble/v2.(*DB).compact") {
			u.goroutines++
		}
	}
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	require.NoError(s.t, err)
	for _, link := range links {
		if name, err := os.Readlink(link); err == nil && !strings.HasPrefix(name, filepath.Join(s.data(), "storage")+"/") {
			u.files++
			u.names = append(u.names, name)
		}
	}
	locks, err := os.ReadFile("/proc/locks")
	require.NoError(s.t, err)
	for line := range strings.Lines(string(locks)) {
		if fields := strings.Fields(line); len(fields) > 4 && fields[4] == strconv.Itoa(pid) {
			u.locks++
		}
	}
	return u
}

// connections are how many more connections to other processes there can be than before the load:
// Brain and a worker open them when they need them. Hundreds of calls and dozens of streams have
// ended by then.
const connections = 4

// checkUsage waits until the storage's process has no more than it had before the load.
func (l *load) checkUsage() {
	l.t.Helper()
	pid := l.watching[0].storage()
	var u usage
	for begin := time.Now(); time.Since(begin) < proctest.Patience; proctest.Pause(20 * proctest.Poll) {
		u = l.usage(pid)
		if u.goroutines <= l.before.goroutines+connections && u.files <= l.before.files+connections && u.locks == l.before.locks {
			return
		}
	}
	require.Failf(l.t, "the storage has more than before the load",
		"goroutines %d, were %d; files %d, were %d; locks %d, were %d\n%q, were\n%q\n%s",
		u.goroutines, l.before.goroutines, u.files, l.before.files, u.locks, l.before.locks, u.names, l.before.names, u.stacks)
}

// The counts notice what is left.
func TestUsageCountsWhatIsOpen(t *testing.T) {
	s := newSystem(t, "async")
	p := s.worker()
	pid := p.storage()
	before := s.usage(pid)
	require.Positive(t, before.goroutines)
	require.Positive(t, before.locks, "the lock of the directory")
	for range 5 {
		p.Must(order{Do: "watch", Key: ""})
	}
	for begin := time.Now(); s.usage(pid).goroutines < before.goroutines+5; proctest.Pause(proctest.Poll) {
		require.Less(t, time.Since(begin), proctest.Patience, "watchers are not counted")
	}
}
