package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"

	"google.golang.org/protobuf/encoding/protowire"
)

// The floor does the least work that such calls need. A frame has 8 bytes of header, the body's
// length and an id, followed by the body, a protobuf message. The id's upper bits are the frame's
// kind.
const (
	frameHeader = 8

	frameEcho  = 0 << 30 // a message to echo
	frameCount = 1 << 30 // a message of a stream to count
	frameEnd   = 2 << 30 // the end of a stream; the response is the count
	frameKind  = 3 << 30

	// floorBuffer is the maximum size of a read. A connection starts with floorBegin, and doubles
	// it whenever a read fills the buffer.
	floorBuffer = 256 << 10
	floorBegin  = 512
	// floorLarge is the minimum size of payloads that are not copied to or from the buffers.
	floorLarge = 16 << 10
	// payloadTag is the tag of the only field of EchoRequest, EchoResponse and CountRequest: number
	// 1, bytes.
	payloadTag = 1<<3 | byte(protowire.BytesType)
	// payloadHead is the maximum number of bytes before a payload in a frame.
	payloadHead = frameHeader + 1 + 5
)

// floorKind selects one of the floors.
type floorKind int

const (
	floorPlain floorKind = iota
	// floorPolling busy-polls the socket before it blocks.
	floorPolling
	// floorOwned reuses the memory of a large payload only after ownedBytes of others, like a
	// system whose callers and methods own the payloads they receive.
	floorOwned
)

// ownedBytes is several times the size of a core's own cache, and of the memory that RayLink keeps
// for reuse.
const ownedBytes = 32 << 20

// reading returns the connection to read from.
func (how floorKind) reading(nc net.Conn) (net.Conn, error) {
	if how == floorPolling {
		return newPollingConn(nc)
	}
	return nc, nil
}

var errFloor = errors.New("invalid frame on the floor's connection")

// appendHead appends a frame without its payload.
func appendHead(b []byte, id uint32, payload int) []byte {
	size := 1 + protowire.SizeVarint(uint64(payload)) + payload
	b = binary.LittleEndian.AppendUint32(b, uint32(size))
	b = binary.LittleEndian.AppendUint32(b, id)
	b = append(b, payloadTag)
	return protowire.AppendVarint(b, uint64(payload))
}

// frameReader reads frames, many per system call.
type frameReader struct {
	nc         net.Conn
	buf        []byte
	start, end int
	// idle is called before a read, when all received frames have been processed.
	idle func() error
}

func newFrameReader(nc net.Conn, idle func() error) *frameReader {
	return &frameReader{nc: nc, buf: make([]byte, floorBegin), idle: idle}
}

// need reads until n bytes are buffered.
func (r *frameReader) need(n int) error {
	for r.end-r.start < n {
		if err := r.idle(); err != nil {
			return err
		}
		if r.start == r.end {
			r.start, r.end = 0, 0
		} else if r.start+n > len(r.buf) {
			r.end = copy(r.buf, r.buf[r.start:r.end])
			r.start = 0
		}
		if r.start+n > len(r.buf) {
			r.grow(n)
		}
		got, err := r.nc.Read(r.buf[r.end:])
		if r.end += got; r.end == len(r.buf) && r.end < floorBuffer {
			r.grow(2 * r.end)
		}
		if err != nil && got == 0 {
			return err
		}
	}
	return nil
}

// grow enlarges the buffer to at least n bytes.
func (r *frameReader) grow(n int) {
	n = max(n, 2*len(r.buf))
	larger := make([]byte, n)
	r.end = copy(larger, r.buf[r.start:r.end])
	r.start, r.buf = 0, larger
}

