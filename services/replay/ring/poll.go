package ring

import (
	"context"
	"time"
)

const (
	// firstWait and longestWait are the pauses between two attempts of a call that waits.
	firstWait   = 20 * time.Microsecond
	longestWait = 2 * time.Millisecond
	// ownerInterval is how often it checks meanwhile that the ring's creator is alive.
	ownerInterval = 100 * time.Millisecond
)

// poll is the wait of a call for rows that are in its way.
type poll struct {
	ring *Ring
	// begin is when the wait began, and seen when the ring's creator was last found alive.
	begin, seen time.Time
	pause       time.Duration
}

func (r *Ring) poll() *poll {
	now := time.Now()
	return &poll{ring: r, begin: now, seen: now, pause: firstWait}
}

// waited returns how long the wait has lasted.
func (p *poll) waited() time.Duration { return time.Since(p.begin) }

// next waits until the next attempt, longer each time. It returns nil too if the context ends
// first, and [ErrOrphaned] if the ring's creator has died.
func (p *poll) next(ctx context.Context) error {
	timer := time.NewTimer(p.pause)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return nil
	case <-timer.C:
	}
	p.pause = min(2*p.pause, longestWait)
	now := time.Now()
	if now.Sub(p.seen) < ownerInterval {
		return nil
	}
	p.seen = now
	if orphaned, err := p.ring.Orphaned(); err != nil {
		return err
	} else if orphaned {
		return ErrOrphaned
	}
	return nil
}
