package tunnel

import (
	"context"
	"fmt"
	"time"

	"connectrpc.com/connect/v2"
)

// Shutdown ends the connection gracefully. No new calls begin on either side; open calls may finish
// and their responses are written; then the connection is closed. If ctx ends first, the connection
// is closed at once and the error wraps ctx's. Shutdown returns nil if the connection has already
// ended.
func (c *Conn) Shutdown(ctx context.Context) error {
	c.mu.Lock()
	over := c.err != nil
	if over {
		c.mu.Unlock()
		return nil //nolint:nilerr // already ended for whatever reason: nothing is open
	}
	c.drain(fmt.Errorf("this side is shutting down: %w", ErrClosed))
	if c.idle == nil {
		c.idle = make(chan struct{})
	}
	idle := c.idle
	c.checkIdle()
	c.mu.Unlock()
	var err error
	select {
	case <-idle:
		err = c.awaitPeerClose(ctx)
	case <-ctx.Done():
		err = fmt.Errorf("shutting down the tunnel to %s with %d calls open: %w", c.peerName(), c.Pending(), ctx.Err())
	}
	c.fail(fmt.Errorf("this side shut down: %w", ErrClosed))
	return err
}

// awaitPeerClose waits until the dialler has closed the connection, since only the dialler knows
// that it has read everything. It gives up after HandshakeTimeout.
func (c *Conn) awaitPeerClose(ctx context.Context) error {
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

// drain refuses new calls from now on and sends GOAWAY. It does nothing if the connection has
// ended. The caller must hold c.mu.
func (c *Conn) drain(reason error) {
	if c.draining != nil || c.err != nil {
		return
	}
	c.draining = reason
	close(c.refused)
	body := appendErrorBlock(nil, connect.NewError(connect.CodeUnavailable, "shutting down"), maxGoAwayBytes)
	c.out.frame(kindGoAway, 0, body)
	c.kick()
}

// checkIdle unblocks Shutdown if nothing is left to wait for. On a dialling side whose peer is
// shutting down, it then closes the connection. The caller must hold c.mu.
func (c *Conn) checkIdle() {
	leaving := c.dialled && c.peerDrained
	if c.idle == nil && !leaving {
		return
	}
	over := c.err != nil
	idle := c.pending() == 0 && !c.out.writing && len(c.out.buf) == 0 && len(c.out.ring) == 0 && len(c.out.replies) == 0
	// An accepting side waits for the dialler's GOAWAY, so that no call already in flight is lost
	// without an answer.
	if !over && (!idle || !c.dialled && !c.peerDrained) {
		return
	}
	if c.idle != nil {
		close(c.idle)
		c.idle = nil
	}
	if leaving && !over {
		go c.fail(errPeerShutDown)
	}
}

var errPeerShutDown = fmt.Errorf("the peer shut down: %w", ErrClosed)

func (c *Conn) onGoAway(h frameHeader, body []byte) error {
	p := parser{rest: body}
	reason := p.errorBlock()
	if p.end(); p.err != nil {
		return p.err
	}
	if h.flags()&goAwayFatal != 0 {
		return fmt.Errorf("the peer ended the connection: %s", reason.Message()) //nolint:err113 // for information only, not to be matched
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.peerDrained = true
	if c.dialled {
		c.drain(fmt.Errorf("the peer is shutting down: %w", ErrClosed))
	}
	c.checkIdle()
	return nil
}
