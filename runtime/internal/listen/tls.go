package listen

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"connectrpc.com/connect/v2"

	"github.com/raylink/raylink/internal/pki"
	"github.com/raylink/raylink/runtime/tunnel"
)

const (
	// TunnelProtocol is the protocol (ALPN) of tunnels. Other connections are HTTP, with the
	// protocols that it has (`h2`, `http/1.1`).
	TunnelProtocol = "raylink/1"

	// handshakesPerSecond bounds how many handshakes begin, and handshakeBurst how many at once.
	// Full lists of pending connections then take their turn within pendingGrace.
	handshakesPerSecond = 2000
	handshakeBurst      = 256
	// maxHandshake bounds what is read of a peer during a handshake, in bytes. One of mutual TLS
	// has about two thousand.
	maxHandshake = 64 << 10

	// recordHandshake is the first byte of a TLS connection: the type of its first record.
	recordHandshake = 0x16
)

// TLS configures a TCP listener that serves TLS. The Unix socket has none: only processes of the
// same user can connect to it.
type TLS struct {
	// Config has [TunnelProtocol] and those of HTTP, and JoinProtocol if Join is set. Its client
	// certificates are optional.
	Config *tls.Config
	// Tunnel configures the tunnels within TLS.
	Tunnel tunnel.Config
	// IsNamed is set if certificates have the ids of hosts: the dialler of a tunnel must then be
	// the host that its certificate is for, and has the certificate's role. Else it has proven the
	// token too, and has the role of that.
	IsNamed bool
	// Join admits a process that has no certificate yet, on a connection with JoinProtocol. If it
	// continues, so does the connection, with that identity. nil where that is not served.
	Join         func(conn *tls.Conn) (peer pki.Peer, continues bool, err error)
	JoinProtocol string
	// Revoked reports whether what joined by a token is refused. nil for tokens that can't be
	// revoked.
	Revoked func(tokenID string) bool
}

// isRevoked reports whether the token of a peer was revoked. It is called once CloseRevoked can
// see the peer's connection, which may have been verified before.
func (l *Listener) isRevoked(peer pki.Peer) bool {
	return l.config.TLS != nil && l.config.TLS.Revoked != nil && peer.TokenID != "" && l.config.TLS.Revoked(peer.TokenID)
}

// cryptoConn is the connection below TLS. During the handshake it holds one of the slots, but not
// while it waits for its peer, and counts what it reads.
type cryptoConn struct {
	net.Conn

	in     *bufio.Reader // what was peeked at
	crypto *crypto       // nil after the handshake
	source netip.Prefix
	left   int
}

// Socket returns the connection below for reads that bypass this one, see [tunnel.BelowTLS].
func (c *cryptoConn) Socket() net.Conn {
	if c.crypto != nil || c.in != nil {
		return nil
	}
	return c.Conn
}

var errHandshakeSize = errors.New("the peer's handshake is too large")

// Read implements [net.Conn].
func (c *cryptoConn) Read(p []byte) (int, error) {
	if c.crypto == nil {
		if c.in != nil && c.in.Buffered() > 0 {
			return c.in.Read(p)
		}
		return c.Conn.Read(p)
	}
	if c.left <= 0 {
		return 0, errHandshakeSize
	}
	p = p[:min(len(p), c.left)]
	if c.in.Buffered() > 0 {
		n, err := c.in.Read(p)
		c.left -= n
		return n, err
	}
	c.crypto.release()
	n, err := c.Conn.Read(p)
	c.crypto.acquire(c.source)
	c.left -= n
	return n, err
}

// handshake performs the TLS handshake of a connection, the beginning of which is in in. On error
// the connection is closed.
func (l *Listener) handshake(ctx context.Context, nc net.Conn, in *bufio.Reader, p *pending) (*tls.Conn, error) {
	if err := l.crypto.begin(ctx, p); err != nil {
		_ = nc.Close()
		return nil, err
	}
	below := &cryptoConn{Conn: nc, in: in, crypto: l.crypto, source: p.source, left: maxHandshake}
	conn := tls.Server(tunnel.BelowTLS(below), l.config.TLS.Config)
	err := bounded(ctx, nc, func() error {
		l.crypto.acquire(p.source)
		defer l.crypto.release()
		return conn.Handshake() //nolint:noctx // bounded has the deadline
	})
	below.crypto = nil
	if in.Buffered() == 0 {
		below.in = nil
	}
	if err != nil {
		_ = nc.Close()
		return nil, pki.Explain(err)
	}
	return conn, nil
}

// bounded runs fn, in which reads and writes of the connection fail after firstBytes or when ctx
// ends.
func bounded(ctx context.Context, nc net.Conn, fn func() error) error {
	if err := nc.SetDeadline(time.Now().Add(firstBytes)); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = nc.SetDeadline(time.Unix(1, 0)) })
	err := fn()
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err == nil {
		err = nc.SetDeadline(time.Time{})
	}
	return err
}

