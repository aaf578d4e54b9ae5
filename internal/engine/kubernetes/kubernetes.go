// Package kubernetes starts raylink-kubernetes, which runs programs in a cluster: Brain and the
// driver share a pod there, so that a run has no head on the machine that has submitted it. Package
// wire has the messages.
package kubernetes

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/raylink/raylink/internal/admission"
	"github.com/raylink/raylink/internal/engine"
	"github.com/raylink/raylink/internal/engine/kubernetes/wire"
)

// Find returns the path of raylink-kubernetes: beside this executable, or in PATH.
func Find() (string, error) {
	if own, err := os.Executable(); err == nil {
		path := filepath.Join(filepath.Dir(own), wire.Program)
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	path, err := exec.LookPath(wire.Program)
	if err != nil {
		return "", fmt.Errorf("kubernetes: %s is neither beside raylink nor in PATH: build it in deploy/kubernetes, or by make build: %w", wire.Program, err)
	}
	return path, nil
}

// Call has a program of wire do what is requested. When ctx ends, it is asked to stop in order; it
// ends with this process, whatever ends that.
func Call(ctx context.Context, program string, request *wire.Request, out, problems io.Writer) (*wire.Result, error) {
	text, err := json.Marshal(request)
	if err != nil {
		return nil, err
	}
	report, theirs, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer report.Close()         //nolint:errcheck // it was only read
	cmd := exec.Command(program) //nolint:noctx // it is asked to stop by its input
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = out, problems, []*os.File{theirs}
	// A Ctrl-C at the terminal reaches this process alone.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	in, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	_ = theirs.Close() // the program has it
	if err != nil {
		return nil, fmt.Errorf("kubernetes: starting %s: %w", program, err)
	}
	_, werr := in.Write(append(text, '\n'))
	detach := context.AfterFunc(ctx, func() { _, _ = fmt.Fprintln(in, wire.StopLine) }) // it may have ended
	defer detach()
	var result wire.Result
	rerr := json.NewDecoder(report).Decode(&result)
	if err := cmd.Wait(); err != nil || rerr != nil {
		return nil, fmt.Errorf("kubernetes: %s has failed: %w", program, errors.Join(err, werr, rerr))
	}
	return &result, nil
}

// NewPKI makes the CA of a run and the token by which its machines join, in a directory that the
// caller removes.
func NewPKI(directory string) (files map[string][]byte, token string, err error) {
	authority, err := admission.Open(directory, 0)
	if err != nil {
		return nil, "", err
	}
	entries, err := os.ReadDir(directory)
	if err != nil {
		return nil, "", err
	}
	files = make(map[string][]byte)
	for _, entry := range entries {
		if files[entry.Name()], err = os.ReadFile(filepath.Join(directory, entry.Name())); err != nil {
			return nil, "", err
		}
	}
	return files, authority.JoinToken().Reveal(), nil
}

// Groups converts the groups of a run.
func Groups(groups []engine.Group) []wire.Group {
	all := make([]wire.Group, len(groups))
	for i, g := range groups {
		all[i] = wire.Group{Name: g.Name, Machines: g.Machines, Resources: g.Resources, Labels: g.Labels.Clone()}
		if all[i].Labels == nil {
			all[i].Labels = make(map[string]string)
		}
		all[i].Labels[engine.GroupLabel] = g.Name
	}
	return all
}

// Detached is what becomes of runs that were left in a cluster. Record.Job is a [wire.Target].
type Detached struct{}

// NewJob returns Record.Job for a run.
func NewJob(target wire.Target) (string, error) {
	text, err := json.Marshal(target)
	return string(text), err
}

// Update implements [engine.Detached].
func (Detached) Update(ctx context.Context, record *engine.Record) error {
	if record.State != engine.Running {
		return nil
	}
	result, err := operate(ctx, record, wire.State, io.Discard)
	if err != nil {
		return err
	}
	return set(record, result)
}

// set stores what has become of a run: the cluster forgets it.
func set(record *engine.Record, result *wire.Result) error {
	switch {
	case result.Running:
		return nil
	case result.Gone:
		record.State = engine.Vanished
	default:
		record.State, record.Exit, record.Error = engine.Ended, result.Exit, result.Error
		if record.Error != "" {
			record.Exit = 1
		}
	}
	return record.Save()
}

// Follow implements [engine.Detached].
func (Detached) Follow(ctx context.Context, record *engine.Record, w io.Writer) error {
	result, err := operate(ctx, record, wire.Follow, w)
	if err != nil {
		return err
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err := set(record, result); err != nil {
		return err
	}
	if result.Error != "" {
		return errors.New(result.Error)
	}
	return nil
}

// Stop implements [engine.Detached].
func (Detached) Stop(ctx context.Context, record *engine.Record, now bool) error {
	operation := wire.Stop
	if now {
		operation = wire.Remove
	}
	result, err := operate(ctx, record, operation, io.Discard)
	if err == nil && result.Error != "" {
		err = errors.New(result.Error)
	}
	return err
}

func operate(ctx context.Context, record *engine.Record, operation wire.Operation, out io.Writer) (*wire.Result, error) {
	request := wire.Request{Operation: operation}
	if err := json.NewDecoder(strings.NewReader(record.Job)).Decode(&request.Target); err != nil {
		return nil, fmt.Errorf("kubernetes: the record of the run %s does not name its namespace: %w", record.ID, err)
	}
	program, err := Find()
	if err != nil {
		return nil, err
	}
	return Call(ctx, program, &request, out, io.Discard)
}
