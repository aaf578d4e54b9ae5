package runtime

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"connectrpc.com/connect/v2"

	"github.com/raylink/raylink/internal/usercode"
)

// grace is the minimum time for the end of a node's tasks and for each OnStop function, if draining
// has used up the time to stop.
const grace = time.Second

// OnStop registers a function that runs when the node ends, after the last call was drained and the
// last task has returned. Functions run in reverse order of registration. ctx bounds how long fn
// may take: the rest of the time to stop, at least a second. fn also runs if the node could not be
// drained in time, but not if it is registered after the node has ended.
func (n *Node) OnStop(fn func(ctx context.Context) error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.onStop = append(n.onStop, fn)
}

// drain refuses new calls and waits for those that run or are pending. If ctx ends first, pending
// calls are refused and the contexts of running ones end. Then it ends the node's tasks and runs
// the OnStop functions.
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
	n.cancelWork(cause)
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
	n.cancelLife(cause)
	for _, cc := range n.runningCalls() {
		err := n.unreturned(cc.call.method)
		n.logger().Error("a method goes on although its node has stopped: it is left behind",
			slog.String("node", n.path), slog.String("method", cc.call.method.fullName()))
		cc.interrupt(err)
	}
	return errors.Join(errs...)
}

// runningCalls are the calls whose methods are running.
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

// maxNamed bounds how many methods an error names.
const maxNamed = 5

// stillRunning lists the methods that are running, for an error; least is how long the drain has
// taken. When each began is not recorded: a clock reading would slow down every call.
func (n *Node) stillRunning(least time.Duration) string {
	counts := make(map[string]int)
	var names []string
	for _, cc := range n.runningCalls() {
		name := cc.call.method.name
		if cc.isHeld() {
			name += " (its answer is held back)"
		}
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

// unreturned is the error for the caller of a method that has not returned although its node has
// stopped.
func (n *Node) unreturned(m *Method) *connect.Error {
	return closedError(n.path, "stopped while it was in "+m.name+", which has not returned")
}

// returnsLate waits for a call that has not returned when its node's life ends, and reports whether
// it returns within the grace period. A call of Stop does: it waits for that very end.
func returnsLate(ctx context.Context, done <-chan struct{}) bool {
	late := time.NewTimer(grace)
	defer late.Stop()
	select {
	case <-done:
		return true
	case <-late.C:
	case <-ctx.Done():
	}
	return false
}

// endWork waits for tasks, and for calls that could not be drained; the contexts of all of them
// have ended.
func (n *Node) endWork(ctx context.Context) error {
	ctx, cancel := withGrace(ctx)
	defer cancel()
	err := n.tasks.wait(ctx)
	_ = n.mailbox.Drain(ctx) // its error has been reported already
	return err
}

// nextOnStop removes and returns the last function, with its position for error messages.
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

// runOnStop runs one function within its time limit. One that has not returned by then is
// abandoned.
func (n *Node) runOnStop(ctx context.Context, which string, fn func(context.Context) error) error {
	ctx, cancel := withGrace(ctx)
	defer cancel()
	// Calls that it makes name the node as their caller.
	cc := &callContext{node: n, nodeCtx: n.life, caller: ctx}
	defer cc.end()
	over, err := usercode.Await(ctx, grace/10, func() error {
		if err := fn(cc); err != nil {
			return &foreign{err: err, text: err.Error()}
		}
		return nil
	})
	switch f, failed := err.(*usercode.UnreturnedError); { //nolint:errorlint // Await's own type
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

// withGrace is ctx, or a context of the grace period if ctx has less time left than that.
func withGrace(ctx context.Context) (context.Context, context.CancelFunc) {
	if deadline, ok := ctx.Deadline(); ctx.Err() == nil && (!ok || time.Until(deadline) > grace) {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(context.WithoutCancel(ctx), grace)
}
