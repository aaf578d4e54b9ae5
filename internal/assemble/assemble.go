// Package assemble makes a system, or a process's part in one, of its pieces. The two public
// packages share it: raylink, which can embed a Brain, and join, which can't and so links neither
// Brain nor its store.
package assemble

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"connectrpc.com/connect/v2"

	"github.com/raylink/raylink/internal/hostapi"
	"github.com/raylink/raylink/internal/logs"
	"github.com/raylink/raylink/runtime"
	"github.com/raylink/raylink/runtime/launch"
	"github.com/raylink/raylink/runtime/rundir"
	"github.com/raylink/raylink/services/ps"
)

// Brain is a Brain in this process.
type Brain interface {
	hostapi.Brain

	// Err returns why the store has failed, or nil.
	Err() error
}

// Embed makes a Brain in this process, and the nodes that every system has.
type Embed struct {
	// Open opens Brain on a data directory.
	Open func(options runtime.Options, data string) (Brain, error)
	// Token returns the token of the system if no option gives one; nil for a new one each time.
	Token func(data string) (string, error)
	// PKI returns the directory of the system's CA; nil for one that ends with the system.
	PKI func(data string) string
	// Log is the name of the process's own log in the run directory; empty for `driver`.
	Log string
	// StartSystemNodes creates the system's own nodes; nil for none.
	StartSystemNodes func(ctx context.Context, h *runtime.Host) error
}

// host is not exported, so that raylink.Runtime and join.Runtime promote its methods but no field.
type host = runtime.Host

// Runtime is this process's part in a system: it creates, finds and hosts nodes.
type Runtime struct {
	*host

	brain    Brain
	run      *rundir.Run
	log      *launch.LogFile
	late     *logs.Late
	user     *logs.Bounded // the handler of the options' logger
	signals  func()        // stops handling signals
	fromInit bool

	drain time.Duration // bounds how long stopping a node waits for its calls

	closing  atomic.Bool
	done     chan struct{} // closed once the runtime has ended
	err      error         // why it ended; set before done is closed
	closeErr error         // what went wrong on the way; likewise
}

// initialized reports whether this process has called Init: a process is one host of one system.
var initialized atomic.Bool //nolint:gochecknoglobals // there is one process

// Init makes this process a driver. If the process was launched as the host of a node, it serves
// the node and never returns. embed is nil for a process that only joins.
func Init(ctx context.Context, embed *Embed, opts ...runtime.Option) (*Runtime, error) {
	if !initialized.CompareAndSwap(false, true) {
		return nil, connect.NewError(connect.CodeFailedPrecondition, "Init was called before in this process, which can be part of one system: use the runtime that it returned, or Start for further systems")
	}
	options := withSystemTypes(hosts.NewOptions(opts...))
	raiseHeapFloor(&options)
	if err := serveLaunched(options); err != nil {
		return nil, err
	}
	rt, err := start(ctx, embed, options)
	if err != nil {
		initialized.Store(false)
		return nil, err
	}
	rt.fromInit = true
	rt.handleSignals()
	return rt, nil
}

// serveLaunched serves the node that this process was launched for, and never returns. It returns
// if the process was not launched for one, and from then on processes can be launched.
func serveLaunched(options runtime.Options) error {
	child, err := launch.Inherited()
	if err != nil {
		return fmt.Errorf("starting as a node's host: %w", err)
	}
	launch.AllowInTests()
	if child != nil {
		os.Exit(serve(child, options)) //nolint:forbidigo // main must not continue in a node's process
	}
	return nil
}

// serve serves a node until it ends, and returns the process's exit code.
func serve(child *launch.Child, options runtime.Options) int {
	err := hosts.ServeChild(child, options)
	_ = child.Close()
	if err != nil {
		options.Logger.Error("a node's process ends", slog.Any("error", err))
		return 1
	}
	return 0
}

// Start makes a system, or joins one, any number of times per process. Nodes are created in this
// process unless an option of their creation says otherwise. If it can embed a Brain, it ignores
// RAYLINK_BRAIN unless an option asks for it: a test must not create its nodes in a live system.
func Start(ctx context.Context, embed *Embed, opts ...runtime.Option) (*Runtime, error) {
	first := []runtime.Option{runtime.WithInProcess()}
	if embed != nil {
		first = append(first, hosts.IgnoreBrainFromEnvironment())
	}
	return start(ctx, embed, withSystemTypes(hosts.NewOptions(append(first, opts...)...)))
}

func start(ctx context.Context, embed *Embed, options runtime.Options) (*Runtime, error) {
	return startAs(ctx, embed, options, false)
}

