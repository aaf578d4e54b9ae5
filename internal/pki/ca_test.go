package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestRestartKeepsTheCA(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data", "pki")
	first, err := OpenCA(dir)
	require.NoError(t, err)
	second, err := OpenCA(dir)
	require.NoError(t, err)
	assert.Equal(t, first.Fingerprint(), second.Fingerprint())
	assert.Equal(t, first.PEM(), second.PEM())
	assert.Len(t, first.Fingerprint(), 43)
	assert.InDelta(t, 10*365*24, time.Until(first.Certificate().NotAfter).Hours(), 1)
	for path, want := range map[string]os.FileMode{
		dir: 0o700 | os.ModeDir, filepath.Join(dir, keyFile): 0o600, filepath.Join(dir, certificateFile): 0o600,
	} {
		info, err := os.Stat(path)
		require.NoError(t, err)
		assert.Equal(t, want, info.Mode(), path)
	}
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	assert.Len(t, entries, 2, "no draft is left")
}

// TestCertificateOfTheCAIsMadeAnew is a crash between the two files of the first start: what the
// key has signed stays valid.
func TestCertificateOfTheCAIsMadeAnew(t *testing.T) {
	first := newCA(t)
	host := issue(t, first, Grant{HostID: "host", Role: RoleJoin})
	path := filepath.Join(first.dir, certificateFile)
	require.NoError(t, os.Remove(path))
	require.NoError(t, os.WriteFile(path+".tmp", []byte("half a"), 0o644))
	second, err := OpenCA(first.dir)
	require.NoError(t, err)
	require.Equal(t, first.Fingerprint(), second.Fingerprint())
	require.NotEqual(t, first.PEM(), second.PEM())
	require.NoError(t, Trust{Roots: second.Roots}.verifyChain([]*x509.Certificate{host.Leaf}, x509.ExtKeyUsageServerAuth))
}

