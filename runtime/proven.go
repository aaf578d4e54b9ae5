package runtime

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strconv"

	"connectrpc.com/connect/v2"

	"github.com/raylink/raylink/internal/admission"
	"github.com/raylink/raylink/internal/pki"
	"github.com/raylink/raylink/runtime/internal/listen"
	"github.com/raylink/raylink/runtime/internal/membership"
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
//
// With the token of a system that uses TLS, connections are encrypted, and are for Brain alone: it
// proves that it is Brain. The URLs have the scheme `http` nevertheless, since the connections are
// made here.
func NewHTTPTransport(token string, protocols *http.Protocols) *http.Transport {
	dial := dialProven
	if membership.IsToken(token) {
		dial = dialByToken
	}
	return &http.Transport{
		Protocols: protocols, DisableCompression: true,
		DialContext: func(ctx context.Context, _, address string) (net.Conn, error) { return dial(ctx, address, token) },
	}
}

// NewOwnPKITransport is NewHTTPTransport for a system with an organisation's certificates, as PEM
// files: this side's certificate, its key, and the CAs that hosts are verified by.
func NewOwnPKITransport(token string, protocols *http.Protocols, cert, key, ca string) (*http.Transport, error) {
	member, err := membership.OwnPKI(membership.Config{Log: slog.Default()}, pki.Files{Cert: cert, Key: key, CA: ca})
	if err != nil {
		return nil, err
	}
	return &http.Transport{
		Protocols: protocols, DisableCompression: true,
		DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
			config, err := member.Client("", address)
			if err != nil {
				return nil, err
			}
			return peers.DialRawTLS(ctx, address, httpHello(), tunnel.Config{Token: token}, config)
		},
	}, nil
}

func httpHello() tunnel.Hello {
	return tunnel.Hello{Build: launch.Build(), Protocol: tunnel.ProtocolHTTP}
}

func dialProven(ctx context.Context, address, token string) (net.Conn, error) {
	return peers.DialRaw(ctx, address, httpHello(), tunnel.Config{Token: token})
}

// dialByToken opens a connection to the Brain that has made the token, on which both sides prove
// that they know it.
func dialByToken(ctx context.Context, address, text string) (net.Conn, error) {
	token, err := pki.ParseToken(text)
	if err != nil {
		return nil, connect.Errorf(connect.CodeInvalidArgument, "the token can't be used: %v", err)
	}
	config, err := pki.ClientConfig(nil, pki.Trust{Fingerprint: token.Fingerprint(), Role: pki.RoleAdmin}, admission.Protocol)
	if err != nil {
		return nil, err
	}
	var proven net.Conn
	err = membership.Exchange(ctx, new(net.Dialer).DialContext, address, config, func(conn *tls.Conn) error {
		proven = conn
		return admission.Prove(conn, token)
	})
	return proven, err
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
	if membership.IsToken(token) {
		return nil, connect.NewError(connect.CodeUnimplemented,
			"the token is that of a system with TLS, where only a runtime (raylink.Init, join.Init) can open tunnels: use that, or call the node over HTTP")
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
