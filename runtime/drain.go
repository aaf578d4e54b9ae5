package runtime

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"connectrpc.com/connect/v2"

	"github.com/raylink/raylink/runtime/internal/usercode"
)

// grace is what the ends of a node's tasks and its OnStop functions are given when draining has
// used up all the time there was.
const grace = time.Second

// OnStop makes the node's end call fn, after the last call has been drained and the last task has
// returned; the last fn given is called first. Its ctx bounds how long it may take. A node that
// could not be drained in time calls fn all the same. One that has ended does not.
func (n *Node) OnStop(fn func(ctx context.Context) error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.onStop = append(n.onStop, fn)
}

// drain refuses new calls and waits for those that run or wait; when ctx ends before they have, the
// rest is refused and what runs has its context ended. Then it ends the node's tasks and runs what
// OnStop was given.
func (n *Node) drain(ctx context.Context, cause error) error {
	n.mailbox.Close(closedError(n.path, "is stopping"))
	began := time.Now()
	var errs []error
	if err := n.mailbox.Drain(ctx); err != nil {
		s := n.mailbox.Stats()
		errs = append(errs, fmt.Errorf("draining %s: %d calls were still running and %d waiting%s: %w",
			n.path, s.Running, s.Waiting, n.stillRunning(time.Since(began)), err))
		n.mailbox.Abandon(closedError(n.path, "stopped"))
	}
	n.cut(cause)
	if err := n.endWork(ctx); err != nil {
		errs = append(errs, fmt.Errorf("stopping %s: %w", n.path, err))
	}
	for {
		which, fn := n.nextOnStop()
		if fn == nil {
			break
		}
		if err := n.runOnStop(ctx, which, fn); err != nil {
			errs = append(errs, fmt.Errorf("stopping %s: %w", n.path, err))
		}
	}
	n.kill(cause)
	for _, cc := range n.runningCalls() {
		err := n.unreturned(cc.call.method)
		n.logger().Error("a method goes on although its node has stopped: it is left behind",
			slog.String("node", n.path), slog.String("method", cc.call.method.fullName()))
		cc.cut(err)
	}
	return errors.Join(errs...)
}

// runningCalls are the calls whose methods run.
func (n *Node) runningCalls() []*callContext {
	var calls []*callContext
	for _, of := range n.mailbox.Running() {
		switch of := of.(type) {
		case *callContext:
			calls = append(calls, of)
		case *job:
			calls = append(calls, of.cc)
		}
	}
	return calls
}

// maxNamed is how many methods an error names.
const maxNamed = 5

// stillRunning names the methods that run, after the drain has taken as long as that. When each
// began is not known: a clock would cost every call.
func (n *Node) stillRunning(least time.Duration) string {
	counts := make(map[string]int)
	var names []string
	for _, cc := range n.runningCalls() {
		name := cc.call.method.name
		if counts[name]++; counts[name] == 1 {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return ""
	}
	more := len(names) - maxNamed
	if more > 0 {
		names = names[:maxNamed]
	}
	for i, name := range names {
		if count := counts[name]; count > 1 {
			names[i] = fmt.Sprintf("%s %d times", name, count)
		}
	}
	text := strings.Join(names, ", ")
	if more > 0 {
		text += fmt.Sprintf(" and %d other methods", more)
	}
	return fmt.Sprintf(" (running for %v at least: %s)", least.Round(time.Millisecond), text)
}

// unreturned is for the caller of a method that goes on although its node has stopped.
func (n *Node) unreturned(m *Method) *connect.Error {
	return closedError(n.path, "stopped while it was in "+m.name+", which has not returned")
}

// endWork waits for tasks, and for calls that could not be drained; all have been told to end.
func (n *Node) endWork(ctx context.Context) error {
	ctx, cancel := withGrace(ctx)
	defer cancel()
	err := n.tasks.wait(ctx)
	_ = n.mailbox.Drain(ctx) // that it had to be cut short is known already
	return err
}

// nextOnStop takes the function that was given last, and says which it is.
func (n *Node) nextOnStop() (which string, fn func(context.Context) error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	last := len(n.onStop) - 1
	if last < 0 {
		return "", nil
	}
	n.onStops = max(n.onStops, len(n.onStop))
	fn = n.onStop[last]
	n.onStop = n.onStop[:last]
	return fmt.Sprintf("OnStop function %d of %d", last+1, n.onStops), fn
}

// runOnStop runs one function, for as long as it may take. One that goes on then is left behind.
func (n *Node) runOnStop(ctx context.Context, which string, fn func(context.Context) error) error {
	ctx, cancel := withGrace(ctx)
	defer cancel()
	// It is the node's code: the calls that it makes are the node's.
	cc := &callContext{node: n, life: n.life, caller: ctx}
	defer cc.end()
	over, err := usercode.Await(ctx, grace/10, func() error {
		if err := fn(cc); err != nil {
			return &foreign{err: err, text: err.Error()}
		}
		return nil
	})
	switch f, failed := err.(*usercode.UnreturnedError); { //nolint:errorlint // Await's own
	case failed:
		f.Log(n.logger(), "an OnStop function", slog.String("node", n.path), slog.String("which", which))
		return fmt.Errorf("%s %w", which, f)
	case !over:
		n.logger().Error("an OnStop function goes on although its time is up: it is left behind",
			slog.String("node", n.path), slog.String("which", which))
		return fmt.Errorf("%s has not returned in its time: %w", which, causeOf(ctx))
	}
	return err
}

// withGrace is ctx, or a moment more where it has ended or is about to.
func withGrace(ctx context.Context) (context.Context, context.CancelFunc) {
	if deadline, ok := ctx.Deadline(); ctx.Err() == nil && (!ok || time.Until(deadline) > grace) {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(context.WithoutCancel(ctx), grace)
}
