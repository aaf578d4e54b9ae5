package brain

import (
	"context"
	"fmt"
	"time"

	"connectrpc.com/connect/v2"

	"github.com/raylink/raylink/brain/internal/tree"
)

// maxGroup is how many changes one sync may contain.
const maxGroup = 256

// change is one request to change the tree.
type change struct {
	run  func(*tree.Txn) error
	done chan error // buffered: the caller may have stopped waiting
}

// change applies a change and waits until it is on disk. The results of run may be read once change
// has returned nil. If the context ends first, the change may still be applied.
func (b *Brain) change(ctx context.Context, run func(*tree.Txn) error) error {
	c := &change{run: run, done: make(chan error, 1)}
	select {
	case <-b.closing: // before the next select, which would choose at random
		return errClosing()
	default:
	}
	select {
	case b.changes <- c:
	case <-b.closing:
		return errClosing()
	case <-ctx.Done():
		return fmt.Errorf("wait for Brain to accept a change: %w", context.Cause(ctx))
	}
	select {
	case err := <-c.done:
		return err
	case <-b.stopped:
		select {
		case err := <-c.done:
			return err
		default:
			return errClosing()
		}
	case <-ctx.Done():
		return fmt.Errorf("wait for a change to be on disk: %w", context.Cause(ctx))
	}
}

// commitLoop is the only goroutine that changes the tree. Changes that arrive while it waits for
// the disk share the next sync.
func (b *Brain) commitLoop() {
	defer close(b.stopped)
	group := make([]*change, 0, maxGroup)
	for {
		select {
		case first := <-b.changes:
			group = append(group[:0], first)
		case <-b.closing:
			return
		}
		for len(group) < maxGroup {
			select {
			case next := <-b.changes:
				group = append(group, next)
				continue
			default:
			}
			break
		}
		b.commit(group)
		clear(group)
	}
}

// commit applies a group of changes. Each is applied or refused by itself, in view of those before
// it. None is answered before all applied changes are on disk, including the refused ones, which
// may have been refused because of others in the group.
func (b *Brain) commit(group []*change) {
	// No lock is needed to read the tree: only this goroutine writes it.
	x := b.tree.Begin(time.Now())
	results := make([]error, len(group))
	for i, c := range group {
		inner := x.Begin()
		if results[i] = c.run(inner); results[i] == nil {
			inner.Merge()
		}
	}
	x.Serve()
	x.Expire()
	writes, err := x.Writes()
	if err != nil {
		b.refuse(group, err)
		return
	}
	if err := b.store.Commit(writes); err != nil {
		select {
		case <-b.failed:
		default:
			b.opts.Logger.Error("Brain can't write its directory and refuses changes from now on", "error", err)
			close(b.failed)
		}
		for _, c := range group {
			c.done <- connect.NewError(connect.CodeUnavailable,
				"Brain could not keep the change, and refuses all changes until it is restarted: "+err.Error()).WithCause(err)
		}
		return
	}
	b.mu.Lock()
	changed, machinesChanged := x.Changed(), x.MachinesChanged()
	x.Merge()
	b.hub.Publish(changed)
	b.mu.Unlock()
	if machinesChanged {
		b.machinesChanged.notify()
	}
	x.Answer()
	for i, c := range group {
		c.done <- results[i]
	}
}

// refuse handles a group that cannot be encoded. The service validates requests before it queues
// them, so this is not expected; but a change that has slipped through must fail alone, without the
// others in its group or Brain.
func (b *Brain) refuse(group []*change, err error) {
	if len(group) > 1 {
		for i := range group {
			b.commit(group[i : i+1])
		}
		return
	}
	b.opts.Logger.Error("a change was refused, because it can't be encoded", "error", err)
	group[0].done <- connect.NewError(connect.CodeInvalidArgument, "the change can't be encoded: "+err.Error()).WithCause(err)
}
