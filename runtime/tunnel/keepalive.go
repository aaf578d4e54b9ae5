package tunnel

import (
	"errors"
	"fmt"
	"time"
)

// pulse finds out a peer that has gone silent while calls are open. It ticks only then, so an idle connection costs no timer.
// It is guarded by the connection's lock.
type pulse struct {
	timer  *time.Timer
	armed  bool
	pinged bool
	silent time.Duration
}

var errNoAnswer = errors.New("no answer")

func (p *pulse) stop() {
	if p.timer != nil {
		p.timer.Stop()
	}
}

// watch starts the pulse when the first call opens. Callers hold the lock.
func (c *Conn) watch() {
	if c.pulse.armed || c.cfg.Keepalive < 0 || c.err != nil {
		return
	}
	c.pulse.armed, c.pulse.pinged, c.pulse.silent = true, false, 0
	c.heard.Store(true)
	if c.pulse.timer == nil {
		c.pulse.timer = time.AfterFunc(c.cfg.Keepalive, c.beat)
		return
	}
	c.pulse.timer.Reset(c.cfg.Keepalive)
}

// beat looks whether anything was heard since the last time. Silence is answered by a ping, continued silence by the end.
func (c *Conn) beat() {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	p := &c.pulse
	switch {
	case c.heard.Swap(false):
		p.pinged, p.silent = false, 0
	case p.pinged:
		silent := p.silent + c.cfg.Keepalive
		c.mu.Unlock()
		c.fail(fmt.Errorf("%w for %v", errNoAnswer, silent))
		return
	default:
		p.pinged = true
		p.silent += c.cfg.Keepalive
		c.out.frame(kindPing, 0, make([]byte, pingBytes))
		c.kick()
	}
	// What could not be written yet counts as open: nobody reads it.
	if c.pending() == 0 && !c.out.writing {
		p.armed = false
	} else {
		p.timer.Reset(c.cfg.Keepalive)
	}
	c.mu.Unlock()
}
