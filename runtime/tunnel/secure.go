package tunnel

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"

	"github.com/raylink/raylink/runtime/tunnel/internal/sock"
)

// A tunnel within TLS reads and writes its socket as one without does: a caller that is alone, and
// the read loop, write themselves what the socket accepts, and the reader busy-polls. crypto/tls
// itself would make a system call for each buffer that it is given and for each record, each of
// which may block. It therefore runs over a [sock.Wire], a buffer between it and the socket:
//
//	outbox ─► batch ─► seal: full records ─► Wire ─► one write (which blocks or not)
//	frameReader ◄─ TLS's records, decrypted in place ◄─ Wire ◄─ one read (likewise, or none)
//
// A batch is encrypted in pieces of sealBytes, each of which is sent before the next one is
// encrypted: so the records are still in the CPU's cache, and a slow peer makes this side hold
// little. Small buffers are gathered into full records; large ones are encrypted from where they
// are.

// BelowTLS returns the connection to run crypto/tls over, for a tunnel within it. It takes
// ownership of nc. [Dial] and [Accept] find it below the [*tls.Conn] that they are given; with
// any other connection below, or if the tunnel becomes another protocol's ([DialRaw]), TLS reads
// and writes as usual. If nc itself is around a socket, it should implement `Socket() net.Conn`,
// which returns that socket, or nil as long as reads must not bypass nc.
func BelowTLS(nc net.Conn) net.Conn { return sock.NewWire(nc) }

// secured is the TLS of a connection. Its methods do nothing if it is nil.
type secured struct {
	conn *tls.Conn
	wire *sock.Wire
	// bulk is set while much arrives. It is owned by the reader.
	bulk bool
}

const (
	// recordBytes is the most that a record of TLS carries (RFC 8446, section 5.1).
	recordBytes = 16 << 10
	// sealBytes is how much is encrypted before it is sent.
	sealBytes = 4 * recordBytes
)

// recordBuffers is for gathering small buffers into a record.
var recordBuffers = sync.Pool{New: func() any { return new([recordBytes]byte) }} //nolint:gochecknoglobals // a pool

// takeTLS takes control of the system calls of a connection by TLS, or returns nil if it has none
// or they can't be controlled. Nothing may be in progress on it.
func takeTLS(nc net.Conn) *secured {
	conn, ok := nc.(*tls.Conn)
	if !ok {
		return nil
	}
	wire, ok := conn.NetConn().(*sock.Wire)
	if !ok {
		return nil
	}
	wire.Take()
	return &secured{conn: conn, wire: wire}
}

// unsent reports whether something was encrypted and not sent yet: the rest of a batch, or what TLS
// itself has to say to the peer.
func (s *secured) unsent() bool { return s != nil && s.wire.Unsent() }

// shrink frees large buffers when there is nothing to write.
func (s *secured) shrink() {
	if s != nil {
		s.wire.Shrink()
	}
}

// write writes the part of the batch that has not been written yet, and may block. It returns how
// many bytes of the batch that were.
func (s *secured) write(b *batch) (n int64, err error) {
	for {
		if err := s.wire.Send(); err != nil {
			return n, err
		}
		sealed, err := s.seal(b.unwritten())
		if sealed == 0 || err != nil {
			return n, err
		}
		b.done += sealed
		n += int64(sealed)
	}
}

// tryWrite writes as much as the socket accepts. It returns how many bytes of the batch were
// encrypted, and whether all of it has been sent.
func (s *secured) tryWrite(b *batch, socket *sock.Writer) (n int, whole bool, err error) {
	for {
		if err := s.wire.TrySend(socket); err != nil || s.wire.Unsent() {
			return n, false, err
		}
		sealed, err := s.seal(b.unwritten())
		if sealed == 0 || err != nil {
			return n, err == nil, err
		}
		b.done += sealed
		n += sealed
	}
}

// seal encrypts the first sealBytes of iov, and returns how many bytes these are.
func (s *secured) seal(iov net.Buffers) (n int, err error) {
	var gathered *[recordBytes]byte
	used := 0
	defer func() {
		if gathered != nil {
			recordBuffers.Put(gathered)
		}
	}()
	for i, b := range iov {
		b = b[:min(len(b), sealBytes-n)]
		n += len(b)
		last := i == len(iov)-1 || n == sealBytes
		for len(b) > 0 {
			if used == 0 && (last || len(b) >= recordBytes) {
				straight := len(b)
				if !last {
					straight -= straight % recordBytes
				}
				if _, err := s.conn.Write(b[:straight]); err != nil {
					return 0, err
				}
				b = b[straight:]
				continue
			}
			if gathered == nil {
				gathered, _ = recordBuffers.Get().(*[recordBytes]byte)
			}
			moved := copy(gathered[used:], b)
			b = b[moved:]
			used += moved
			if used == recordBytes || last && len(b) == 0 {
				if _, err := s.conn.Write(gathered[:used]); err != nil {
					return 0, err
				}
				used = 0
			}
		}
		if last {
			break
		}
	}
	return n, nil
}

// readBuffered reads what TLS has received already. It returns 0 and no error if that is less
// than a record.
func (s *secured) readBuffered(dst []byte) (int, error) { return s.readAs(sock.ReadsBuffered, dst) }

// TryRead implements [sock.TryReader]: it reads what has arrived at the socket.
func (s *secured) TryRead(dst []byte) (int, error) {
	if !s.bulk {
		switch err := s.wire.Prefetch(); {
		case errors.Is(err, sock.ErrWouldBlock):
			return 0, nil
		case err != nil && !errors.Is(err, io.EOF): // TLS has its own view of the end
			return 0, err
		}
	}
	n, err := s.readAs(sock.ReadTries, dst)
	s.bulk = n >= sock.PrefetchBytes
	return n, err
}

func (s *secured) readAs(mode sock.ReadMode, dst []byte) (int, error) {
	s.wire.SetMode(mode)
	n, err := s.conn.Read(dst)
	s.wire.SetMode(sock.ReadBlocks)
	if n > 0 || errors.Is(err, sock.ErrWouldBlock) {
		return n, nil // TLS repeats any other error
	}
	return n, err
}