// startAs is start for an agent, or another process.
func startAs(ctx context.Context, embed *Embed, options runtime.Options, agent bool) (_ *Runtime, err error) {
	rt := &Runtime{drain: options.Drain, done: make(chan struct{})}
	file := rt.logTo(&options)
	defer func() {
		if err != nil {
			err = errors.Join(err, rt.Close())
		}
	}()
	data := options.Data
	if data == "" {
		if data, err = rundir.DataDir(); err != nil {
			return nil, err
		}
	}
	// Remove what runs that were killed have left. If that fails, the next run tries again.
	if serr := errors.Join(rundir.SweepRuns(data), rundir.SweepHosts(""), ps.SweepFiles(data)); serr != nil {
		options.Logger.Debug("sweeping the files of dead processes", slog.Any("error", serr))
	}
	parts := hostapi.Parts{Agent: agent}
	if options.Brain == "" {
		if embed == nil {
			return nil, connect.NewError(connect.CodeFailedPrecondition,
				"no Brain to join: give its address with WithBrain or RAYLINK_BRAIN (`raylink brain` starts one), or use package raylink, which embeds one")
		}
		if rt.brain, err = embed.Open(options, data); err != nil {
			return nil, err
		}
		parts.Brain = rt.brain
		if embed.Token != nil {
			parts.Token = func() (string, error) { return embed.Token(data) }
		}
		if embed.PKI != nil {
			parts.PKI = embed.PKI(data)
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
	if rt.host, err = hosts.Start(ctx, options, parts); err != nil {
		if unknown != nil && connect.CodeOf(err) == connect.CodeUnauthenticated {
			err = fmt.Errorf("%w (%w)", err, unknown)
		}
		return nil, err
	}
	if rt.brain != nil && embed.StartSystemNodes != nil {
		if err := embed.StartSystemNodes(ctx, rt.host); err != nil {
			return nil, fmt.Errorf("creating the system's own nodes: %w", err)
		}
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

// logTo copies log records to a file of the run directory, once openLog has opened it.
func (rt *Runtime) logTo(options *runtime.Options) *logs.Late {
	rt.late = &logs.Late{}
	levels, err := logs.Parse(os.Getenv("RAYLINK_LOG"), slog.LevelInfo)
	if err != nil {
		return rt.late // the options are refused for the same error
	}
	rt.user = logs.Bound(options.Logger.Handler())
	file := logs.Bound(logs.NewHandler(rt.late, levels))
	rt.user.OnStall(func(time.Time) {
		slog.New(file).Warn("the log's handler (WithLogger, by default a write to standard error) does not return: " +
			"up to 256 records wait for it, further ones are in this file alone")
	})
	options.Logger = slog.New(slog.NewMultiHandler(rt.user, file))
	return rt.late
}

// openLog opens the file of this process's log.
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

// handleSignals closes the runtime when the process is interrupted or terminated, and then ends the
// process as the signal would have. A second signal ends it at once.
func (rt *Runtime) handleSignals() {
	rt.signals = onSignals(func(s os.Signal) {
		ctx, cancel := rt.closeContext()
		defer cancel()
		_ = rt.shutdown(ctx, fmt.Errorf("%w by a signal: %v", runtime.ErrClosed, s)) // the process ends either way
		endBySignal(s)
	}, func() {})
}

// Shutdown stops the runtime gracefully: its nodes, children before parents, each drained; then its
// connections; then an embedded Brain. When ctx ends, what is left is ended unconditionally. It
// returns once no process, socket, goroutine or mapped file of the runtime is left. Further calls
// wait for the first, or until their ctx ends.
func (rt *Runtime) Shutdown(ctx context.Context) error { return rt.shutdown(ctx, runtime.ErrClosed) }

// Close is Shutdown within twice the drain time.
func (rt *Runtime) Close() error {
	ctx, cancel := rt.closeContext()
	defer cancel()
	_ = rt.Shutdown(ctx) // closeErr has its error; a Shutdown under way may have more time
	<-rt.done
	return rt.closeErr
}

// closeContext bounds a Close.
func (rt *Runtime) closeContext() (context.Context, context.CancelFunc) {
	if rt.host == nil { // starting has failed: there is nothing to drain
		return context.WithCancel(context.Background())
	}
	return context.WithTimeout(context.Background(), 2*rt.drain)
}

// Done returns a channel that is closed once the runtime has ended.
func (rt *Runtime) Done() <-chan struct{} { return rt.done }

// Err returns why the runtime has ended, or nil while it runs.
func (rt *Runtime) Err() error {
	select {
	case <-rt.done:
		return rt.err
	default:
		return nil
	}
}

func (rt *Runtime) shutdown(ctx context.Context, cause error) error {
	if rt.closing.CompareAndSwap(false, true) {
		rt.closeErr = rt.cleanUp(ctx)
		rt.err = cause
		close(rt.done)
		return rt.closeErr
	}
	select {
	case <-rt.done:
		return rt.closeErr
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (rt *Runtime) cleanUp(ctx context.Context) error {
	var errs []error
	if rt.host != nil {
		errs = append(errs, rt.host.Close(ctx))
	}
	if rt.run != nil {
		errs = append(errs, ps.SweepFiles(rt.run.Data())) // of captains that were killed
	}
	if rt.brain != nil {
		errs = append(errs, rt.brain.Close())
	}
	if rt.user != nil {
		if err := rt.user.Flush(); err != nil {
			errs = append(errs, fmt.Errorf("closing the runtime: %w (WithLogger gives another one)", err))
		}
	}
	if rt.late != nil {
		rt.late.Close()
	}
	if rt.log != nil {
		errs = append(errs, rt.log.Close())
	}
	if rt.run != nil {
		errs = append(errs, rt.run.Close())
		// Remove the mapped files of nodes that were killed. If that fails, the next run tries
		// again.
		_ = rundir.SweepRuns(filepath.Dir(filepath.Dir(rt.run.Path())))
	}
	if rt.signals != nil {
		rt.signals()
	}
	if rt.fromInit {
		initialized.Store(false)
	}
	return errors.Join(errs...)
}