func TestCAsThatCannotBeUsed(t *testing.T) {
	other := newCA(t)
	read := func(t *testing.T, path string) []byte {
		content, err := os.ReadFile(path)
		require.NoError(t, err)
		return content
	}
	type files struct{ dir, key, cert string }
	for name, test := range map[string]struct {
		change func(*testing.T, files)
		want   string
	}{
		"open directory": {
			func(t *testing.T, f files) { require.NoError(t, os.Chmod(f.dir, 0o750)) },
			"DIR can be accessed by other users (mode 0750), which may have read or changed it: if they have not, run chmod 700 DIR",
		},
		"readable key": {
			func(t *testing.T, f files) { require.NoError(t, os.Chmod(f.key, 0o640)) },
			"reading the CA's key: DIR/ca.key can be accessed by other users (mode 0640), which may have read or changed it: if they have not, run chmod 600 DIR/ca.key",
		},
		"writable certificate": {
			func(t *testing.T, f files) { require.NoError(t, os.Chmod(f.cert, 0o602)) },
			"reading the CA's certificate: DIR/ca.crt can be accessed by other users (mode 0602)",
		},
		"key is a link": {
			func(t *testing.T, f files) {
				require.NoError(t, os.Rename(f.key, f.key+".real"))
				require.NoError(t, os.Symlink(f.key+".real", f.key))
			},
			"reading the CA's key: DIR/ca.key is a symbolic link, not a file",
		},
		"key is a directory": {
			func(t *testing.T, f files) {
				require.NoError(t, os.Remove(f.key))
				require.NoError(t, os.Mkdir(f.key, 0o700))
			},
			"reading the CA's key: DIR/ca.key is not a file (d---------)",
		},
		"no key": {
			func(t *testing.T, f files) { require.NoError(t, os.Remove(f.key)) },
			"the CA in DIR has a certificate, but no key: restore ca.key, or remove both for a new CA, which all hosts must join again",
		},
		"truncated key": {
			func(t *testing.T, f files) { require.NoError(t, os.WriteFile(f.key, read(t, f.key)[:100], 0o600)) },
			"reading the CA's key: DIR/ca.key is damaged: it has to be one PEM block of the type PRIVATE KEY",
		},
		"damaged key": {
			func(t *testing.T, f files) {
				require.NoError(t, os.WriteFile(f.key, pem.EncodeToMemory(&pem.Block{Type: typeKey, Bytes: []byte("secret")}), 0o600))
			},
			"reading the CA's key: DIR/ca.key is damaged: its key can't be parsed",
		},
		"key of another kind": {
			func(t *testing.T, f files) {
				_, key, err := ed25519.GenerateKey(rand.Reader)
				require.NoError(t, err)
				der, err := x509.MarshalPKCS8PrivateKey(key)
				require.NoError(t, err)
				require.NoError(t, os.WriteFile(f.key, pem.EncodeToMemory(&pem.Block{Type: typeKey, Bytes: der}), 0o600))
			},
			"reading the CA's key: DIR/ca.key has a key of another kind than ECDSA P-256",
		},
		"huge key": {
			func(t *testing.T, f files) { require.NoError(t, os.WriteFile(f.key, make([]byte, maxPEM+1), 0o600)) },
			"reading the CA's key: DIR/ca.key has more than 16384 bytes",
		},
		"two certificates": {
			func(t *testing.T, f files) {
				content := read(t, f.cert)
				require.NoError(t, os.WriteFile(f.cert, append(content, content...), 0o600))
			},
			"reading the CA's certificate: DIR/ca.crt is damaged: it has to be one PEM block of the type CERTIFICATE",
		},
		"certificate of another CA": {
			func(t *testing.T, f files) { require.NoError(t, os.WriteFile(f.cert, other.PEM(), 0o600)) },
			"the CA in DIR can't be used: its certificate ca.crt is not for its key ca.key",
		},
		"damaged signature": {
			func(t *testing.T, f files) {
				block, _ := pem.Decode(read(t, f.cert))
				block.Bytes[len(block.Bytes)-1] ^= 1
				require.NoError(t, os.WriteFile(f.cert, pem.EncodeToMemory(block), 0o600))
			},
			"the CA in DIR can't be used: its certificate ca.crt is damaged: x509: ECDSA verification failure",
		},
	} {
		t.Run(name, func(t *testing.T) {
			ca := newCA(t)
			test.change(t, files{ca.dir, filepath.Join(ca.dir, keyFile), filepath.Join(ca.dir, certificateFile)})
			_, err := OpenCA(ca.dir)
			require.Error(t, err)
			require.Contains(t, err.Error(), strings.ReplaceAll(test.want, "DIR", ca.dir))
		})
	}
	t.Run("directory is a file", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "pki")
		require.NoError(t, os.WriteFile(path, nil, 0o600))
		_, err := OpenCA(path)
		require.ErrorContains(t, err, "making the directory of the CA: mkdir "+path+": not a directory")
	})
	t.Run("directory is a link", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "pki")
		require.NoError(t, os.Symlink(other.dir, path))
		_, err := OpenCA(path)
		require.ErrorContains(t, err, "the directory of the CA, "+path+", is not a directory (L---------)")
	})
	t.Run("another time", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			_, err := OpenCA(other.dir)
			require.ErrorContains(t, err, "this machine's clock is at 2000-01-01T00:00:00Z: set the clock")
			ca := newCA(t)
			advance(caLifetime + time.Second)
			_, err = OpenCA(ca.dir)
			require.ErrorContains(t, err, "its certificate expired at 2009-12-29T00:00:00Z: remove the directory for a new CA, which all hosts must join again")
		})
	})
}

func TestCertificateIsWhatWasGranted(t *testing.T) {
	ca := newCA(t)
	before := time.Now()
	cert := issue(t, ca, Grant{
		HostID: "host-1", Role: RoleJoin, TokenID: tokenA,
		Names: []string{"gpu1.example.org"}, IPs: []net.IP{net.ParseIP("10.0.0.1"), net.ParseIP("fd00::1")},
	}).Leaf
	assert.Equal(t, "raylink://host/host-1?role=join&token="+tokenA, cert.URIs[0].String())
	assert.Equal(t, "host-1", cert.Subject.CommonName)
	require.NoError(t, cert.VerifyHostname("gpu1.example.org"))
	require.NoError(t, cert.VerifyHostname("10.0.0.1"))
	require.NoError(t, cert.VerifyHostname("fd00::1"))
	assert.WithinDuration(t, before.Add(-5*time.Minute), cert.NotBefore, 5*time.Second)
	assert.WithinDuration(t, before.Add(24*time.Hour), cert.NotAfter, 5*time.Second)
	assert.Equal(t, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}, cert.ExtKeyUsage)
	assert.Equal(t, x509.KeyUsageDigitalSignature, cert.KeyUsage)
	assert.False(t, cert.IsCA)
	assert.LessOrEqual(t, cert.SerialNumber.BitLen(), 129)
	assert.Greater(t, cert.SerialNumber.BitLen(), 64)
	caller := issue(t, ca, Grant{HostID: "caller", Role: RoleCall}).Leaf
	assert.Equal(t, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, caller.ExtKeyUsage)
	assert.NotEqual(t, cert.SerialNumber, caller.SerialNumber)
	last := issue(t, ca, Grant{HostID: "last", Role: RoleJoin, Lifetime: 2 * caLifetime}).Leaf
	assert.Equal(t, ca.Certificate().NotAfter, last.NotAfter, "no certificate outlives its CA")
}

