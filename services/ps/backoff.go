package ps

import (
	"context"
	"math/rand/v2"
	"time"
)

// backoff spaces retries. Each pause is up to twice as long as the previous one, bounded and
// jittered, so that clients that lost the same peer do not reconnect at the same time.
type backoff struct{ last time.Duration }

const (
	firstPause = 50 * time.Millisecond
	maxPause   = 5 * time.Second
)

func (b *backoff) wait(ctx context.Context) error { return b.waitOr(ctx, nil) }

// waitOr waits for the next pause or until event, whichever comes first.
func (b *backoff) waitOr(ctx context.Context, event <-chan struct{}) error {
	b.last = min(max(firstPause, 2*b.last), maxPause)
	timer := time.NewTimer(b.last/2 + rand.N(b.last/2)) //nolint:gosec // jitter needs no cryptographic randomness
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
