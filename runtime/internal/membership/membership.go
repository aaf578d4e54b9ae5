// Package membership is a host's part in a system that uses TLS: its certificate, which is renewed
// under calls, whom it trusts, and which tokens its HTTP clients may send.
//
// There are three ways to get it: [Found] makes the system, in Brain's process; [Join] joins one by
// a token; [OwnPKI] uses the certificates of an organisation, in whose systems the token is a
// shared secret as it is without TLS.
package membership

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"strings"
	"sync/atomic"
	"time"

	"connectrpc.com/connect/v2"

	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
	"github.com/raylink/raylink/internal/admission"
	"github.com/raylink/raylink/internal/backoff"
	"github.com/raylink/raylink/internal/pki"
	"github.com/raylink/raylink/runtime/internal/listen"
	"github.com/raylink/raylink/runtime/internal/peers"
	"github.com/raylink/raylink/runtime/tunnel"
)

// Config is what a membership needs of its host.
type Config struct {
	// Host is the id of this host.
	Host string
	Log  *slog.Logger
	// Spawn runs fn on a goroutine of the host, with a context that ends with the host. It returns
	// false, without running fn, once the host has ended.
	Spawn func(fn func(context.Context)) bool
	// Dial opens a network connection, as [net.Dialer.DialContext] does, which is the default.
	Dial peers.DialFunc
}

const (
	// joinTimeout bounds one attempt to join, or to renew a certificate.
	joinTimeout = 5 * time.Second
	// maxSessions bounds the sessions of TLS that are kept to be resumed.
	maxSessions = 64
	// lastWords is how long Brain's process takes to close the connections of those whose token was
	// revoked, so that they learn the reason. It serves none of their calls meanwhile.
	lastWords = 2 * time.Second
)

// Member is a host's membership. Its methods may be called concurrently.
type Member struct {
	config   Config
	sessions tls.ClientSessionCache

	// With a CA of the system's own:

	fingerprint string
	roots       *x509.CertPool
	source      atomic.Pointer[pki.Source]
	secret      string
	local       net.IP
	known       atomic.Pointer[pki.Known]
	// authority is that in Brain's process, nil in others.
	authority *admission.Authority
	hosts     []string
	// token and brain are what this host has joined by.
	token pki.Token
	brain string

	// files are those of an organisation's own PKI, nil without.
	files *pki.Reloader
}

func newMember(config Config) *Member {
	if config.Dial == nil {
		config.Dial = new(net.Dialer).DialContext
	}
	return &Member{config: config, sessions: tls.NewLRUClientSessionCache(maxSessions)}
}

// IsToken reports whether a text is a token of a system with TLS, or was meant to be one.
func IsToken(text string) bool { return strings.HasPrefix(text, "rl1.") }

// Found makes the membership of Brain's own host, whose certificate is for the given names and IP
// addresses.
func Found(config Config, authority *admission.Authority, hosts []string) (*Member, error) {
	m := newMember(config)
	m.authority, m.hosts, m.fingerprint, m.secret = authority, hosts, authority.Fingerprint(), authority.Secret()
	m.roots = authority.Trust().Roots()
	policy, _ := authority.Policy()
	m.known.Store(admission.Known(m.fingerprint, policy))
	cert, err := authority.Own(config.Host, hosts)
	if err != nil {
		return nil, err
	}
	return m, m.keep(cert, func(_ context.Context, csr []byte) ([][]byte, error) {
		return authority.SignOwn(config.Host, csr, hosts)
	})
}

// Join joins the system of the Brain at an address by a token.
func Join(ctx context.Context, config Config, brain, token string) (*Member, error) {
	m := newMember(config)
	m.brain = brain
	var err error
	if m.token, err = pki.ParseToken(token); err != nil {
		return nil, connect.Errorf(connect.CodeInvalidArgument, "the token (RAYLINK_TOKEN) can't be used: %v", err)
	}
	m.fingerprint = m.token.Fingerprint()
	m.known.Store(pki.NewKnown(m.fingerprint, nil, nil))
	admitted, err := m.join(ctx)
	if err != nil {
		return nil, err
	}
	ca, err := x509.ParseCertificate(admitted.Certificate.Certificate[len(admitted.Certificate.Certificate)-1])
	if err != nil {
		return nil, err
	}
	m.roots = x509.NewCertPool()
	m.roots.AddCert(ca)
	m.secret, m.local = admitted.Secret, localTo(ctx, admitted)
	return m, m.keep(admitted.Certificate, m.renew)
}

// OwnPKI uses the certificates of an organisation. They are loaded again when the files change.
func OwnPKI(config Config, files pki.Files) (*Member, error) {
	m := newMember(config)
	var err error
	m.files, err = pki.OpenFiles(files, func(err error) {
		config.Log.Error("the TLS files have changed and can't be used", slog.Any("error", err))
	})
	if err != nil {
		return nil, connect.Errorf(connect.CodeFailedPrecondition, "%v", err).WithCause(err)
	}
	return m, nil
}

