// Package puppet makes peers that do not keep to the tunnel's protocol, for tests.
//
// A [Conn] lets an ordinary tunnel do the handshake. Once it is seized, a test writes what it
// likes, and the tunnel's own end of the connection neither reads nor writes any more. So tests
// need not know how a handshake goes.
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

// Conn is a connection that can be taken away from the tunnel that uses it. The tunnel's end has to
// be closed too, once Close was called.
type Conn struct {
	net.Conn

	seized  atomic.Bool
	closed  chan struct{}
	once    sync.Once
	reading sync.Mutex // held while the tunnel reads
}

// New wraps a connection.
func New(nc net.Conn) *Conn { return &Conn{Conn: nc, closed: make(chan struct{})} }

// Seize takes the connection from the tunnel: what is read from it afterwards by [net.Conn]'s
// methods of the embedded connection is the test's. It must be called once, when the handshake is
// over.
func (c *Conn) Seize() error {
	c.seized.Store(true)
	if err := c.Conn.SetReadDeadline(time.Unix(1, 0)); err != nil {
		return err //nolint:wrapcheck // a test's
	}
	c.reading.Lock()
	defer c.reading.Unlock()
	return c.Conn.SetReadDeadline(time.Time{}) //nolint:wrapcheck // a test's
}

// Read is the tunnel's.
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
	return n, err //nolint:wrapcheck // the tunnel compares it
}

// Write is the tunnel's.
func (c *Conn) Write(b []byte) (int, error) {
	if c.seized.Load() {
		return len(b), nil
	}
	return c.Conn.Write(b) //nolint:wrapcheck // the tunnel compares it
}

// SetReadDeadline is the tunnel's.
func (c *Conn) SetReadDeadline(t time.Time) error {
	if c.seized.Load() {
		return nil
	}
	return c.Conn.SetReadDeadline(t) //nolint:wrapcheck // as a connection's
}

// Close closes the connection.
func (c *Conn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close() //nolint:wrapcheck // as a connection's
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

// Flags of a CALL and of other frames that a test needs.
const (
	Bidi       = 0x03
	WithHeader = 0x08
	Sized      = 0x20
)

// Frame is a frame as docs/tunnel.md has it.
func Frame(kind, flags byte, id uint32, body ...byte) []byte {
	header := uint64(len(body))&0xffffff | uint64(kind)<<24 | uint64(flags)<<32 | uint64(id)<<40
	return append(binary.LittleEndian.AppendUint64(nil, header), body...)
}

// Text is a string on the wire.
func Text(s string) []byte { return append(Number(len(s)), s...) }

// Number is a varint.
func Number(n int) []byte { return binary.AppendUvarint(nil, uint64(n)) } //nolint:gosec // tests have no negative ones

// Names begin a CALL's body: target, caller and procedure in full.
func Names(target, procedure string) []byte {
	b := append([]byte{0}, Text(target)...)
	b = append(b, 0, 0, 0)
	return append(b, Text(procedure)...)
}

// EmptyHeader is a header of so many empty fields.
func EmptyHeader(fields int) []byte { return append(Number(fields), make([]byte, 2*fields)...) }

// Repeated is as many copies of b as fit n bytes.
func Repeated(b []byte, n int) []byte {
	out := make([]byte, 0, n)
	for len(out)+len(b) <= n {
		out = append(out, b...)
	}
	return out
}
