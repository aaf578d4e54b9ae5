// Package assemble makes a system, or a part in one, of its pieces. It is what the two front doors share: raylink, which can embed a Brain, and
// join, which can't and so links neither Brain nor its store.
package assemble

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"connectrpc.com/connect/v2"

	"github.com/raylink/raylink/internal/logs"
	"github.com/raylink/raylink/runtime"
	"github.com/raylink/raylink/runtime/launch"
	"github.com/raylink/raylink/runtime/rundir"
)

// Brain is a Brain in this process.
type Brain interface {
	runtime.EmbeddedBrain

	// Failed is closed when it can keep no further changes, and Err says why.
	Failed() <-chan struct{}
	Err() error
}

// Embed makes a Brain in this process, and furnishes it with the nodes that every system has.
type Embed struct {
	// Open opens Brain. data is the data directory.
	Open func(options runtime.Options, data string) (Brain, error)
	// Token is the token of the system where none is given; nil for a new one each time. data is the data directory.
	Token func(data string) (string, error)
	// Log is what the process's own log in the run directory is called; empty for `driver`.
	Log string
	// Furnish creates the system's own nodes; nil for none.
	Furnish func(ctx context.Context, h *runtime.Host) error
}

// Runtime is this process's part in a system: it creates, finds and hosts nodes.
type Runtime struct {
	*runtime.Host

	brain    Brain
	run      *rundir.Run
	log      *launch.LogFile
	late     *logs.Late
	signals  func() // stops to listen to signals
	only     bool
	officer  *officerKeeper
	close    sync.Once
	closeErr error
}

// inited says that this process called Init: a process is one host of one system.
var inited atomic.Bool //nolint:gochecknoglobals // a process is one

// Init makes this process a driver, or, if it was launched as the host of a node, serves that node and never returns. embed is nil for a
// process that only joins.
func Init(ctx context.Context, embed *Embed, opts ...runtime.Option) (*Runtime, error) {
	if !inited.CompareAndSwap(false, true) {
		return nil, connect.NewError(connect.CodeFailedPrecondition, "Init was called before in this process, which is a part of one system: keep what it returned, or use Start for further systems")
	}
	options := withSystemTypes(runtime.NewOptions(opts...))
	raiseHeapFloor(&options)
	if err := serveLaunched(options); err != nil {
		return nil, err
	}
	rt, err := start(ctx, embed, options)
	if err != nil {
		inited.Store(false)
		return nil, err
	}
	rt.only = true
	rt.handleSignals()
	return rt, nil
}

// serveLaunched serves the node that this process was launched for, if it was, and then never returns. Otherwise processes can be launched when
// it has returned.
func serveLaunched(options runtime.Options) error {
	child, err := launch.Inherited()
	if err != nil {
		return fmt.Errorf("starting as a node's host: %w", err)
	}
	launch.AllowInTests()
	if child != nil {
		os.Exit(serve(child, options)) //nolint:forbidigo // a node's host is not the program that main goes on with
	}
	return nil
}

// serve is the life of a node's host; it returns the process's exit code.
func serve(child *launch.Child, options runtime.Options) int {
	err := runtime.ServeChild(child, options)
	_ = child.Close()
	if err != nil {
		options.Logger.Error("a node's process ends", slog.Any("error", err))
		return 1
	}
	return 0
}

// Start makes a system, or joins one, without any claim on the process: as often as wanted. Nodes are created in this process unless an
// option of their creation says otherwise. Where it can embed a Brain it does not look at RAYLINK_BRAIN unless an option says so: a test that runs
// where a system does must not create its nodes there.
func Start(ctx context.Context, embed *Embed, opts ...runtime.Option) (*Runtime, error) {
	first := []runtime.Option{runtime.WithInProcess()}
	if embed != nil {
		first = append(first, runtime.Alone())
	}
	return start(ctx, embed, withSystemTypes(runtime.NewOptions(append(first, opts...)...)))
}