// localTo returns this machine's address by the route to Brain; nil if that is loopback.
func localTo(ctx context.Context, admitted *admission.Admitted) net.IP {
	if tcp, ok := admitted.Local.(*net.TCPAddr); ok && !tcp.IP.IsLoopback() {
		return tcp.IP
	}
	return RouteTo(ctx, admitted.Address)
}

// RouteTo returns this machine's address by the route to an address, HOST:PORT; nil if that is
// loopback or there is none. It sends nothing.
func RouteTo(ctx context.Context, address string) net.IP {
	if address == "" {
		return nil
	}
	nc, err := new(net.Dialer).DialContext(ctx, "udp", address)
	if err != nil {
		return nil
	}
	defer nc.Close() //nolint:errcheck // nothing was sent
	if udp, ok := nc.LocalAddr().(*net.UDPAddr); ok && !udp.IP.IsLoopback() {
		return udp.IP
	}
	return nil
}

// Local is this machine's address by the route to Brain; nil if that is loopback.
func (m *Member) Local() net.IP { return m.local }

// IsNamed reports whether certificates have the ids of hosts: the system has a CA of its own.
func (m *Member) IsNamed() bool { return m.files == nil }

// Secret is that by which processes of the system that share a machine know each other; empty for
// the role call.
func (m *Member) Secret() string { return m.secret }

// keep keeps a certificate, and renews it until the host ends.
func (m *Member) keep(cert *tls.Certificate, renew pki.Renew) error {
	source, err := m.newSource(cert, renew)
	if err != nil {
		return err
	}
	m.source.Store(source)
	m.config.Spawn(func(ctx context.Context) { m.run(ctx, renew) })
	return nil
}

func (m *Member) newSource(cert *tls.Certificate, renew pki.Renew) (*pki.Source, error) {
	return pki.NewSource(cert, m.trust(), renew, func(err error) {
		m.config.Log.Warn("the certificate of this host was not renewed; it is attempted again", slog.Any("error", err))
	})
}

// run renews the certificate. If it has expired nevertheless, as after a machine was suspended, the
// host joins again by its token.
func (m *Member) run(ctx context.Context, renew pki.Renew) {
	for {
		err := m.source.Load().Run(ctx)
		if ctx.Err() != nil {
			return
		}
		m.config.Log.Error("the certificate of this host has expired: it joins again", slog.Any("error", err))
		var cert *tls.Certificate
		retry := backoff.Backoff{First: time.Second, Max: time.Minute}
		for cert == nil {
			if retry.Wait(ctx) != nil {
				return
			}
			if cert, err = m.again(ctx); err != nil {
				m.config.Log.Warn("joining again", slog.Any("error", err))
			}
		}
		source, err := m.newSource(cert, renew)
		if err != nil {
			m.config.Log.Error("joining again", slog.Any("error", err))
			return
		}
		m.source.Store(source)
	}
}

func (m *Member) again(ctx context.Context) (*tls.Certificate, error) {
	if m.authority != nil {
		return m.authority.Own(m.config.Host, m.hosts)
	}
	admitted, err := m.join(ctx)
	if err != nil {
		return nil, err
	}
	return admitted.Certificate, nil
}

// join performs the exchange by which a process joins.
func (m *Member) join(ctx context.Context) (admitted *admission.Admitted, err error) {
	trust := pki.Trust{Fingerprint: m.fingerprint, Role: pki.RoleAdmin}
	err = m.exchange(ctx, nil, trust, func(conn *tls.Conn) (err error) {
		admitted, err = admission.Join(conn, m.token, m.config.Host)
		return err
	})
	if err != nil {
		return nil, connect.Errorf(connect.CodeOf(err), "joining the system of Brain at %s by the token %s: %s", m.brain, m.token.ID(), TextOf(err)).WithCause(err)
	}
	return admitted, nil
}

// renew is a [pki.Renew].
func (m *Member) renew(ctx context.Context, csr []byte) (chain [][]byte, err error) {
	trust := m.trust()
	trust.Role = pki.RoleAdmin
	err = m.exchange(ctx, m.certificate, trust, func(conn *tls.Conn) (err error) {
		chain, err = admission.Renew(conn, csr)
		return err
	})
	return chain, err
}

// exchange runs an exchange with Brain on a connection of its own.
func (m *Member) exchange(ctx context.Context, own pki.OwnCertificate, trust pki.Trust, run func(*tls.Conn) error) error {
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	config, err := pki.ClientConfig(own, trust, admission.Protocol)
	if err != nil {
		return err
	}
	var used *tls.Conn
	err = Exchange(ctx, m.config.Dial, m.brain, config, func(conn *tls.Conn) error {
		used = conn
		return run(conn)
	})
	if err == nil {
		err = used.Close()
	}
	return err
}

