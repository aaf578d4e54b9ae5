package sock

import (
	"errors"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// Writer writes as much as a socket accepts at once, and never blocks. A goroutine that has queued
// data can thus write it itself, without unparking another. It is owned by one goroutine at a time.
type Writer struct {
	raw      syscall.RawConn
	tryWrite func(fd uintptr) bool
	bufs     [][]byte
	one      [1][]byte // for WriteOne
	n        int
	err      error
}

// maxBuffers is the maximum number of buffers per writev: Linux's IOV_MAX.
const maxBuffers = 1024

// Init prepares for writing to nc.
func (w *Writer) Init(nc net.Conn) {
	w.raw = rawConn(nc)
	w.tryWrite = func(fd uintptr) bool {
		if len(w.bufs) == 1 {
			w.n, w.err = syscall.Write(int(fd), w.bufs[0])
		} else {
			w.n, w.err = unix.Writev(int(fd), w.bufs)
		}
		return true // never park
	}
}

// Available reports whether the connection is a socket. If not, Write must not be called.
func (w *Writer) Available() bool { return w.raw != nil }

// Write writes the buffers, of which there must be one at least, and returns the number of bytes
// written. It may be any part of them, also 0 without an error.
func (w *Writer) Write(b [][]byte) (int, error) {
	w.bufs, w.n, w.err = b[:min(len(b), maxBuffers)], 0, nil
	err := w.raw.Write(w.tryWrite)
	w.bufs = nil
	if err == nil {
		err = w.err
	}
	if errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.EINTR) {
		err = nil
	}
	return max(w.n, 0), err
}

// WriteOne is Write for one buffer.
func (w *Writer) WriteOne(b []byte) (int, error) {
	w.one[0] = b
	n, err := w.Write(w.one[:])
	w.one[0] = nil
	return n, err
}
