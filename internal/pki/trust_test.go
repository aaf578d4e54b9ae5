package pki

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"math/big"
	"net"
	"net/url"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const (
	tokenA = "00112233445566aa"
	tokenB = "00112233445566bb"
)

func TestHostsVerifyEachOther(t *testing.T) {
	ca := newCA(t)
	brain := issue(t, ca, Grant{HostID: "brain", Role: RoleAdmin})
	host := issue(t, ca, Grant{HostID: "host-1", Role: RoleJoin, TokenID: tokenA})
	c, s := connect(t,
		clientConfig(t, fixed(host), Trust{Roots: ca.Roots, HostID: "brain", Role: RoleAdmin}, "raylink", "h2"),
		serverConfig(t, fixed(brain), Trust{Roots: ca.Roots, Role: RoleJoin}, "h2", "raylink"))
	require.NoError(t, c.err)
	require.NoError(t, s.err)
	assert.Equal(t, uint16(tls.VersionTLS13), s.state.Version)
	assert.Equal(t, "h2", s.state.NegotiatedProtocol, "the server's preference")
	peer, ok := PeerOf(s.state)
	assert.True(t, ok)
	assert.Equal(t, Peer{HostID: "host-1", Role: RoleJoin, TokenID: tokenA}, peer)
	peer, ok = PeerOf(c.state)
	assert.True(t, ok)
	assert.Equal(t, Peer{HostID: "brain", Role: RoleAdmin}, peer)
}

func TestClientThatKnowsTheFingerprintOnly(t *testing.T) {
	ca := newCA(t)
	brain := issue(t, ca, Grant{HostID: "brain", Role: RoleAdmin})
	server := serverConfig(t, fixed(brain), Trust{Roots: ca.Roots, Optional: true})
	c, s := connect(t, clientConfig(t, nil, Trust{Fingerprint: ca.Fingerprint(), HostID: "brain"}), server)
	require.NoError(t, c.err)
	require.NoError(t, s.err)
	_, ok := PeerOf(s.state)
	assert.False(t, ok, "the client has no certificate")
	found, err := FindCA(c.state.PeerCertificates, ca.Fingerprint())
	require.NoError(t, err)
	assert.Equal(t, ca.Certificate().Raw, found.Raw)
}

