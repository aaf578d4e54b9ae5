package listen

import (
	"context"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"time"
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
	// proven is set if the other side has proven in a handshake that it knows the token.
	proven bool
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

// IsProven reports whether the other side has proven in a handshake that it knows the token: then
// its requests need no Authorization header.
func (c *Conn) IsProven() bool { return c.proven }

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
		c.pending.gone()
		return c.Conn.Close()
	}
	err := half.CloseWrite()
	if !c.listener.config.Spawn(c.linger) {
		c.pending.gone()
		return errors.Join(err, c.Conn.Close())
	}
	return err
}

// linger discards what arrives for a short time, and closes the connection.
func (c *Conn) linger(ctx context.Context) {
	defer c.pending.gone()
	defer c.Conn.Close() //nolint:errcheck // the refusal has been written
	if err := c.SetReadDeadline(time.Now().Add(LingerTime)); err != nil {
		return
	}
	defer context.AfterFunc(ctx, func() { _ = c.SetReadDeadline(time.Unix(1, 0)) })()
	_, _ = io.Copy(io.Discard, io.LimitReader(c.Conn, maxLinger)) // it ends in one way or another
}
