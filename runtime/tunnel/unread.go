package tunnel

import (
	"net"
	"slices"
)

// Unread returns a connection that first gives back head, which was read from nc to find out what
// comes there, and then goes on with nc. Dial and Accept see through it, so that writes still go to
// the socket itself.
func Unread(nc net.Conn, head []byte) net.Conn {
	return &unread{Conn: nc, head: slices.Clone(head)}
}

type unread struct {
	net.Conn

	head []byte
}

// Read reads what was given back, and then the connection.
func (u *unread) Read(b []byte) (int, error) {
	if len(u.head) == 0 {
		return u.Conn.Read(b)
	}
	n := copy(b, u.head)
	u.head = u.head[n:]
	return n, nil
}
