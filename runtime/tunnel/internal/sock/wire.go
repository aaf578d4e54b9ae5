package sock

import (
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
)

// Wire is the connection that crypto/tls runs over. Until [Wire.Take] it reads and writes the
// connection below as it is. From then on its owner decides when there is a system call:
//
//   - What TLS writes is collected in a buffer, so that a batch of records takes one write, which
//     may be one that does not block. Writes of TLS therefore never block: neither the answer to a
//     KeyUpdate, which is written by the goroutine that reads, nor the alert of Close.
//   - A read is one of three kinds, see [ReadMode]. TLS keeps a partially received record if its
//     read fails with [ErrWouldBlock], and continues there.
//
// TLS serializes its writes, and so does the owner its reads, and its sends.
type Wire struct {
	net.Conn

	taken bool
	// mode and the fields below it are owned by the reader.
	mode    ReadMode
	raw     syscall.RawConn
	tryRead func(fd uintptr) bool
	buf     []byte
	n       int
	err     error
	// ahead is what Prefetch has read and TLS has not; aheadBuffer is its memory.
	ahead       []byte
	aheadBuffer [PrefetchBytes]byte

	unsent atomic.Bool // whether out has something to send

	mu sync.Mutex // guards the fields below
	// out is what TLS has written; its first off bytes are sent. They may be read without mu while
	// sending is set, which only one goroutine may do.
	out     []byte
	off     int
	sending bool
}

// ReadMode is what a read of TLS may do.
type ReadMode uint8

const (
	// ReadBlocks waits for data.
	ReadBlocks ReadMode = iota
	// ReadTries reads the socket, and fails with ErrWouldBlock where that has nothing.
	ReadTries
	// ReadsBuffered reads nothing: TLS returns what it has received already.
	ReadsBuffered
)

// PrefetchBytes is the most that [Wire.Prefetch] reads.
const PrefetchBytes = 512

const (
	// wireBuffer is the capacity of pooled buffers: four full records, and some small ones.
	wireBuffer = 68 << 10
	// smallWireBuffer is the capacity up to which buffers are not pooled, nor dropped when idle.
	smallWireBuffer = 4 << 10
	// maxUnsent bounds what is collected. Batches are far smaller; a peer that keeps asking for new
	// keys and does not read what it gets must not make it grow.
	maxUnsent = 1 << 20
)

var wireBuffers = sync.Pool{New: func() any { return new([wireBuffer]byte) }} //nolint:gochecknoglobals // a pool

// errUnsent is the error of a write beyond maxUnsent.
var errUnsent = errors.New("the peer does not read")

// ErrWouldBlock is the error of a read that finds nothing. TLS takes it for an expired deadline,
// and remains usable.
var ErrWouldBlock error = wouldBlockError{}

type wouldBlockError struct{}

func (wouldBlockError) Error() string   { return "nothing to read" }
func (wouldBlockError) Timeout() bool   { return true }
func (wouldBlockError) Temporary() bool { return true }

var _ net.Error = wouldBlockError{}

// NewWire returns a Wire over nc, which it owns.
func NewWire(nc net.Conn) *Wire { return &Wire{Conn: nc} }

// Socket returns the connection below.
func (w *Wire) Socket() net.Conn { return w.Conn }

// Take passes the decision about system calls to the caller. TLS must have completed its handshake,
// and must not be in use.
func (w *Wire) Take() {
	w.taken = true
	w.raw = rawConn(w.Conn)
	w.tryRead = func(fd uintptr) bool {
		w.n, w.err = syscall.Read(int(fd), w.buf)
		return true // never park
	}
}

// SetMode sets what reads of TLS may do from now on.
func (w *Wire) SetMode(m ReadMode) { w.mode = m }

// Read implements [net.Conn], for TLS.
func (w *Wire) Read(b []byte) (int, error) {
	switch {
	case len(w.ahead) > 0:
		n := copy(b, w.ahead)
		w.ahead = w.ahead[n:]
		return n, nil
	case w.mode == ReadBlocks:
		return w.Conn.Read(b)
	case w.mode == ReadsBuffered, w.raw == nil:
		return 0, ErrWouldBlock
	}
	return w.try(b)
}

