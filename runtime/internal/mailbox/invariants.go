package mailbox

import (
	"fmt"
	"math/rand/v2"

	"github.com/raylink/raylink/internal/invariants"
)

// step is called after every change, with m.mu held. If invariants are enabled, it panics if one is
// violated. An audit takes time in proportion to the calls that wait or have no turn. With more
// than auditsAll of them it is performed after some of the changes only, chosen at random, so that
// its cost per change stays bounded.
func (m *Mailbox) step() {
	if !invariants.Enabled || rand.IntN(1+(m.queue.len+m.turnless)/auditsAll) > 0 { //nolint:gosec // which changes is no secret
		return
	}
	if err := m.audit(); err != nil {
		panic(err)
	}
}

const auditsAll = 64

// audit returns the first violated invariant. The invariants hold whenever no operation is in
// progress. The caller must hold m.mu.
func (m *Mailbox) audit() error {
	var bytes int64
	waiting := 0
	for e := m.queue.head; e != nil; e = e.next {
		bytes += e.Bytes
		waiting++
	}
	var turnless int64
	gaveBack := 0
	for t := m.running.head; t != nil; t = t.next {
		if t.gaveBack {
			turnless += t.bytes()
			gaveBack++
		}
	}
	switch {
	case m.open && m.free+m.holding != m.limits.Turns:
		return fmt.Errorf("%s has %d turns: %d are free and %d held", m.owner(), m.limits.Turns, m.free, m.holding)
	case !m.open && m.free+m.holding != 0:
		return fmt.Errorf("%s is not open: %d turns are free and %d held", m.owner(), m.free, m.holding)
	case min(m.free, m.holding, m.suspended, m.turnless, m.concurrent, m.starting) < 0:
		return fmt.Errorf("%s counts below zero: %d turns free, %d held, %d suspended, %d given back, %d concurrent, %d starting",
			m.owner(), m.free, m.holding, m.suspended, m.turnless, m.concurrent, m.starting)
	case m.starting > m.holding:
		return fmt.Errorf("%s starts %d goroutines with %d turns", m.owner(), m.starting, m.holding)
	case waiting != m.queue.len || bytes != m.bytes:
		return fmt.Errorf("%s counts %d waiting and %d bytes, and has %d and %d", m.owner(), m.queue.len, m.bytes, waiting, bytes)
	case turnless != m.turnlessBytes:
		return fmt.Errorf("%s counts %d bytes of calls that gave their turn back, and has %d", m.owner(), m.turnlessBytes, turnless)
	case gaveBack > m.turnless: // turns from Acquire are not listed
		return fmt.Errorf("%s counts %d calls that gave their turn back, and has %d", m.owner(), m.turnless, gaveBack)
	case m.resuming.len > m.suspended:
		return fmt.Errorf("%s has %d turns to resume, and %d suspended", m.owner(), m.resuming.len, m.suspended)
	case m.free > 0 && m.queue.len+m.resuming.len > m.starting:
		return fmt.Errorf("%s lets %d wait while %d turns are free and %d goroutines start", m.owner(), m.queue.len+m.resuming.len, m.free, m.starting)
	case m.over && m.busy():
		return fmt.Errorf("%s is over, and %d turns are held or suspended, %d methods run without one, %d entries wait",
			m.owner(), m.holding+m.suspended, m.turnless+m.concurrent, m.queue.len)
	}
	return nil
}
