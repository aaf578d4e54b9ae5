package raylink_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/google/uuid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink"
	"github.com/raylink/raylink/brain"
	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
	"github.com/raylink/raylink/internal/contract"
	contractv1 "github.com/raylink/raylink/internal/contract/gen/contract/v1"
	"github.com/raylink/raylink/internal/contract/gen/contract/v1/contractv1raylink"
	"github.com/raylink/raylink/internal/hostapi"
	"github.com/raylink/raylink/internal/invariants"
	"github.com/raylink/raylink/internal/pki"
	"github.com/raylink/raylink/join"
	"github.com/raylink/raylink/runtime"
	"github.com/raylink/raylink/runtime/tunnel"
)

// logBuffer is a log that tests read.
type logBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

func (b *logBuffer) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(b, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// closed is a system with TLS whose CA the test has.
type closed struct {
	*runtime.Host

	ca    *pki.CA
	store *pki.TokenStore
	token string
	log   *logBuffer
}

func newClosed(t *testing.T, lifetime time.Duration) *closed {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, os.Chmod(dir, 0o700))
	s := &closed{log: new(logBuffer)}
	hosts := hostapi.Get[*runtime.Host, runtime.Options, runtime.Option, runtime.NodeType]()
	b, err := brain.Open(brain.Options{Logger: s.log.logger()})
	require.NoError(t, err)
	options := hosts.NewOptions(append(contract.Types(), runtime.WithInProcess(), runtime.WithTLS(), runtime.WithLogger(s.log.logger()))...)
	s.Host, err = hosts.Start(t.Context(), options, hostapi.Parts{Brain: b, PKI: dir, CertificateLifetime: lifetime})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close(context.Background())) })
	s.token = s.JoinToken()
	s.ca, err = pki.OpenCA(dir)
	require.NoError(t, err)
	s.store, err = pki.OpenTokenStore(s.ca)
	require.NoError(t, err)
	return s
}

func (s *closed) joined(t *testing.T, opts ...join.Option) (*join.Runtime, error) {
	t.Helper()
	opts = append(append([]join.Option{runtime.WithBrain(s.Address()), runtime.WithData(t.TempDir())}, contract.Types()...), opts...)
	rt, err := join.Start(t.Context(), opts...)
	if err == nil {
		t.Cleanup(func() { _ = rt.Close() })
	}
	return rt, err
}

// certificate makes one that the CA has signed.
func certificate(t *testing.T, ca *pki.CA, grant pki.Grant) *tls.Certificate {
	t.Helper()
	request, err := pki.NewRequest(grant.HostID)
	require.NoError(t, err)
	chain, err := ca.Sign(request.CSR(), grant)
	require.NoError(t, err)
	cert, err := request.Accept(chain, pki.Trust{Roots: ca.Roots})
	if err != nil { // it has expired
		require.ErrorIs(t, err, pki.ErrExpired)
		later := grant
		later.Lifetime = time.Hour
		second, err := ca.Sign(request.CSR(), later)
		require.NoError(t, err)
		cert, err = request.Accept(second, pki.Trust{Roots: ca.Roots})
		require.NoError(t, err)
		cert.Certificate, cert.Leaf = chain, nil
	}
	return cert
}

// tunnelWith opens a tunnel to Brain's host with a certificate, which may be nil.
func (s *closed) tunnelWith(t *testing.T, cert *tls.Certificate, client string) error {
	t.Helper()
	var own pki.OwnCertificate
	if cert != nil {
		own = func() (*tls.Certificate, error) { return cert, nil }
	}
	config, err := pki.ClientConfig(own, pki.Trust{Roots: s.ca.Roots}, "raylink/1")
	require.NoError(t, err)
	nc, err := new(net.Dialer).DialContext(t.Context(), "tcp", s.Address())
	require.NoError(t, err)
	secured := tls.Client(nc, config)
	conn, err := tunnel.Dial(patient(t), secured, tunnel.Hello{Client: client}, tunnel.Config{})
	if err != nil {
		_, rerr := secured.Read(make([]byte, 1))
		return errors.Join(err, pki.Explain(rerr))
	}
	return conn.Close()
}

