package launch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"syscall"
	"time"
)

// HelloTimeout is how long a new process may take to say hello, unless [WithHelloTimeout] says
// otherwise.
const HelloTimeout = 10 * time.Second

// marker is the environment variable that tells a process which of its file descriptors are its end
// of the control channel. It holds nothing else, and [Inherited] removes it.
const marker = "RAYLINK_HOST_FDS"

// Option changes how [Self] launches.
type Option func(*options)

type options struct {
	helloTimeout time.Duration
	// build is what the process must be.
	build string
	// outputGrace is for how long output is waited for, when the process has ended and another one
	// holds its stdout open.
	outputGrace time.Duration
	// exitGrace is how long a process may take to end after it said that its set-up failed, or hung
	// up.
	exitGrace time.Duration
	// cancelGrace is how long a process whose set-up is given up may take to end by itself.
	cancelGrace time.Duration
	// reapLimit is for how long a killed process is waited for. Only one that is stuck in the
	// kernel needs more.
	reapLimit time.Duration
	// stallLimit is for how long a line of output waits for its receiver.
	stallLimit time.Duration
}

// WithHelloTimeout bounds the time between a process's start and its hello. It is what the program
// does before it calls [Inherited] that takes this time, not the node's set-up.
func WithHelloTimeout(limit time.Duration) Option {
	return func(o *options) { o.helloTimeout = limit }
}

// start is how this process was started. It is looked at before the program can change any of it: a
// program that changes its directory, say, must find itself where it was started when it runs once
// more.
//
//nolint:gochecknoglobals // there is one past to remember
var start = lookAtStart()

type beginnings struct {
	args   []string
	dir    string
	dirErr error
}

func lookAtStart() beginnings {
	takeArguments()
	dir, err := os.Getwd()
	return beginnings{args: slices.Clone(os.Args), dir: dir, dirErr: err}
}

// self launches this program again.
type self struct {
	options options
	// starting holds the slots of processes that have been started and have not said hello: they
	// share the processors, so that more at a time would only make each of them slower, against the
	// same time limit.
	starting chan struct{}
}

// Self launches the program that calls it once more on this machine: the same executable, even if
// the file has been replaced meanwhile (Linux), with the arguments and in the directory that this
// process was started with, and with its present environment. The program is expected to call
// [Inherited] early.
//
// In a test binary the flags of `go test` (-test.*) are dropped, and nothing is launched unless
// [AllowInTests] has been called; see there.
//
// At most GOMAXPROCS processes start up at a time; a start-up ends with the hello. Launch waits for
// a slot, and the time limit for the hello counts from the start of the process.
func Self(opts ...Option) Launcher {
	s := &self{options: options{
		helloTimeout: HelloTimeout,
		outputGrace:  250 * time.Millisecond,
		exitGrace:    5 * time.Second,
		cancelGrace:  time.Second,
		reapLimit:    10 * time.Second,
		stallLimit:   time.Second,
	}, starting: make(chan struct{}, runtime.GOMAXPROCS(0))}
	for _, opt := range opts {
		opt(&s.options)
	}
	return s
}

// Launch implements [Launcher].
func (s *self) Launch(ctx context.Context, spec Spec) (Process, error) {
	p, err := s.launch(ctx, spec)
	if err != nil {
		return nil, fmt.Errorf("launch: %s: %w", spec.Name, err)
	}
	return p, nil
}

func (s *self) launch(ctx context.Context, spec Spec) (*process, error) {
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	if _, ok := os.LookupEnv(marker); ok {
		return nil, errors.New("this process was itself launched as a host, but has not looked whether it was (launch.Inherited, " +
			"which raylink.Init calls): it would start itself over and over")
	}
	if err := allowedInTestBinary(); err != nil {
		return nil, err
	}
	if len(spec.Payload) > maxPayload {
		return nil, fmt.Errorf("its payload of %d bytes is over the limit of %d", len(spec.Payload), maxPayload)
	}
	if len(spec.Name) > maxPath {
		return nil, fmt.Errorf("its name of %d bytes is over the limit of %d", len(spec.Name), maxPath)
	}
	cmd, err := command()
	if err != nil {
		return nil, err
	}
	opts := s.options
	if opts.build == "" {
		opts.build = Build()
	}
	select {
	case s.starting <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	return startProcess(cmd, spec, opts, func() { <-s.starting })
}

// command is this program once more.
func command() (*exec.Cmd, error) {
	path, err := executable()
	if err != nil {
		return nil, err
	}
	if start.dirErr != nil {
		return nil, fmt.Errorf("the directory that this program was started in: %w", start.dirErr)
	}
	args := start.args
	if len(args) == 0 {
		args = []string{path}
	}
	if inTestBinary() {
		args = append(args[:1:1], withoutTestFlags(args[1:], takesValue)...)
	}
	return &exec.Cmd{
		Path:        path,
		Args:        args,
		Dir:         start.dir,
		SysProcAttr: &syscall.SysProcAttr{Setpgid: true}, // see the package comment
	}, nil
}

// executable is a path that leads to this program's file. On Linux it does so even when the file
// has been replaced or removed.
func executable() (string, error) {
	if runtime.GOOS == "linux" {
		const self = "/proc/self/exe"
		if _, err := os.Stat(self); err == nil {
			return self, nil
		}
	}
	path, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("finding this program's executable: %w", err)
	}
	return path, nil
}
