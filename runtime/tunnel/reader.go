package tunnel

import (
	"errors"
	"io"
	"net"

	"connectrpc.com/connect/v2"

	"github.com/raylink/raylink/runtime/tunnel/internal/codec"
)

const (
	smallRead = 512
	largeRead = 64 << 10
)

// frameReader reads frames. A frame is returned in place and is valid until the next call. The
// frameReader is owned by one goroutine at a time.
//
// A failed read keeps everything received so far in the frameReader, so that after an interruption
// any goroutine can continue.
//
// The buffer adapts to the traffic: it grows when reads fill it, and shrinks when it has been
// mostly empty for a while, so that an idle connection holds little memory. Fragments of large
// messages are read straight to their destination.
type frameReader struct {
	nc net.Conn
	// mem is the memory of buf. If messages share it, its contents are never moved or overwritten,
	// and the next fill allocates another buffer.
	mem   *codec.Buffer
	buf   []byte
	begin int
	end   int
	// limit is how many bytes the next read asks for. smallReads counts consecutive small reads.
	// shrink requests that the buffer be replaced by a smaller one.
	limit      int
	smallReads int
	shrink     bool
	// secured is set if the connection is TLS's, which may have received more than it has returned.
	secured *secured
	// beforeMove is called before buffered bytes are moved or overwritten.
	beforeMove func()
	// poll, if set, is tried between frames before a read that may block. It may return 0 and no
	// error.
	poll func(dst []byte, between bool) (int, error)
	// beforeRead and afterRead are called around every read that may block. An error of beforeRead
	// becomes the error of the read.
	beforeRead func(between bool) error
	afterRead  func(n int)
	// dst is the unread rest of a fragment that is read straight to its destination.
	dst []byte
}

func newFrameReader(nc net.Conn) frameReader {
	return frameReader{nc: nc, limit: smallRead}
}

// buffered returns up to n bytes that have been read and not skipped.
func (r *frameReader) buffered(n int) []byte { return r.buf[r.begin:min(r.begin+n, r.end)] }

func (r *frameReader) skip(n int) { r.begin += n }