// TestStrangers: each is refused with an error on both sides, and a client that is served notices
// nothing.
func TestStrangers(t *testing.T) {
	t.Parallel()
	other, err := pki.OpenCA(t.TempDir() + "/other")
	require.NoError(t, err)
	host := uuid.NewString()
	for name, c := range map[string]struct {
		try            func(t *testing.T, s *closed) error
		client, server string
	}{
		"no token": {func(t *testing.T, s *closed) error {
			_, err := s.joined(t)
			return err
		}, "this address serves TLS only", "this address serves TLS only"},
		"a shared secret": {func(t *testing.T, s *closed) error {
			_, err := s.joined(t, runtime.WithToken("guess"))
			return err
		}, "this address serves TLS only", "this address serves TLS only"},
		"a damaged token": {func(t *testing.T, s *closed) error {
			_, err := s.joined(t, runtime.WithToken(s.token[:len(s.token)-2]))
			return err
		}, "it was truncated", ""},
		"an old token": {func(t *testing.T, s *closed) error {
			res, err := (&encrypted{join: s.token}).at(t, s.Address(), s.admin(t)).MakeToken(t.Context(),
				&brainv1.MakeTokenRequest{Role: brainv1.Role_ROLE_JOIN, Expires: timestamp(time.Now().Add(1100 * time.Millisecond))})
			require.NoError(t, err)
			require.Eventually(t, func() bool {
				_, err = s.joined(t, runtime.WithToken(res.GetToken()))
				return err != nil
			}, patience, 50*time.Millisecond)
			return err
		}, "the token has expired", "the token has expired"},
		"a revoked token": {func(t *testing.T, s *closed) error {
			tokens := (&encrypted{join: s.token}).at(t, s.Address(), s.admin(t))
			res, err := tokens.MakeToken(t.Context(), &brainv1.MakeTokenRequest{Role: brainv1.Role_ROLE_JOIN})
			require.NoError(t, err)
			_, err = tokens.RevokeToken(t.Context(), &brainv1.RevokeTokenRequest{Id: res.GetInfo().GetId()})
			require.NoError(t, err)
			_, err = s.joined(t, runtime.WithToken(res.GetToken()))
			return err
		}, "the token was revoked", "the token was revoked"},
		"a token that is not known": {func(t *testing.T, s *closed) error {
			forged := s.token[:strings.LastIndex(s.token, ".")+1] + strings.Repeat("A", 43)
			_, err := s.joined(t, runtime.WithToken(forged))
			return err
		}, "the token is not known here", "the token is not known here"},
		"the token of another system": {func(t *testing.T, s *closed) error {
			store, err := pki.OpenTokenStore(other)
			require.NoError(t, err)
			token, _, err := store.Make(pki.RoleJoin, "", time.Time{})
			require.NoError(t, err)
			_, err = s.joined(t, runtime.WithToken(token.Reveal()))
			return err
		}, "the token is of another system", "the peer refused this side's certificate"},
		"a token to call": {func(t *testing.T, s *closed) error {
			res, err := (&encrypted{join: s.token}).at(t, s.Address(), s.admin(t)).MakeToken(t.Context(), &brainv1.MakeTokenRequest{Role: brainv1.Role_ROLE_CALL})
			require.NoError(t, err)
			_, err = s.joined(t, runtime.WithToken(res.GetToken()))
			return err
		}, "requires the role join", ""},
		"no certificate": {func(t *testing.T, s *closed) error {
			return s.tunnelWith(t, nil, host)
		}, "a tunnel needs a certificate", "a tunnel needs a certificate"},
		"a certificate of another CA": {func(t *testing.T, s *closed) error {
			return s.tunnelWith(t, certificate(t, other, pki.Grant{HostID: host, Role: pki.RoleAdmin}), host)
		}, "the peer refused this side's certificate", "it is not of a CA that is trusted here"},
		"the certificate of another host": {func(t *testing.T, s *closed) error {
			return s.tunnelWith(t, certificate(t, s.ca, pki.Grant{HostID: host, Role: pki.RoleAdmin}), uuid.NewString())
		}, "claims to be host", "claims to be host"},
		"an expired certificate": {func(t *testing.T, s *closed) error {
			return s.tunnelWith(t, certificate(t, s.ca, pki.Grant{HostID: host, Role: pki.RoleJoin, Lifetime: time.Nanosecond}), host)
		}, "the peer refused this side's certificate", "it has expired"},
		"plain HTTP": {func(t *testing.T, s *closed) error {
			res, err := http.Get("http://" + s.Address() + "/healthz")
			require.NoError(t, err)
			defer res.Body.Close() //nolint:errcheck // read to its end
			require.Equal(t, http.StatusBadRequest, res.StatusCode)
			text, err := io.ReadAll(res.Body)
			require.NoError(t, err)
			return errors.New(string(text))
		}, "this address serves TLS only: use https", "this address serves TLS only: use https"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newClosed(t, 0)
			served := s.serve(t)
			err := c.try(t, s)
			require.ErrorContains(t, err, c.client)
			require.Eventually(t, func() bool { return strings.Contains(s.log.String(), c.server) }, patience, time.Millisecond, "%s", s.log)
			served()
			assert.NotContains(t, s.log.String(), s.token)
		})
	}
}

