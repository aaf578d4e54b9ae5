package engine

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"time"
)

// Process is a process of a run. It has a process group of its own, so that a Ctrl-C at the
// terminal reaches the head alone, which stops everything in order.
type Process struct {
	cmd     *exec.Cmd
	pipe    pipe
	readers sync.WaitGroup
	done    chan struct{}
	err     error // set before done is closed
}

// killAfter is how long a process may take to stop gracefully: longer than twice the default time
// that nodes have to finish their calls.
const killAfter = 30 * time.Second

// StartAttached starts a program of which [Attach] is a part: it ends when this process does, and
// has the secret by its standard input. Each line of its output is passed to output.
func StartAttached(secret string, env []string, output func(line string), path string, args ...string) (*Process, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer func() { _ = r.Close() }()   // the process has it
	cmd := exec.Command(path, args...) //nolint:noctx // it is stopped by its pipe
	cmd.Env, cmd.Stdin = append(os.Environ(), env...), r
	p := &Process{cmd: cmd, pipe: pipe{w}, done: make(chan struct{})}
	var outputs [2]io.ReadCloser
	if outputs[0], err = cmd.StdoutPipe(); err == nil {
		outputs[1], err = cmd.StderrPipe()
	}
	if err == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		err = cmd.Start()
	}
	if err == nil {
		err = p.pipe.begin(secret)
	}
	if err != nil {
		return nil, errors.Join(err, w.Close())
	}
	for _, from := range outputs {
		p.readers.Go(func() { eachLine(from, output) })
	}
	go p.reap()
	return p, nil
}

// eachLine passes each line to output; a long one in parts.
func eachLine(r io.Reader, output func(line string)) {
	const maxLine = 64 << 10
	for b := bufio.NewReaderSize(r, maxLine); ; {
		line, _, err := b.ReadLine()
		if err != nil {
			return
		}
		output(string(line))
	}
}

// startDriver starts the program of a run, which has this process's standard input and output. On
// Linux the kernel kills it when this process dies.
func startDriver(cmd *exec.Cmd) (*Process, error) {
	p := &Process{cmd: cmd, done: make(chan struct{})}
	started := make(chan error)
	go func() {
		// The kernel sends the signal when the thread ends that has started the process.
		runtime.LockOSThread()
		cmd.SysProcAttr = driverAttributes()
		err := cmd.Start()
		started <- err
		if err == nil {
			p.reap()
		}
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

func (p *Process) reap() {
	p.readers.Wait()
	p.err = p.cmd.Wait()
	if p.pipe.w != nil {
		_ = p.pipe.w.Close() // its reader has ended
	}
	close(p.done)
}

// Send writes a line to the standard input of a process that StartAttached has started.
func (p *Process) Send(line string) error { return p.pipe.begin(line) }

// Done returns a channel that is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Ended says in words how the process has ended, once Done is closed.
func (p *Process) Ended() string {
	if p.err == nil {
		return "it has ended"
	}
	state := p.cmd.ProcessState
	if status, ok := state.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return fmt.Sprintf("it was ended by a signal: %v", status.Signal())
	}
	return "it has failed: " + p.err.Error()
}

// exitCode returns the exit code as a shell reports it: 128 + N after signal N.
func (p *Process) exitCode() int {
	if status, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return 128 + int(status.Signal())
	}
	return p.cmd.ProcessState.ExitCode()
}

// Signal sends a signal to the process's group.
func (p *Process) Signal(s syscall.Signal) {
	select {
	case <-p.done:
	default:
		_ = syscall.Kill(-p.cmd.Process.Pid, s) // it may have ended meanwhile
	}
}

// Stop stops the process gracefully, and kills it when ctx ends or after half a minute. It returns
// once the process has ended.
func (p *Process) Stop(ctx context.Context) {
	if p.pipe.w != nil {
		p.pipe.stop()
	} else {
		p.Signal(syscall.SIGTERM)
	}
	late := time.NewTimer(killAfter)
	defer late.Stop()
	select {
	case <-p.done:
		return
	case <-ctx.Done():
	case <-late.C:
	}
	p.Signal(syscall.SIGKILL)
	<-p.done
}