// next reads a frame's header, and returns the size of the payload, which is not read yet.
func (r *frameReader) next() (id uint32, payload int, err error) {
	if err := r.need(frameHeader); err != nil {
		return 0, 0, err
	}
	body := int(binary.LittleEndian.Uint32(r.buf[r.start:]))
	id = binary.LittleEndian.Uint32(r.buf[r.start+4:])
	if err := r.need(frameHeader + min(body, payloadHead-frameHeader)); err != nil {
		return 0, 0, err
	}
	r.start += frameHeader
	if body == 0 {
		return id, 0, nil
	}
	size, n := protowire.ConsumeVarint(r.buf[r.start+1 : r.end])
	if r.buf[r.start] != payloadTag || n < 0 || 1+n+int(size) != body {
		return 0, 0, fmt.Errorf("%w: body of %d bytes", errFloor, body)
	}
	r.start += 1 + n
	return id, int(size), nil
}

// read reads the payload. Bytes that are not buffered yet are read directly into the destination.
func (r *frameReader) read(into []byte) error {
	n := copy(into, r.buf[r.start:r.end])
	r.start += n
	if n == len(into) {
		return nil
	}
	if err := r.idle(); err != nil {
		return err
	}
	_, err := io.ReadFull(r.nc, into[n:])
	return err
}

// small returns a payload in the buffer. It is valid until the next call of a method.
func (r *frameReader) small(size int) ([]byte, error) {
	if err := r.need(size); err != nil {
		return nil, err
	}
	p := r.buf[r.start : r.start+size]
	r.start += size
	return p, nil
}

// outBuffer is the data to write: small frames in one buffer, and references to large payloads
// between them, which are not copied.
type outBuffer struct {
	buf   []byte
	large []largePart
	// vec is the reusable array for vectored writes; rest is the part not written yet. It is a
	// field so that its address can be passed to the connection without an allocation.
	vec, rest net.Buffers
}

// largePart is a payload that follows after the given number of bytes of the buffer.
type largePart struct {
	after   int
	payload []byte
}

func (g *outBuffer) add(id uint32, payload []byte) {
	g.buf = appendHead(g.buf, id, len(payload))
	if len(payload) < floorLarge {
		g.buf = append(g.buf, payload...)
		return
	}
	g.large = append(g.large, largePart{after: len(g.buf), payload: payload})
}

func (g *outBuffer) empty() bool { return len(g.buf) == 0 }

// write writes and clears the buffer.
func (g *outBuffer) write(nc net.Conn) error {
	defer g.reset()
	if len(g.large) == 0 {
		_, err := nc.Write(g.buf)
		return err
	}
	vec, from := g.vec[:0], 0
	for _, l := range g.large {
		vec = append(vec, g.buf[from:l.after], l.payload)
		from = l.after
	}
	if from < len(g.buf) {
		vec = append(vec, g.buf[from:])
	}
	g.vec, g.rest = vec, vec
	_, err := g.rest.WriteTo(nc)
	return err
}

func (g *outBuffer) reset() {
	clear(g.vec)
	clear(g.large)
	g.buf, g.large, g.vec, g.rest = g.buf[:0], g.large[:0], g.vec[:0], nil
}

// bufferPool reuses buffers for large payloads. It prefers the most recently returned one, which is
// probably in the cache.
type bufferPool struct {
	// owned makes the pool reuse the least recently returned buffer instead, and only once buffers
	// of ownedBytes in total exist.
	owned bool

	mu   sync.Mutex // guards the fields below
	free [][]byte
	made int
}

// get returns a buffer of the given size. Small sizes use the buffer small, reallocated if
// necessary.
func (p *bufferPool) get(small []byte, size int) []byte {
	if size < floorLarge {
		if cap(small) < size {
			small = make([]byte, floorLarge)
		}
		return small[:size]
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := len(p.free); n > 0 && (!p.owned || p.made >= ownedBytes/size) {
		last := n - 1
		if p.owned {
			last = 0
		}
		b := p.free[last]
		copy(p.free[last:], p.free[last+1:])
		p.free = p.free[:n-1]
		if cap(b) >= size {
			return b[:size]
		}
	}
	p.made++
	return make([]byte, size)
}

// put returns a large buffer to the pool. It returns the buffer that its owner keeps: b if it is
// small, else nil.
func (p *bufferPool) put(b []byte) []byte {
	if cap(b) <= floorLarge {
		return b
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.free = append(p.free, b)
	return nil
}