// serve calls a node without end. The returned function ends that, and fails the test if a call has
// failed.
func (s *closed) serve(t *testing.T) (end func()) {
	t.Helper()
	ctx := patient(t)
	a, err := s.joined(t, runtime.WithToken(s.token))
	require.NoError(t, err)
	b, err := s.joined(t, runtime.WithToken(s.token))
	require.NoError(t, err)
	node := create(t, a, runtime.Here())
	found, err := contractv1raylink.FindProbe(ctx, b, runtime.Path(node.Ref().Path()))
	require.NoError(t, err)
	var over atomic.Bool
	calls, failed := 0, make(chan error, 1)
	go func() {
		for calls == 0 || !over.Load() {
			if _, err := found.Echo(ctx, &contractv1.EchoRequest{Payload: []byte("x")}); err != nil {
				failed <- err
				return
			}
			calls++
		}
		failed <- nil
	}()
	return func() {
		over.Store(true)
		require.NoError(t, <-failed)
	}
}

// TestTLSWherePlainIsServed: a TLS client of a system without TLS gets an error on both sides.
func TestTLSWherePlainIsServed(t *testing.T) {
	t.Parallel()
	log := new(logBuffer)
	rt := system(t, raylink.WithLogger(log.logger()), raylink.WithToken("s3cret"))
	res, err := http.Get("https://" + rt.Address() + "/healthz")
	if err == nil {
		_ = res.Body.Close()
	}
	require.ErrorContains(t, err, "server gave HTTP response to HTTPS client")
	require.Eventually(t, func() bool { return strings.Contains(log.String(), "this address does not use TLS") }, patience, time.Millisecond)
	s := newClosed(t, 0)
	_, err = join.Start(t.Context(), runtime.WithBrain(rt.Address()), runtime.WithData(t.TempDir()), runtime.WithToken(s.token))
	require.ErrorContains(t, err, "the peer does not use TLS here")
}

// TestHandshakesWithoutEnd: calls are served and hosts join during 5,000 handshakes of strangers,
// and beside ones that stall.
func TestHandshakesWithoutEnd(t *testing.T) {
	handshakes := int64(5000)
	if invariants.RaceEnabled {
		handshakes = 500
	}
	s := newClosed(t, 0)
	served := s.serve(t)
	hello := []byte{0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3} // the beginning of a ClientHello
	for range 600 {
		nc, err := new(net.Dialer).DialContext(t.Context(), "tcp", s.Address())
		require.NoError(t, err)
		t.Cleanup(func() { _ = nc.Close() })
		_, _ = nc.Write(hello) // the server may have closed it
	}
	config := &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13, NextProtos: []string{"raylink/1"}}
	var left, done atomic.Int64
	left.Store(handshakes)
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				conn, err := (&tls.Dialer{Config: config}).DialContext(t.Context(), "tcp", s.Address())
				if err == nil {
					done.Add(1)
					_ = conn.Close()
				}
			}
		})
	}
	_, err := s.joined(t, runtime.WithToken(s.token))
	require.NoError(t, err, "a host joins meanwhile")
	wg.Wait()
	require.Positive(t, done.Load())
	served()
	require.Less(t, strings.Count(s.log.String(), "refused a connection"), 200, "strangers must not fill the log")
}

