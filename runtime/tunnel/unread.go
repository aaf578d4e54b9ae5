package tunnel

import (
	"net"
	"slices"
)

// Unread returns a connection whose reads first return head, which has already been read from nc,
// and then continue with nc. Dial and Accept unwrap it, so their writes go to the socket directly.
func Unread(nc net.Conn, head []byte) net.Conn {
	return &unread{Conn: nc, head: slices.Clone(head)}
}

type unread struct {
	net.Conn

	head []byte
}

// Read returns what is left of head, and then reads the connection.
func (u *unread) Read(b []byte) (int, error) {
	if len(u.head) == 0 {
		return u.Conn.Read(b)
	}
	n := copy(b, u.head)
	u.head = u.head[n:]
	return n, nil
}
