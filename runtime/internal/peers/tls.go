package peers

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"

	"connectrpc.com/connect/v2"

	"github.com/raylink/raylink/internal/pki"
	"github.com/raylink/raylink/runtime/tunnel"
)

// TLS is what a pool needs for connections by TCP in a system that uses TLS. Those by Unix sockets
// are plain.
type TLS struct {
	// Client returns the configuration of a connection to the host with an id, or to Brain at an
	// address if that is empty. It verifies that the peer is that host.
	Client func(hostID, address string) (*tls.Config, error)
	// Tunnel configures the tunnels within TLS.
	Tunnel tunnel.Config
}

// security is how one connection is secured: config is nil without TLS.
type security struct {
	config *tls.Config
	tunnel tunnel.Config
	// peer is the identity of the other side after the handshake of TLS.
	peer pki.Peer
}

// byTCP returns how a connection by TCP is secured.
func (p *Pool) byTCP(hostID, address string) (security, error) {
	if p.config.TLS == nil {
		return security{tunnel: p.config.Tunnel}, nil
	}
	config, err := p.config.TLS.Client(hostID, address)
	return security{config: config, tunnel: p.config.TLS.Tunnel}, err
}

// TLSClient performs the handshake of TLS on a new connection. It takes ownership of nc, even if it
// fails. An error is a [*tunnel.HandshakeError].
func TLSClient(ctx context.Context, nc net.Conn, config *tls.Config) (*tls.Conn, error) {
	conn := tls.Client(tunnel.BelowTLS(nc), config)
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = nc.Close()
		return nil, handshakeError(ctx, err)
	}
	return conn, nil
}

// handshakeError converts the error of a TLS handshake.
func handshakeError(ctx context.Context, err error) *tunnel.HandshakeError {
	e := &tunnel.HandshakeError{Reason: tunnel.ReasonUnproven, Code: connect.CodeUnauthenticated, Message: pki.Explain(err).Error()}
	var op *net.OpError
	var plain tls.RecordHeaderError
	switch {
	case ctx.Err() != nil:
		e.Reason, e.Code = tunnel.ReasonLost, connect.CodeOf(context.Cause(ctx))
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			e.Code = connect.CodeDeadlineExceeded
		}
	case errors.As(err, &plain):
		e.Reason, e.Code = tunnel.ReasonNotAPeer, connect.CodeFailedPrecondition
	case errors.Is(err, pki.ErrWrongHost):
		e.Reason, e.Code = tunnel.ReasonWrongHost, connect.CodeFailedPrecondition
	case isAlert(err):
		e.Reason, e.Remote = tunnel.ReasonRefused, true
	case errors.As(err, &op), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		e.Reason, e.Code = tunnel.ReasonLost, connect.CodeUnavailable
	}
	return e
}

// isAlert reports whether the peer has refused this side by an alert.
func isAlert(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "remote error"
}

// secure performs the handshake of TLS, if there is any.
func (s *security) secure(ctx context.Context, nc net.Conn) (net.Conn, error) {
	if s.config == nil {
		return nc, nil
	}
	conn, err := TLSClient(ctx, nc, s.config)
	if err != nil {
		return nil, err
	}
	s.peer, _ = pki.PeerOf(conn.ConnectionState())
	return conn, nil
}

// refusal returns the error of a connection whose peer has refused this side's certificate: in TLS
// 1.3 the client learns that after its handshake. Else it returns err. The connection is closed.
func refusal(ctx context.Context, nc net.Conn, err error) error {
	conn, ok := nc.(*tls.Conn)
	if !ok {
		return err
	}
	if _, rerr := conn.Read(make([]byte, 1)); isAlert(rerr) { // the alert is remembered
		return handshakeError(ctx, rerr)
	}
	return err
}