// TestCertificatesAreRenewedUnderCalls: with certificates that last six seconds, hosts that call on
// new connections notice nothing.
func TestCertificatesAreRenewedUnderCalls(t *testing.T) {
	t.Parallel()
	s := newClosed(t, 6*time.Second)
	served := s.serve(t)
	host, err := s.joined(t, runtime.WithToken(s.token))
	require.NoError(t, err)
	serials := make(map[string]bool)
	var last *tls.Conn
	config, err := pki.ClientConfig(nil, pki.Trust{Roots: s.ca.Roots}, "http/1.1")
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		conn, err := (&tls.Dialer{Config: config}).DialContext(t.Context(), "tcp", host.Address())
		if !assert.NoError(t, err) {
			return true
		}
		last = conn.(*tls.Conn)
		serials[last.ConnectionState().PeerCertificates[0].SerialNumber.String()] = true
		_ = conn.Close()
		_, err = contractv1raylink.FindProbe(t.Context(), host, runtime.Path("probe-0"))
		return !assert.NoError(t, err) || len(serials) > 3
	}, patience, 20*time.Millisecond)
	require.Greater(t, len(serials), 3)
	served()
}

// TestRevokedTokens: what has joined by a token ends when that is revoked: its nodes, leases and
// connections, and the requests that send it.
func TestRevokedTokens(t *testing.T) {
	t.Parallel()
	ctx := patient(t)
	s := newClosed(t, 0)
	served := s.serve(t)
	tokens := (&encrypted{join: s.token}).at(t, s.Address(), s.admin(t))
	made, err := tokens.MakeToken(ctx, &brainv1.MakeTokenRequest{Role: brainv1.Role_ROLE_JOIN})
	require.NoError(t, err)
	guest, err := s.joined(t, runtime.WithToken(made.GetToken()))
	require.NoError(t, err)
	node := create(t, guest, runtime.Here())
	caller, err := s.joined(t, runtime.WithToken(s.token))
	require.NoError(t, err)
	found, err := contractv1raylink.FindProbe(ctx, caller, runtime.Path(node.Ref().Path()))
	require.NoError(t, err)
	_, err = found.Echo(ctx, &contractv1.EchoRequest{})
	require.NoError(t, err)
	calling := make(chan error, 1)
	go func() {
		_, err := found.Block(ctx, &contractv1.BlockRequest{})
		calling <- err
	}()

	_, err = tokens.RevokeToken(ctx, &brainv1.RevokeTokenRequest{Id: made.GetInfo().GetId()})
	require.NoError(t, err)
	require.Error(t, <-calling)
	require.Eventually(t, func() bool {
		_, err = contractv1raylink.FindProbe(ctx, caller, runtime.Path(node.Ref().Path()))
		return err != nil
	}, patience, 5*time.Millisecond)
	require.ErrorContains(t, err, "was revoked")
	require.Eventually(t, func() bool {
		_, err := contractv1raylink.FindProbe(ctx, guest, runtime.Path("probe-0"))
		return err != nil
	}, patience, 5*time.Millisecond, "the guest is still served by Brain")
	served()
}

