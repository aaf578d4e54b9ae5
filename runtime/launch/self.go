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

// HelloTimeout bounds the time from the start of a process until its hello, unless
// [WithHelloTimeout] sets another one.
const HelloTimeout = 10 * time.Second

// marker is the environment variable with the numbers of the file descriptors of a process's end of
// the control channel. It contains nothing else, and [Inherited] removes it.
const marker = "RAYLINK_HOST_FDS"

// Option configures [Self].
type Option func(*options)

type options struct {
	helloTimeout time.Duration
	// build is the build that the process must have; empty for this process's own.
	build string
	// outputGrace bounds the wait for output when the process has ended and another one holds its
	// stdout open.
	outputGrace time.Duration
	// exitGrace is how long a process may take to end after it reported a failed set-up, or closed
	// its channel.
	exitGrace time.Duration
	// cancelGrace is how long a process whose set-up was canceled may take to end by itself.
	cancelGrace time.Duration
	// reapLimit bounds the wait for the end of a killed process. Only one that is stuck in the
	// kernel exceeds it.
	reapLimit time.Duration
	// stallLimit bounds how long a line of output waits for its receiver.
	stallLimit time.Duration
}

// WithHelloTimeout bounds the time from a process's start until its hello. That is what the program
// does before it calls [Inherited]; it does not include the node's set-up.
func WithHelloTimeout(limit time.Duration) Option {
	return func(o *options) { o.helloTimeout = limit }
}

// start is how this process was started. It is recorded before the program can change any of it: a
// program that changes its directory, for example, must be launched again in the original one.
//
//nolint:gochecknoglobals // a process is started once
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
	// starting limits the processes that have been started and have not sent hello: they share the
	// processors, so more of them at once would only slow each of them down, against the same time
	// limit.
	starting chan struct{}
}

// Self launches this program again on this machine: the same executable, even if the file has been
// replaced meanwhile (on Linux), with the arguments and in the directory with which this process
// was started, and with its present environment. The program is expected to call [Inherited] early.
//
// In a test binary the flags of `go test` (-test.*) are dropped, and nothing is launched unless
// [AllowInTests] has been called; see there.
//
// At most GOMAXPROCS processes start up at once; a start-up ends with the hello. Launch waits for a
// slot, and the time limit for the hello begins with the start of the process.
func Self(opts ...Option) Launcher { return newSelf(opts) }

func newSelf(opts []Option) *self {
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

// Arguments returns the arguments with which this program is launched again, the name of the
// program first. It fails where [Self] would launch nothing.
func Arguments() ([]string, error) {
	cmd, err := command()
	if err != nil {
		return nil, fmt.Errorf("launch: %w", err)
	}
	return cmd.Args, nil
}

func (s *self) launch(ctx context.Context, spec Spec) (*process, error) {
	cmd, err := command()
	if err != nil {
		return nil, err
	}
	opts := s.options
	if opts.build == "" {
		opts.build = Build()
	}
	return s.run(ctx, cmd, spec, opts)
}

// run starts a command once there is a start-up slot.
func (s *self) run(ctx context.Context, cmd *exec.Cmd, spec Spec, opts options) (*process, error) {
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	if len(spec.Payload) > maxPayload {
		return nil, fmt.Errorf("its payload of %d bytes is over the limit of %d", len(spec.Payload), maxPayload)
	}
	if len(spec.Name) > maxPath {
		return nil, fmt.Errorf("its name of %d bytes is over the limit of %d", len(spec.Name), maxPath)
	}
	select {
	case s.starting <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	return startProcess(cmd, spec, opts, func() { <-s.starting })
}

// command returns this program's command line, to run it again.
func command() (*exec.Cmd, error) {
	if _, ok := os.LookupEnv(marker); ok {
		return nil, errors.New("this process was itself launched as a host, but has not looked whether it was (launch.Inherited, " +
			"which raylink.Init calls): it would start itself over and over")
	}
	if err := allowedInTestBinary(); err != nil {
		return nil, err
	}
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

// executable is a path to this program's file. On Linux it is valid even if the file has been
// replaced or removed.
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
