package pki

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"time"
)

// Reasons to refuse a peer's certificate. They are returned wrapped.
var (
	ErrUntrustedCA = errors.New("it is not of a CA that is trusted here")
	ErrExpired     = errors.New("it has expired")
	ErrNotYetValid = errors.New("it is not valid yet")
	ErrUsage       = errors.New("it may not be used for this")
	ErrWrongHost   = errors.New("it is of another host")
	ErrRole        = errors.New("its role does not suffice")
	ErrRevoked     = errors.New("the token by which its host has joined was revoked")
	// ErrNoCertificate means that the peer has sent none.
	ErrNoCertificate = errors.New("the peer has no certificate")
)

// maxChain bounds the certificates of one chain that are looked at. The CA's own have two, and
// those of an organisation three or four.
const maxChain = 8

// Trust is what is required of a peer's certificate. Roots or Fingerprint must be set. All
// functions may be called concurrently, during each handshake, and must not block.
type Trust struct {
	// Roots returns the CAs, such as [CA.Roots] and [Reloader.Roots].
	Roots func() *x509.CertPool
	// Fingerprint is that of the one CA which is trusted, if its certificate is not known yet. The
	// peer must send it, as all do whose certificates are from [CA.Sign].
	Fingerprint string
	// HostID is the host that the peer must be. Empty: any.
	HostID string
	// Name is the DNS name or IP address that the certificate must be for, as in an organisation's
	// own PKI, whose certificates have no host id. Empty: any.
	Name string
	// Role must be included in the peer's. Empty: any. A client that connects to Brain by an
	// address, without its host id, asks for RoleAdmin: a host that only joined could pretend to be
	// Brain otherwise.
	Role Role
	// Revoked reports whether hosts that have joined by a token are refused, such as
	// [TokenStore.Revoked]. It is called for resumed sessions too.
	Revoked func(tokenID string) bool
	// Unnamed accepts certificates without an identity: those of an organisation's own PKI. HostID,
	// Role and Revoked don't apply to them, so [ClientConfig] and [ServerConfig] refuse HostID or
	// Role beside it.
	Unnamed bool
	// Optional accepts clients without a certificate, which have to prove themselves in another
	// way: those that join, and those that send a token. A certificate that is sent is verified as
	// ever. Only for servers.
	Optional bool
}

// OwnCertificate returns this side's certificate, as [Source.Certificate] and
// [Reloader.Certificate] do. It is called for each handshake, and may be called concurrently.
type OwnCertificate func() (*tls.Certificate, error)

// ClientConfig returns a configuration for clients: TLS 1.3, with the given protocols (ALPN) in the
// order of preference. own is nil for a client without a certificate. The caller may set a
// ClientSessionCache; resumed connections are verified as others are.
//
// If the server refuses the client's certificate, the client's handshake has succeeded, and its
// first read fails: this is how TLS 1.3 works. See [Explain].
func ClientConfig(own OwnCertificate, trust Trust, protocols ...string) (*tls.Config, error) {
	if trust.Optional {
		return nil, errors.New("a server's certificate can't be optional")
	}
	config, err := trust.config(x509.ExtKeyUsageServerAuth, protocols)
	if err != nil {
		return nil, err
	}
	config.ServerName = trust.Name
	if own != nil {
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return own() }
	}
	return config, nil
}

// ServerConfig returns a configuration for servers: TLS 1.3, with the given protocols (ALPN).
// Clients must have a certificate, unless trust.Optional.
func ServerConfig(own OwnCertificate, trust Trust, protocols ...string) (*tls.Config, error) {
	if own == nil {
		return nil, errors.New("a server needs a certificate")
	}
	config, err := trust.config(x509.ExtKeyUsageClientAuth, protocols)
	if err != nil {
		return nil, err
	}
	config.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return own() }
	config.ClientAuth = tls.RequireAnyClientCert
	if trust.Optional {
		config.ClientAuth = tls.RequestClientCert
	}
	if trust.Roots != nil {
		// A hint: a browser does not ask its user for certificates of other CAs.
		config.ClientCAs = trust.Roots()
	}
	return config, nil
}

// config has what both sides have in common. usage is what the peer's certificate must be for.
func (t Trust) config(usage x509.ExtKeyUsage, protocols []string) (*tls.Config, error) {
	switch {
	case (t.Roots == nil) == (t.Fingerprint == ""):
		return nil, errors.New("a peer is verified by the CAs or by a fingerprint: give one of them")
	case t.Unnamed && (t.HostID != "" || t.Role != ""):
		return nil, errors.New("certificates without an identity have neither host id nor role: require none")
	}
	if t.Fingerprint != "" {
		if err := checkFingerprint(t.Fingerprint); err != nil {
			return nil, fmt.Errorf("the fingerprint of the CA is not valid: %w", err)
		}
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: protocols,
		// VerifyConnection verifies instead, because peers are known by host id, not by name, and
		// because CAs and revoked tokens change. Unlike what it replaces, it also is called for
		// resumed sessions.
		InsecureSkipVerify: true, //nolint:gosec // see above
		VerifyConnection: func(state tls.ConnectionState) error {
			return t.verify(state, usage)
		},
	}, nil
}

