package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"net/url"
	"path/filepath"
	"strings"
	"time"
)

// The files of a CA, in its directory.
const (
	keyFile         = "ca.key"
	certificateFile = "ca.crt"

	typeKey         = "PRIVATE KEY" // PKCS #8
	typeCertificate = "CERTIFICATE"

	// maxPEM bounds the files of the CA, in bytes. They have less than a thousand.
	maxPEM = 16 << 10
)

const (
	caLifetime = 10 * 365 * 24 * time.Hour
	// DefaultLifetime is that of a host's certificate.
	DefaultLifetime = 24 * time.Hour
	// clockSkew is how far the clock of a verifier may be behind that of the CA.
	clockSkew = 5 * time.Minute
	// serialBits is the size of serial numbers. RFC 5280 allows up to 159, and CA/Browser Forum
	// requires 64 that are random.
	serialBits = 128
	// maxNames bounds the names and addresses of one certificate.
	maxNames = 64
	// maxName is the longest DNS name, in bytes (RFC 1035, section 2.3.4).
	maxName = 253
)

// CA is the certificate authority of one system. It may be used concurrently. Only one process at a
// time may have its directory open; the caller locks it.
//
// The key is ECDSA P-256: of the algorithms that clients in other languages accept, it is the one
// with small and quick signatures. Browsers refuse Ed25519.
type CA struct {
	dir         string
	key         *ecdsa.PrivateKey
	cert        *x509.Certificate
	fingerprint string
}

// OpenCA loads the CA in a directory, or makes one if there is none. Directory and files are
// readable and writable by the user alone; OpenCA refuses them if others have access, or if they
// are damaged or don't belong together. If only the certificate is missing, as after a crash at the
// first start, it is made anew: tokens and the certificates of hosts depend on the key alone.
func OpenCA(dir string) (*CA, error) {
	if err := openPrivateDir(dir); err != nil {
		return nil, err
	}
	key, err := readKey(filepath.Join(dir, keyFile))
	isNew := errors.Is(err, fs.ErrNotExist)
	if err != nil && !isNew {
		return nil, fmt.Errorf("reading the CA's key: %w", err)
	}
	cert, err := readCertificate(filepath.Join(dir, certificateFile))
	isIncomplete := errors.Is(err, fs.ErrNotExist)
	switch {
	case err != nil && !isIncomplete:
		return nil, fmt.Errorf("reading the CA's certificate: %w", err)
	case isNew && !isIncomplete:
		return nil, fmt.Errorf("the CA in %s has a certificate, but no key: restore %s, or remove both for a new CA, "+
			"which all hosts must join again", dir, keyFile)
	case isNew:
		if key, err = makeKey(filepath.Join(dir, keyFile)); err != nil {
			return nil, fmt.Errorf("making the CA's key: %w", err)
		}
	}
	if isIncomplete {
		if cert, err = makeCertificate(filepath.Join(dir, certificateFile), key); err != nil {
			return nil, fmt.Errorf("making the CA's certificate: %w", err)
		}
	}
	if err := checkCA(cert, key, time.Now()); err != nil {
		return nil, fmt.Errorf("the CA in %s can't be used: %w", dir, err)
	}
	return &CA{dir: dir, key: key, cert: cert, fingerprint: fingerprintOf(cert)}, nil
}

// Fingerprint returns the SHA-256 of the CA's SubjectPublicKeyInfo, in base64url without padding.
func (c *CA) Fingerprint() string { return c.fingerprint }

// Certificate returns the CA's certificate. It must not be modified.
func (c *CA) Certificate() *x509.Certificate { return c.cert }

// PEM returns the CA's certificate, for clients in other languages.
func (c *CA) PEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: typeCertificate, Bytes: c.cert.Raw})
}

// Roots returns a pool of the CA's certificate, for [Trust].
func (c *CA) Roots() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(c.cert)
	return pool
}

// Grant is what a certificate is signed for. None of it is taken from the request.
type Grant struct {
	// HostID must be that of the request.
	HostID string
	// Role decides the certificate's usage, too: one that may only call is no server's.
	Role Role
	// TokenID is the token by which the host joined; empty for the host of the CA.
	TokenID string
	// Names and IPs are how clients in other languages may address the host; at most 64 together.
	Names []string
	IPs   []net.IP
	// Lifetime is DefaultLifetime if it is 0. The certificate ends with the CA at the latest.
	Lifetime time.Duration
}

// Sign signs a certificate for the key of a request, as it is granted. It returns the chain in DER:
// the certificate, and that of the CA, by which a client that knows only the fingerprint finds the
// CA. The request may come from a peer that is not trusted: it is verified to be signed by its own
// key, of P-256, and to be for the granted host id, and is bounded in size.
func (c *CA) Sign(csr []byte, grant Grant) ([][]byte, error) {
	request, err := parseRequest(csr)
	if err != nil {
		return nil, fmt.Errorf("refused a certificate request: %w", err)
	}
	if request.hostID != grant.HostID {
		return nil, fmt.Errorf("refused a certificate request: it is for the host id %q, but %q is granted", request.hostID, grant.HostID)
	}
	template, err := c.template(grant)
	if err != nil {
		return nil, fmt.Errorf("signing a certificate for the host %s: %w", grant.HostID, err)
	}
	leaf, err := x509.CreateCertificate(rand.Reader, template, c.cert, request.key, c.key)
	if err != nil {
		return nil, fmt.Errorf("signing a certificate for the host %s: %w", grant.HostID, err)
	}
	return [][]byte{leaf, c.cert.Raw}, nil
}

