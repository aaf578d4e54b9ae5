package listen

import (
	"context"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"time"

	"github.com/raylink/raylink/internal/pki"
)

// LingerTime is for how long the body of a refused request is read, so that the refusal arrives
// before the connection is closed.
const LingerTime = time.Second

// maxLinger bounds how many bytes of such a body are read.
const maxLinger = 256 << 10

// Conn is an HTTP connection. It first returns the bytes that were peeked at.
type Conn struct {
	net.Conn

	in       io.Reader
	listener *Listener
	pending  *pending
	// peer is the other side's identity, with a role if it has proven one in a handshake.
	peer pki.Peer
	// tokens are the ids of those that requests have sent. The listener's lock guards it.
	tokens map[string]struct{}
	// lingers is set if the connection must stay open until its other side has had time to read the
	// refusal: closing it with unread data would reset it.
	lingers atomic.Bool
}

type connKey struct{}

// ConnOf is the connection of the HTTP request with a context, or nil.
func ConnOf(ctx context.Context) *Conn {
	c, _ := ctx.Value(connKey{}).(*Conn)
	return c
}

// Peer is the identity that the other side has proven in a handshake: then its requests need no
// Authorization header. It has no role if there is none.
func (c *Conn) Peer() pki.Peer { return c.peer }

// IsProven reports whether Peer has a role.
func (c *Conn) IsProven() bool { return c.peer.Role != "" }

// HasSent records the id of a token that a request has sent, for [Listener.CloseRevoked].
func (c *Conn) HasSent(tokenID string) {
	c.listener.mu.Lock()
	defer c.listener.mu.Unlock()
	if c.tokens == nil {
		c.tokens = make(map[string]struct{}, 1)
	}
	c.tokens[tokenID] = struct{}{}
}

// hasToken reports whether one of the connection's tokens is revoked. The caller holds the
// listener's lock.
func (c *Conn) hasToken(revoked func(tokenID string) bool) bool {
	if c.peer.TokenID != "" && revoked(c.peer.TokenID) {
		return true
	}
	for id := range c.tokens {
		if revoked(id) {
			return true
		}
	}
	return false
}

// Admit lifts the limits of connections without a token: the other side has sent it.
func (c *Conn) Admit() { c.pending.admit() }

// IsAdmitted reports whether Admit was called.
func (c *Conn) IsAdmitted() bool { return c.pending.isAdmitted() }

// Serving counts a request that is served without a token, which renews the time that the
// connection may be idle. With watch, for a request that stays open, the connection is not idle
// until the returned function is called, as it must be.
func (c *Conn) Serving(watch bool) (done func()) { return c.pending.answers(watch) }

// Linger makes Close keep the connection open until its other side has had time to read a response
// to a request that was not read: closing it with unread data would reset it.
func (c *Conn) Linger() { c.lingers.Store(true) }

// Lingers reports whether Linger was called.
func (c *Conn) Lingers() bool { return c.lingers.Load() }

func (c *Conn) Read(p []byte) (int, error) { return c.in.Read(p) }

// Close implements [net.Conn].
func (c *Conn) Close() error {
	half, ok := c.Conn.(interface{ CloseWrite() error })
	if !ok || !c.lingers.Swap(false) {
		c.gone()
		return c.Conn.Close()
	}
	err := half.CloseWrite()
	if !c.listener.config.Spawn(c.linger) {
		c.gone()
		return errors.Join(err, c.Conn.Close())
	}
	return err
}

// gone removes the connection from the listener.
func (c *Conn) gone() {
	c.pending.gone()
	c.listener.mu.Lock()
	defer c.listener.mu.Unlock()
	delete(c.listener.webOpen, c)
}

// linger discards what arrives for a short time, and closes the connection.
func (c *Conn) linger(ctx context.Context) {
	defer c.gone()
	defer c.Conn.Close() //nolint:errcheck // the refusal has been written
	discard(ctx, c.Conn)
}

// discard reads a connection until its peer has closed it, for a short time at most.
func discard(ctx context.Context, nc net.Conn) {
	if err := nc.SetReadDeadline(time.Now().Add(LingerTime)); err != nil {
		return
	}
	defer context.AfterFunc(ctx, func() { _ = nc.SetReadDeadline(time.Unix(1, 0)) })()
	_, _ = io.Copy(io.Discard, io.LimitReader(nc, maxLinger)) // it ends in one way or another
}