func start(ctx context.Context, embed *Embed, options runtime.Options) (_ *Runtime, err error) {
	rt := &Runtime{}
	file := rt.logTo(&options)
	defer func() {
		if err != nil {
			err = errors.Join(err, rt.cleanUp())
		}
	}()
	data := options.Data
	if data == "" {
		if data, err = rundir.DataDir(); err != nil {
			return nil, err
		}
	}
	// What earlier runs could not remove, because they were killed, is removed now; if that fails it is tried again next time.
	if serr := errors.Join(rundir.SweepRuns(data), rundir.SweepHosts("")); serr != nil {
		options.Logger.Debug("sweeping what dead processes left", slog.Any("error", serr))
	}
	var parts runtime.Parts
	if options.Brain == "" {
		if embed == nil {
			return nil, connect.NewError(connect.CodeFailedPrecondition,
				"no Brain to join: give its address with WithBrain or RAYLINK_BRAIN (`raylink brain` starts one), or use package raylink, which embeds one")
		}
		if rt.brain, err = embed.Open(options, data); err != nil {
			return nil, err
		}
		parts.Brain = rt.brain
		if embed.Token != nil && options.Token == "" && !options.Open {
			if parts.Token, err = embed.Token(data); err != nil {
				return nil, err
			}
		}
	}
	var unknown error // why no token is known
	if options.Brain != "" && options.Token == "" && !options.Open {
		if options.Token, _, unknown = rundir.FindToken(options.Brain); unknown != nil && !errors.Is(unknown, rundir.ErrNoToken) {
			return nil, unknown
		}
	}
	if err := rt.openRun(embed, data, options, file); err != nil {
		return nil, err
	}
	parts.Run = rt.run
	if rt.Host, err = runtime.Start(ctx, options, parts); err != nil {
		if unknown != nil && connect.CodeOf(err) == connect.CodeUnauthenticated {
			err = fmt.Errorf("%w (%w)", err, unknown)
		}
		return nil, err
	}
	if rt.brain != nil && embed.Furnish != nil {
		if err := embed.Furnish(ctx, rt.Host); err != nil {
			return nil, fmt.Errorf("creating the system's own nodes: %w", err)
		}
	}
	if rt.brain == nil {
		rt.officer = keepOfficer(rt.Host)
	}
	return rt, nil
}

// openRun makes the run directory with the log of this process, and prunes those of old runs.
func (rt *Runtime) openRun(embed *Embed, data string, options runtime.Options, file *logs.Late) (err error) {
	if rt.run, err = rundir.NewRun(data); err != nil {
		return fmt.Errorf("making the run directory: %w", err)
	}
	if err := rt.openLog(embed, file); err != nil {
		return fmt.Errorf("opening the log of this process: %w", err)
	}
	if options.KeepRuns >= 0 {
		if perr := rundir.PruneRuns(data, options.KeepRuns); perr != nil {
			options.Logger.Debug("pruning old runs", slog.Any("error", perr))
		}
	}
	return nil
}

// logTo lets what is logged go to a file of the run directory too, once that is there.
func (rt *Runtime) logTo(options *runtime.Options) *logs.Late {
	rt.late = &logs.Late{}
	levels, err := logs.Parse(os.Getenv("RAYLINK_LOG"), slog.LevelInfo)
	if err != nil {
		return rt.late // the options are refused for it
	}
	options.Logger = slog.New(slog.NewMultiHandler(options.Logger.Handler(), logs.NewHandler(rt.late, levels)))
	return rt.late
}

// openLog opens that file.
func (rt *Runtime) openLog(embed *Embed, late *logs.Late) error {
	name := "driver"
	if embed != nil && embed.Log != "" && rt.brain != nil {
		name = embed.Log
	}
	path, err := rt.run.Log(name)
	if err != nil {
		return err
	}
	if rt.log, err = launch.OpenLog(path); err != nil {
		return err
	}
	late.Open(rt.log)
	return nil
}

// handleSignals closes the runtime when the process is interrupted or terminated, and then ends the process as the signal would have. A second
// signal ends it at once.
func (rt *Runtime) handleSignals() {
	rt.signals = onSignals(func(s os.Signal) {
		_ = rt.Close()
		endBySignal(s)
	}, func() {})
}

// Close ends the runtime: its nodes, children before parents, each drained; then its connections and, where it is embedded, Brain. It returns
// when no process, socket, goroutine or mapped file of it is left. Further calls wait for the first and return its error.
func (rt *Runtime) Close() error {
	rt.close.Do(func() { rt.closeErr = rt.cleanUp() })
	return rt.closeErr
}

func (rt *Runtime) cleanUp() error {
	var errs []error
	if rt.officer != nil {
		rt.officer.stop()
	}
	if rt.Host != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 2*rt.Host.Options().Drain)
		defer cancel()
		errs = append(errs, rt.Host.Close(ctx))
	}
	if rt.brain != nil {
		errs = append(errs, rt.brain.Close())
	}
	if rt.late != nil {
		rt.late.Close()
	}
	if rt.log != nil {
		errs = append(errs, rt.log.Close())
	}
	if rt.run != nil {
		errs = append(errs, rt.run.Close())
		// The mapped files of nodes that were killed are there still. What can't be removed now is tried again by the next run.
		_ = rundir.SweepRuns(filepath.Dir(filepath.Dir(rt.run.Path())))
	}
	if rt.signals != nil {
		rt.signals()
	}
	if rt.only {
		inited.Store(false)
	}
	return errors.Join(errs...)
}