// TestRolesAreEnforced: what each role may do over HTTP, at Brain and at another host.
func TestRolesAreEnforced(t *testing.T) {
	t.Parallel()
	ctx := patient(t)
	s := newClosed(t, 0)
	host, err := s.joined(t, runtime.WithToken(s.token))
	require.NoError(t, err)
	node := create(t, host, runtime.Here())
	e := &encrypted{join: s.token}
	admin := e.at(t, s.Address(), s.admin(t))
	for role, may := range map[brainv1.Role]map[string]bool{
		brainv1.Role_ROLE_CALL:  {"call": true, "lookup": true},
		brainv1.Role_ROLE_JOIN:  {"call": true, "lookup": true, "create": true, "register": true},
		brainv1.Role_ROLE_ADMIN: {"call": true, "lookup": true, "create": true, "register": true, "tokens": true},
	} {
		made, err := admin.MakeToken(ctx, &brainv1.MakeTokenRequest{Role: role})
		require.NoError(t, err)
		client := e.client(t, made.GetToken())
		for what, url := range map[string]string{
			"call":     "/" + node.Ref().Path() + "/contract.v1.Probe/Echo",
			"create":   "/" + node.Ref().Path() + "/raylink.node.v1.NodeService/CancelCreate",
			"lookup":   "/raylink.brain.v1.BrainService/List",
			"register": "/raylink.brain.v1.BrainService/Remove",
			"tokens":   "/raylink.brain.v1.TokenService/ListTokens",
		} {
			at := map[string]string{"Brain": s.Address()}
			if what == "call" || what == "create" {
				at["the host"] = host.Address()
			}
			for where, address := range at {
				require.Eventually(t, func() bool { // a new token takes a moment to the host
					res, err := client.Post("https://"+address+url, "application/json", strings.NewReader("{}"))
					if !assert.NoError(t, err) {
						return true
					}
					text, err := io.ReadAll(res.Body)
					assert.NoError(t, errors.Join(err, res.Body.Close()))
					if res.StatusCode == http.StatusUnauthorized {
						return false
					}
					denied := res.StatusCode == http.StatusForbidden && strings.Contains(string(text), "requires the role")
					assert.Equal(t, !may[what], denied, "%v: %s at %s: %s", role, what, where, text)
					return true
				}, patience, time.Millisecond)
			}
		}
	}
	res, err := e.client(t, "").Post("https://"+host.Address()+"/"+node.Ref().Path()+"/contract.v1.Probe/Echo", "application/json", strings.NewReader("{}"))
	require.NoError(t, err)
	require.NoError(t, res.Body.Close())
	require.Equal(t, http.StatusUnauthorized, res.StatusCode)
}

// TestSecretsStaySecret: tokens are in no log, and in neither arguments nor environment of a node's
// process.
func TestSecretsStaySecret(t *testing.T) {
	t.Parallel()
	log := new(logBuffer)
	e := newEncrypted(t, raylink.WithLogger(log.logger()))
	host := e.joined(t, e.join, runtime.WithLogger(log.logger()))
	pid := pidOf(t, create(t, host, runtime.OwnProcess()))
	_ = e.echo(t, e.join, "probe-0")
	_ = e.echo(t, "rl1.wrong", "probe-0")
	for _, token := range []string{e.join, e.admin} {
		secret := token[strings.LastIndex(token, ".")+1:]
		assert.NotContains(t, log.String(), secret)
		for _, file := range []string{"environ", "cmdline"} {
			text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, file))
			if errors.Is(err, os.ErrNotExist) {
				t.Skip("there is no /proc")
			}
			require.NoError(t, err)
			assert.NotContains(t, string(text), secret)
		}
	}
	require.NotEmpty(t, log.String())
	require.Equal(t, connect.CodeUnauthenticated, connect.CodeOf(e.echo(t, "rl1.wrong", "probe-0")))
}

// organisation is an own PKI in files: a CA, and a certificate for 127.0.0.1.
type organisation struct {
	cert, key, ca string
}

func newOrganisation(dir string) *organisation {
	return &organisation{cert: dir + "/cert.pem", key: dir + "/key.pem", ca: dir + "/ca.pem"}
}

func (o *organisation) option() raylink.Option { return raylink.WithOwnPKI(o.cert, o.key, o.ca) }

// write replaces the files by those of a new CA.
func (o *organisation) write(t *testing.T) {
	t.Helper()
	ca, err := pki.OpenCA(t.TempDir() + "/ca")
	require.NoError(t, err)
	o.issue(t, ca, 0)
}

// issue replaces the files by those of a CA; 0 is the default of the lifetime.
func (o *organisation) issue(t *testing.T, ca *pki.CA, lifetime time.Duration) {
	t.Helper()
	cert := certificate(t, ca, pki.Grant{HostID: "organisation", Role: pki.RoleJoin, IPs: []net.IP{net.IPv4(127, 0, 0, 1)}, Lifetime: lifetime})
	der, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	require.NoError(t, err)
	replace(t, o.ca, ca.PEM())
	replace(t, o.key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	replace(t, o.cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]}))
}

