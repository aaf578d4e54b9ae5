package runtime

import "time"

// silence measures for how long nothing has been heard of a peer, while this process was running.
// What is heard while the process is stopped or its machine suspended is only known later: after
// such a time the peer is given the whole of it anew.
type silence struct {
	period time.Duration
	heard  int64
	// since is when it began, last when it was looked at.
	since, last time.Time
}

// newSilence begins now. It is to be looked at in each period.
func newSilence(period time.Duration, now time.Time) *silence {
	return &silence{period: period, since: now, last: now}
}

// lateness is how late a look is at the least before it says that the process did not run.
const lateness = 100 * time.Millisecond

// at is how long the silence has lasted. heard changes with whatever is heard.
func (s *silence) at(now time.Time, heard int64) time.Duration {
	// The monotonic clock stands still while some machines are suspended; the other one does not.
	passed := max(now.Sub(s.last), now.Round(0).Sub(s.last.Round(0)))
	if heard != s.heard || passed > 2*s.period+lateness {
		s.since = now
	}
	s.heard, s.last = heard, now
	return now.Sub(s.since)
}
