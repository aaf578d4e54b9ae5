package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	"github.com/raylink/raylink/internal/connecterr"
	"github.com/raylink/raylink/internal/hostapi"
	"github.com/raylink/raylink/runtime/internal/listen"
	"github.com/raylink/raylink/runtime/internal/session"
	"github.com/raylink/raylink/runtime/launch"
	"github.com/raylink/raylink/runtime/rundir"
)

// launchPayload is what a new node's process receives over its inherited pipe. Both ends are the
// same build, so its format may change freely.
type launchPayload struct {
	Record []byte // a NodeRecord
	Type   string
	Config []byte // an Any; empty for none
	// Options are those of the launcher, as Host.inherited adjusts them.
	Options InheritedOptions
	// Run is the run directory; empty for none.
	Run string
	// Outlives makes the process continue to run when its launcher has died: see superviseNode.
	Outlives bool
}

// inherited returns the options for a process that this one launches.
func (h *Host) inherited() InheritedOptions {
	o := h.options.InheritedOptions
	o.Listen, o.Advertise = onFreePort(o.Listen), onFreePort(o.Advertise)
	if o.Brain == "" {
		o.Brain = h.listener.Advertised() // this process has embedded Brain
	}
	return o
}

// inherit replaces the options of a launched process by those that it has from its launcher.
func (o *Options) inherit(p *launchPayload) { o.InheritedOptions, o.listens = p.Options, true }

func (h *Host) launchPayload(rec *nodev1.NodeRecord, t NodeType, config *anypb.Any) ([]byte, error) {
	p := launchPayload{Type: t.Name(), Options: h.inherited(), Outlives: rec.GetRestarts()}
	if h.run != nil {
		p.Run = h.run.Path()
	}
	var err error
	if p.Record, err = proto.Marshal(rec); err != nil {
		return nil, fmt.Errorf("encoding a node's record: %w", err)
	}
	if config != nil {
		if p.Config, err = proto.Marshal(config); err != nil {
			return nil, fmt.Errorf("encoding a node's configuration: %w", err)
		}
	}
	return json.Marshal(p) //nolint:musttag // both ends are this struct
}

// readPayload is the reverse of Host.launchPayload.
func readPayload(payload []byte) (p launchPayload, rec *nodev1.NodeRecord, err error) {
	if err := json.Unmarshal(payload, &p); err != nil { //nolint:musttag // both ends are this struct
		return p, nil, fmt.Errorf("reading what to launch: %w", err)
	}
	rec = &nodev1.NodeRecord{}
	if err := proto.Unmarshal(p.Record, rec); err != nil {
		return p, nil, fmt.Errorf("reading the record of what to launch: %w", err)
	}
	return p, rec, nil
}

// onFreePort replaces an address's port by 0: every process needs a port of its own.
func onFreePort(address string) string {
	if address == "" {
		return ""
	}
	return net.JoinHostPort(listen.HostOf(address), "0")
}

// setupEndLimit bounds how long a node's set-up may continue after its context has ended, because
// its launcher died or its process received SIGTERM.
const setupEndLimit = 5 * time.Second

// errLauncherGaveUp is why a set-up ends whose launcher no longer waits for it.
var errLauncherGaveUp = errors.New("the parent gave up waiting")

// serveChild is [hostapi.Functions].ServeChild.
func serveChild(child *launch.Child, options Options) error {
	if err := child.Hello(launch.Build()); err != nil {
		return fmt.Errorf("greeting the parent: %w", err)
	}
	c := &childLife{child: child, log: options.Logger, terminated: make(chan struct{})}
	defer c.watchSignals()()
	h, n, err := c.start(options)
	if err != nil {
		launch.EndDescendants()
		payload := encodeError(err)
		if ferr := child.Failed(payload); ferr != nil {
			return errors.Join(err, ferr)
		}
		return err
	}
	h.endsWith(n)
	rec, err := proto.Marshal(n.snapshot())
	if err == nil {
		err = child.Ready(rec)
	}
	if err != nil {
		h.log.Error("reporting to the parent that the node is set up", slog.Any("error", err))
	}
	orphaned := child.Orphaned()
	if h.outlives {
		orphaned = h.abandoned(n.path, orphaned)
	}
	select {
	case <-child.Stop():
	case <-orphaned:
		h.endCause.Store(&c.orphanCause)
	case <-c.terminated:
	case <-n.stopped:
	}
	n.mu.Lock()
	failure := n.failure
	n.mu.Unlock()
	// Stopping gets the time to drain and as much again for the node's descendants, and no more: no
	// process may be left behind.
	limit := 2 * h.options.Drain
	hangs := time.AfterFunc(limit+endLimit, func() { c.forceExit(n.path+" has been stopping for too long", nil) })
	defer hangs.Stop()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	err = errors.Join(failure, h.Close(ctx))
	launch.EndDescendants()
	if gerr := child.Goodbye(h.session.Acknowledged()); gerr != nil {
		h.log.Debug("saying goodbye to the parent", slog.Any("error", gerr))
	}
	select {
	case <-child.Orphaned():
		// The parent was killed: this process removes what the parent could not.
		sweep(h.log, h.options.Data)
	default:
	}
	return err
}

