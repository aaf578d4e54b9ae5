package tunnel

import (
	"errors"
	"fmt"
	"time"
)

// keepalive detects a peer that has gone silent while calls are open. It ticks only while some are,
// so an idle connection has no running timer. It is guarded by Conn.mu.
//
// Silence is measured in punctual ticks, not by the clock. A late tick means that this process did
// not run, because it was stopped, its machine was suspended or it is overloaded. What the peer has
// sent meanwhile may not have been read yet, so the peer is pinged and given another full interval.
type keepalive struct {
	// interval is how long the peer may be silent before it is pinged, and again before the
	// connection fails.
	interval time.Duration
	timer    *time.Timer
	armed    bool
	// last is the time of the last tick. silent counts the consecutive ticks without traffic.
	last   time.Time
	silent int
	// sent is the number of bytes written up to the last tick. stalled counts the consecutive ticks
	// at which output was queued and nothing was written.
	sent    uint64
	stalled int
}

// keepaliveAction is the result of a tick.
type keepaliveAction uint8

const (
	// peerAlive: nothing to do.
	peerAlive keepaliveAction = iota
	// peerSilent: ping the peer.
	peerSilent
	// peerLost: the peer did not answer the ping.
	peerLost
)

// ticksPerInterval is the number of ticks per interval. The more there are, the shorter a pause of
// this process that is detected.
const ticksPerInterval = 4

// minLateness is the minimum delay at which a tick counts as late, to allow for scheduling
// jitter.
const minLateness = 50 * time.Millisecond

var errNoAnswer = errors.New("no answer")

func (k *keepalive) period() time.Duration { return max(k.interval/ticksPerInterval, 1) }

// reset resets the state before the first tick.
func (k *keepalive) reset(now time.Time) { k.last, k.silent = now, 0 }

// tick returns what to do, given whether there was traffic since the last tick.
func (k *keepalive) tick(now time.Time, traffic bool) keepaliveAction {
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

// isLate reports whether the tick is late by the monotonic or the wall clock. On some machines the
// monotonic clock stops during suspension, and only the wall clock shows it.
func (k *keepalive) isLate(now time.Time) bool {
	passed := max(now.Sub(k.last), now.Round(0).Sub(k.last.Round(0)))
	return passed > k.period()+max(k.period()/2, minLateness)
}

// stalledTicks is the number of ticks without a write after which a peer counts as silent while
// this side does not read. It is generous because one write may be large and the link slow.
const stalledTicks = 4 * ticksPerInterval

// stillReading reports whether a peer whose traffic cannot be seen, because this side has stopped
// reading (see [Conn.awaitWriter]), still reads what is written to it.
func (k *keepalive) stillReading(paused bool, sent uint64) bool {
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

// startKeepalive starts the ticks when the first call opens. The caller must hold c.mu.
func (c *Conn) startKeepalive() {
	k := &c.keepalive
	if k.armed || c.cfg.Keepalive < 0 || c.err != nil {
		return
	}
	k.armed, k.interval = true, c.cfg.Keepalive
	k.reset(time.Now())
	c.sawTraffic.Store(false)
	if k.timer == nil {
		k.timer = time.AfterFunc(k.period(), c.keepaliveTick)
		return
	}
	k.timer.Reset(k.period())
}

// keepaliveTick checks for traffic since the last tick. It pings a silent peer, and fails the
// connection if the peer stays silent.
func (c *Conn) keepaliveTick() {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	k := &c.keepalive
	switch k.tick(time.Now(), k.stillReading(c.paused, c.sent.Load()) || c.sawTraffic.Swap(false)) {
	case peerAlive:
	case peerSilent:
		c.out.frame(kindPing, 0, make([]byte, pingBytes))
		c.kick()
	case peerLost:
		c.mu.Unlock()
		c.fail(fmt.Errorf("%w for %v", errNoAnswer, 2*c.cfg.Keepalive))
		return
	}
	// Output that cannot be written counts as open, since the peer does not read it.
	if c.pending() == 0 && !c.out.writing {
		k.armed = false
	} else {
		k.timer.Reset(k.period())
	}
	c.mu.Unlock()
}
