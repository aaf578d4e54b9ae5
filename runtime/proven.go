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
	"github.com/google/uuid"

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
	if files := (pki.Files{Cert: os.Getenv("RAYLINK_TLS_CERT"), Key: os.Getenv("RAYLINK_TLS_KEY"), CA: os.Getenv("RAYLINK_TLS_CA")}); files.Cert != "" {
		member, err := membership.OwnPKI(membership.Config{Log: slog.Default()}, files)
		if err != nil {
			return nil, err
		}
		return dialAsMember(ctx, member, address, hello, tunnel.Config{Token: token})
	}
	if membership.IsToken(token) {
		return dialAsGuest(ctx, address, hello, token)
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

// dialAsGuest joins the system of a token for one tunnel: a tunnel needs the certificate of a host.
// It is not renewed, since it is verified when the tunnel begins only.
func dialAsGuest(ctx context.Context, address string, hello tunnel.Hello, token string) (*tunnel.Conn, error) {
	brain, hint := os.Getenv("RAYLINK_BRAIN"), ""
	if brain == "" {
		// The host may be that of Brain.
		brain, hint = address, ": if Brain is elsewhere, set RAYLINK_BRAIN to its address, HOST:PORT"
	}
	hello.Client = uuid.NewString()
	member, err := membership.Join(ctx, membership.Config{
		Host: hello.Client, Log: slog.Default(), Spawn: func(func(context.Context)) bool { return false },
	}, brain, token)
	if err != nil {
		return nil, connect.Errorf(connect.CodeOf(err), "a tunnel needs a certificate of this system: %s%s", membership.TextOf(err), hint).WithCause(err)
	}
	return dialAsMember(ctx, member, address, hello, tunnel.Config{})
}

func dialAsMember(ctx context.Context, member *membership.Member, address string, hello tunnel.Hello, config tunnel.Config) (*tunnel.Conn, error) {
	secured, err := member.Client(hello.Host, address)
	if err != nil {
		return nil, err
	}
	return peers.DialTCPTLS(ctx, address, hello, config, secured)
}