// identifyTLS serves a connection by the protocol that its client has chosen.
func (l *Listener) identifyTLS(ctx context.Context, nc net.Conn, in *bufio.Reader, p *pending) (isWeb bool) {
	conn, err := l.handshake(ctx, nc, in, p)
	if err != nil {
		if ctx.Err() == nil {
			l.refused(nc, err)
		}
		return false
	}
	from := origin{isTLS: true, tunnel: l.config.TLS.Tunnel}
	state := conn.ConnectionState()
	if l.config.TLS.IsNamed {
		// An organisation's certificates are no identities, whatever they have.
		from.peer, _ = pki.PeerOf(state)
	}
	switch state.NegotiatedProtocol {
	case TunnelProtocol:
		if len(state.PeerCertificates) == 0 {
			from.refusal = connect.NewError(connect.CodeUnauthenticated, "a tunnel needs a certificate of this system: join it with a token (RAYLINK_TOKEN)")
		}
		return l.acceptTunnel(ctx, conn, nil, p, from)
	case l.config.TLS.JoinProtocol:
		return l.join(ctx, conn, p, from)
	}
	l.deliver(&Conn{Conn: conn, in: conn, listener: l, pending: p, peer: from.peer})
	return true
}

// join admits a process that has no certificate.
func (l *Listener) join(ctx context.Context, conn *tls.Conn, p *pending, from origin) (isWeb bool) {
	if l.config.TLS.Join == nil {
		l.refused(conn, errors.New("a process wants to join here, where no Brain is"))
		_ = conn.Close()
		return false
	}
	var continues bool
	err := bounded(ctx, conn, func() (err error) {
		from.peer, continues, err = l.config.TLS.Join(conn)
		return err
	})
	switch {
	case err != nil:
		l.refused(conn, err)
		l.lingerThenClose(ctx, conn)
		return false
	case !continues:
		l.config.Log.Info("signed a certificate", slog.String("host", from.peer.HostID), slog.String("role", string(from.peer.Role)),
			slog.String("token", from.peer.TokenID), slog.Any("remote", conn.RemoteAddr()))
		l.lingerThenClose(ctx, conn)
		return false
	}
	return l.sniff(ctx, conn, bufio.NewReaderSize(conn, helloBytes), p, from)
}

// lingerThenClose closes a connection after its peer had time to read what was sent.
func (l *Listener) lingerThenClose(ctx context.Context, nc net.Conn) {
	defer nc.Close() //nolint:errcheck // all was written
	if half, ok := nc.(interface{ CloseWrite() error }); ok && half.CloseWrite() == nil {
		discard(ctx, nc)
	}
}

// The responses to a client that uses TLS where there is none, and the reverse.
const (
	needsTLS = "this address serves TLS only: use https, verify the certificate by that of the system's CA (`raylink ca` prints it), " +
		"and send a token in the header `Authorization: Bearer ...`"
	hasNoTLS = "this address does not use TLS: use http"
)

// refuseHTTP responds to whatever a client has sent with an HTTP error, which clients of other
// protocols show in their own errors.
func (l *Listener) refuseHTTP(ctx context.Context, nc net.Conn, text string) {
	l.refused(nc, errors.New(text))
	response := "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n" + text + "\n"
	if _, err := io.WriteString(nc, response); err != nil {
		_ = nc.Close()
		return
	}
	l.lingerThenClose(ctx, nc)
}

const (
	// refusalsLogged is how many refusals are logged in each refusalPeriod; others are counted.
	refusalsLogged = 10
	refusalPeriod  = 10 * time.Second
)

// refusalLog bounds the log of refused connections: strangers must not fill a disk.
type refusalLog struct {
	mu      sync.Mutex // guards the fields below
	since   time.Time
	logged  int
	dropped uint64
}

// refused logs that a connection was refused.
func (l *Listener) refused(nc net.Conn, err error) {
	r := &l.refusals
	r.mu.Lock()
	now := time.Now()
	if now.Sub(r.since) > refusalPeriod {
		r.since, r.logged = now, 0
	}
	if r.logged++; r.logged > refusalsLogged {
		r.dropped++
		r.mu.Unlock()
		return
	}
	dropped := r.dropped
	r.dropped = 0
	r.mu.Unlock()
	args := []any{slog.Any("remote", nc.RemoteAddr()), slog.Any("error", err)}
	if dropped > 0 {
		args = append(args, slog.Uint64("refused_before", dropped))
	}
	l.config.Log.Warn("refused a connection", args...)
}

// CloseConnections closes the connections that are open. Further ones are accepted.
func (l *Listener) CloseConnections() {
	l.mu.Lock()
	tunnels, web := slices.Collect(maps.Keys(l.tunnels)), slices.Collect(maps.Keys(l.webOpen))
	l.mu.Unlock()
	for _, c := range tunnels {
		_ = c.Close()
	}
	for _, c := range web {
		_ = c.Conn.Close()
	}
}

// CloseRevoked closes the connections whose peers have joined by a token, or sent one, that is
// revoked.
func (l *Listener) CloseRevoked(revoked func(tokenID string) bool) {
	l.mu.Lock()
	var tunnels []*tunnel.Conn
	for c, peer := range l.tunnels {
		if peer.TokenID != "" && revoked(peer.TokenID) {
			tunnels = append(tunnels, c)
		}
	}
	var web []*Conn
	for c := range l.webOpen {
		if c.hasToken(revoked) {
			web = append(web, c)
		}
	}
	l.mu.Unlock()
	for _, c := range tunnels {
		_ = c.Close()
	}
	for _, c := range web {
		_ = c.Conn.Close()
	}
}
