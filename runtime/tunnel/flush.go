package tunnel

import (
	"errors"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// attempt is a non-blocking writer: it writes as much as the socket accepts at once. A goroutine
// that has queued frames can thus write them itself, without waking another. raw is nil if the
// connection is not a socket. The attempt is owned by the goroutine that has set outbox.writing.
type attempt struct {
	raw  syscall.RawConn
	try  func(fd uintptr) bool
	bufs [][]byte
	n    int
	err  error
}

// mostPieces is the maximum number of buffers per writev: Linux's IOV_MAX. With more of them the
// batch is written partially, like any short write.
const mostPieces = 1024

// attemptBytes is the largest common buffer that is written this way. A larger one is better
// written by another goroutine, in parallel with the reader or the caller. Large messages are
// written up to batchBytes, since they are in the CPU cache of the goroutine that queued them.
const attemptBytes = 64 << 10

func (a *attempt) init(nc net.Conn) {
	a.raw = rawConn(nc)
	a.try = func(fd uintptr) bool {
		if len(a.bufs) == 1 {
			a.n, a.err = syscall.Write(int(fd), a.bufs[0])
		} else {
			a.n, a.err = unix.Writev(int(fd), a.bufs)
		}
		return true // never park
	}
}

// write returns the number of bytes written. A socket that accepts nothing now is not an error.
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

// flush writes what is queued: on this goroutine if it is little and the socket accepts it, else on
// a writer goroutine. It is called and returns with c.mu held, and may release it meanwhile.
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
		c.fail(lostError(err))
		c.mu.Lock()
		c.stopWriting()
	case n < b.size():
		b.partial, b.done = true, n
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
