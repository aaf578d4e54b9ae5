package tunnel

import (
	"errors"
	"fmt"
	"time"
)

// keepalive finds out a peer that has gone silent while calls are open. It ticks only then, so an
// idle connection costs no timer. It is guarded by the connection's lock.
//
// Silence is counted in ticks that came in time, never by the clock. A tick that comes late says
// that this process did not run (it was stopped, its machine was suspended or is overloaded): what
// the peer has sent meanwhile has not been read yet, so the peer is pinged and given a whole
// interval from then on.
type keepalive struct {
	// interval is how long the peer may be silent before it is pinged, and then before it is given
	// up.
	interval time.Duration
	timer    *time.Timer
	armed    bool
	// last is when the last tick was, silent how many ticks in a row since brought nothing.
	last   time.Time
	silent int
	// sent is how much was written at the last tick, stalled how many ticks in a row nothing was
	// that should have been.
	sent    uint64
	stalled int
}

// keepaliveVerdict is what a tick finds.
type keepaliveVerdict uint8

const (
	// peerAlive: nothing is to be done.
	peerAlive keepaliveVerdict = iota
	// peerSilent: it is to be pinged.
	peerSilent
	// peerLost: it has not answered.
	peerLost
)

// ticksPerInterval is how many ticks an interval has. With more of them a shorter stop of this
// process is noticed.
const ticksPerInterval = 4

// leastLateness is how late a tick is at the least before it says anything: schedulers are not
// exact.
const leastLateness = 50 * time.Millisecond

var errNoAnswer = errors.New("no answer")

func (k *keepalive) period() time.Duration { return max(k.interval/ticksPerInterval, 1) }

// begin is before the first tick.
func (k *keepalive) begin(now time.Time) { k.last, k.silent = now, 0 }

// tick decides by what has come since the last one.
func (k *keepalive) tick(now time.Time, traffic bool) keepaliveVerdict {
	late := k.isLate(now)
	k.last = now
	switch {
	case traffic:
		k.silent = 0
		return peerAlive
	case late && k.silent > 0:
		k.silent = ticksPerInterval
		return peerSilent
	}
	switch k.silent++; k.silent {
	case ticksPerInterval:
		return peerSilent
	case 2 * ticksPerInterval:
		return peerLost
	}
	return peerAlive
}

// isLate says whether more time has passed than a tick's, by either clock: the monotonic one stands
// still while some machines are suspended, and the other one then does not.
func (k *keepalive) isLate(now time.Time) bool {
	passed := max(now.Sub(k.last), now.Round(0).Sub(k.last.Round(0)))
	return passed > k.period()+max(k.period()/2, leastLateness)
}

// stalledTicks is for how many ticks nothing may have been written to a peer that this side has
// stopped reading from, before it counts as silent: one write may be long, and the link slow.
const stalledTicks = 4 * ticksPerInterval

// slow says whether a peer that can't be heard, since this side has stopped reading (see
// [Conn.awaitWriter]), still reads what is written to it.
func (k *keepalive) slow(paused bool, sent uint64) bool {
	progress := sent != k.sent
	k.sent = sent
	if !paused || progress {
		k.stalled = 0
		return paused
	}
	k.stalled++
	return k.stalled < stalledTicks
}

func (k *keepalive) stop() {
	if k.timer != nil {
		k.timer.Stop()
	}
}

// watch starts the ticks when the first call opens. Callers hold the lock.
func (c *Conn) watch() {
	k := &c.keepalive
	if k.armed || c.cfg.Keepalive < 0 || c.err != nil {
		return
	}
	k.armed, k.interval = true, c.cfg.Keepalive
	k.begin(time.Now())
	c.heard.Store(false)
	if k.timer == nil {
		k.timer = time.AfterFunc(k.period(), c.keepaliveTick)
		return
	}
	k.timer.Reset(k.period())
}

// keepaliveTick looks whether anything has come since the last tick. Silence is answered by a ping,
// continued silence by the end.
func (c *Conn) keepaliveTick() {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	k := &c.keepalive
	switch k.tick(time.Now(), k.slow(c.paused, c.sent.Load()) || c.heard.Swap(false)) {
	case peerAlive:
	case peerSilent:
		c.out.frame(kindPing, 0, make([]byte, pingBytes))
		c.kick()
	case peerLost:
		c.mu.Unlock()
		c.fail(fmt.Errorf("%w for %v", errNoAnswer, 2*c.cfg.Keepalive))
		return
	}
	// What could not be written yet counts as open: the peer does not read it.
	if c.pending() == 0 && !c.out.writing {
		k.armed = false
	} else {
		k.timer.Reset(k.period())
	}
	c.mu.Unlock()
}