// TestRefusals has the texts that users see on both sides. The client's and the server's trust are
// that of mutual TLS, unless a case changes it.
func TestRefusals(t *testing.T) {
	ca, other := newCA(t), newCA(t)
	join := func(c *CA, id string) *tls.Certificate {
		return issue(t, c, Grant{HostID: id, Role: RoleJoin, TokenID: tokenA})
	}
	server, client := join(ca, "server"), join(ca, "client")
	caller := issue(t, ca, Grant{HostID: "caller", Role: RoleCall, TokenID: tokenB})
	unnamed := issueByTemplate(t, ca, &x509.Certificate{DNSNames: []string{"example.org"}})
	twice := issueByTemplate(t, ca, &x509.Certificate{URIs: []*url.URL{
		parseURL(t, "raylink://host/client?role=join"), parseURL(t, "raylink://host/client?role=admin"),
	}})
	long := *client
	for range maxChain {
		long.Certificate = append(long.Certificate, ca.Certificate().Raw)
	}
	revoked := func(id string) bool { return id == tokenA }

	// By the peer's alert, and by the error of the own side.
	const (
		alerted  = "the peer refused this side's certificate: its log has the reason, such as a token that was revoked, or another CA: remote error: tls: bad certificate"
		required = "the peer requires a certificate of its clients: join with a token first: remote error: tls: certificate required"
		version  = "the peer has no version of TLS in common with this side, which requires 1.3: remote error: tls: protocol version not supported"
	)
	type sides struct {
		client, server           *tls.Certificate
		clientTrust, serverTrust Trust
		change                   func(client, server *tls.Config)
	}
	for name, test := range map[string]struct {
		change         func(*sides)
		client, server string
		is             error // of the side that refuses
	}{
		"server of another CA": {
			change: func(s *sides) { s.server = join(other, "server") },
			client: `refused the server's certificate ("server", issued by "RayLink CA ` + other.Fingerprint()[:8] +
				`"): it is not of a CA that is trusted here: its host has joined another system, or this system's CA was made anew`,
			server: alerted, is: ErrUntrustedCA,
		},
		"client of another CA": {
			change: func(s *sides) { s.client = join(other, "client") },
			client: alerted,
			server: `refused the client's certificate ("client", issued by "RayLink CA ` + other.Fingerprint()[:8] +
				`"): it is not of a CA that is trusted here: its host has joined another system, or this system's CA was made anew`,
			is: ErrUntrustedCA,
		},
		"server with another fingerprint": {
			change: func(s *sides) { s.clientTrust = Trust{Fingerprint: other.Fingerprint()} },
			client: `refused the server's certificate ("server", issued by "RayLink CA ` + ca.Fingerprint()[:8] +
				`"): it is not of a CA that is trusted here: the chain ends with the fingerprint ` + ca.Fingerprint() + ", and " + other.Fingerprint() +
				" is expected: the token is of another system, or the peer only pretends to be of this one",
			server: alerted, is: ErrUntrustedCA,
		},
		"server that sends the certificate of a CA that has not signed it": {
			change: func(s *sides) {
				s.clientTrust = Trust{Fingerprint: ca.Fingerprint()}
				s.server = join(other, "server")
				s.server.Certificate = [][]byte{s.server.Certificate[0], ca.Certificate().Raw}
			},
			client: "it is not of a CA that is trusted here: its host has joined another system", server: alerted, is: ErrUntrustedCA,
		},
		"server that sends a forged certificate of the CA": {
			change: func(s *sides) {
				s.clientTrust = Trust{Fingerprint: ca.Fingerprint()}
				s.server = &tls.Certificate{PrivateKey: server.PrivateKey, Certificate: [][]byte{server.Certificate[0], forge(t, ca)}}
			},
			client: "it is not of a CA that is trusted here: its CA's certificate is forged: x509: ECDSA verification failure",
			server: alerted, is: ErrUntrustedCA,
		},
		"server that is another host": {
			change: func(s *sides) { s.clientTrust.HostID = "brain" },
			client: `refused the server's certificate ("server", issued by "RayLink CA ` + ca.Fingerprint()[:8] +
				`"): it is of another host: it is of the host server, and brain is expected`,
			server: alerted, is: ErrWrongHost,
		},
		"server of the fingerprint's CA that is another host": {
			change: func(s *sides) { s.clientTrust = Trust{Fingerprint: ca.Fingerprint(), HostID: "brain"} },
			client: "it is of another host: it is of the host server, and brain is expected", server: alerted, is: ErrWrongHost,
		},
		"client that is another host": {
			change: func(s *sides) { s.serverTrust.HostID = "brain" },
			client: alerted, server: "it is of another host: it is of the host client, and brain is expected", is: ErrWrongHost,
		},
		"server with another name": {
			change: func(s *sides) { s.clientTrust.Name = "example.org" },
			client: "it is of another host: x509: certificate is not valid for any names, but wanted to match example.org",
			server: alerted, is: ErrWrongHost,
		},
		"host that pretends to be Brain": {
			change: func(s *sides) { s.clientTrust.Role = RoleAdmin },
			client: "its role does not suffice: it has the role join, and admin is required", server: alerted, is: ErrRole,
		},
		"caller that joins": {
			change: func(s *sides) { s.client, s.serverTrust.Role = caller, RoleJoin },
			client: alerted, server: "its role does not suffice: it has the role call, and join is required", is: ErrRole,
		},
		"caller that serves": {
			change: func(s *sides) { s.server = caller },
			client: "it may not be used for this: a host with the role call can't be a server, and only a host can be a client",
			server: alerted, is: ErrUsage,
		},
		"revoked client": {
			change: func(s *sides) { s.serverTrust.Revoked = revoked },
			client: alerted,
			server: "the token by which its host has joined was revoked (token " + tokenA + "): ask for a new token, and join again", is: ErrRevoked,
		},
		"revoked client of a server that requires none": {
			change: func(s *sides) { s.serverTrust.Revoked, s.serverTrust.Optional = revoked, true },
			client: alerted, server: "the token by which its host has joined was revoked", is: ErrRevoked,
		},
		"revoked server": {
			change: func(s *sides) { s.clientTrust.Revoked = revoked },
			client: "the token by which its host has joined was revoked", server: alerted, is: ErrRevoked,
		},
		"client without a certificate": {
			change: func(s *sides) { s.client = nil },
			client: required, server: "tls: client didn't provide a certificate",
		},
		"client of TLS 1.2": {
			change: func(s *sides) {
				s.change = func(client, _ *tls.Config) { client.MinVersion, client.MaxVersion = tls.VersionTLS12, tls.VersionTLS12 }
			},
			client: version, server: "tls: client offered only unsupported versions: [303]",
		},
		"server of TLS 1.2": {
			change: func(s *sides) {
				s.change = func(_, server *tls.Config) { server.MinVersion, server.MaxVersion = tls.VersionTLS12, tls.VersionTLS12 }
			},
			client: version, server: "tls: client offered only unsupported versions: [304]",
		},
		"other protocols": {
			change: func(s *sides) {
				s.change = func(client, server *tls.Config) {
					client.NextProtos, server.NextProtos = []string{"h3"}, []string{"raylink"}
				}
			},
			client: "the peer does not serve this protocol here: remote error: tls: no application protocol",
			server: `tls: client requested unsupported application protocols (["h3"])`,
		},
		"client without an identity": {
			change: func(s *sides) { s.client = unnamed },
			client: alerted, server: "it has no identity of the form raylink://host/<host id>?role=<role>", is: errNoIdentity,
		},
		"client with two identities": {
			change: func(s *sides) { s.client = twice },
			client: alerted, server: "it has more than one identity",
		},
		"client with a long chain": {
			change: func(s *sides) { s.client = &long },
			client: alerted, server: "its chain has 10 certificates, more than 8",
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := sides{
				client: client, server: server,
				clientTrust: Trust{Roots: ca.Roots}, serverTrust: Trust{Roots: ca.Roots}, change: func(*tls.Config, *tls.Config) {},
			}
			test.change(&s)
			var own OwnCertificate
			if s.client != nil {
				own = fixed(s.client)
			}
			clientSide, serverSide := clientConfig(t, own, s.clientTrust), serverConfig(t, fixed(s.server), s.serverTrust)
			s.change(clientSide, serverSide)
			atClient, atServer := connect(t, clientSide, serverSide)
			require.ErrorContains(t, Explain(atClient.err), test.client, "at the client")
			require.ErrorContains(t, Explain(atServer.err), test.server, "at the server")
			if test.is != nil && test.client == alerted {
				require.ErrorIs(t, atServer.err, test.is)
			} else if test.is != nil {
				require.ErrorIs(t, atClient.err, test.is)
			}
		})
	}
}

