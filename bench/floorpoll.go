package main

import (
	"io"
	"net"
	"runtime"
	"syscall"
	"time"
)

// pollFor is how long a polling floor busy-polls before it blocks: the same as RayLink.
const pollFor = 50 * time.Microsecond

// pollingConn is a socket whose reader busy-polls before it blocks. Only one goroutine may read.
type pollingConn struct {
	net.Conn

	raw     syscall.RawConn
	readNow func(fd uintptr) bool
	buf     []byte
	n       int
	err     error
}

func newPollingConn(nc net.Conn) (net.Conn, error) {
	socket, ok := nc.(syscall.Conn)
	if !ok {
		return nc, nil
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return nil, err
	}
	c := &pollingConn{Conn: nc, raw: raw}
	c.readNow = func(fd uintptr) bool {
		c.n, c.err = syscall.Read(int(fd), c.buf)
		return true
	}
	return c, nil
}

// Read implements net.Conn.
func (c *pollingConn) Read(b []byte) (int, error) {
	c.buf = b
	for begin := time.Now(); time.Since(begin) < pollFor; runtime.Gosched() {
		if err := c.raw.Read(c.readNow); err != nil {
			return 0, err
		}
		switch {
		case c.err == nil && c.n == 0:
			return 0, io.EOF
		case c.err == nil:
			return c.n, nil
		}
	}
	return c.Conn.Read(b)
}
