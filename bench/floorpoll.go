package main

import (
	"io"
	"net"
	"runtime"
	"syscall"
	"time"
)

// pollFor is how long a polling floor looks for what may come at once before it waits: as RayLink does.
const pollFor = 50 * time.Microsecond

// pollingConn is a socket whose reader looks for a moment before it is put to sleep. It is read by one goroutine.
type pollingConn struct {
	net.Conn

	raw  syscall.RawConn
	look func(fd uintptr) bool
	buf  []byte
	n    int
	err  error
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
	c.look = func(fd uintptr) bool {
		c.n, c.err = syscall.Read(int(fd), c.buf)
		return true
	}
	return c, nil
}

// Read implements net.Conn.
func (c *pollingConn) Read(b []byte) (int, error) {
	c.buf = b
	for begin := time.Now(); time.Since(begin) < pollFor; runtime.Gosched() {
		if err := c.raw.Read(c.look); err != nil {
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