// template returns the certificate that is granted, without its key.
func (c *CA) template(grant Grant) (*x509.Certificate, error) {
	if err := checkGrant(&grant); err != nil {
		return nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	identity, err := url.Parse(Peer{HostID: grant.HostID, Role: grant.Role, TokenID: grant.TokenID}.uri())
	if err != nil {
		return nil, err
	}
	now := time.Now()
	end := now.Add(grant.Lifetime)
	if end.After(c.cert.NotAfter) {
		end = c.cert.NotAfter
	}
	usages := []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	if grant.Role.Includes(RoleJoin) {
		usages = append(usages, x509.ExtKeyUsageServerAuth)
	}
	return &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: grant.HostID},
		NotBefore:             now.Add(-clockSkew),
		NotAfter:              end,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           usages,
		BasicConstraintsValid: true,
		URIs:                  []*url.URL{identity},
		DNSNames:              grant.Names,
		IPAddresses:           grant.IPs,
	}, nil
}

// checkGrant validates a grant, and completes it by the default.
func checkGrant(grant *Grant) error {
	if err := checkHostID(grant.HostID); err != nil {
		return err
	}
	if _, err := ParseRole(string(grant.Role)); err != nil {
		return err
	}
	if grant.TokenID != "" && !isTokenID(grant.TokenID) {
		return fmt.Errorf("the token id %.80q is not valid", grant.TokenID)
	}
	if n := len(grant.Names) + len(grant.IPs); n > maxNames {
		return fmt.Errorf("%d names and addresses are more than %d", n, maxNames)
	}
	for _, name := range grant.Names {
		if !isDNSName(name) {
			return fmt.Errorf("%.300q is not a DNS name", name)
		}
	}
	for _, ip := range grant.IPs {
		if ip.To16() == nil {
			return fmt.Errorf("an IP address has %d bytes", len(ip))
		}
	}
	if grant.Lifetime < 0 {
		return fmt.Errorf("the lifetime %v is negative", grant.Lifetime)
	}
	if grant.Lifetime == 0 {
		grant.Lifetime = DefaultLifetime
	}
	return nil
}

// isDNSName accepts names of hosts, not patterns.
func isDNSName(name string) bool {
	if name == "" || len(name) > maxName {
		return false
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 || strings.ContainsFunc(label, isReserved) {
			return false
		}
	}
	return true
}

func newSerial() (*big.Int, error) {
	// From 1: a serial number is positive.
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), serialBits))
	if err != nil {
		return nil, err
	}
	return n.Add(n, big.NewInt(1)), nil
}

func makeKey(path string) (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return key, writePrivate(path, pem.EncodeToMemory(&pem.Block{Type: typeKey, Bytes: der}))
}

// makeCertificate writes a certificate for the key, signed by itself.
func makeCertificate(path string, key *ecdsa.PrivateKey) (*x509.Certificate, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	spki, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return nil, err
	}
	fingerprint := fingerprintOf(&x509.Certificate{RawSubjectPublicKeyInfo: spki})
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: serial,
		// The name is a function of the key. So leaves that the key has signed match a certificate
		// that was made anew, and two CAs in one trust store have different names.
		Subject:               pkix.Name{Organization: []string{"RayLink"}, CommonName: "RayLink CA " + fingerprint[:8]},
		NotBefore:             now.Add(-clockSkew),
		NotAfter:              now.Add(caLifetime),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true, // hosts sign nothing
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return cert, writePrivate(path, pem.EncodeToMemory(&pem.Block{Type: typeCertificate, Bytes: der}))
}

func checkCA(cert *x509.Certificate, key *ecdsa.PrivateKey, now time.Time) error {
	switch {
	case !key.PublicKey.Equal(cert.PublicKey):
		return fmt.Errorf("its certificate %s is not for its key %s", certificateFile, keyFile)
	case !cert.IsCA:
		return fmt.Errorf("its certificate %s is not that of a CA", certificateFile)
	case now.Before(cert.NotBefore):
		return fmt.Errorf("its certificate is valid from %s, and this machine's clock is at %s: set the clock", formatTime(cert.NotBefore), formatTime(now))
	case now.After(cert.NotAfter):
		return fmt.Errorf("its certificate expired at %s: remove the directory for a new CA, which all hosts must join again", formatTime(cert.NotAfter))
	}
	if err := cert.CheckSignatureFrom(cert); err != nil {
		return fmt.Errorf("its certificate %s is damaged: %w", certificateFile, err)
	}
	return nil
}

// readKey reads a file with one private key of P-256.
func readKey(path string) (*ecdsa.PrivateKey, error) {
	der, err := readBlock(path, typeKey)
	if err != nil {
		return nil, err
	}
	parsed, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, fmt.Errorf("%s is damaged: its key can't be parsed", path)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, fmt.Errorf("%s has a key of another kind than ECDSA P-256", path)
	}
	return key, nil
}

func readCertificate(path string) (*x509.Certificate, error) {
	der, err := readBlock(path, typeCertificate)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("%s is damaged: %w", path, err)
	}
	return cert, nil
}

// readBlock reads a private file that has one PEM block of this type and nothing else.
func readBlock(path, kind string) ([]byte, error) {
	content, err := readPrivate(path, maxPEM)
	if err != nil {
		return nil, err
	}
	block, rest := pem.Decode(content)
	if block == nil || block.Type != kind || strings.TrimSpace(string(rest)) != "" {
		return nil, fmt.Errorf("%s is damaged: it has to be one PEM block of the type %s", path, kind)
	}
	return block.Bytes, nil
}
