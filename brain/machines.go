package brain

import (
	"context"
	"fmt"
	"sync"
	"time"

	"connectrpc.com/connect/v2"

	"github.com/raylink/raylink/brain/internal/tree"
	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
	"github.com/raylink/raylink/gen/raylink/brain/v1/brainv1connect"
	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	"github.com/raylink/raylink/internal/connecterr"
)

// machinesPause is the least time between two messages to a watcher of machines: a system of a
// thousand machines starts within seconds, and each message has all of them.
const machinesPause = 50 * time.Millisecond

// ListMachines returns the machines of the system, and what is used of them.
func (s *service) ListMachines(_ context.Context, req *brainv1.ListMachinesRequest) (*brainv1.ListMachinesResponse, error) {
	if err := tree.CheckText(req); err != nil {
		return nil, err
	}
	s.brain.mu.RLock()
	defer s.brain.mu.RUnlock()
	machines, err := s.brain.tree.Machines(req.GetMachine())
	if err != nil {
		return nil, err
	}
	return &brainv1.ListMachinesResponse{Machines: machines}, nil
}

// WatchMachines follows which machines there are. Nothing is queued for a watcher: it gets the
// machines as they are when it can receive them.
func (s *service) WatchMachines(ctx context.Context, _ *brainv1.WatchMachinesRequest, stream brainv1connect.BrainServiceWatchMachinesServerStream) error {
	b := s.brain
	for {
		changed := b.machinesChanged.wait()
		b.mu.RLock()
		machines, err := b.tree.Machines("")
		b.mu.RUnlock()
		if err != nil {
			return err
		}
		if err := stream.Send(&brainv1.WatchMachinesResponse{Machines: machines}); err != nil {
			return streamEnd(err)
		}
		if err := await(ctx, b, time.After(machinesPause)); err != nil {
			return err
		}
		if err := await(ctx, b, changed); err != nil {
			return err
		}
	}
}

// await waits for an event, or returns why the stream ends before.
func await[T any](ctx context.Context, b *Brain, event <-chan T) error {
	select {
	case <-event:
		return nil
	case <-b.closing:
		return errClosing()
	case <-ctx.Done():
		return fmt.Errorf("watch machines: %w", context.Cause(ctx))
	}
}

// broadcast notifies any number of waiters that something has changed.
type broadcast struct {
	mu      sync.Mutex // guards changed
	changed chan struct{}
}

// wait returns a channel that is closed by the next call of notify.
func (c *broadcast) wait() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.changed == nil {
		c.changed = make(chan struct{})
	}
	return c.changed
}

func (c *broadcast) notify() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.changed != nil {
		close(c.changed)
		c.changed = nil
	}
}

// placing is a call that may wait for a place. It implements [tree.Caller].
type placing struct {
	ctx context.Context //nolint:containedctx // that of the call, which is asked while the call waits
	// waiting is what waits for the call; the committing goroutine has it.
	waiting *tree.Waiting
	answer  chan tree.Result
}

// Gone reports whether the call has ended.
func (p *placing) Gone() bool { return p.ctx.Err() != nil }

// Answer passes the result to the call.
func (p *placing) Answer(result tree.Result) { p.answer <- result }

// place applies a change whose nodes may have to wait for a place, and waits for it. run returns
// the records, or what waits.
func (b *Brain) place(
	ctx context.Context, run func(*tree.Txn, tree.Caller) ([]*nodev1.NodeRecord, *tree.Waiting, error),
) ([]*nodev1.NodeRecord, []*brainv1.MachineUse, error) {
	p := &placing{ctx: ctx, answer: make(chan tree.Result, 1)}
	var result tree.Result
	waits := false
	err := b.change(ctx, func(x *tree.Txn) (err error) {
		result.Nodes, p.waiting, err = run(x, p)
		result.Machines = x.Uses(result.Nodes)
		waits = p.waiting != nil
		return err
	})
	switch {
	case err != nil && ctx.Err() != nil:
		// The change may have been applied nevertheless.
		_, stopErr := b.stopWaiting(ctx, p)
		_ = stopErr // Brain is closing
		return nil, nil, err
	case err != nil:
		return nil, nil, err
	case waits:
		result = b.wait(ctx, p)
	}
	return result.Nodes, result.Machines, result.Err
}

// wait waits until the call is answered, or ends its wait: with its context, and a little before
// its deadline, since the error that names what lacks would not reach the caller after that.
func (b *Brain) wait(ctx context.Context, p *placing) tree.Result {
	code := connect.CodeDeadlineExceeded
	var almost <-chan time.Time
	if deadline, ok := ctx.Deadline(); ok {
		left := time.Until(deadline)
		timer := time.NewTimer(left - min(left/10, 250*time.Millisecond))
		defer timer.Stop()
		almost = timer.C
	}
	select {
	case result := <-p.answer:
		return result
	case <-almost:
	case <-ctx.Done():
		code = connecterr.Code(ctx.Err())
	case <-b.closing:
	case <-b.failed:
	}
	why, err := b.stopWaiting(ctx, p)
	select {
	case result := <-p.answer: // it was placed in the meantime
		return result
	default:
	}
	if err != nil {
		return tree.Result{Err: err}
	}
	return tree.Result{Err: connect.Errorf(code, "the wait for a place has ended: %s", why)}
}

// stopWaiting ends the wait of a call, unless it has been answered, and returns what it lacks.
func (b *Brain) stopWaiting(ctx context.Context, p *placing) (string, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), b.opts.Lease)
	defer cancel()
	var why string
	err := b.change(ctx, func(x *tree.Txn) error {
		if p.waiting != nil {
			why, _ = x.StopWaiting(p.waiting)
		}
		return nil
	})
	if err != nil {
		return "", err // the change may be running
	}
	return why, nil
}
