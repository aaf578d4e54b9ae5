package runtime

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"strconv"

	"connectrpc.com/connect/v2"

	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	"github.com/raylink/raylink/runtime/launch"
	"github.com/raylink/raylink/runtime/rundir"
	"github.com/raylink/raylink/runtime/tunnel"
)

// NewHTTPTransport returns a transport for an [http.Client] of hosts and Brain, whose addresses are
// HOST:PORT. It makes connections for HTTP/1.1 or, if protocols has it, HTTP/2 without TLS. On each
// connection both sides prove that they know the token, which is not sent: requests need no
// Authorization header, and a process that has taken over the address of a host that ended receives
// none. An empty token is for a system that is open. protocols may be nil, for HTTP/1.1.
func NewHTTPTransport(token string, protocols *http.Protocols) *http.Transport {
	hello := tunnel.Hello{Build: launch.Build(), Protocol: tunnel.ProtocolHTTP}
	return &http.Transport{
		Protocols: protocols, DisableCompression: true,
		DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
			return dialRaw(ctx, "tcp", address, hello, tunnel.Config{Token: token})
		},
	}
}

func dialRaw(ctx context.Context, network, address string, hello tunnel.Hello, config tunnel.Config) (net.Conn, error) {
	var d net.Dialer
	nc, err := d.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	raw, _, err := tunnel.DialRaw(ctx, nc, hello, config)
	return raw, err
}

// dialHTTP opens a connection for HTTP to another host of the system: by its Unix socket if that is
// indeed the host's, or else by TCP.
func (l *peerPool) dialHTTP(ctx context.Context, info *nodev1.HostInfo) (net.Conn, error) {
	hello := l.hello()
	hello.Host, hello.Protocol = info.GetId(), tunnel.ProtocolHTTP
	if info.GetSocket() != "" {
		if nc, err := dialRaw(ctx, "unix", info.GetSocket(), hello, l.host.tunnelConfig()); err == nil {
			return nc, nil
		}
	}
	return dialRaw(ctx, "tcp", info.GetAddress(), hello, l.host.tunnelConfig())
}

// isProven reports whether a request came over a connection whose other side has proven that it
// knows the token: the gateway of the system's Brain, or the command line.
func isProven(ctx context.Context) bool {
	c := webConnOf(ctx)
	return c != nil && c.proven
}

// errOpen refuses a system without a token where the process was not configured to join one.
func errOpen(address string) error {
	return connect.Errorf(connect.CodeUnauthenticated,
		"what answers at %s asks for no token, so it could be anybody's: if that system is open on purpose, say so with WithOpen, --open or RAYLINK_OPEN=1",
		address)
}

// isUnproven reports whether a handshake failed because the two sides do not have the same token.
func isUnproven(err error) bool {
	e, ok := errors.AsType[*tunnel.HandshakeError](err)
	return ok && e.Code == connect.CodeUnauthenticated
}

// dialOutside opens a tunnel for a process without a runtime, with the given token, or else that of
// the environment, or else the one that fits among the tokens of this user's systems.
func dialOutside(ctx context.Context, address string, hello tunnel.Hello, token string) (*tunnel.Conn, error) {
	if token == "" {
		token = os.Getenv("RAYLINK_TOKEN")
	}
	if token != "" {
		return dialTCP(ctx, address, hello, tunnel.Config{Token: token})
	}
	for _, token := range rundir.Tokens() {
		conn, err := dialTCP(ctx, address, hello, tunnel.Config{Token: token})
		if err == nil || !isUnproven(err) {
			return conn, err
		}
	}
	conn, err := dialTCP(ctx, address, hello, tunnel.Config{})
	if err != nil {
		return nil, err
	}
	if open, _ := strconv.ParseBool(os.Getenv("RAYLINK_OPEN")); !open {
		return nil, errors.Join(errOpen(address), conn.Close())
	}
	return conn, nil
}
