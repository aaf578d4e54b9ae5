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

// patience bounds how long a process may take for one answer, and for its end.
const patience = 2 * time.Minute

// process is one of the benchmark's processes, seen from the driver. It ends when its input does.
type process struct {
	what    string
	cmd     *exec.Cmd
	in      io.WriteCloser
	out     *bufio.Reader
	address string
}

// spawn starts this executable in a role, and waits until it is ready.
func spawn(ctx context.Context, env []string, words ...string) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, self)
	cmd.Env = append(os.Environ(), roleEnv+"="+strings.Join(words, " "))
	cmd.Env = append(cmd.Env, env...)
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
	p := &process{what: strings.Join(words, " "), cmd: cmd, in: in, out: bufio.NewReader(out)}
	ready, err := p.hear()
	if err != nil {
		return nil, errors.Join(err, p.stop())
	}
	p.address = ready.Address
	return p, nil
}

// ask sends a request and waits for its answer.
func (p *process) ask(r request) (response, error) {
	line, err := json.Marshal(r)
	if err != nil {
		return response{}, err
	}
	if _, err := p.in.Write(append(line, '\n')); err != nil {
		return response{}, fmt.Errorf("%s: %w", p.what, err)
	}
	return p.hear()
}

func (p *process) hear() (response, error) {
	late := time.AfterFunc(patience, func() { _ = p.cmd.Process.Kill() })
	defer late.Stop()
	line, err := p.out.ReadBytes('\n')
	if err != nil {
		return response{}, fmt.Errorf("%s has ended, or was stopped after %v without an answer: %w", p.what, patience, err)
	}
	var res response
	if err := json.Unmarshal(line, &res); err != nil {
		return response{}, fmt.Errorf("%s said %q: %w", p.what, line, err)
	}
	if res.Error != "" {
		return res, fmt.Errorf("%s: %s", p.what, res.Error)
	}
	return res, nil
}

// stop ends the process and waits for its end.
func (p *process) stop() error {
	_ = p.in.Close() // it may have ended before
	late := time.AfterFunc(patience, func() { _ = p.cmd.Process.Kill() })
	defer late.Stop()
	if err := p.cmd.Wait(); err != nil {
		return fmt.Errorf("%s: %w", p.what, err)
	}
	return nil
}
