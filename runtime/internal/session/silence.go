package session

import "time"

// Silence measures how long a peer has been silent while this process was running. Traffic that
// arrives while the process is stopped, or its machine suspended, is noticed only afterwards: after
// such a pause the measurement starts again.
type Silence struct {
	period  time.Duration
	traffic int64
	// since is when the silence began, last the time of the last measurement.
	since, last time.Time
}

// NewSilence starts a measurement now. At must then be called once per period.
func NewSilence(period time.Duration, now time.Time) *Silence {
	return &Silence{period: period, since: now, last: now}
}

// lateness is by how much a measurement must be late before it means that the process did not run.
const lateness = 100 * time.Millisecond

// At returns how long the silence has lasted. traffic must change whenever there was traffic.
func (s *Silence) At(now time.Time, traffic int64) time.Duration {
	// The monotonic clock stops while some machines are suspended; the wall clock does not.
	passed := max(now.Sub(s.last), now.Round(0).Sub(s.last.Round(0)))
	if traffic != s.traffic || passed > 2*s.period+lateness {
		s.since = now
	}
	s.traffic, s.last = traffic, now
	return now.Sub(s.since)
}
