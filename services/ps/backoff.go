package ps

import (
	"context"
	"math/rand/v2"
	"time"
)

// backoff is the pause between two tries: twice as long each time, up to a bound, and a little random, so that many who
// lost the same peer don't come back at once.
type backoff struct{ last time.Duration }

const (
	firstPause = 50 * time.Millisecond
	maxPause   = 5 * time.Second
)

func (b *backoff) wait(ctx context.Context) error { return b.waitOr(ctx, nil) }

// waitOr is wait, but not beyond an event.
func (b *backoff) waitOr(ctx context.Context, event <-chan struct{}) error {
	b.last = min(max(firstPause, 2*b.last), maxPause)
	timer := time.NewTimer(b.last/2 + rand.N(b.last/2)) //nolint:gosec // for chance, not for secrecy
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-event:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (b *backoff) reset() { b.last = 0 }