func TestGrantsThatAreRefused(t *testing.T) {
	ca := newCA(t)
	request, err := NewRequest("host")
	require.NoError(t, err)
	for want, grant := range map[string]Grant{
		`refused a certificate request: it is for the host id "host", but "other" is granted`:        {HostID: "other", Role: RoleJoin},
		`signing a certificate for the host host: the role "" is not known: use admin, join or call`: {HostID: "host"},
		`signing a certificate for the host host: the token id "x&role=admin" is not valid`:          {HostID: "host", Role: RoleCall, TokenID: "x&role=admin"},
		`signing a certificate for the host host: "*.example.org" is not a DNS name`:                 {HostID: "host", Role: RoleJoin, Names: []string{"*.example.org"}},
		`signing a certificate for the host host: "a..b" is not a DNS name`:                          {HostID: "host", Role: RoleJoin, Names: []string{"a..b"}},
		`signing a certificate for the host host: an IP address has 3 bytes`:                         {HostID: "host", Role: RoleJoin, IPs: []net.IP{{1, 2, 3}}},
		`signing a certificate for the host host: 65 names and addresses are more than 64`:           {HostID: "host", Role: RoleJoin, IPs: make([]net.IP, 65)},
		`signing a certificate for the host host: the lifetime -1s is negative`:                      {HostID: "host", Role: RoleJoin, Lifetime: -time.Second},
	} {
		_, err := ca.Sign(request.CSR(), grant)
		require.EqualError(t, err, want)
	}
	for _, id := range []string{"", "a/b", "ä", "a?role=admin", strings.Repeat("x", 65)} {
		_, err := NewRequest(id)
		require.ErrorContains(t, err, "is not valid: it has 1 to 64 characters of A-Z, a-z, 0-9, '-', '_' and '.'")
	}
}

// makeCSR makes a request that NewRequest would not.
func makeCSR(t testing.TB, key crypto.Signer, template x509.CertificateRequest) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &template, key)
	require.NoError(t, err)
	return der
}

func TestHostileRequests(t *testing.T) {
	ca := newCA(t)
	p256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	require.NoError(t, err)
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	uri := func(texts ...string) x509.CertificateRequest {
		var r x509.CertificateRequest
		for _, text := range texts {
			u, err := url.Parse(text)
			require.NoError(t, err)
			r.URIs = append(r.URIs, u)
		}
		return r
	}
	const host = "raylink://host/host"
	unsigned := makeCSR(t, p256, uri(host))
	unsigned[len(unsigned)-1] ^= 1
	for want, csr := range map[string][]byte{
		"it has 4097 bytes, more than 4096":                         make([]byte, MaxRequest+1),
		"it can't be parsed: ":                                      []byte("hello"),
		"it can't be parsed:":                                       nil,
		"it is not signed by the key that it is for: ":              unsigned,
		"its key is of another kind (ECDSA P-384) than ECDSA P-256": makeCSR(t, p384, uri(host)),
		"its key is of another kind (Ed25519) than ECDSA P-256":     makeCSR(t, ed, uri(host)),
		"its key is of another kind (RSA) than ECDSA P-256":         makeCSR(t, rsaKey, uri(host)),
		"it has no identity of the form raylink://host/<host id>":   makeCSR(t, p256, uri("https://example.org")),
		"it has more than one identity":                             makeCSR(t, p256, uri(host, host)),
		"its identity is not of the form raylink://host/<host id>":  makeCSR(t, p256, uri("raylink://other/host")),
		`the host id "host?role=admin" is not valid`:                makeCSR(t, p256, uri(host+"?role=admin")),
		`the host id "" is not valid`:                               makeCSR(t, p256, uri("raylink://host/")),
	} {
		_, err := ca.Sign(csr, Grant{HostID: "host", Role: RoleJoin})
		require.ErrorContains(t, err, "refused a certificate request: "+want)
	}
	// What a request asks for beyond its key is not granted.
	greedy := uri(host, "https://example.org")
	greedy.Subject = pkix.Name{CommonName: "root"}
	greedy.DNSNames = []string{"example.org"}
	greedy.ExtraExtensions = []pkix.Extension{{Id: []int{2, 5, 29, 19}, Critical: true, Value: []byte{0x30, 3, 1, 1, 0xff}}} // CA: true
	chain, err := ca.Sign(makeCSR(t, p256, greedy), Grant{HostID: "host", Role: RoleCall})
	require.NoError(t, err)
	leaf, err := x509.ParseCertificate(chain[0])
	require.NoError(t, err)
	assert.False(t, leaf.IsCA)
	assert.Empty(t, leaf.DNSNames)
	assert.Equal(t, "host", leaf.Subject.CommonName)
	assert.Len(t, leaf.URIs, 1)
}

