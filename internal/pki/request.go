package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net/url"
	"strings"
)

// MaxRequest bounds a certificate request, in bytes of DER. One by [NewRequest] has about 300.
const MaxRequest = 4 << 10

// Request is a host's request for a certificate, with the key that the certificate is for. The key
// is in memory only, and leaves the request only within what Accept returns.
type Request struct {
	hostID string
	der    []byte
	key    *ecdsa.PrivateKey
}

// NewRequest makes a key, and a request for a certificate for this host.
func NewRequest(hostID string) (*Request, error) {
	if err := checkHostID(hostID); err != nil {
		return nil, err
	}
	uri, err := url.Parse(identityPrefix + hostID)
	if err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making a host's key: %w", err)
	}
	template := &x509.CertificateRequest{Subject: pkix.Name{CommonName: hostID}, URIs: []*url.URL{uri}}
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		return nil, fmt.Errorf("making a certificate request: %w", err)
	}
	return &Request{hostID: hostID, der: der, key: key}, nil
}

// CSR returns the request in DER (PKCS #10). It must not be modified.
func (r *Request) CSR() []byte { return r.der }

// Accept joins the key and the chain that a CA has signed for it, as [CA.Sign] returns it. It
// refuses a chain that is for another key or host, or whose CA trust does not have; only trust's
// Roots or Fingerprint are used.
func (r *Request) Accept(chain [][]byte, trust Trust) (*tls.Certificate, error) {
	certs, err := parseChain(chain)
	if err != nil {
		return nil, fmt.Errorf("refused the certificate that was signed for this host: %w", err)
	}
	leaf := certs[0]
	peer, err := peerIn(leaf)
	switch {
	case err != nil:
	case !r.key.PublicKey.Equal(leaf.PublicKey):
		err = errors.New("it is for another key")
	case peer.HostID != r.hostID:
		err = fmt.Errorf("it is for the host id %q, not %q", peer.HostID, r.hostID)
	default:
		err = Trust{Roots: trust.Roots, Fingerprint: trust.Fingerprint}.verifyChain(certs, x509.ExtKeyUsageClientAuth)
	}
	if err != nil {
		return nil, fmt.Errorf("refused the certificate that was signed for this host: %w", err)
	}
	return &tls.Certificate{Certificate: chain, PrivateKey: r.key, Leaf: leaf}, nil
}

// RequestedHost returns the host id that a request, which may be hostile, is for.
func RequestedHost(csr []byte) (string, error) {
	request, err := parseRequest(csr)
	if err != nil {
		return "", fmt.Errorf("refused a certificate request: %w", err)
	}
	return request.hostID, nil
}

func parseChain(chain [][]byte) ([]*x509.Certificate, error) {
	if len(chain) == 0 || len(chain) > maxChain {
		return nil, fmt.Errorf("the chain has %d certificates, not 1 to %d", len(chain), maxChain)
	}
	certs := make([]*x509.Certificate, len(chain))
	for i, der := range chain {
		var err error
		if certs[i], err = x509.ParseCertificate(der); err != nil {
			return nil, fmt.Errorf("parsing certificate %d of the chain: %w", i, err)
		}
	}
	return certs, nil
}

// parsedRequest is what the CA takes from a request. Names and extensions are the grant's.
type parsedRequest struct {
	hostID string
	key    *ecdsa.PublicKey
}

// parseRequest parses and verifies a request that may be hostile.
func parseRequest(der []byte) (*parsedRequest, error) {
	if len(der) > MaxRequest {
		return nil, fmt.Errorf("it has %d bytes, more than %d", len(der), MaxRequest)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, fmt.Errorf("it can't be parsed: %w", err)
	}
	key, ok := csr.PublicKey.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, fmt.Errorf("its key is of another kind (%s) than ECDSA P-256", describeKey(csr))
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("it is not signed by the key that it is for: %w", err)
	}
	uri, err := identityURI(csr.URIs)
	if err != nil {
		return nil, err
	}
	hostID, found := strings.CutPrefix(uri.String(), identityPrefix)
	if !found {
		return nil, errors.New("its identity is not of the form " + identityPrefix + "<host id>")
	}
	if err := checkHostID(hostID); err != nil {
		return nil, err
	}
	return &parsedRequest{hostID: hostID, key: key}, nil
}

func describeKey(csr *x509.CertificateRequest) string {
	if key, ok := csr.PublicKey.(*ecdsa.PublicKey); ok {
		return "ECDSA " + key.Params().Name
	}
	return csr.PublicKeyAlgorithm.String()
}
