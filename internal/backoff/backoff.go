// Package backoff spaces retries: each pause is up to twice the one before, jittered, and bounded.
package backoff

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"
)

// Backoff spaces the retries of one loop. The zero value is ready for use. It must not be used
// concurrently.
//
// Pause n is drawn at random from the upper half of First<<n, bounded by Max ("equal jitter" in
// "Exponential Backoff and Jitter", AWS Architecture Blog, 2015): clients that lost the same peer
// at the same time don't return to it at the same time.
type Backoff struct {
	// First bounds the first pause, Max every pause, the first included. Defaults: 20 ms and 2 s.
	First, Max time.Duration

	bound time.Duration // of the last pause; 0 before the first
}

const (
	defaultFirst = 20 * time.Millisecond
	defaultMax   = 2 * time.Second
)

// Reset makes the next pause the first again. Call it after an attempt that succeeded.
func (b *Backoff) Reset() { b.bound = 0 }

// Next returns the next pause.
func (b *Backoff) Next() time.Duration {
	first, most := b.First, b.Max
	if first <= 0 {
		first = defaultFirst
	}
	if most <= 0 {
		most = defaultMax
	}
	// A bound past most/2 is not doubled, which could overflow.
	switch {
	case b.bound == 0:
		b.bound = min(first, most)
	case b.bound > most/2:
		b.bound = most
	default:
		b.bound *= 2
	}
	half := b.bound / 2
	return b.bound - half + rand.N(half+1) //nolint:gosec // jitter needs no secrecy
}

// Wait blocks for the next pause. It fails with the context's cause if the context ends first.
func (b *Backoff) Wait(ctx context.Context) error { return b.WaitOr(ctx, nil) }

// WaitOr blocks for the next pause, or until event is closed or receives a value. It fails with the
// context's cause if the context ends first.
func (b *Backoff) WaitOr(ctx context.Context, event <-chan struct{}) error {
	timer := time.NewTimer(b.Next())
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-event:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("pausing before a retry: %w", context.Cause(ctx))
	}
}