// endLimit bounds how long a process may take to end beyond the time that its node has to stop.
const endLimit = 5 * time.Second

// childLife is the lifetime of a process that was launched for a node.
type childLife struct {
	child *launch.Child
	log   *slog.Logger
	// terminated is closed on the first SIGTERM.
	terminated chan struct{}
	host       atomic.Pointer[Host]
	// orphanCause is the cause with which the node ends if its launcher dies.
	orphanCause string
}

// watchSignals ends the node gracefully on the first SIGTERM, and the process at once on the
// second. The returned function stops that.
func (c *childLife) watchSignals() (stop func()) {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM)
	go func() {
		if _, ok := <-signals; !ok {
			return
		}
		close(c.terminated)
		if s, ok := <-signals; ok {
			c.forceExit("a second signal required it", s)
		}
	}()
	return func() {
		signal.Stop(signals)
		close(signals)
	}
}

// forceExit ends the process although something in it hangs; descendants and the host's directory
// are removed first. why completes the logged sentence.
func (c *childLife) forceExit(why string, by os.Signal) {
	c.log.Error("this process ends at once: " + why)
	if h := c.host.Load(); h != nil {
		if err := h.dir.Close(); err != nil {
			h.log.Warn("the host's runtime directory was not removed", slog.Any("error", err))
		}
	}
	launch.EndDescendants()
	code := 1
	if s, ok := by.(syscall.Signal); ok {
		code = 128 + int(s)
	}
	os.Exit(code) //nolint:forbidigo // what hangs cannot be ended otherwise
}

// abandoned returns a channel that is closed when the launcher is dead and Brain has been
// unreachable for orphanLeases leases: then the process can no longer be recovered.
func (h *Host) abandoned(path string, orphaned <-chan struct{}) <-chan struct{} {
	given := make(chan struct{})
	h.goBackground(func(ctx context.Context) {
		select {
		case <-orphaned:
		case <-ctx.Done():
			return
		}
		if h.run != nil {
			// The process's output went to the launcher, which wrote it to the log.
			if err := outputToLog(h.run, path); err != nil {
				h.log.Warn("what is printed from here on is lost", slog.Any("error", err))
			}
		}
		patience := orphanLeases * h.options.Lease
		period := max(patience/100, 10*time.Millisecond)
		check := time.NewTicker(period)
		defer check.Stop()
		silence := session.NewSilence(period, time.Now())
		for {
			select {
			case <-check.C:
				away := silence.At(time.Now(), h.session.LastTraffic())
				if away > patience {
					h.log.Warn("the launcher is dead and Brain has been away for long: this process ends", slog.Duration("away", away))
					close(given)
					return
				}
			case <-ctx.Done():
				return
			}
		}
	})
	return given
}

