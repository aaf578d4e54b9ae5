package replay

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"
	"github.com/raylink/raylink/services/replay/ring"
)

// newCall returns a number for a call that waits at the node.
func newCall() uint64 { return rand.Uint64() | 1 } //nolint:gosec // only unlikely to be that of another call

// waitingTimeout is how long the node has to say what a call waits for.
const waitingTimeout = 250 * time.Millisecond

// waitingFor returns what a call of a table waits for, in words. known is what the node said about
// it earlier; empty if it did not.
func (c *Client) waitingFor(table string, call uint64, known string) string {
	if call != 0 {
		ctx, cancel := context.WithTimeout(c.ctx, waitingTimeout)
		defer cancel()
		res, err := c.Handle().Waiting(ctx, &replayv1.WaitingRequest{Table: table, Call: call})
		if text := res.GetBlocked().GetText(); err == nil && text != "" {
			known = text
		}
	}
	if known == "" {
		return "the node's response"
	}
	return "the limiter: " + known
}

// servedInterval is how often a call that may wait checks that the node's process is alive.
const servedInterval = 200 * time.Millisecond

// whileServed makes a call of the node that may wait there. If the client has mapped the ring, the
// call ends when the node's process does, with [ring.ErrOrphaned].
func (c *Client) whileServed(ctx context.Context, call func(ctx context.Context) error) error {
	m := c.mapping.Load()
	calling, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	done := make(chan struct{})
	var watcher sync.WaitGroup
	if m != nil {
		watcher.Go(func() {
			ticker := time.NewTicker(servedInterval)
			defer ticker.Stop()
			for {
				select {
				case <-done:
					return
				case <-ticker.C:
				}
				if orphaned, err := m.ring.Orphaned(); err == nil && orphaned {
					cancel(ring.ErrOrphaned)
					return
				}
			}
		})
	}
	err := call(calling)
	close(done)
	watcher.Wait()
	switch cause := context.Cause(calling); {
	case err == nil || cause == nil:
		return ringError(err)
	case errors.Is(err, cause):
		return err
	default:
		return fmt.Errorf("%w (%w)", cause, err)
	}
}

// callable returns why a client can't make a call of the node, or nil.
func (c *Client) callable(ctx context.Context) error {
	if err := c.opened(); err != nil {
		return err
	}
	return ctx.Err() //nolint:wrapcheck // the caller adds the operation
}
