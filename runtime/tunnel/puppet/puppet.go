// Package puppet implements peers that violate the tunnel's protocol, for tests.
//
// A [Conn] lets an ordinary tunnel perform the handshake. After Seize a test writes arbitrary
// bytes, and the tunnel that owned the connection neither reads nor writes any more. Tests
// therefore need no knowledge of the handshake.
package puppet

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// Conn is a connection that a test can take over from the tunnel that uses it. The tunnel must be
// closed too, after Close.
type Conn struct {
	net.Conn

	seized  atomic.Bool
	closed  chan struct{}
	once    sync.Once
	reading sync.Mutex // held while the tunnel reads
}

// New wraps a connection.
func New(nc net.Conn) *Conn { return &Conn{Conn: nc, closed: make(chan struct{})} }

// Seize takes the connection over from the tunnel. From then on the test reads and writes it
// through the embedded [net.Conn]. Seize must be called once, after the handshake.
func (c *Conn) Seize() error {
	c.seized.Store(true)
	if err := c.Conn.SetReadDeadline(time.Unix(1, 0)); err != nil {
		return err //nolint:wrapcheck // for tests only
	}
	c.reading.Lock()
	defer c.reading.Unlock()
	return c.Conn.SetReadDeadline(time.Time{}) //nolint:wrapcheck // for tests only
}

// Read is called by the tunnel. After Seize it blocks until Close.
func (c *Conn) Read(b []byte) (int, error) {
	c.reading.Lock()
	if c.seized.Load() {
		c.reading.Unlock()
		<-c.closed
		return 0, io.EOF
	}
	n, err := c.Conn.Read(b)
	c.reading.Unlock()
	if err != nil && c.seized.Load() && errors.Is(err, os.ErrDeadlineExceeded) {
		<-c.closed
		return 0, io.EOF
	}
	return n, err //nolint:wrapcheck // the tunnel compares the error
}

// Write is called by the tunnel. After Seize it discards b.
func (c *Conn) Write(b []byte) (int, error) {
	if c.seized.Load() {
		return len(b), nil
	}
	return c.Conn.Write(b) //nolint:wrapcheck // the tunnel compares the error
}

// SetReadDeadline is called by the tunnel. After Seize it does nothing.
func (c *Conn) SetReadDeadline(t time.Time) error {
	if c.seized.Load() {
		return nil
	}
	return c.Conn.SetReadDeadline(t) //nolint:wrapcheck // as returned by the connection
}

// Close closes the connection.
func (c *Conn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close() //nolint:wrapcheck // as returned by the connection
}

// The kinds of frames.
const (
	Name      = 0x10
	Call      = 0x11
	Data      = 0x12
	CloseSend = 0x13
	Cancel    = 0x14
	Head      = 0x15
	Reply     = 0x16
	Credit    = 0x17
	Ping      = 0x20
	Pong      = 0x21
	GoAway    = 0x22
)

// Flags of CALL and other frames that tests need.
const (
	Bidi       = 0x03
	WithHeader = 0x08
	Sized      = 0x20
)

// Frame encodes a frame as specified in docs/tunnel.md.
func Frame(kind, flags byte, id uint32, body ...byte) []byte {
	header := uint64(len(body))&0xffffff | uint64(kind)<<24 | uint64(flags)<<32 | uint64(id)<<40
	return append(binary.LittleEndian.AppendUint64(nil, header), body...)
}

// Text encodes a string.
func Text(s string) []byte { return append(Number(len(s)), s...) }

// Number encodes a varint.
func Number(n int) []byte { return binary.AppendUvarint(nil, uint64(n)) } //nolint:gosec // never negative in tests

// Names encodes the start of a CALL's body: the target and the procedure in full, and an empty
// caller.
func Names(target, procedure string) []byte {
	b := append([]byte{0}, Text(target)...)
	b = append(b, 0, 0, 0)
	return append(b, Text(procedure)...)
}

// EmptyHeader encodes a header of that many empty fields.
func EmptyHeader(fields int) []byte { return append(Number(fields), make([]byte, 2*fields)...) }

// Repeated returns as many copies of b as fit in n bytes.
func Repeated(b []byte, n int) []byte {
	out := make([]byte, 0, n)
	for len(out)+len(b) <= n {
		out = append(out, b...)
	}
	return out
}