// outputToLog redirects this process's output to its node's log.
func outputToLog(run *rundir.Run, path string) error {
	name, err := run.Log(path)
	if err != nil {
		return err
	}
	log, err := os.OpenFile(name, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer log.Close() //nolint:errcheck // the output goes to its duplicates
	return errors.Join(duplicate(log, os.Stdout), duplicate(log, os.Stderr))
}

// sweep removes what killed processes have left behind. What cannot be removed now is left for the
// next sweep.
func sweep(log *slog.Logger, data string) {
	if err := errors.Join(rundir.SweepRuns(data), rundir.SweepHosts("")); err != nil {
		log.Debug("sweeping what dead processes left", slog.Any("error", err))
	}
}

// start joins the system and sets the node up.
func (c *childLife) start(o Options) (*Host, *Node, error) {
	child := c.child
	p, rec, err := readPayload(child.Payload())
	if err != nil {
		return nil, nil, err
	}
	o.inherit(&p)
	settings, err := takeHostSettings()
	if err != nil {
		return nil, nil, err
	}
	c.orphanCause = "its launcher died"
	if settings != nil {
		applyHostSettings(settings, &o, &p)
		c.orphanCause = "the agent of its machine died"
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	over := make(chan struct{})
	var once sync.Once
	setUp := func() { once.Do(func() { close(over) }) }
	defer setUp()
	go func() {
		select {
		case <-child.Stop():
			cancel(errLauncherGaveUp)
		case <-child.Orphaned():
			cancel(errors.New("the parent died"))
		case <-c.terminated:
			cancel(errors.New("its process received a signal to end"))
		case <-over:
			return
		}
		limit := time.NewTimer(setupEndLimit)
		defer limit.Stop()
		select {
		case <-over:
		case <-limit.C:
			c.forceExit(fmt.Sprintf("the set-up of %s goes on %v after its context ended (%v)", rec.GetPath(), setupEndLimit, context.Cause(ctx)), nil)
		}
	}()
	parts := hostapi.Parts{Launched: true, Output: func(l launch.Line) {
		// This fails only when the parent is gone; then this process ends too.
		_ = child.Forward(l)
	}}
	if p.Run != "" {
		run, err := rundir.OpenRun(p.Run)
		if err != nil {
			return nil, nil, err
		}
		parts.Run = run
	}
	h, err := startHost(ctx, o, parts)
	if err != nil {
		return nil, nil, err
	}
	c.host.Store(h)
	h.outlives = p.Outlives
	n, err := h.setUpLaunched(ctx, rec, p)
	setUp()
	if err != nil {
		hangs := time.AfterFunc(o.Drain+endLimit, func() { c.forceExit("undoing the set-up of "+rec.GetPath()+" takes too long", nil) })
		defer hangs.Stop()
		cctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), o.Drain)
		defer cancel()
		return nil, nil, errors.Join(err, h.Close(cctx))
	}
	return h, n, nil
}

// setUpLaunched sets up the node that the process was launched for.
func (h *Host) setUpLaunched(ctx context.Context, rec *nodev1.NodeRecord, p launchPayload) (*Node, error) {
	t, err := h.types.get(p.Type, rec.GetService())
	if err != nil {
		return nil, connect.Errorf(connect.CodeNotFound, "the launched process lacks a type that its parent has: %s; "+
			"give Init the same types in every process", connecterr.Text(err))
	}
	var raw *anypb.Any
	if len(p.Config) > 0 {
		raw = &anypb.Any{}
		if err := proto.Unmarshal(p.Config, raw); err != nil {
			return nil, fmt.Errorf("reading the configuration of what to launch: %w", err)
		}
	}
	config, err := t.decodeConfig(raw)
	if err != nil {
		return nil, err
	}
	k, _, err := h.setUp(ctx, rec, t, config)
	if err != nil {
		return nil, err
	}
	return k.node, nil
}

// wireError is the form of an error in the pipe to the launcher.
type wireError struct {
	Code    connect.Code
	Message string
	Details []connect.ErrorDetail
}

func encodeError(err error) []byte {
	w := wireError{Code: connect.CodeOf(err), Message: connecterr.Text(err)}
	if e, ok := errors.AsType[*connect.Error](err); ok {
		for _, d := range e.Details() {
			w.Details = append(w.Details, *d)
		}
	}
	b, merr := json.Marshal(w) //nolint:musttag // both ends are this struct
	if merr != nil {
		return []byte(`{"Code":"internal","Message":"an error could not be encoded"}`)
	}
	return b
}

func decodeError(b []byte) error {
	var w wireError
	if err := json.Unmarshal(b, &w); err != nil { //nolint:musttag // both ends are this struct
		return connect.Errorf(connect.CodeInternal, "the launched process failed, and its error is unreadable: %q", b)
	}
	e := connect.NewError(w.Code, w.Message)
	for i := range w.Details {
		e = e.WithDetail(&w.Details[i])
	}
	return e
}
