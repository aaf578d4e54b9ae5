package runtime

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/raylink/raylink/internal/usercode"
)

// Do takes a turn of the node, runs fn and releases the turn, if fn has not done so by
// [Node.EndTurn]. With it streams, timers and loops access the node's state. Calls that fn makes
// with its context are made from that turn. Do blocks until a turn is free. It returns fn's error,
// or the reason why it got no turn: ctx has ended, the node has stopped, or the turn is held by a
// call that waits for this Do. While a node is stopping, running methods and tasks still get turns,
// so that they can finish.
func (n *Node) Do(ctx context.Context, fn func(ctx context.Context) error) error {
	outer := chainOf(ctx)
	const method = "Do"
	if err := n.refuseUnready(outer, nil, method); err != nil {
		return err
	}
	if err := outer.refuseCycle(n.nid, n.path, method, n.mailbox.Turns()); err != nil {
		return err
	}
	cc := &callContext{node: n, nodeCtx: n.work, caller: ctx, chain: outer}
	mayBlock(ctx)
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

// EndTurn gives back the turn that the running method holds, so that the calls behind it run while
// the method continues: for a method that answers only when something has happened that it shares
// with later calls, such as one commit for many. ctx is the method's context, or one derived from
// it.
//
// From then on the method may access the node's state only in [Node.Do], and must not return a
// message that is part of it. It is otherwise like a concurrent method: the methods that it calls
// may call the node, the end of the node waits for it, and a panic is its caller's error. Until it
// returns it counts towards MaxPending ([Limits]), as a queued call does. The calls of a caller
// still begin in their order, but a later one may be answered first.
//
// Within a function of Do, EndTurn gives back the turn of that Do. Where ctx has no turn of n it
// does nothing: in concurrent methods, streams, tasks and methods of other nodes, and when it is
// called again. An interceptor must not call it before the method has run, which would have no
// turn.
func (n *Node) EndTurn(ctx context.Context) {
	cc := callContextOf(ctx)
	if cc == nil || cc.node != n || cc.turn == nil {
		return
	}
	cc.turn.GiveBack()
	mayBlock(ctx)
}

// Go runs fn as a task of the node. Its context ends when the node stops, after the last call has
// been drained; OnStop functions run after fn has returned. If fn returns an error, panics or calls
// runtime.Goexit, the node fails: it ends, and its callers get the reason. The error
// context.Canceled after the end of the context is no failure.
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
		if f, ok := err.(*usercode.UnreturnedError); ok { //nolint:errorlint // Run's own type
			f.Log(n.logger(), "a task", slog.String("node", n.path))
			err = fmt.Errorf("a task %w", f)
		}
		if err != nil {
			n.fail(err)
		}
	})
}

// tasks counts the running tasks of a node.
type tasks struct {
	mu      sync.Mutex // guards the fields below
	running int
	// idle is closed when no task is running; nil while it is not waited for.
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

// wait blocks until no task is running.
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
