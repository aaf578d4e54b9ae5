package pki

import (
	"bytes"
	"crypto/tls"
	"io"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// memoryConn is one end of a connection in memory whose writes don't block, unlike those of
// net.Pipe: both sides can send alerts at the same time. It is one that testing/synctest knows.
type memoryConn struct {
	net.Conn // nil

	in, out *memoryQueue
}

type memoryQueue struct {
	mu     sync.Mutex
	more   *sync.Cond
	bytes  bytes.Buffer
	closed bool
}

func newMemoryQueue() *memoryQueue {
	q := new(memoryQueue)
	q.more = sync.NewCond(&q.mu)
	return q
}

func memoryPipe() (client, server net.Conn) {
	a, b := newMemoryQueue(), newMemoryQueue()
	return &memoryConn{in: a, out: b}, &memoryConn{in: b, out: a}
}

func (c *memoryConn) Read(p []byte) (int, error) {
	q := c.in
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.bytes.Len() == 0 {
		if q.closed {
			return 0, io.EOF
		}
		q.more.Wait()
	}
	return q.bytes.Read(p)
}

func (c *memoryConn) Write(p []byte) (int, error) {
	q := c.out
	q.mu.Lock()
	defer q.mu.Unlock()
	defer q.more.Broadcast()
	if q.closed {
		return 0, io.ErrClosedPipe
	}
	return q.bytes.Write(p)
}

func (c *memoryConn) Close() error {
	for _, q := range []*memoryQueue{c.in, c.out} {
		q.mu.Lock()
		q.closed = true
		q.more.Broadcast()
		q.mu.Unlock()
	}
	return nil
}

func (c *memoryConn) RemoteAddr() net.Addr { return &net.UnixAddr{Name: "memory", Net: "unix"} }

func (c *memoryConn) SetDeadline(time.Time) error      { return nil }
func (c *memoryConn) SetReadDeadline(time.Time) error  { return nil }
func (c *memoryConn) SetWriteDeadline(time.Time) error { return nil }

// outcome is what one side of a connection has seen.
type outcome struct {
	state tls.ConnectionState
	err   error
}

// connect performs a handshake, and has the server send one byte that the client waits for: only
// then the client knows that the server accepted its certificate.
func connect(t *testing.T, client, server *tls.Config) (c, s outcome) {
	t.Helper()
	clientConn, serverConn := memoryPipe()
	done := make(chan outcome)
	go func() {
		conn := tls.Server(serverConn, server)
		err := conn.HandshakeContext(t.Context())
		if err == nil {
			_, err = conn.Write([]byte("x"))
		}
		done <- outcome{state: conn.ConnectionState(), err: err}
	}()
	conn := tls.Client(clientConn, client)
	err := conn.HandshakeContext(t.Context())
	if err == nil {
		_, err = conn.Read(make([]byte, 1))
	} else {
		require.NoError(t, clientConn.Close())
	}
	c, s = outcome{state: conn.ConnectionState(), err: err}, <-done
	require.NoError(t, clientConn.Close())
	return c, s
}

func newCA(t testing.TB) *CA {
	t.Helper()
	ca, err := OpenCA(filepath.Join(t.TempDir(), "pki"))
	require.NoError(t, err)
	return ca
}

// issue makes a host's certificate, as a host and a CA do together.
func issue(t testing.TB, ca *CA, grant Grant) *tls.Certificate {
	t.Helper()
	request, err := NewRequest(grant.HostID)
	require.NoError(t, err)
	chain, err := ca.Sign(request.CSR(), grant)
	require.NoError(t, err)
	cert, err := request.Accept(chain, Trust{Roots: ca.Roots})
	require.NoError(t, err)
	return cert
}

func fixed(cert *tls.Certificate) OwnCertificate {
	return func() (*tls.Certificate, error) { return cert, nil }
}

func clientConfig(t testing.TB, own OwnCertificate, trust Trust, protocols ...string) *tls.Config {
	t.Helper()
	config, err := ClientConfig(own, trust, protocols...)
	require.NoError(t, err)
	return config
}

func serverConfig(t testing.TB, own OwnCertificate, trust Trust, protocols ...string) *tls.Config {
	t.Helper()
	config, err := ServerConfig(own, trust, protocols...)
	require.NoError(t, err)
	return config
}
