package runtime

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	"connectrpc.com/connect/v2"

	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	"github.com/raylink/raylink/internal/backoff"
	"github.com/raylink/raylink/internal/connecterr"
	"github.com/raylink/raylink/runtime/launch"
)

// stopNode ends a local node: first its children, then its calls, then the node itself. Concurrent
// callers wait for the same end, and get its error.
func (h *Host) stopNode(ctx context.Context, n *Node, drain time.Duration, cause string) error {
	h.beginStop(n, drain, cause)
	select {
	case <-n.stopped:
		return n.stopErr
	case <-ctx.Done():
		return connect.Errorf(connect.CodeOf(causeOf(ctx)), "%s is still stopping: %s", n.path, connecterr.Text(causeOf(ctx))).WithCause(causeOf(ctx))
	}
}

// beginStop begins a node's end unless it has begun. The end continues when ctx of its caller ends.
func (h *Host) beginStop(n *Node, drain time.Duration, cause string) {
	if !n.beginStop() {
		return
	}
	if h.only.Load() == n {
		h.beginEnding()
	}
	began := h.goBackground(func(context.Context) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(h.life), drain)
		defer cancel()
		n.endStop(h.stopNow(ctx, n, cause))
	})
	if !began {
		h.drop(n) // the host has ended, and with it everything that the node had
		n.endStop(nil)
	}
}

func (h *Host) stopNow(ctx context.Context, n *Node, cause string) error {
	// Close the mailbox before publishing STOPPING, so that no call made after the state was
	// observed is accepted.
	n.mailbox.Close(closedError(n.path, "is stopping"))
	if !n.isUp.Load() {
		h.stopSetup(ctx, n, cause)
	}
	h.sendState(ctx, n, nodev1.NodeState_NODE_STATE_STOPPING)
	h.cancelCreations(ctx, func(c *creation) bool { return c.parent == n.nid }, closedError(n.path, "is stopping: it gets no more children"))
	errs := []error{h.stopChildren(ctx, n.nid), n.drain(ctx, closedError(n.path, cause))}
	// The record is removed even if stopping has failed or taken all of its time.
	rctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	switch {
	case !n.snapshot().GetRestarts():
		h.removeRecords(rctx, []string{n.nid}, cause)
	case !n.isUp.Load():
		h.reportNotSetUp(rctx, n, cause)
	} // or else the record stays for the next incarnation; the host's goodbye ends this one
	h.drop(n)
	if n.isUp.Load() {
		h.nodeDied(n.snapshot(), os.Getpid(), n.born, cause)
	}
	return errors.Join(errs...)
}

// reportNotSetUp reports to Brain why the incarnation of a node that restarts was not set up,
// before the host's goodbye ends it without a reason.
func (h *Host) reportNotSetUp(ctx context.Context, n *Node, cause string) {
	change := &brainv1.Change{
		Nid: n.nid, Incarnation: n.snapshot().GetIncarnation(), State: nodev1.NodeState_NODE_STATE_DEAD, Cause: causeText(cause),
	}
	if _, err := h.brain.Update(ctx, &brainv1.UpdateRequest{Changes: []*brainv1.Change{change}}); err != nil {
		h.log.Debug("reporting a failed set-up to Brain", slog.String("node", n.path), slog.Any("error", err))
	}
}

// stopSetup ends the set-up of a node that is stopped before it serves, and waits for that. Calls
// that wait for the set-up are refused at once.
func (h *Host) stopSetup(ctx context.Context, n *Node, cause string) {
	err := closedError(n.path, cause+" before it was set up")
	n.mailbox.Abandon(err)
	n.cancelWork(err)
	select {
	case <-n.ready:
	case <-ctx.Done():
	}
}

// sendState updates a node's state in Brain. It gives up after a second: Brain's absence must not
// delay the end.
func (h *Host) sendState(ctx context.Context, n *Node, state nodev1.NodeState) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	res, err := h.brain.Update(ctx, &brainv1.UpdateRequest{Changes: []*brainv1.Change{{Nid: n.nid, Incarnation: n.snapshot().GetIncarnation(), State: state}}})
	if err != nil {
		h.log.Debug("reporting a node's state to Brain", slog.String("node", n.path), slog.Any("error", err))
		return
	}
	n.setRecord(res.GetNodes()[0])
}

// stopChildren ends the children that this host launched for a parent, concurrently.
func (h *Host) stopChildren(ctx context.Context, parent string) error {
	h.mu.Lock()
	children := h.children[parent]
	delete(h.children, parent)
	h.mu.Unlock()
	return h.stopAll(ctx, children, "stopped")
}

// stopAll ends children of this host, concurrently.
func (h *Host) stopAll(ctx context.Context, children []*child, cause string) error {
	errs := make([]error, len(children))
	var all sync.WaitGroup
	for i, c := range children {
		all.Go(func() { errs[i] = h.stopChild(ctx, c, cause) })
	}
	all.Wait()
	return errors.Join(errs...)
}

// stopChild ends one child and its descendants.
func (h *Host) stopChild(ctx context.Context, c *child, cause string) error {
	if c.node != nil {
		return h.stopNode(ctx, c.node, remaining(ctx, h.options.Drain), cause)
	}
	if err := c.process.Stop(ctx); err != nil {
		if !c.restarts {
			h.removeRecords(context.WithoutCancel(ctx), []string{c.nid}, "did not stop in time and was killed")
		}
		return fmt.Errorf("stopping %s: %w", c.path, err)
	}
	return nil
}

