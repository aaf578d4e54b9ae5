package runtime

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"strconv"

	"github.com/raylink/raylink/runtime/internal/listen"
	"github.com/raylink/raylink/runtime/internal/peers"
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
			return peers.DialRaw(ctx, address, hello, tunnel.Config{Token: token})
		},
	}
}

// isProven reports whether a request came over a connection whose other side has proven that it
// knows the token: the gateway of the system's Brain, or the command line.
func isProven(ctx context.Context) bool {
	c := listen.ConnOf(ctx)
	return c != nil && c.IsProven()
}

// dialOutside opens a tunnel for a process without a runtime, with the given token, or else that of
// the environment, or else the one that fits among the tokens of this user's systems.
func dialOutside(ctx context.Context, address string, hello tunnel.Hello, token string) (*tunnel.Conn, error) {
	if token == "" {
		token = os.Getenv("RAYLINK_TOKEN")
	}
	if token != "" {
		return peers.DialTCP(ctx, address, hello, tunnel.Config{Token: token})
	}
	for _, token := range rundir.Tokens() {
		conn, err := peers.DialTCP(ctx, address, hello, tunnel.Config{Token: token})
		if err == nil || !peers.IsUnproven(err) {
			return conn, err
		}
	}
	conn, err := peers.DialTCP(ctx, address, hello, tunnel.Config{})
	if err != nil {
		return nil, err
	}
	if open, _ := strconv.ParseBool(os.Getenv("RAYLINK_OPEN")); !open {
		return nil, errors.Join(peers.ErrOpen(address), conn.Close())
	}
	return conn, nil
}
