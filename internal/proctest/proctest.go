// Package proctest starts, kills, stops and collects the processes of a test, which are the test's
// own binary in other roles. Only tests import it.
package proctest

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
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const (
	// Patience bounds what a test waits for. Reaching it is a failure.
	Patience = 30 * time.Second
	// Poll is the pause between two checks of a condition.
	Poll = 5 * time.Millisecond
)

// Process is a child of the test. It ends with its input, at the latest when the test has died.
type Process struct {
	// Name is its name in messages.
	Name string
	// Input is its standard input.
	Input io.Writer

	t     testing.TB
	cmd   *exec.Cmd
	in    io.Closer
	ended chan struct{} // closed after Wait
	err   error         // of Wait; set before ended is closed
	// rough is set if the process was killed: its end is not checked.
	rough atomic.Bool
}

// Command makes a command for the test's binary, with variables in its environment. A process that
// is stopped is in a group of its own, so that it continues if the test dies.
func Command(env ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0]) //nolint:gosec,noctx // the test itself, which ends with its input
	cmd.Env = append(os.Environ(), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return cmd
}

// Start starts a process. read gets its output; the end of the process is collected when it has
// returned. The process is ended at the end of the test.
func Start(t testing.TB, cmd *exec.Cmd, read func(p *Process, out io.Reader)) *Process {
	t.Helper()
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	p := &Process{
		Name: fmt.Sprint("process ", cmd.Process.Pid), Input: in, t: t, cmd: cmd, in: in, ended: make(chan struct{}),
	}
	t.Cleanup(p.End)
	go func() {
		read(p, out)
		p.err = cmd.Wait()
		close(p.ended)
	}()
	return p
}

// StartServing starts a process that prints a line once it serves, and nothing after it.
func StartServing(t testing.TB, name string, cmd *exec.Cmd) *Process {
	t.Helper()
	lines := make(chan string, 1)
	p := Start(t, cmd, func(_ *Process, out io.Reader) {
		line, err := bufio.NewReader(out).ReadString('\n')
		if err != nil {
			line = err.Error()
		}
		lines <- strings.TrimSpace(line)
	})
	p.Name = name
	require.Equal(t, "serving", <-lines, "the output of %s", name)
	return p
}

// PID returns the process's id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Ended returns a channel that is closed after the process's end.
func (p *Process) Ended() <-chan struct{} { return p.ended }

// Err returns how the process has ended. It must have.
func (p *Process) Err() error { return p.err }

// Kill kills the process, and waits for its end.
func (p *Process) Kill() {
	p.t.Helper()
	p.rough.Store(true)
	require.NoError(p.t, p.cmd.Process.Kill())
	<-p.ended
}

// Stop stops the process, and Resume continues it.
func (p *Process) Stop() {
	p.t.Helper()
	Stop(p.t, p.PID())
}

// Resume continues the process.
func (p *Process) Resume() {
	p.t.Helper()
	require.NoError(p.t, p.cmd.Process.Signal(syscall.SIGCONT))
}

// End ends the process gracefully, and checks that it ended well.
func (p *Process) End() {
	_ = p.in.Close()
	select {
	case <-p.ended:
	case <-time.After(Patience):
		_ = p.cmd.Process.Kill()
		<-p.ended
		assert.Fail(p.t, "a process did not end", p.Name)
	}
	if !p.rough.Load() {
		assert.NoError(p.t, p.err, "%s", p.Name)
	}
}

// Kill kills a process, if it still exists.
func Kill(t testing.TB, pid int) {
	t.Helper()
	require.Greater(t, pid, 1)
	if err := syscall.Kill(pid, syscall.SIGKILL); !errors.Is(err, syscall.ESRCH) {
		require.NoError(t, err)
	}
}

// Stop stops a process, and waits until all of its threads have stopped.
func Stop(t testing.TB, pid int) {
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
	for begin := time.Now(); runs(); Pause(time.Millisecond) {
		require.Less(t, time.Since(begin), Patience, "process %d does not stop", pid)
	}
}

// Continue continues a process that was stopped.
func Continue(t testing.TB, pid int) {
	t.Helper()
	require.NoError(t, syscall.Kill(pid, syscall.SIGCONT))
}

// KillLeft kills the processes whose environment names a file in a directory, and returns them. It
// gives them some time to end by themselves.
func KillLeft(dir string) []string {
	left := func() map[int]string {
		found := make(map[int]string)
		files, _ := filepath.Glob("/proc/[0-9]*/environ")
		for _, file := range files {
			env, err := os.ReadFile(file)
			if err != nil || !strings.Contains(string(env), dir+"/") {
				continue
			}
			if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file))); err == nil && pid != os.Getpid() {
				title, _ := os.ReadFile(filepath.Join(filepath.Dir(file), "cmdline"))
				found[pid] = strings.ReplaceAll(string(title), "\x00", " ")
			}
		}
		return found
	}
	for begin := time.Now(); len(left()) > 0 && time.Since(begin) < 5*time.Second; {
		Pause(Poll)
	}
	remaining := left()
	texts := make([]string, 0, len(remaining))
	for pid, title := range remaining {
		texts = append(texts, fmt.Sprint(pid, " ", title))
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	return texts
}

// Directory makes a directory that is removed at the end of the test, after the processes that use
// it. Its path is short, so that those of Unix sockets fit.
func Directory(t testing.TB, prefix string) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", prefix) //nolint:usetesting // see above
	require.NoError(t, err)
	t.Cleanup(func() {
		assert.Empty(t, KillLeft(dir), "processes have outlived the test's")
		assert.NoError(t, os.RemoveAll(dir))
	})
	return dir
}

// FreeAddress returns an address at which a process can listen, and another one after it.
func FreeAddress(t testing.TB) string {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, l.Close())
	return l.Addr().String()
}

// Lines decodes lines of JSON until the end of the input.
func Lines[T any](r io.Reader, handle func(T)) error {
	in := bufio.NewReader(r)
	for {
		line, err := in.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		var v T
		if err := json.Unmarshal(line, &v); err != nil {
			return fmt.Errorf("line %.200q: %w", line, err)
		}
		handle(v)
	}
}

// UntilEnd returns at the end of the input.
func UntilEnd(in io.Reader) { _, _ = io.Copy(io.Discard, in) }

// Pause waits until a moment that is chosen at random, or until a condition is checked again.
func Pause(d time.Duration) { <-time.After(d) }

// Random returns a source of random choices, and logs its seed; 0 chooses one.
func Random(t testing.TB, seed uint64) *rand.Rand {
	t.Helper()
	if seed == 0 {
		seed = rand.Uint64() //nolint:gosec // it is no secret
	}
	t.Logf("-seed=%d", seed)
	return rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // it is to be repeatable
}