func TestCertificatesOfAnotherTimeAreRefused(t *testing.T) {
	ca := newCA(t)
	future := issue(t, ca, Grant{HostID: "future", Role: RoleJoin})
	synctest.Test(t, func(t *testing.T) { // whose clock begins in the year 2000
		now := newCA(t)
		host := issue(t, now, Grant{HostID: "host", Role: RoleJoin})
		server := serverConfig(t, fixed(host), Trust{Roots: func() *x509.CertPool {
			pool := now.Roots()
			pool.AddCert(ca.Certificate())
			return pool
		}})
		client := clientConfig(t, fixed(future), Trust{Roots: now.Roots})
		c, s := connect(t, client, server)
		require.ErrorContains(t, s.err, "it is not valid yet: it is valid from ")
		require.ErrorIs(t, s.err, ErrNotYetValid)
		require.ErrorContains(t, s.err, ", and this machine's clock is at 2000-01-01T00:00:00Z")
		require.ErrorContains(t, Explain(c.err), "the peer refused this side's certificate: ")
		// Those that are valid now, and end within the hour.
		short := issue(t, now, Grant{HostID: "short", Role: RoleJoin, Lifetime: time.Hour})
		client = clientConfig(t, fixed(short), Trust{Roots: now.Roots})
		c, s = connect(t, client, server)
		require.NoError(t, c.err)
		require.NoError(t, s.err)
		advance(time.Hour)
		c, s = connect(t, client, server)
		require.NoError(t, s.err)
		require.NoError(t, c.err)
		advance(time.Second)
		c, s = connect(t, client, server)
		const expired = "it has expired: it was valid until 2000-01-01T01:00:00Z, and this machine's clock is at 2000-01-01T01:00:01Z"
		require.ErrorContains(t, s.err, expired)
		require.ErrorIs(t, s.err, ErrExpired)
		require.ErrorContains(t, Explain(c.err), "the peer refused this side's certificate: ")
		c, s = connect(t, clientConfig(t, fixed(host), Trust{Roots: now.Roots}), serverConfig(t, fixed(short), Trust{Roots: now.Roots}))
		require.ErrorContains(t, c.err, expired)
		require.ErrorContains(t, Explain(s.err), "the peer refused this side's certificate: ")
	})
}