// verify verifies a connection at the end of its handshake.
func (t Trust) verify(state tls.ConnectionState, usage x509.ExtKeyUsage) error {
	side := "server"
	if usage == x509.ExtKeyUsageClientAuth {
		side = "client"
	}
	if len(state.PeerCertificates) == 0 {
		if t.Optional {
			return nil
		}
		return fmt.Errorf("refused the %s: %w", side, ErrNoCertificate)
	}
	err := t.verifyChain(state.PeerCertificates, usage)
	if err == nil {
		err = t.verifyPeer(state.PeerCertificates[0])
	}
	if err != nil {
		return fmt.Errorf("refused the %s's certificate (%s): %w", side, subject(state.PeerCertificates[0]), err)
	}
	return nil
}

// subject names a certificate for an error. What it says is not verified.
func subject(cert *x509.Certificate) string {
	return fmt.Sprintf("%.80q, issued by %.80q", cert.Subject.CommonName, cert.Issuer.CommonName)
}

// verifyChain verifies that the chain leads to a trusted CA, and its validity, usage and name.
func (t Trust) verifyChain(certs []*x509.Certificate, usage x509.ExtKeyUsage) error {
	if len(certs) > maxChain {
		return fmt.Errorf("its chain has %d certificates, more than %d", len(certs), maxChain)
	}
	roots, err := t.roots(certs)
	if err != nil {
		return err
	}
	intermediates := x509.NewCertPool()
	for _, cert := range certs[1:] {
		intermediates.AddCert(cert)
	}
	now := time.Now()
	_, err = certs[0].Verify(x509.VerifyOptions{
		DNSName:       t.Name,
		Roots:         roots,
		Intermediates: intermediates,
		CurrentTime:   now,
		KeyUsages:     []x509.ExtKeyUsage{usage},
	})
	return reason(err, now)
}

func (t Trust) roots(certs []*x509.Certificate) (*x509.CertPool, error) {
	if t.Fingerprint == "" {
		return t.Roots(), nil
	}
	ca, err := FindCA(certs, t.Fingerprint)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	return roots, nil
}

// FindCA returns the CA's certificate with this fingerprint out of a chain that a peer has sent. It
// does not verify that the CA has signed the others.
func FindCA(chain []*x509.Certificate, fingerprint string) (*x509.Certificate, error) {
	for _, cert := range chain {
		if fingerprintOf(cert) != fingerprint || !cert.IsCA {
			continue
		}
		// The fingerprint is that of the key. Without the key's signature, the peer could have
		// changed all else.
		if err := cert.CheckSignatureFrom(cert); err != nil {
			return nil, fmt.Errorf("%w: its CA's certificate is forged: %w", ErrUntrustedCA, err)
		}
		return cert, nil
	}
	if len(chain) == 0 {
		return nil, ErrNoCertificate
	}
	return nil, fmt.Errorf("%w: the chain ends with the fingerprint %s, and %s is expected: "+
		"the token is of another system, or the peer only pretends to be of this one",
		ErrUntrustedCA, fingerprintOf(chain[len(chain)-1]), fingerprint)
}

// reason gives an error of package x509 its meaning here.
func reason(err error, now time.Time) error {
	var invalid x509.CertificateInvalidError
	var unknown x509.UnknownAuthorityError
	var name x509.HostnameError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired && now.Before(invalid.Cert.NotBefore):
		return fmt.Errorf("%w: it is valid from %s, and this machine's clock is at %s", ErrNotYetValid, formatTime(invalid.Cert.NotBefore), formatTime(now))
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return fmt.Errorf("%w: it was valid until %s, and this machine's clock is at %s", ErrExpired, formatTime(invalid.Cert.NotAfter), formatTime(now))
	case errors.As(err, &invalid) && invalid.Reason == x509.IncompatibleUsage:
		return fmt.Errorf("%w: a host with the role %s can't be a server, and only a host can be a client", ErrUsage, RoleCall)
	case errors.As(err, &unknown):
		return fmt.Errorf("%w: its host has joined another system, or this system's CA was made anew", ErrUntrustedCA)
	case errors.As(err, &name):
		return fmt.Errorf("%w: %w", ErrWrongHost, err)
	}
	return err
}

// verifyPeer verifies the identity in a certificate whose chain was verified.
func (t Trust) verifyPeer(cert *x509.Certificate) error {
	peer, err := peerIn(cert)
	if errors.Is(err, errNoIdentity) && t.Unnamed {
		return nil
	}
	switch {
	case err != nil:
		return err
	case t.HostID != "" && peer.HostID != t.HostID:
		return fmt.Errorf("%w: it is of the host %s, and %s is expected", ErrWrongHost, peer.HostID, t.HostID)
	case t.Role != "" && !peer.Role.Includes(t.Role):
		return fmt.Errorf("%w: it has the role %s, and %s is required", ErrRole, peer.Role, t.Role)
	case t.Revoked != nil && peer.TokenID != "" && t.Revoked(peer.TokenID):
		return fmt.Errorf("%w (token %s): ask for a new token, and join again", ErrRevoked, peer.TokenID)
	}
	return nil
}

// PeerOf returns the identity of the peer of a connection that has a configuration of this package
// and whose handshake is complete. It reports false if the peer has no certificate, or one without
// an identity: Optional and Unnamed of [Trust] allow that.
func PeerOf(state tls.ConnectionState) (Peer, bool) {
	if !state.HandshakeComplete || len(state.PeerCertificates) == 0 {
		return Peer{}, false
	}
	peer, err := peerIn(state.PeerCertificates[0])
	return peer, err == nil
}