// try reads the socket once, without blocking.
func (w *Wire) try(b []byte) (int, error) {
	w.buf = b
	err := w.raw.Read(w.tryRead)
	w.buf = nil
	switch {
	case err != nil:
		return 0, err //nolint:wrapcheck // return the connection's error as a plain read does
	case w.n > 0:
		return w.n, nil
	case w.err == nil:
		return 0, io.EOF
	}
	return 0, ErrWouldBlock // a blocking read will report any other error
}

// Prefetch reads some bytes of what has arrived at the socket, for the next read of TLS: a read of
// TLS that finds nothing costs an allocation, and several times as much time. It returns
// ErrWouldBlock if nothing has arrived.
func (w *Wire) Prefetch() error {
	if len(w.ahead) > 0 {
		return nil
	}
	if w.raw == nil {
		return ErrWouldBlock
	}
	n, err := w.try(w.aheadBuffer[:])
	w.ahead = w.aheadBuffer[:n]
	return err
}

// Write implements [net.Conn], for TLS. It never blocks once the Wire is taken.
func (w *Wire) Write(b []byte) (int, error) {
	if !w.taken {
		return w.Conn.Write(b)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.out)-w.off+len(b) > maxUnsent {
		return 0, errUnsent
	}
	w.reserve(len(b))
	w.out = append(w.out, b...)
	w.unsent.Store(true)
	return len(b), nil
}

// reserve makes room for n bytes. The caller must hold mu.
func (w *Wire) reserve(n int) {
	need := len(w.out) + n
	if need <= cap(w.out) {
		return
	}
	var larger []byte
	switch {
	case need <= smallWireBuffer:
		larger = make([]byte, 0, max(need, min(2*cap(w.out), smallWireBuffer)))
	case need <= wireBuffer:
		pooled, _ := wireBuffers.Get().(*[wireBuffer]byte)
		larger = pooled[:0]
	default:
		larger = make([]byte, 0, max(need, 2*cap(w.out)))
	}
	larger = append(larger, w.out...)
	if !w.sending { // else the old one is being read
		w.free()
	}
	w.out = larger
}

// free returns the buffer to the pool if it is from there. The caller must hold mu.
func (w *Wire) free() {
	if cap(w.out) == wireBuffer {
		wireBuffers.Put((*[wireBuffer]byte)(w.out[:wireBuffer]))
	}
	w.out = nil
}

// Unsent reports whether something that TLS has written was not sent yet.
func (w *Wire) Unsent() bool { return w.unsent.Load() }

// Send sends everything that TLS has written, and may block.
func (w *Wire) Send() error {
	for w.unsent.Load() {
		b := w.beginSend()
		n, err := w.Conn.Write(b)
		w.endSend(n)
		if err != nil {
			return err
		}
	}
	return nil
}

// TrySend sends as much as the socket accepts. [Wire.Unsent] reports whether something is left.
func (w *Wire) TrySend(socket *Writer) error {
	if !w.unsent.Load() {
		return nil
	}
	n, err := socket.WriteOne(w.beginSend())
	w.endSend(n)
	return err
}

// beginSend returns what is to be sent, which remains valid until endSend.
func (w *Wire) beginSend() []byte {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.sending = true
	return w.out[w.off:]
}

// endSend ends what beginSend has begun: n bytes were sent.
func (w *Wire) endSend(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.sending = false
	if w.off += n; w.off == len(w.out) {
		w.out, w.off = w.out[:0], 0
		w.unsent.Store(false)
	}
}

// Shrink frees a large buffer if there is nothing to send, so that an idle connection holds little
// memory.
func (w *Wire) Shrink() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.out) == 0 && cap(w.out) > smallWireBuffer {
		w.free()
	}
}

// Close closes the connection. It does not block: of what is not sent, such as the alert by which
// TLS announces the end, it sends what the socket accepts.
func (w *Wire) Close() error {
	w.mu.Lock()
	if !w.sending && w.off < len(w.out) { // else another write is in progress, and its end is unknown
		var socket Writer
		if socket.Init(w.Conn); socket.Available() {
			_, _ = socket.WriteOne(w.out[w.off:]) // best effort: the connection ends either way
		}
	}
	w.mu.Unlock()
	return w.Conn.Close()
}