// replace replaces a file as a whole.
func replace(t *testing.T, path string, content []byte) {
	t.Helper()
	require.NoError(t, os.WriteFile(path+".new", content, 0o600))
	require.NoError(t, os.Rename(path+".new", path))
}

// TestOwnPKI: a system with an organisation's certificates, which are replaced while it runs.
func TestOwnPKI(t *testing.T) {
	t.Parallel()
	ctx := patient(t)
	o := newOrganisation(t.TempDir())
	o.write(t)
	files := o.option()
	rt := system(t, files, raylink.WithToken("s3cret"))
	other := joined(t, rt, files, runtime.WithToken("s3cret"))
	node := create(t, other, runtime.Here())
	apart := create(t, other, runtime.OwnProcess())
	for _, path := range []string{node.Ref().Path(), apart.Ref().Path()} {
		found, err := contractv1raylink.FindProbe(ctx, rt, runtime.Path(path))
		require.NoError(t, err)
		_, err = found.Echo(ctx, &contractv1.EchoRequest{})
		require.NoError(t, err)
	}
	_, err := join.Start(ctx, runtime.WithBrain(rt.Address()), runtime.WithData(t.TempDir()), runtime.WithToken("s3cret"))
	require.ErrorContains(t, err, "this address serves TLS only")
	_, err = join.Start(ctx, runtime.WithBrain(rt.Address()), runtime.WithData(t.TempDir()), files, runtime.WithToken("guess"))
	require.ErrorContains(t, err, "did not prove")

	o.write(t)
	require.Eventually(t, func() bool {
		again, err := join.Start(ctx, append([]join.Option{runtime.WithBrain(rt.Address()), runtime.WithData(t.TempDir()), files, runtime.WithToken("s3cret")}, contract.Types()...)...)
		return err == nil && again.Close() == nil
	}, patience, 100*time.Millisecond, "the new certificates are used")
	_, err = node.Echo(ctx, &contractv1.EchoRequest{})
	require.NoError(t, err)
}

// TestUnusableOwnPKI: Brain and a host whose files are replaced by ones that can't be used go on
// with what they had, and log that once.
func TestUnusableOwnPKI(t *testing.T) {
	t.Parallel()
	ctx := patient(t)
	ca, err := pki.OpenCA(t.TempDir() + "/ca")
	require.NoError(t, err)
	brains, hosts, callers := newOrganisation(t.TempDir()), newOrganisation(t.TempDir()), newOrganisation(t.TempDir())
	logs := map[*organisation]*logBuffer{brains: new(logBuffer), hosts: new(logBuffer)}
	for _, o := range []*organisation{brains, hosts, callers} {
		o.issue(t, ca, 0)
	}
	secret := runtime.WithToken("s3cret")
	rt := system(t, brains.option(), secret, raylink.WithLogger(logs[brains].logger()))
	host := joined(t, rt, hosts.option(), secret, runtime.WithLogger(logs[hosts].logger()))
	node := create(t, host, runtime.Here())

	const said = "the TLS files have changed and can't be used"
	for n, c := range []struct {
		what  string
		spoil func(o *organisation)
	}{
		{"find any PEM data", func(o *organisation) { replace(t, o.cert, []byte("garbage")) }},
		{"was valid until", func(o *organisation) { o.issue(t, ca, time.Nanosecond) }},
	} {
		for o, log := range logs {
			c.spoil(o)
			address := map[*organisation]string{brains: rt.Address(), hosts: host.Address()}[o]
			require.Eventually(t, func() bool {
				conn, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13, NextProtos: []string{"http/1.1"}})
				if !assert.NoError(t, err, "what was loaded before is not used") {
					return true
				}
				_ = conn.Close()
				return strings.Count(log.String(), said) > n
			}, patience, 50*time.Millisecond)
			assert.Contains(t, log.String(), c.what)
		}
		caller := joined(t, rt, callers.option(), secret)
		found, err := contractv1raylink.FindProbe(ctx, caller, runtime.Path(node.Ref().Path()))
		require.NoError(t, err)
		_, err = found.Echo(ctx, &contractv1.EchoRequest{})
		require.NoError(t, err)
		for _, log := range logs {
			assert.Equal(t, n+1, strings.Count(log.String(), said), "%s", log)
		}
	}
}