// peek blocks until n bytes are buffered and returns them without skipping them.
func (r *frameReader) peek(n int) ([]byte, error) {
	for r.end-r.begin < n {
		if err := r.fill(n); err != nil {
			if errors.Is(err, io.EOF) && r.end > r.begin {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
	}
	return r.buf[r.begin : r.begin+n], nil
}

// fill reads once, after making room for n bytes in total.
func (r *frameReader) fill(n int) error {
	if r.beforeMove != nil {
		r.beforeMove()
	}
	have := r.end - r.begin
	want := max(r.limit, n)
	switch {
	case want > len(r.buf), have == 0 && r.shrink, r.mem.Shared():
		other := codec.NewBuffer(want)
		other.B = other.B[:cap(other.B)]
		copy(other.B, r.buf[r.begin:r.end])
		r.mem.Free()
		r.mem, r.buf, r.begin, r.end, r.shrink = other, other.B, 0, have, false
	case r.begin > 0:
		copy(r.buf, r.buf[r.begin:r.end])
		r.begin, r.end = 0, have
	}
	got, err := r.read(r.buf[have:want], have == 0)
	if got == 0 {
		return err // possibly because another goroutine now owns the reader
	}
	r.end += got
	r.adapt(got, want-have)
	return nil
}

// adapt adjusts limit to the amount of the last read.
func (r *frameReader) adapt(got, asked int) {
	const shrinkAfter = 64
	switch {
	case got == asked && r.limit < largeRead:
		r.limit, r.smallReads = 2*r.limit, 0
	case got > r.limit/8:
		r.smallReads = 0
	case r.limit > smallRead || len(r.buf) > smallRead:
		if r.smallReads++; r.smallReads > shrinkAfter {
			r.limit, r.smallReads, r.shrink = max(r.limit/2, smallRead), 0, true
		}
	}
}

// readTo directs the next len(dst) bytes to dst. It copies what is buffered;
// [frameReader.fillDst] reads the rest straight from the connection.
func (r *frameReader) readTo(dst []byte) {
	n := copy(dst, r.buf[r.begin:r.end])
	r.begin += n
	if n < len(dst) {
		r.limit = smallRead // large messages follow: bytes read ahead would have to be copied
	}
	r.dst = dst[n:]
}

// fillDst reads until the destination given to readTo is full. After an error, a further call
// continues where the last one stopped.
func (r *frameReader) fillDst() error {
	for len(r.dst) > 0 {
		n, err := r.read(r.dst, false)
		r.dst = r.dst[n:]
		if n == 0 && err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
	}
	r.dst = nil
	return nil
}

// betweenFrames reports whether the reader is at a frame boundary with nothing buffered.
func (r *frameReader) betweenFrames() bool { return r.begin == r.end && len(r.dst) == 0 }

// read reads once. between reports whether the reader is at a frame boundary.
func (r *frameReader) read(dst []byte, between bool) (int, error) {
	if r.secured != nil {
		if n, err := r.secured.readBuffered(dst); n > 0 || err != nil {
			r.afterRead(n)
			return n, err
		}
	}
	if r.beforeRead != nil {
		if err := r.beforeRead(between); err != nil {
			return 0, err
		}
	}
	n, err := 0, error(nil)
	if r.poll != nil {
		n, err = r.poll(dst, between)
	}
	if n == 0 && err == nil {
		n, err = r.nc.Read(dst)
	}
	if r.afterRead != nil {
		r.afterRead(n)
	}
	if n == 0 && err == nil {
		err = io.ErrNoProgress
	}
	return n, err
}

// assembly is a partially received message of several fragments. It is owned by the connection's
// reader.
type assembly struct {
	buf   *codec.Buffer
	total int
	got   int
	// discard is set if the message is no longer needed: its fragments are counted and dropped.
	discard bool
}

// How much is allocated for a message when its size is announced, before its bytes arrive. The
// announced sizes of unary messages together are limited by the window; those of streams are not.
const (
	initialUnaryBytes  = 4 << 20
	initialStreamBytes = 64 << 10
)

func newAssembly(total, initial int) *assembly {
	return &assembly{total: total, buf: codec.NewBuffer(min(total, initial))}
}

// newUnaryAssembly returns an assembly for a unary message. aliases predicts that the decoded
// message will alias the buffer.
func newUnaryAssembly(total int, aliases bool) *assembly {
	if aliases {
		// The message will own the buffer, so it should be no larger than necessary.
		return &assembly{total: total, buf: codec.NewAliasable(min(total, initialUnaryBytes))}
	}
	return newAssembly(total, initialUnaryBytes)
}

// recordAliasing records whether the response of a procedure aliased the buffer in which it was
// received. If not, the buffer is freed. The number of procedures recorded is limited; the
// prediction for others costs a copy.
func (l *readLoop) recordAliasing(procedure string, buf *codec.Buffer, aliased bool) {
	switch {
	case !aliased:
		delete(l.aliasing, procedure)
		buf.Free()
	case len(procedure) <= maxNameLength && len(l.aliasing) < maxAliasing:
		if l.aliasing == nil {
			l.aliasing = make(map[string]bool)
		}
		l.aliasing[procedure] = true
	}
}

// maxAliasing limits the number of procedures recorded by recordAliasing.
const maxAliasing = 1 << 10

// extend appends n bytes to the message and returns them for the caller to fill.
func (a *assembly) extend(n int) ([]byte, error) {
	if n > a.total-a.got {
		return nil, violation("a fragment of %d bytes where %d of %d are missing", n, a.total-a.got, a.total)
	}
	a.got += n
	return a.buf.Extend(n, a.total), nil
}

// add appends a fragment.
func (a *assembly) add(fragment []byte) error {
	if a.discard {
		if len(fragment) > a.total-a.got {
			return violation("a fragment of %d bytes where %d of %d are missing", len(fragment), a.total-a.got, a.total)
		}
		a.got += len(fragment)
		return nil
	}
	dst, err := a.extend(len(fragment))
	if err != nil {
		return err
	}
	copy(dst, fragment)
	return nil
}

func (a *assembly) complete() bool { return a.got == a.total }

// totalSize reads the total size that precedes the first of several fragments. It must exceed what
// that frame carries.
func (p *parser) totalSize() int {
	total := p.int()
	if p.err == nil && total <= len(p.rest) {
		p.failf("a message of %d bytes in fragments, the first of %d", total, len(p.rest))
	}
	return total
}

// outcome is the content of a REPLY without its message.
type outcome struct {
	err             error
	header, trailer Header
}

// partialReply is a partially received response of several frames.
type partialReply struct {
	assembly
	outcome
}

func responseTooLarge(procedure string, size, limit int) *connect.Error {
	return MessageTooLarge(procedure, false, size, limit)
}
