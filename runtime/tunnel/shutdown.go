package tunnel

import (
	"context"
	"fmt"
	"time"

	"connectrpc.com/connect/v2"
)

// Shutdown ends the connection in good order: no new calls begin, on either side; those that are
// open are waited for; what they answered is written; then the connection is closed. If ctx ends
// first, the connection is closed then, and ctx's error returned.
func (c *Conn) Shutdown(ctx context.Context) error {
	c.mu.Lock()
	over := c.err != nil
	if over {
		c.mu.Unlock()
		return nil //nolint:nilerr // it has ended, whatever the reason: nothing is open any more
	}
	c.drain(fmt.Errorf("this side is shutting down: %w", ErrClosed))
	if c.quiet == nil {
		c.quiet = make(chan struct{})
	}
	quiet := c.quiet
	c.checkQuiet()
	c.mu.Unlock()
	var err error
	select {
	case <-quiet:
		err = c.parted(ctx)
	case <-ctx.Done():
		err = fmt.Errorf("shutting down the tunnel to %s with %d calls open: %w", c.peerName(), c.Pending(), ctx.Err())
	}
	c.fail(fmt.Errorf("this side shut down: %w", ErrClosed))
	return err
}

// parted waits until the dialler has closed the connection: it alone knows that it has read
// everything. One that does not close in time is not waited for.
func (c *Conn) parted(ctx context.Context) error {
	if c.dialled {
		return nil
	}
	timer := time.NewTimer(c.cfg.HandshakeTimeout)
	defer timer.Stop()
	select {
	case <-c.done:
	case <-timer.C:
	case <-ctx.Done():
		return fmt.Errorf("waiting for %s to close the tunnel: %w", c.peerName(), ctx.Err())
	}
	return nil
}

// drain refuses new calls from now on and says so to the peer. On a connection that has ended there
// is nothing to refuse. Callers hold the lock.
func (c *Conn) drain(reason error) {
	if c.draining != nil || c.err != nil {
		return
	}
	c.draining = reason
	close(c.refused)
	body := appendFault(nil, connect.NewError(connect.CodeUnavailable, "shutting down"), maxGoAwayBytes)
	c.out.frame(kindGoAway, 0, body)
	c.kick()
}

// checkQuiet wakes Shutdown when nothing is left to wait for. A dialler whose peer is shutting down
// closes the connection then. Callers hold the lock.
func (c *Conn) checkQuiet() {
	leaving := c.dialled && c.peerDrained
	if c.quiet == nil && !leaving {
		return
	}
	over := c.err != nil
	idle := c.pending() == 0 && !c.out.writing && len(c.out.buf) == 0 && len(c.out.ring) == 0 && len(c.out.replies) == 0
	// An accepting side waits until the dialler knows, so that no call that was already on its way
	// is lost without an answer.
	if !over && (!idle || !c.dialled && !c.peerDrained) {
		return
	}
	if c.quiet != nil {
		close(c.quiet)
		c.quiet = nil
	}
	if leaving && !over {
		go c.fail(errPeerShutDown)
	}
}

var errPeerShutDown = fmt.Errorf("the peer shut down: %w", ErrClosed)

func (c *Conn) onGoAway(h frameHeader, body []byte) error {
	p := parser{rest: body}
	reason := p.fault()
	if p.end(); p.err != nil {
		return p.err
	}
	if h.flags()&goAwayFatal != 0 {
		return fmt.Errorf("the peer ended the connection: %s", reason.Message()) //nolint:err113 // a reason, not for decisions
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.peerDrained = true
	if c.dialled {
		c.drain(fmt.Errorf("the peer is shutting down: %w", ErrClosed))
	}
	c.checkQuiet()
	return nil
}
