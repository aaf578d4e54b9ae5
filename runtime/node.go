package runtime

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	"github.com/raylink/raylink/runtime/internal/mailbox"
)

// maxPendingBytes bounds what waits in one node's mailbox.
const maxPendingBytes = 64 << 20

// Node is a node as its own code sees it: its set-up function is given one and may keep it. Its methods may be called from any goroutine.
type Node struct {
	host    *Host // nil for a stub outside any system
	service *Service
	impl    any
	nid     string
	path    string

	mailbox   *mailbox.Mailbox
	intercept Invoke
	target    *target
	// life is what every context of the node's code descends from. kill ends it.
	life context.Context //nolint:containedctx // the node's life is this context
	kill context.CancelCauseFunc
	// tasks are those of Go.
	tasks sync.WaitGroup
	born  time.Time
	// ready is closed when the node is set up. creating counts the children that it waits for.
	ready    chan struct{}
	creating atomic.Int32

	mu sync.Mutex // guards all below
	// record is the node as Brain knows it; replaced, never changed.
	record   *nodev1.NodeRecord
	onStop   []func(context.Context) error
	tunnels  map[string]*tunnelTag
	stopping bool
	failure  error
	// stopped is closed when the node is gone; stopErr is set then.
	stopped chan struct{}
	stopErr error
}

func newNode(host *Host, service *Service, record *nodev1.NodeRecord) *Node {
	n := &Node{
		host: host, service: service, nid: record.GetNid(), path: record.GetPath(), record: record,
		born: time.Now(), ready: make(chan struct{}), stopped: make(chan struct{}), tunnels: make(map[string]*tunnelTag),
	}
	c := service.Config()
	n.mailbox = mailbox.New(func() string { return n.path }, mailbox.Limits{
		Turns: c.MaxConcurrency, Pending: c.MaxPending, Bytes: maxPendingBytes, Beside: c.MaxStreams,
	})
	base := context.Background()
	if host != nil {
		base = host.life
	}
	n.life, n.kill = context.WithCancelCause(base)
	n.target = &target{service: service, host: host, node: n, nid: n.nid}
	return n
}

// serveWith gives the node its implementation: from here on it can serve.
func (n *Node) serveWith(impl any) {
	n.impl = impl
	if n.host != nil {
		n.intercept = chainInterceptors(n.host.options.Interceptors, impl)
	}
	close(n.ready)
	n.mailbox.Open()
}

func (n *Node) ref() Ref { return Ref{t: n.target} }

// Ref is the node's own reference: what others reach it by.
func (n *Node) Ref() Ref { return n.ref() }

// NID is the node's id.
func (n *Node) NID() string { return n.nid }

// Path is the node's path.
func (n *Node) Path() string { return n.path }

// Context ends when the node ends: after its last OnStop function, or at once if it is killed.
func (n *Node) Context() context.Context { return n.life }

// Logger logs under the node's path.
func (n *Node) Logger() *slog.Logger { return n.logger().With(slog.String("node", n.path)) }

// Do takes a turn, runs fn and gives the turn back: how streams, timers and loops touch the node's state. Calls that fn makes with its ctx
// are made from that turn. The error is fn's, or says why there was no turn: ctx ended, the node is stopping, or the caller's own turn is
// the one that Do would wait for.
func (n *Node) Do(ctx context.Context, fn func(ctx context.Context) error) (err error) {
	outer := chainOf(ctx)
	if err := outer.circle(n.nid, n.path, n.service.name+"/Do", n.mailbox.Turns()); err != nil {
		return err
	}
	cc := &callContext{node: n, life: n.life, caller: ctx, chain: outer}
	if err := n.mailbox.Acquire(ctx, &cc.ownTurn, "Do"); err != nil {
		return err
	}
	cc.turn = &cc.ownTurn
	defer cc.ownTurn.Release()
	defer cc.end()
	return fn(cc)
}

// Go runs fn as a task of the node: its ctx ends when the node stops, and the node is not gone before fn has returned. An error or a panic of
// fn is the node's failure: the node ends, and its callers are told why. An error that only says that ctx ended is none.
func (n *Node) Go(fn func(ctx context.Context) error) {
	n.tasks.Add(1)
	go func() {
		defer n.tasks.Done()
		err := n.runTask(fn)
		if err == nil || n.life.Err() != nil && errors.Is(err, context.Canceled) {
			return
		}
		n.fail(err)
	}()
}

func (n *Node) runTask(fn func(ctx context.Context) error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			n.logger().Error("a task panicked", slog.String("node", n.path), slog.Any("panic", r), slog.String("stack", string(debug.Stack())))
			err = fmt.Errorf("a task panicked: %v", r)
		}
	}()
	return fn(n.life)
}

// OnStop makes the node's end call fn, after the last call has been drained; the last fn given is called first. Its ctx bounds how long it may
// take.
func (n *Node) OnStop(fn func(ctx context.Context) error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.onStop = append(n.onStop, fn)
}

// fail ends the node because of err.
func (n *Node) fail(err error) {
	n.mu.Lock()
	if n.failure == nil {
		n.failure = err
	}
	n.mu.Unlock()
	n.logger().Error("a node failed", slog.String("node", n.path), slog.Any("error", err))
	n.mailbox.Close(closedError(n.path, "failed: "+err.Error()))
	if n.host != nil {
		n.host.nodeFailed(n, err)
	}
}

// drain refuses new calls and waits for those that run or wait; when ctx ends before they have, the rest is refused and what runs has its
// context ended. Then it ends the node's tasks and runs what OnStop was given.
func (n *Node) drain(ctx context.Context, cause error) error {
	n.mailbox.Close(closedError(n.path, "is stopping"))
	var errs []error
	if err := n.mailbox.Drain(ctx); err != nil {
		s := n.mailbox.Stats()
		errs = append(errs, fmt.Errorf("draining %s: %d calls were still running and %d waiting: %w", n.path, s.Running, s.Waiting, err))
		n.mailbox.Abandon(closedError(n.path, "stopped"))
	}
	n.mu.Lock()
	hooks := slices.Clone(n.onStop)
	n.onStop = nil
	n.mu.Unlock()
	for _, fn := range slices.Backward(hooks) {
		if err := n.runHook(ctx, fn); err != nil {
			errs = append(errs, fmt.Errorf("stopping %s: %w", n.path, err))
		}
	}
	n.kill(cause)
	if err := n.awaitTasks(ctx); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// lastMoment is how long a task gets to notice that its context has ended when the time to drain is over.
const lastMoment = 500 * time.Millisecond

// awaitTasks waits for the tasks of Go. One that ignores its context is left behind, and said so.
func (n *Node) awaitTasks(ctx context.Context) error {
	done := make(chan struct{})
	go func() {
		n.tasks.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
	}
	late := time.NewTimer(lastMoment)
	defer late.Stop()
	select {
	case <-done:
		return nil
	case <-late.C:
		return fmt.Errorf("stopping %s: a task of node.Go goes on although its context has ended", n.path)
	}
}

func (n *Node) runHook(ctx context.Context, fn func(context.Context) error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("an OnStop function panicked: %v", r)
		}
	}()
	return fn(ctx)
}

// snapshot is the node's record as last acknowledged.
func (n *Node) snapshot() *nodev1.NodeRecord {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.record
}

func (n *Node) logger() *slog.Logger {
	if n.host == nil {
		return slog.Default()
	}
	return n.host.log
}

func (n *Node) hideErrors() bool { return n.host != nil && n.host.options.HideErrors }
