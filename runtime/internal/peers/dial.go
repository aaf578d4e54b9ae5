package peers

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"

	"connectrpc.com/connect/v2"

	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	"github.com/raylink/raylink/runtime/tunnel"
)

// hello is this host's part of the handshakes that it begins.
func (p *Pool) hello() tunnel.Hello {
	return tunnel.Hello{Client: p.config.Host, Build: p.config.Build}
}

// dialHost opens a connection to a host: by its Unix socket if it is on this machine, this process
// can open the socket, and it is indeed that host's, or else by TCP.
func (p *Pool) dialHost(ctx context.Context, info *nodev1.HostInfo, k key) (*tunnel.Conn, error) {
	hello := p.hello()
	hello.Host = info.GetId()
	hello.Tag, hello.Target = k.tag, k.nid
	if p.hasSocket(info) {
		if nc, err := p.config.Dial(ctx, "unix", info.GetSocket()); err == nil {
			conn, err := tunnel.Dial(ctx, nc, hello, p.config.Tunnel)
			if err == nil {
				return conn, nil
			}
			p.config.Log.Debug("the Unix socket is not the host's; going by TCP", "socket", info.GetSocket(), "error", err)
		}
	}
	by, err := p.byTCP(info.GetId(), info.GetAddress())
	if err != nil {
		return nil, err
	}
	conn, err := dialTCP(ctx, p.config.Dial, info.GetAddress(), hello, &by)
	if err == nil {
		p.remember(conn, by)
	}
	return conn, err
}

// hasSocket reports whether a host may be reached by a Unix socket. Those of other machines could
// be there, where machines share a file system, and would hide that the network between them is
// cut.
func (p *Pool) hasSocket(info *nodev1.HostInfo) bool {
	return info.GetSocket() != "" && info.GetMachine() == p.config.Machine
}

// DialTCP opens a tunnel to a host at an address, outside of any pool. The caller must close it.
func DialTCP(ctx context.Context, address string, hello tunnel.Hello, config tunnel.Config) (*tunnel.Conn, error) {
	return dialTCP(ctx, new(net.Dialer).DialContext, address, hello, &security{tunnel: config})
}

// DialTCPTLS is DialTCP within TLS.
func DialTCPTLS(ctx context.Context, address string, hello tunnel.Hello, config tunnel.Config, secured *tls.Config) (*tunnel.Conn, error) {
	return dialTCP(ctx, new(net.Dialer).DialContext, address, hello, &security{tunnel: config, config: secured})
}

func dialTCP(ctx context.Context, dial DialFunc, address string, hello tunnel.Hello, by *security) (*tunnel.Conn, error) {
	nc, err := dial(ctx, "tcp", address)
	if err != nil {
		return nil, connect.Errorf(connect.CodeUnavailable, "no process answers at %s: %v", address, err).WithCause(err)
	}
	var conn *tunnel.Conn
	if nc, err = by.secure(ctx, nc); err == nil {
		if conn, err = tunnel.Dial(ctx, nc, hello, by.tunnel); err != nil {
			err = refusal(ctx, nc, err)
		}
	}
	switch {
	case err == nil:
		return conn, nil
	case ctx.Err() != nil && connect.CodeOf(err) == connect.CodeDeadlineExceeded:
		// The deadline is that of the attempt: a caller whose own deadline passes gets that error
		// instead.
		return nil, connect.Errorf(connect.CodeUnavailable, "what listens at %s did not answer as a host does within %v", address, dialTimeout).WithCause(err)
	}
	return nil, fmt.Errorf("opening a tunnel to %s: %w", address, err)
}

// DialHTTP opens a connection for HTTP to another host of the system: by its Unix socket if that is
// indeed the host's, or else by TCP. It is not part of the pool: the caller must close it.
//
// In a system that uses TLS it is by TCP: requests of clients with any role are forwarded, and by
// Unix socket Brain could not prove that it has the role admin.
func (p *Pool) DialHTTP(ctx context.Context, info *nodev1.HostInfo) (net.Conn, error) {
	hello := p.hello()
	hello.Host, hello.Protocol = info.GetId(), tunnel.ProtocolHTTP
	if p.hasSocket(info) && p.config.TLS == nil {
		if nc, err := dialRaw(ctx, p.config.Dial, "unix", info.GetSocket(), hello, &security{tunnel: p.config.Tunnel}); err == nil {
			return nc, nil
		}
	}
	by, err := p.byTCP(info.GetId(), info.GetAddress())
	if err != nil {
		return nil, err
	}
	return dialRaw(ctx, p.config.Dial, "tcp", info.GetAddress(), hello, &by)
}

// DialRaw opens a connection for the protocol that hello names, outside of any pool.
func DialRaw(ctx context.Context, address string, hello tunnel.Hello, config tunnel.Config) (net.Conn, error) {
	return dialRaw(ctx, new(net.Dialer).DialContext, "tcp", address, hello, &security{tunnel: config})
}

// DialRawTLS is DialRaw within TLS.
func DialRawTLS(ctx context.Context, address string, hello tunnel.Hello, config tunnel.Config, secured *tls.Config) (net.Conn, error) {
	return dialRaw(ctx, new(net.Dialer).DialContext, "tcp", address, hello, &security{tunnel: config, config: secured})
}

func dialRaw(ctx context.Context, dial DialFunc, network, address string, hello tunnel.Hello, by *security) (net.Conn, error) {
	nc, err := dial(ctx, network, address)
	if err != nil {
		return nil, err
	}
	if nc, err = by.secure(ctx, nc); err != nil {
		return nil, err
	}
	raw, _, err := tunnel.DialRaw(ctx, nc, hello, by.tunnel)
	if err != nil {
		return nil, refusal(ctx, nc, err)
	}
	return raw, nil
}

// ErrOpen refuses a system without a token where the process was not configured to join one.
func ErrOpen(address string) error {
	return connect.Errorf(connect.CodeUnauthenticated,
		"the process at %s asks for no token, so it could be another user's: "+
			"if that system is open on purpose, permit it with WithOpen, --open or RAYLINK_OPEN=1", address)
}

// IsUnproven reports whether a handshake failed because the two sides do not have the same token.
func IsUnproven(err error) bool {
	e, ok := errors.AsType[*tunnel.HandshakeError](err)
	return ok && e.Code == connect.CodeUnauthenticated
}
