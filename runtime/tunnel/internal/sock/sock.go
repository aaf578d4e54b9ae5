// Package sock does without the netpoller where parking a goroutine would cost more than it gains:
// a [Poller] spins for incoming data before its reader blocks, and a [Writer] writes what a socket
// accepts without blocking. Both do nothing for connections that are not sockets. They keep no
// goroutines and allocate nothing after Init. A [Wire] makes both possible below TLS.
package sock

import (
	"net"
	"syscall"
)

// Around is a connection around another one. Socket returns that other one, or nil while reads must
// not bypass this one.
type Around interface{ Socket() net.Conn }

// rawConn returns the descriptor of a socket, or nil for a connection that is not a socket.
func rawConn(nc net.Conn) syscall.RawConn {
	for {
		around, ok := nc.(Around)
		if !ok {
			break
		}
		nc = around.Socket()
	}
	switch nc.(type) {
	case *net.TCPConn, *net.UnixConn:
	default:
		return nil
	}
	socket, ok := nc.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return nil // a blocking read will report the error
	}
	return raw
}
