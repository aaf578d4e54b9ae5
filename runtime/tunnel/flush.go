package tunnel

import (
	"errors"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// attempt writes to a socket as much as it takes without waiting, so that whoever has something to
// write can do it at once instead of waking a goroutine. Connections that are no sockets have none.
// It belongs to whoever is writing.
type attempt struct {
	raw  syscall.RawConn
	try  func(fd uintptr) bool
	bufs [][]byte
	n    int
	err  error
}

// mostPieces is the most that the system takes in one write: Linux's IOV_MAX. Beyond that the write
// is a part of the batch, as any may be.
const mostPieces = 1024

// attemptBytes is the most small frames that are written so: that many are better written beside
// the reader or the caller than by them. Large messages are, up to batchBytes, for they are in
// their processor's cache.
const attemptBytes = 64 << 10

func (a *attempt) init(nc net.Conn) {
	a.raw = rawConn(nc)
	a.try = func(fd uintptr) bool {
		if len(a.bufs) == 1 {
			a.n, a.err = syscall.Write(int(fd), a.bufs[0])
		} else {
			a.n, a.err = unix.Writev(int(fd), a.bufs)
		}
		return true // never wait
	}
}

// write reports how much was written. A socket that takes nothing right now is no error.
func (a *attempt) write(b [][]byte) (int, error) {
	a.bufs, a.n, a.err = b, 0, nil
	err := a.raw.Write(a.try)
	a.bufs = nil
	if err == nil {
		err = a.err
	}
	if errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.EINTR) {
		err = nil
	}
	return max(a.n, 0), err
}

// flush writes what is queued, here and now if it is little and the socket takes it, and else by
// the writing goroutine. It is called with the lock and returns with it, but may let go of it
// meanwhile.
func (c *Conn) flush() {
	if !c.startWriting() {
		return
	}
	if c.attempt.raw == nil || len(c.out.buf) > attemptBytes {
		go c.writing()
		return
	}
	b := &c.out.batch
	if !c.out.collect(b) {
		c.stopWriting()
		return
	}
	c.resumeReading()
	c.mu.Unlock()
	pieces := b.vectors()
	n, err := c.attempt.write(pieces[:min(len(pieces), mostPieces)])
	c.sent.Add(uint64(n)) //nolint:gosec // not negative
	c.mu.Lock()
	switch {
	case err != nil:
		c.out.release(b)
		c.mu.Unlock()
		c.fail(lost(err))
		c.mu.Lock()
		c.stopWriting()
	case n < b.size():
		b.begun, b.done = true, n
		go c.writing()
	default:
		c.out.release(b)
		if len(c.out.buf) > 0 || len(c.out.ring) > 0 {
			go c.writing()
		} else {
			c.stopWriting()
		}
	}
}