// TestResumedSessionsAreVerified revokes a token between two connections, and lets a certificate
// expire.
func TestResumedSessionsAreVerified(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newCA(t)
		brain := issue(t, ca, Grant{HostID: "brain", Role: RoleAdmin, Lifetime: 90 * time.Minute})
		host := issue(t, ca, Grant{HostID: "host", Role: RoleJoin, TokenID: tokenA, Lifetime: 2 * time.Hour})
		isRevoked := false
		server := serverConfig(t, fixed(brain), Trust{Roots: ca.Roots, Revoked: func(string) bool { return isRevoked }})
		client := clientConfig(t, fixed(host), Trust{Roots: ca.Roots})
		client.ClientSessionCache = tls.NewLRUClientSessionCache(8)
		for i := range 3 {
			c, s := connect(t, client, server)
			require.NoError(t, c.err)
			require.NoError(t, s.err)
			require.Equal(t, i > 0, s.state.DidResume)
			peer, ok := PeerOf(s.state)
			require.True(t, ok, "a resumed connection has its peer's identity")
			require.Equal(t, "host", peer.HostID)
		}
		isRevoked = true
		_, s := connect(t, client, server)
		require.True(t, s.state.DidResume)
		require.ErrorIs(t, s.err, ErrRevoked)

		isRevoked = false
		_, s = connect(t, client, server)
		require.NoError(t, s.err)
		advance(91 * time.Minute)
		c, _ := connect(t, client, server)
		require.ErrorIs(t, c.err, ErrExpired)
	})
}

// TestPlainPeers has the errors of TLS with a peer that has none.
func TestPlainPeers(t *testing.T) {
	ca := newCA(t)
	host := issue(t, ca, Grant{HostID: "host", Role: RoleJoin})
	for name, handshake := range map[string]func(net.Conn) error{
		"client": func(c net.Conn) error {
			return tls.Client(c, clientConfig(t, nil, Trust{Roots: ca.Roots})).HandshakeContext(t.Context())
		},
		"server": func(c net.Conn) error {
			return tls.Server(c, serverConfig(t, fixed(host), Trust{Roots: ca.Roots})).HandshakeContext(t.Context())
		},
	} {
		t.Run(name, func(t *testing.T) {
			conn, peer := memoryPipe()
			_, err := io.Copy(peer, bytes.NewBufferString("GET / HTTP/1.1\r\nHost: example.org\r\n\r\n"))
			require.NoError(t, err)
			err = Explain(handshake(conn))
			require.ErrorContains(t, err, "the peer does not use TLS here: check its address, and whether it was started with --insecure: tls: first record does not look like a TLS handshake")
		})
	}
	require.Equal(t, io.EOF, Explain(io.EOF), "other errors stay as they are")
	require.NoError(t, Explain(nil))
}

