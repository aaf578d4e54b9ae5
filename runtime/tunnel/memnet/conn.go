package memnet

import (
	"errors"
	"io"
	"net"
	"time"
)

// Conn is one end of a connection.
type Conn struct {
	local, remote addr
	in, out       *flow
	link          *Link
}

var _ net.Conn = (*Conn)(nil)

// Pipe makes two connected ends.
func Pipe() (near, far *Conn) {
	near, far, _ = pipe("near", "far")
	return near, far
}

func pipe(from, to string) (near, far *Conn, link *Link) {
	there, back := newFlow(), newFlow()
	link = &Link{there: there, back: back}
	near = &Conn{local: addr(from), remote: addr(to), in: back, out: there, link: link}
	far = &Conn{local: addr(to), remote: addr(from), in: there, out: back, link: link}
	return near, far, link
}

// Link is what is between the two ends.
func (c *Conn) Link() *Link { return c.link }

// Read reads what has arrived.
func (c *Conn) Read(b []byte) (int, error) {
	n, err := c.in.read(b)
	return n, c.explain("read", err)
}

// Write sends b. It waits while the other end has too much to read.
func (c *Conn) Write(b []byte) (int, error) {
	n, err := c.out.write(b)
	return n, c.explain("write", err)
}

// Close closes this end: the other reads what was written, and then io.EOF.
func (c *Conn) Close() error {
	if !c.in.closeReading() {
		return c.explain("close", net.ErrClosed)
	}
	c.out.closeWriting()
	return nil
}

// LocalAddr is this end's address.
func (c *Conn) LocalAddr() net.Addr { return c.local }

// RemoteAddr is the other end's address.
func (c *Conn) RemoteAddr() net.Addr { return c.remote }

// SetDeadline bounds reads and writes.
func (c *Conn) SetDeadline(t time.Time) error {
	c.in.setReadDeadline(t)
	c.out.setWriteDeadline(t)
	return nil
}

// SetReadDeadline bounds reads.
func (c *Conn) SetReadDeadline(t time.Time) error {
	c.in.setReadDeadline(t)
	return nil
}

// SetWriteDeadline bounds writes.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	c.out.setWriteDeadline(t)
	return nil
}

// Link is what is between two ends. Its methods may be called at any time.
type Link struct{ there, back *flow }

// Cut ends the connection: both ends get [ErrCut] at once, and what is on its way is lost.
func (l *Link) Cut() {
	l.there.cut()
	l.back.cut()
}

// Delay makes what is written from now on arrive so much later.
func (l *Link) Delay(d time.Duration) {
	l.there.setDelay(d)
	l.back.setDelay(d)
}

// Stall holds everything back, in both directions, as if the other machine had gone silent.
func (l *Link) Stall() {
	l.there.setStalled(true)
	l.back.setStalled(true)
}

// StallReplies holds back what goes to the end that dialled.
func (l *Link) StallReplies() { l.back.setStalled(true) }

// StallRepliesAfter lets n more bytes through to the end that dialled, and then holds back what
// goes there.
func (l *Link) StallRepliesAfter(n int) { l.back.setStallAfter(n) }

// Rate bounds how many bytes arrive in a second, in each direction; 0 is no bound.
func (l *Link) Rate(bytesPerSecond int) {
	l.there.setRate(bytesPerSecond)
	l.back.setRate(bytesPerSecond)
}

// Resume lets everything flow again, in both directions.
func (l *Link) Resume() {
	l.there.setStalled(false)
	l.back.setStalled(false)
}

// explain wraps an error the way the net package does; io.EOF stays as it is.
func (c *Conn) explain(op string, err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return err
	}
	return &net.OpError{Op: op, Net: "mem", Source: c.local, Addr: c.remote, Err: err}
}