func remaining(ctx context.Context, most time.Duration) time.Duration {
	if deadline, ok := ctx.Deadline(); ok {
		return max(0, min(most, time.Until(deadline)))
	}
	return most
}

// watchProcess waits for the end of a child's process, and reports it to Brain if the process has
// not.
func (h *Host) watchProcess(parent string, c *child) {
	select {
	case <-c.process.Done():
	case <-h.life.Done():
		select {
		case <-c.process.Done():
		default:
			// All processes have been stopped by now; the host cannot wait any longer.
			h.log.Warn("a process has not ended although it was stopped", slog.String("node", c.path), slog.Int("pid", c.process.PID()))
			return
		}
	}
	h.mu.Lock()
	h.children[parent] = slices.DeleteFunc(h.children[parent], func(other *child) bool { return other == c })
	if len(h.children[parent]) == 0 {
		delete(h.children, parent)
	}
	h.mu.Unlock()
	exit := c.process.Exit()
	if exit.Goodbye {
		h.nodeDied(c.record, c.process.PID(), c.started, endReason(exit))
		if !exit.Reported { // Brain was away when the process ended
			h.reportEnd(h.life, c, "stopped")
		}
		return
	}
	defer h.sweepDead()
	how := exit.String()
	if exit.Success() {
		how += " by itself, before its node was stopped"
	}
	h.nodeDied(c.record, c.process.PID(), c.started, how)
	h.log.Warn("a node's process died", slog.String("node", c.path), slog.String("how", how))
	h.reportEnd(context.WithoutCancel(h.life), c, how)
}

// endReason is why a process ended whose node had ended before it.
func endReason(exit launch.Exit) string {
	if exit.Success() {
		return reasonStopped
	}
	return exit.String()
}

// reportEnd reports to Brain that a child's process has ended, with all nodes of its host, which
// may be more than the one that it was launched for. While Brain is away it retries until this host
// ends; otherwise the nodes would seem to be alive until their host's lease expires. ctx applies to
// the first attempt.
func (h *Host) reportEnd(ctx context.Context, c *child, how string) {
	if c.inAgent { // the node alone has ended, as far as is known
		h.removeRecords(ctx, []string{c.nid}, how)
		return
	}
	report := func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, brainTimeout)
		defer cancel()
		_, err := h.brain.ReportHost(ctx, &brainv1.ReportHostRequest{HostId: c.host, Cause: causeText(how)})
		if err == nil || connect.CodeOf(err) == connect.CodeNotFound {
			return nil
		}
		return err
	}
	err := report(ctx)
	if err == nil || h.life.Err() != nil {
		return
	}
	h.log.Warn("the end of a node's process could not be reported", slog.String("node", c.path), slog.Any("error", err))
	for retry := new(backoff.Backoff); !isVerdict(err) && retry.Wait(h.life) == nil; {
		if err = report(h.life); err == nil {
			return
		}
	}
}

// nodeFailed ends a local node because of its own failure.
func (h *Host) nodeFailed(n *Node, err error) {
	h.goBackground(func(ctx context.Context) {
		if serr := h.stopNode(ctx, n, h.options.Drain, "failed: "+err.Error()); serr != nil {
			h.log.Warn("a failed node did not stop gracefully", slog.String("node", n.path), slog.Any("error", serr))
		}
	})
}

// fail ends the node because of err.
func (n *Node) fail(err error) {
	n.awaitSetup()
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

// awaitSetup waits until a set-up in progress has ended, at most for the grace period. A failure
// during set-up then always fails the node, rather than sometimes its creation. The bound is for a
// set-up that waits for the task that failed.
func (n *Node) awaitSetup() {
	late := time.NewTimer(grace)
	defer late.Stop()
	select {
	case <-n.ready:
	case <-n.work.Done():
	case <-late.C:
	}
}

// drop removes a node that has ended.
func (h *Host) drop(n *Node) {
	defer h.changes.Add(1)
	h.mu.Lock()
	delete(h.nodes, n.nid)
	for parent, children := range h.children {
		h.children[parent] = slices.DeleteFunc(children, func(c *child) bool { return c.node == n })
		if len(h.children[parent]) == 0 {
			delete(h.children, parent)
		}
	}
	h.mu.Unlock()
	n.cancelLife(ErrClosed)
}

// beginStop returns true to its first caller only.
func (n *Node) beginStop() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	first := !n.stopping
	n.stopping = true
	if first {
		close(n.beginsStop)
	}
	return first
}

func (n *Node) endStop(err error) {
	n.mu.Lock()
	n.stopErr = err
	n.mu.Unlock()
	close(n.stopped)
}

func (n *Node) isStopping() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.stopping
}

// setRecord stores a record that Brain has acknowledged, unless it is older than the present one.
func (n *Node) setRecord(rec *nodev1.NodeRecord) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if rec.GetRevision() < n.record.GetRevision() {
		return
	}
	again := rec.GetIncarnation() != n.record.GetIncarnation()
	n.record = rec
	if again && n.host != nil {
		n.host.changes.Add(1)
	}
}
