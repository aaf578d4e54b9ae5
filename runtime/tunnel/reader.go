package tunnel

import (
	"errors"
	"io"
	"net"
)

const (
	smallRead = 512
	largeRead = 64 << 10
)

// frameReader reads frames. A frame is handed out in place, so it is valid until the next call. It
// belongs to one goroutine at a time.
//
// A read that fails leaves everything that has come in the frameReader: after an interruption any
// goroutine can go on with it.
//
// Its buffer follows the traffic: reads that fill it make it larger, and it shrinks when it has
// been mostly empty for a while, so that an idle connection holds little. The fragments of large
// messages are read straight to where they are needed.
type frameReader struct {
	nc net.Conn
	// mem is the memory of buf. Others may hold it too: then what has been read stays where it is,
	// and buf becomes another.
	mem   *buffer
	buf   []byte
	begin int
	end   int
	// limit is how much is asked for; quiet, how often in a row little came; shrink, that the
	// buffer is to be a smaller one.
	limit  int
	quiet  int
	shrink bool
	// moving is called before what is in the buffer moves or is overwritten.
	moving func()
	// poll, where there is one, is tried between frames before a read that may wait. It may find
	// nothing, without an error.
	poll func(dst []byte, between bool) (int, error)
	// before and after surround every read that may block; an error of before's is the read's.
	before func(between bool) error
	after  func(n int)
	// place is what is still to be read of a fragment that goes straight to where it is needed.
	place []byte
}

func newFrameReader(nc net.Conn) frameReader {
	return frameReader{nc: nc, limit: smallRead}
}

// buffered is up to n bytes that have been read and not yet skipped.
func (r *frameReader) buffered(n int) []byte { return r.buf[r.begin:min(r.begin+n, r.end)] }

func (r *frameReader) skip(n int) { r.begin += n }

// peek waits for n bytes and returns them without skipping them.
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

// fill reads once, after making room for n bytes in all.
func (r *frameReader) fill(n int) error {
	if r.moving != nil {
		r.moving()
	}
	have := r.end - r.begin
	want := max(r.limit, n)
	switch {
	case want > len(r.buf), have == 0 && r.shrink, r.mem.held():
		other := newBuffer(want)
		other.b = other.b[:cap(other.b)]
		copy(other.b, r.buf[r.begin:r.end])
		r.mem.free()
		r.mem, r.buf, r.begin, r.end, r.shrink = other, other.b, 0, have, false
	case r.begin > 0:
		copy(r.buf, r.buf[r.begin:r.end])
		r.begin, r.end = 0, have
	}
	got, err := r.read(r.buf[have:want], have == 0)
	if got == 0 {
		return err // which may be that the reader belongs to somebody else now
	}
	r.end += got
	r.adapt(got, want-have)
	return nil
}

// adapt chooses how much is asked for from now on.
func (r *frameReader) adapt(got, asked int) {
	const patience = 64
	switch {
	case got == asked && r.limit < largeRead:
		r.limit, r.quiet = 2*r.limit, 0
	case got > r.limit/8:
		r.quiet = 0
	case r.limit > smallRead || len(r.buf) > smallRead:
		if r.quiet++; r.quiet > patience {
			r.limit, r.quiet, r.shrink = max(r.limit/2, smallRead), 0, true
		}
	}
}

// readTo makes what comes next go to dst: first what is buffered, the rest straight from the
// connection, by [frameReader.fillPlace].
func (r *frameReader) readTo(dst []byte) {
	n := copy(dst, r.buf[r.begin:r.end])
	r.begin += n
	if n < len(dst) {
		r.limit = smallRead // large messages are coming: what is read ahead is copied once more
	}
	r.place = dst[n:]
}

// fillPlace reads until what readTo was given is full. After an error it goes on where it was when
// it is called again.
func (r *frameReader) fillPlace() error {
	for len(r.place) > 0 {
		n, err := r.read(r.place, false)
		r.place = r.place[n:]
		if n == 0 && err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
	}
	r.place = nil
	return nil
}

// betweenFrames says that nothing of a frame has been read.
func (r *frameReader) betweenFrames() bool { return r.begin == r.end && len(r.place) == 0 }

// read reads once. between says that it is between frames.
func (r *frameReader) read(dst []byte, between bool) (int, error) {
	if r.before != nil {
		if err := r.before(between); err != nil {
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
	if r.after != nil {
		r.after(n)
	}
	if n == 0 && err == nil {
		err = io.ErrNoProgress
	}
	return n, err
}
