package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"
)

// responseTimeout bounds how long a process may take to respond, and to exit. setUpDeadline bounds
// what a process sets up for a row, so that it can still report its error.
const (
	responseTimeout = 5 * time.Minute
	setUpDeadline   = 4 * time.Minute
)

// process is a process of the benchmark, from the driver's view. It exits when its input is closed.
type process struct {
	what    string
	cmd     *exec.Cmd
	in      io.WriteCloser
	out     *bufio.Reader
	address string
	token   string // of a Brain with TLS
}

// spawn starts this executable in a role, and waits until it is ready.
func spawn(ctx context.Context, env []string, words ...string) (*process, error) {
	return spawnNotified(ctx, env, func(int) {}, words...)
}

// spawnNotified is spawn that calls started with the process's id before it waits.
func spawnNotified(ctx context.Context, env []string, started func(pid int), words ...string) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return spawnFile(ctx, self, env, started, words...)
}

// spawnProgram is spawn with another file, which is a copy of this executable.
func spawnProgram(ctx context.Context, path string, env []string, words ...string) (*process, error) {
	return spawnFile(ctx, path, env, func(int) {}, words...)
}

func spawnFile(ctx context.Context, path string, env []string, started func(pid int), words ...string) (*process, error) {
	cmd := exec.CommandContext(ctx, path)
	cmd.Env = append(os.Environ(), roleEnv+"="+strings.Join(words, " "))
	cmd.Env = append(cmd.Env, env...)
	return spawnCommand(cmd, strings.Join(words, " "), started)
}

// spawnCommand starts a command that speaks the protocol of this executable's roles, and waits
// until it is ready.
func spawnCommand(cmd *exec.Cmd, what string, started func(pid int)) (*process, error) {
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	started(cmd.Process.Pid)
	p := &process{what: what, cmd: cmd, in: in, out: bufio.NewReader(out)}
	ready, err := p.receive()
	if err != nil {
		return nil, errors.Join(err, p.stop())
	}
	p.address, p.token = ready.Address, ready.Token
	return p, nil
}

// ask sends a request and waits for the response.
func (p *process) ask(r request) (response, error) {
	if err := p.send(r); err != nil {
		return response{}, err
	}
	return p.receive()
}

// send sends a request. The caller receives the response.
func (p *process) send(r request) error {
	line, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if _, err := p.in.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("%s: %w", p.what, err)
	}
	return nil
}

func (p *process) receive() (response, error) {
	late := time.AfterFunc(responseTimeout, func() { _ = p.cmd.Process.Kill() })
	defer late.Stop()
	line, err := p.out.ReadBytes('\n')
	if err != nil {
		return response{}, fmt.Errorf("%s exited, or was killed because it did not respond within %v: %w", p.what, responseTimeout, err)
	}
	var res response
	if err := json.Unmarshal(line, &res); err != nil {
		return response{}, fmt.Errorf("%s: invalid response %q: %w", p.what, line, err)
	}
	if res.Error != "" {
		return res, fmt.Errorf("%s: %s", p.what, res.Error)
	}
	return res, nil
}

// stop makes the process exit and waits for it.
func (p *process) stop() error {
	_ = p.in.Close() // it may have exited already
	late := time.AfterFunc(responseTimeout, func() { _ = p.cmd.Process.Kill() })
	defer late.Stop()
	if err := p.cmd.Wait(); err != nil {
		return fmt.Errorf("%s: %w", p.what, err)
	}
	return nil
}