func TestHostAcceptsItsOwnCertificateOnly(t *testing.T) {
	ca, other := newCA(t), newCA(t)
	request, err := NewRequest("host")
	require.NoError(t, err)
	again, err := NewRequest("host")
	require.NoError(t, err)
	neighbour, err := NewRequest("neighbour")
	require.NoError(t, err)
	sign := func(ca *CA, r *Request, id string) [][]byte {
		chain, err := ca.Sign(r.CSR(), Grant{HostID: id, Role: RoleJoin})
		require.NoError(t, err)
		return chain
	}
	trust := Trust{Fingerprint: ca.Fingerprint(), HostID: "brain", Role: RoleAdmin}
	cert, err := request.Accept(sign(ca, request, "host"), trust)
	require.NoError(t, err, "what is required of peers is not required of the own certificate")
	require.Equal(t, request.key, cert.PrivateKey)
	// As request has it, but with the other id.
	renamed := &Request{hostID: "neighbour", key: request.key}
	for want, accept := range map[string]func() error{
		"it is for another key":                         func() error { _, err := again.Accept(sign(ca, request, "host"), trust); return err },
		`it is for the host id "host", not "neighbour"`: func() error { _, err := renamed.Accept(sign(ca, request, "host"), trust); return err },
		"it is not of a CA that is trusted here":        func() error { _, err := request.Accept(sign(other, request, "host"), trust); return err },
		"the chain has 0 certificates, not 1 to 8":      func() error { _, err := request.Accept(nil, trust); return err },
		"the chain has 9 certificates, not 1 to 8":      func() error { _, err := request.Accept(make([][]byte, 9), trust); return err },
		"parsing certificate 0 of the chain: ":          func() error { _, err := request.Accept([][]byte{{1}}, trust); return err },
	} {
		require.ErrorContains(t, accept(), "refused the certificate that was signed for this host: "+want)
	}
	require.NotEqual(t, request.CSR(), neighbour.CSR())
}

// FuzzSign signs what a peer may send: no request is signed for another key, host id or role than
// its own and the granted ones.
func FuzzSign(f *testing.F) {
	ca := newCA(f)
	request, err := NewRequest("host")
	require.NoError(f, err)
	f.Add(request.CSR())
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	require.NoError(f, err)
	f.Add(makeCSR(f, key, x509.CertificateRequest{DNSNames: []string{"a", "b"}}))
	f.Add([]byte{0x30, 0x80})
	f.Fuzz(func(t *testing.T, csr []byte) {
		chain, err := ca.Sign(csr, Grant{HostID: "host", Role: RoleCall})
		if err != nil {
			require.ErrorContains(t, err, "refused a certificate request: ")
			return
		}
		parsed, err := x509.ParseCertificateRequest(csr)
		require.NoError(t, err)
		require.NoError(t, parsed.CheckSignature())
		certs, err := parseChain(chain)
		require.NoError(t, err)
		require.NoError(t, Trust{Roots: ca.Roots}.verifyChain(certs, x509.ExtKeyUsageClientAuth))
		require.ErrorIs(t, Trust{Roots: ca.Roots}.verifyChain(certs, x509.ExtKeyUsageServerAuth), ErrUsage)
		peer, err := peerIn(certs[0])
		require.NoError(t, err)
		require.Equal(t, Peer{HostID: "host", Role: RoleCall}, peer)
		require.Equal(t, parsed.RawSubjectPublicKeyInfo, certs[0].RawSubjectPublicKeyInfo)
	})
}