func TestConfigurationsThatVerifyNothingAreRefused(t *testing.T) {
	ca := newCA(t)
	own := fixed(issue(t, ca, Grant{HostID: "host", Role: RoleJoin}))
	for want, config := range map[string]func() (*tls.Config, error){
		"a peer is verified by the CAs or by a fingerprint: give one of them": func() (*tls.Config, error) { return ClientConfig(own, Trust{}) },
		"a peer is verified by the CAs or by a fingerprint: give one of them ": func() (*tls.Config, error) {
			return ServerConfig(own, Trust{Roots: ca.Roots, Fingerprint: ca.Fingerprint()})
		},
		"the fingerprint of the CA is not valid: it has 1 characters, not 43": func() (*tls.Config, error) { return ClientConfig(nil, Trust{Fingerprint: "x"}) },
		"a server needs a certificate":                                        func() (*tls.Config, error) { return ServerConfig(nil, Trust{Roots: ca.Roots}) },
		"a server's certificate can't be optional":                            func() (*tls.Config, error) { return ClientConfig(nil, Trust{Roots: ca.Roots, Optional: true}) },
		"have neither host id nor role: require none": func() (*tls.Config, error) {
			return ClientConfig(nil, Trust{Roots: ca.Roots, Unnamed: true, Role: RoleJoin})
		},
	} {
		_, err := config()
		require.ErrorContains(t, err, string(bytes.TrimRight([]byte(want), " ")))
	}
}

// TestIdentitiesHaveOneForm refuses URIs that would be read in two ways.
func TestIdentitiesHaveOneForm(t *testing.T) {
	for _, p := range []Peer{{HostID: "a", Role: RoleCall}, {HostID: "A.b-c_9", Role: RoleAdmin, TokenID: tokenA}} {
		got, err := parsePeer(parseURL(t, p.uri()))
		require.NoError(t, err)
		require.Equal(t, p, got)
	}
	for text, want := range map[string]string{
		"raylink://host/?role=join":                        `the host id "" is not valid: it has 1 to 64 characters of A-Z, a-z, 0-9, '-', '_' and '.'`,
		"raylink://host/a/b?role=join":                     `the host id "a/b" is not valid`,
		"raylink://host/a%2Fb?role=join":                   `the host id "a/b" is not valid`,
		"raylink://host/a":                                 `the role "" is not known: use admin, join or call`,
		"raylink://host/a?role=root":                       `the role "root" is not known`,
		"raylink://host/a?role=call&role=admin":            "its identity is not of the form",
		"raylink://host/a?token=" + tokenA + "&role=admin": "its identity is not of the form",
		"raylink://host/a?role=call&token=x":               "its token id is not valid",
		"raylink://host/%61?role=call":                     "its identity is not of the form",
		"raylink://else/a?role=call":                       "its identity is not of the form",
		"raylink://host/a?role=call#x":                     "its identity is not of the form",
		"raylink://u@host/a?role=call":                     "its identity is not of the form",
	} {
		_, err := parsePeer(parseURL(t, text))
		require.ErrorContains(t, err, want, text)
	}
}

func TestRolesIncludeEachOther(t *testing.T) {
	roles := []Role{RoleCall, RoleJoin, RoleAdmin}
	for i, a := range roles {
		for j, b := range roles {
			assert.Equal(t, i >= j, a.Includes(b), "%s, %s", a, b)
		}
		assert.False(t, a.Includes("root"))
		assert.False(t, a.Includes(""))
		assert.False(t, Role("").Includes(a))
	}
	assert.False(t, Role("").Includes(""))
}

// issueByTemplate signs a certificate that CA.Sign would not.
func issueByTemplate(t *testing.T, ca *CA, template *x509.Certificate) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template.SerialNumber = big.NewInt(1)
	template.Subject = pkix.Name{CommonName: "made by hand"}
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Minute), time.Now().Add(time.Hour)
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, &key.PublicKey, ca.key)
	require.NoError(t, err)
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// forge returns the certificate of a CA with its key and name, but signed by another key.
func forge(t *testing.T, ca *CA) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := *ca.cert
	template.NotAfter = template.NotAfter.Add(time.Hour)
	signer := template
	signer.PublicKey = &key.PublicKey
	der, err := x509.CreateCertificate(rand.Reader, &template, &signer, &ca.key.PublicKey, key)
	require.NoError(t, err)
	return der
}

func parseURL(t *testing.T, text string) *url.URL {
	t.Helper()
	u, err := url.Parse(text)
	require.NoError(t, err)
	return u
}

// advance moves the clock of a test in a synctest bubble.
func advance(d time.Duration) {
	<-time.After(d)
}
