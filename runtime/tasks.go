package runtime

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/raylink/raylink/runtime/internal/usercode"
)

// Do takes a turn, runs fn and gives the turn back: how streams, timers and loops touch the node's
// state. Calls that fn makes with its ctx are made from that turn. The error is fn's, or says why
// there was no turn: ctx ended, the node has stopped, or the turn is held by who waits for Do.
// While a node stops, what runs still gets turns, so that it can come to its end.
func (n *Node) Do(ctx context.Context, fn func(ctx context.Context) error) error {
	outer := chainOf(ctx)
	const method = "Do"
	if err := n.refuseUnready(outer, nil, method); err != nil {
		return err
	}
	if err := outer.circle(n.nid, n.path, method, n.mailbox.Turns()); err != nil {
		return err
	}
	cc := &callContext{node: n, life: n.work, caller: ctx, chain: outer}
	waits(ctx)
	if err := n.mailbox.Acquire(ctx, &cc.ownTurn, "Do"); err != nil {
		if ctx.Err() != nil {
			return causeOf(ctx)
		}
		return err
	}
	cc.turn = &cc.ownTurn
	defer cc.ownTurn.Release()
	defer cc.end()
	return fn(cc)
}

// Go runs fn as a task of the node: its ctx ends when the node stops, after the last call has been
// drained, and no OnStop function is called before fn has returned. An error or a panic of fn is
// the node's failure, as is that it ends its goroutine: the node ends, and its callers are told
// why. An error that only says that ctx ended is none.
func (n *Node) Go(fn func(ctx context.Context) error) {
	n.tasks.begin()
	go usercode.Run(func() error {
		err := fn(n.work)
		if err == nil || n.work.Err() != nil && errors.Is(err, context.Canceled) {
			return nil
		}
		return &foreign{err: err, text: err.Error()}
	}, func(err error) {
		defer n.tasks.end()
		if f, ok := err.(*usercode.UnreturnedError); ok { //nolint:errorlint // Run's own
			f.Log(n.logger(), "a task", slog.String("node", n.path))
			err = fmt.Errorf("a task %w", f)
		}
		if err != nil {
			n.fail(err)
		}
	})
}

// settle waits until a set-up under way is over, or for a moment: what fails beside it then fails
// the node, and not, by chance, its creation. A set-up that may wait for what has failed is not
// waited for.
func (n *Node) settle() {
	late := time.NewTimer(grace)
	defer late.Stop()
	select {
	case <-n.ready:
	case <-n.work.Done():
	case <-late.C:
	}
}

// fail ends the node because of err.
func (n *Node) fail(err error) {
	n.settle()
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

// tasks counts what a node's Go has started.
type tasks struct {
	mu      sync.Mutex // guards all below
	running int
	// idle is closed when none runs; nil while nobody waits for that.
	idle chan struct{}
}

func (t *tasks) begin() {
	t.mu.Lock()
	t.running++
	t.mu.Unlock()
}

func (t *tasks) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.running--; t.running == 0 && t.idle != nil {
		close(t.idle)
		t.idle = nil
	}
}

// wait waits until none runs.
func (t *tasks) wait(ctx context.Context) error {
	t.mu.Lock()
	running := t.running
	if running > 0 && t.idle == nil {
		t.idle = make(chan struct{})
	}
	idle := t.idle
	t.mu.Unlock()
	if running == 0 {
		return nil
	}
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%d tasks of node.Go go on although their context has ended", running)
	}
}
