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

// The floor is the least that can be done for these calls: a length, a number, and the protobuf message. A frame is eight octets, the body's
// length and an id, and the body. The id's upper bits say what the frame is.
const (
	frameHeader = 8

	frameEcho  = 0 << 30 // a message, to be sent back
	frameCount = 1 << 30 // a message of a stream, to be counted
	frameEnd   = 2 << 30 // the end of a stream, answered with the count
	frameKind  = 3 << 30

	// floorBuffer is how much is read at once, at the most. A connection begins with floorBegin, and doubles that whenever a read fills it.
	floorBuffer = 256 << 10
	floorBegin  = 512
	// floorLarge is the payload from which on it is neither copied into a buffer for writing nor out of one after reading.
	floorLarge = 16 << 10
	// payloadTag is the first octet of the only field of EchoRequest, EchoResponse and CountRequest: number 1, bytes.
	payloadTag = 1<<3 | byte(protowire.BytesType)
	// payloadHead is the most octets before a payload in a frame.
	payloadHead = frameHeader + 1 + 5
)

// floorKind is one of the floors.
type floorKind int

const (
	floorPlain floorKind = iota
	// floorPolling looks for a moment before it is put to sleep.
	floorPolling
	// floorOwned uses memory of large payloads again only after ownedBytes of others, as a system must whose callers and methods own what they get.
	floorOwned
)

// ownedBytes is several times what a processor's own cache holds, and what RayLink keeps to be used again.
const ownedBytes = 32 << 20

// reading is a connection as it is read.
func (how floorKind) reading(nc net.Conn) (net.Conn, error) {
	if how == floorPolling {
		return newPollingConn(nc)
	}
	return nc, nil
}

var errFloor = errors.New("the floor's connection broke its format")

// appendHead appends all of a frame but the payload.
func appendHead(b []byte, id uint32, payload int) []byte {
	size := 1 + protowire.SizeVarint(uint64(payload)) + payload
	b = binary.LittleEndian.AppendUint32(b, uint32(size))
	b = binary.LittleEndian.AppendUint32(b, id)
	b = append(b, payloadTag)
	return protowire.AppendVarint(b, uint64(payload))
}

// frameReader reads frames, many with one system call.
type frameReader struct {
	nc         net.Conn
	buf        []byte
	start, end int
	// idle is called before a read, when all that has come has been used.
	idle func() error
}

func newFrameReader(nc net.Conn, idle func() error) *frameReader {
	return &frameReader{nc: nc, buf: make([]byte, floorBegin), idle: idle}
}

// need makes n octets be there.
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

// grow makes the buffer so large at least.
func (r *frameReader) grow(n int) {
	n = max(n, 2*len(r.buf))
	larger := make([]byte, n)
	r.end = copy(larger, r.buf[r.start:r.end])
	r.start, r.buf = 0, larger
}

// next reads a frame up to its payload, of which it returns the size.
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
		return 0, 0, fmt.Errorf("%w: a body of %d octets", errFloor, body)
	}
	r.start += 1 + n
	return id, int(size), nil
}

// read reads the payload into into: what the buffer has not is read straight there.
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

// small is the payload within the buffer, valid until the next call of the reader.
func (r *frameReader) small(size int) ([]byte, error) {
	if err := r.need(size); err != nil {
		return nil, err
	}
	p := r.buf[r.start : r.start+size]
	r.start += size
	return p, nil
}

// gathered is what waits to be written: small frames in one buffer, and between them large payloads that aren't copied.
type gathered struct {
	buf   []byte
	large []largePart
	// vec is the memory for what is written vectored, and rest what is left of it: a field, for its address goes to the connection.
	vec, rest net.Buffers
}

// largePart is a payload that goes after so many octets of the buffer.
type largePart struct {
	after   int
	payload []byte
}

func (g *gathered) add(id uint32, payload []byte) {
	g.buf = appendHead(g.buf, id, len(payload))
	if len(payload) < floorLarge {
		g.buf = append(g.buf, payload...)
		return
	}
	g.large = append(g.large, largePart{after: len(g.buf), payload: payload})
}

func (g *gathered) empty() bool { return len(g.buf) == 0 }

// write writes all, and is empty again.
func (g *gathered) write(nc net.Conn) error {
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

func (g *gathered) reset() {
	clear(g.vec)
	clear(g.large)
	g.buf, g.large, g.vec, g.rest = g.buf[:0], g.large[:0], g.vec[:0], nil
}

// bufferPool keeps buffers for large payloads. The one that was given back last is taken first: it is in the processor's cache, most likely.
type bufferPool struct {
	// owned says that the one that was given back longest ago is taken first, out of as many as ownedBytes are.
	owned bool

	mu   sync.Mutex // guards what follows
	free [][]byte
	made int
}

// get returns a buffer of a size: for a small one it is small, made larger where needed.
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

// put takes a buffer back, and returns what its owner keeps of it: all that is small.
func (p *bufferPool) put(b []byte) []byte {
	if cap(b) <= floorLarge {
		return b
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.free = append(p.free, b)
	return nil
}