// Exchange opens a connection by TLS to Brain and runs the exchange on it, until ctx ends. On
// success the connection stays open.
func Exchange(ctx context.Context, dial peers.DialFunc, address string, config *tls.Config, run func(*tls.Conn) error) error {
	nc, err := dial(ctx, "tcp", address)
	if err != nil {
		return connect.Errorf(connect.CodeUnavailable, "no process answers at %s: %v", address, err).WithCause(err)
	}
	conn, err := peers.TLSClient(ctx, nc, config)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	err = run(conn)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err == nil {
		err = conn.SetDeadline(time.Time{})
	}
	if err != nil {
		_ = conn.Close() // it has failed already
	}
	return err
}

// TextOf is the text of an error without its code.
func TextOf(err error) string {
	if e, ok := errors.AsType[*tunnel.HandshakeError](err); ok {
		return e.Message
	}
	if e, ok := errors.AsType[*connect.Error](err); ok {
		return e.Message()
	}
	return err.Error()
}

// trust is what all peers of a system with a CA of its own have to meet.
func (m *Member) trust() pki.Trust {
	return pki.Trust{Roots: func() *x509.CertPool { return m.roots }, Revoked: m.Revoked}
}

func (m *Member) certificate() (*tls.Certificate, error) {
	if m.files != nil {
		return m.files.Certificate()
	}
	return m.source.Load().Certificate()
}

// Client is [peers.TLS].Client.
func (m *Member) Client(hostID, address string) (*tls.Config, error) {
	var trust pki.Trust
	switch {
	case m.files != nil:
		trust = pki.Trust{Roots: m.files.Roots, Unnamed: true, Name: listen.HostOf(address)}
	case hostID != "":
		trust = m.trust()
		trust.HostID = hostID
	default:
		// Another host, whose role is less, could have taken Brain's address.
		trust = m.trust()
		trust.Role = pki.RoleAdmin
	}
	config, err := pki.ClientConfig(m.certificate, trust, listen.TunnelProtocol)
	if err != nil {
		return nil, err
	}
	config.ClientSessionCache = m.sessions
	config.DynamicRecordSizingDisabled = true // large records: the peers are programs, not people
	return config, nil
}

// Server configures a listener. within configures the tunnels within TLS.
func (m *Member) Server(within tunnel.Config) (*listen.TLS, error) {
	out := &listen.TLS{Tunnel: within, IsNamed: m.IsNamed(), JoinProtocol: admission.Protocol}
	protocols := []string{listen.TunnelProtocol, "h2", "http/1.1"}
	trust := pki.Trust{Unnamed: true}
	if m.files != nil {
		trust.Roots = m.files.Roots
	} else {
		trust = m.trust()
		out.Revoked = m.Revoked
	}
	trust.Optional = true
	if m.authority != nil {
		protocols = append(protocols, admission.Protocol)
		out.Join = m.authority.Serve
	}
	var err error
	if out.Config, err = pki.ServerConfig(m.certificate, trust, protocols...); err != nil {
		return nil, err
	}
	out.Config.DynamicRecordSizingDisabled = true
	return out, nil
}

// Authenticate returns the identity that a token gives which an HTTP client has sent. It reports
// false if there is none.
func (m *Member) Authenticate(text string) (pki.Peer, error) {
	token, err := pki.ParseToken(text)
	if err != nil {
		return pki.Peer{}, err
	}
	return m.known.Load().Authenticate(token)
}

// Revoked reports whether what joined by a token must be refused.
func (m *Member) Revoked(tokenID string) bool {
	if m.authority != nil {
		return m.authority.Revoked(tokenID)
	}
	known := m.known.Load()
	return known != nil && known.Revoked(tokenID)
}

// OnPolicy takes Brain's policy over. closeRevoked closes the connections of what is refused from
// then on.
func (m *Member) OnPolicy(policy *brainv1.AccessPolicy, closeRevoked func()) {
	if policy == nil || m.files != nil {
		return
	}
	m.known.Store(admission.Known(m.fingerprint, policy))
	if m.authority == nil {
		closeRevoked()
		return
	}
	m.config.Spawn(func(ctx context.Context) {
		t := time.NewTimer(lastWords)
		defer t.Stop()
		select {
		case <-t.C:
			closeRevoked()
		case <-ctx.Done():
		}
	})
}

// Describe says how the system is secured, for a log.
func (m *Member) Describe() string {
	switch {
	case m.files != nil:
		return "TLS with the organisation's certificates"
	case m.authority != nil:
		return "TLS; this host has the CA"
	}
	return "TLS; joined by the token " + m.token.ID()
}
