package admission

import (
	"crypto/tls"
	"net"
	"testing"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink/internal/pki"
)

const host = "a-host"

func open(t *testing.T) *Authority {
	t.Helper()
	a, err := Open(t.TempDir()+"/pki", 0)
	require.NoError(t, err)
	a.SetAddress("10.0.0.1:6800")
	return a
}

// exchangeWith runs an exchange with the authority, by a client with a certificate, which may be
// nil.
func exchangeWith(t *testing.T, a *Authority, cert *tls.Certificate, run func(*tls.Conn) error) (peer pki.Peer, client, server error) {
	t.Helper()
	brain, err := a.Own("brain", []string{"127.0.0.1"})
	require.NoError(t, err)
	trust := a.Trust()
	trust.Optional = true // revocation is Serve's matter here
	accepting, err := pki.ServerConfig(func() (*tls.Certificate, error) { return brain, nil }, trust, Protocol)
	require.NoError(t, err)
	var own pki.OwnCertificate
	if cert != nil {
		own = func() (*tls.Certificate, error) { return cert, nil }
	}
	dialling, err := pki.ClientConfig(own, pki.Trust{Fingerprint: a.Fingerprint(), Role: pki.RoleAdmin}, Protocol)
	require.NoError(t, err)
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close() //nolint:errcheck // nothing was written
	served := make(chan error, 1)
	go func() {
		nc, err := l.Accept()
		if err != nil {
			served <- err
			return
		}
		defer nc.Close() //nolint:errcheck // the exchange is over
		peer, _, err = a.Serve(tls.Server(nc, accepting))
		served <- err
	}()
	nc, err := new(net.Dialer).DialContext(t.Context(), "tcp", l.Addr().String())
	require.NoError(t, err)
	conn := tls.Client(nc, dialling)
	require.NoError(t, conn.HandshakeContext(t.Context()))
	client = run(conn)
	server = <-served
	_ = conn.Close() // it is over
	return peer, client, server
}

// TestJoin: a host gets a certificate, the secret and Brain's address by a token.
func TestJoin(t *testing.T) {
	t.Parallel()
	a := open(t)
	var got *Admitted
	peer, client, server := exchangeWith(t, a, nil, func(conn *tls.Conn) (err error) {
		got, err = Join(conn, a.JoinToken(), host)
		return err
	})
	require.NoError(t, client)
	require.NoError(t, server)
	require.Equal(t, pki.Peer{HostID: host, Role: pki.RoleJoin, TokenID: a.JoinToken().ID()}, peer)
	require.Equal(t, a.Secret(), got.Secret)
	require.Equal(t, "10.0.0.1:6800", got.Address)
	require.Equal(t, "127.0.0.1", got.Certificate.Leaf.IPAddresses[0].String(), "clients in other languages verify the address")

	call, _, err := a.tokens.Make(pki.RoleCall, "", got.Certificate.Leaf.NotAfter)
	require.NoError(t, err)
	_, client, _ = exchangeWith(t, a, nil, func(conn *tls.Conn) (err error) {
		got, err = Join(conn, call, host)
		return err
	})
	require.NoError(t, client)
	require.Empty(t, got.Secret, "a caller must not know the secret of hosts")

	peer, client, server = exchangeWith(t, a, nil, func(conn *tls.Conn) error { return Prove(conn, call) })
	require.NoError(t, client)
	require.NoError(t, server)
	require.Equal(t, pki.Peer{Role: pki.RoleCall, TokenID: call.ID()}, peer)
}

// TestRenewal: a certificate is renewed for its own host, until its token is revoked.
func TestRenewal(t *testing.T) {
	t.Parallel()
	a := open(t)
	var got *Admitted
	_, client, _ := exchangeWith(t, a, nil, func(conn *tls.Conn) (err error) {
		got, err = Join(conn, a.JoinToken(), host)
		return err
	})
	require.NoError(t, client)
	renew := func(of string) (client, server error) {
		request, err := pki.NewRequest(of)
		require.NoError(t, err)
		_, client, server = exchangeWith(t, a, got.Certificate, func(conn *tls.Conn) error {
			chain, err := Renew(conn, request.CSR())
			if err == nil {
				_, err = request.Accept(chain, a.Trust())
			}
			return err
		})
		return client, server
	}
	client, server := renew(host)
	require.NoError(t, client)
	require.NoError(t, server)
	client, server = renew("another-host")
	require.Equal(t, connect.CodePermissionDenied, connect.CodeOf(client))
	require.ErrorContains(t, client, "asks for a certificate of host")
	require.Error(t, server)
	_, err := a.tokens.Revoke(a.JoinToken().ID())
	require.NoError(t, err)
	client, server = renew(host)
	require.ErrorContains(t, client, "is not renewed")
	require.ErrorContains(t, server, "is not renewed")
}
