package launch

import (
	"context"
	"fmt"
	"os/exec"
	"syscall"
	"time"
)

// Executable is a program other than this process's own.
type Executable struct {
	// Path is its file.
	Path string
	// Args are its arguments, the name of the program first.
	Args []string
	// Dir is the directory that it is started in.
	Dir string
	// Env are variables, NAME=VALUE, in addition to the environment of this process.
	Env []string
	// Build is the build that it must have, see [Build]; empty for any.
	Build string
	// HelloTimeout bounds the time from its start until its hello, as [WithHelloTimeout] does. 0
	// means the launcher's.
	HelloTimeout time.Duration
}

// Executables launches programs on this machine as [Self] launches this one. Its methods are safe
// for concurrent use.
type Executables struct{ self *self }

// NewExecutables returns a launcher of programs. Their start-up slots are its own.
func NewExecutables(opts ...Option) *Executables { return &Executables{self: newSelf(opts)} }

// Launch is [Launcher].Launch for a program.
func (l *Executables) Launch(ctx context.Context, program Executable, spec Spec) (Process, error) {
	opts := l.self.options
	opts.build = program.Build
	if program.HelloTimeout > 0 {
		opts.helloTimeout = program.HelloTimeout
	}
	args := program.Args
	if len(args) == 0 {
		args = []string{program.Path}
	}
	p, err := l.self.run(ctx, &exec.Cmd{
		Path: program.Path, Args: args, Dir: program.Dir, Env: program.Env,
		SysProcAttr: &syscall.SysProcAttr{Setpgid: true}, // see the package comment
	}, spec, opts)
	if err != nil {
		return nil, fmt.Errorf("launch: %s: %w", spec.Name, err)
	}
	return p, nil
}
