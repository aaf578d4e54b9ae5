package memnet

import (
	"errors"
	"io"
	"net"
	"time"
)

// Conn is one end of an in-memory connection.
type Conn struct {
	local, remote addr
	in, out       *flow
	link          *Link
}

var _ net.Conn = (*Conn)(nil)

// Pipe returns two connected ends.
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

// Link returns the link between the two ends.
func (c *Conn) Link() *Link { return c.link }

// Read blocks until data has arrived and returns it.
func (c *Conn) Read(b []byte) (int, error) {
	n, err := c.in.read(b)
	return n, c.explain("read", err)
}

// Write sends b. It blocks while the peer's receive buffer is full.
func (c *Conn) Write(b []byte) (int, error) {
	n, err := c.out.write(b)
	return n, c.explain("write", err)
}

// Close closes this end. The peer can read what was written, and then gets io.EOF.
func (c *Conn) Close() error {
	if !c.in.closeReading() {
		return c.explain("close", net.ErrClosed)
	}
	c.out.closeWriting()
	return nil
}

// LocalAddr returns the address of this end.
func (c *Conn) LocalAddr() net.Addr { return c.local }

// RemoteAddr returns the address of the other end.
func (c *Conn) RemoteAddr() net.Addr { return c.remote }

// SetDeadline sets the deadline of reads and writes.
func (c *Conn) SetDeadline(t time.Time) error {
	c.in.setReadDeadline(t)
	c.out.setWriteDeadline(t)
	return nil
}

// SetReadDeadline sets the deadline of reads.
func (c *Conn) SetReadDeadline(t time.Time) error {
	c.in.setReadDeadline(t)
	return nil
}

// SetWriteDeadline sets the deadline of writes.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	c.out.setWriteDeadline(t)
	return nil
}

// Link is the link between two ends. Its methods are safe for concurrent use.
type Link struct{ there, back *flow }

// Cut breaks the connection: both ends fail with [ErrCut] at once, and data in flight is lost.
func (l *Link) Cut() {
	l.there.cut()
	l.back.cut()
}

// Delay delays everything written from now on by d.
func (l *Link) Delay(d time.Duration) {
	l.there.setDelay(d)
	l.back.setDelay(d)
}

// Stall holds back all data in both directions, as if the other machine had gone silent.
func (l *Link) Stall() {
	l.there.setStalled(true)
	l.back.setStalled(true)
}

// StallReplies holds back the data to the dialling end.
func (l *Link) StallReplies() { l.back.setStalled(true) }

// StallRepliesAfter holds back the data to the dialling end after n more bytes.
func (l *Link) StallRepliesAfter(n int) { l.back.setStallAfter(n) }

// StallRequestsAfter holds back the data from the dialling end after n more bytes.
func (l *Link) StallRequestsAfter(n int) { l.there.setStallAfter(n) }

// Rate limits the bytes that arrive per second, in each direction; 0 means no limit.
func (l *Link) Rate(bytesPerSecond int) {
	l.there.setRate(bytesPerSecond)
	l.back.setRate(bytesPerSecond)
}

// Resume ends a stall in both directions.
func (l *Link) Resume() {
	l.there.setStalled(false)
	l.back.setStalled(false)
}

// ResumeRequests ends a stall of the data from the dialling end only.
func (l *Link) ResumeRequests() { l.there.setStalled(false) }

// explain wraps an error as the net package does; io.EOF is returned unchanged.
func (c *Conn) explain(op string, err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return err
	}
	return &net.OpError{Op: op, Net: "mem", Source: c.local, Addr: c.remote, Err: err}
}
