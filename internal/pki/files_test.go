package pki

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// organisation is a PKI of one's own in files, as another program writes them.
type organisation struct {
	Files

	ca      *CA
	reports []string
}

func newOrganisation(t *testing.T) *organisation {
	t.Helper()
	dir := t.TempDir()
	o := &organisation{ca: newCA(t), Files: Files{
		Cert: filepath.Join(dir, "tls.crt"), Key: filepath.Join(dir, "tls.key"), CA: filepath.Join(dir, "ca.crt"),
	}}
	write(t, o.CA, o.ca.PEM())
	o.issue(t, "first.example.org")
	return o
}

func (o *organisation) report(err error) { o.reports = append(o.reports, err.Error()) }

// issue writes a certificate without an identity for a name.
func (o *organisation) issue(t *testing.T, name string) {
	t.Helper()
	certPEM, keyPEM := encodeCertificate(t, issueByTemplate(t, o.ca, &x509.Certificate{DNSNames: []string{name}}))
	write(t, o.Cert, certPEM)
	write(t, o.Key, keyPEM)
}

func encodeCertificate(t *testing.T, cert *tls.Certificate) (certPEM, keyPEM []byte) {
	t.Helper()
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	require.NoError(t, err)
	return pem.EncodeToMemory(&pem.Block{Type: typeCertificate, Bytes: cert.Certificate[0]}), pem.EncodeToMemory(&pem.Block{Type: typeKey, Bytes: key})
}

func write(t *testing.T, path string, content []byte) {
	t.Helper()
	require.NoError(t, os.WriteFile(path, content, 0o600))
}

// later lets the reloader look at the files again, as if the interval were over.
func later(r *Reloader) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.checked = r.checked.Add(-reloadInterval)
}

func nameIn(t *testing.T, r *Reloader) string {
	t.Helper()
	cert, err := r.Certificate()
	require.NoError(t, err)
	return cert.Leaf.DNSNames[0]
}

func TestFilesAreReloaded(t *testing.T) {
	o := newOrganisation(t)
	r, err := OpenFiles(o.Files, o.report)
	require.NoError(t, err)
	require.Equal(t, "first.example.org", nameIn(t, r))
	o.issue(t, "second.example.org")
	require.Equal(t, "first.example.org", nameIn(t, r), "files are looked at once a second")
	later(r)
	require.Equal(t, "second.example.org", nameIn(t, r))

	// Both sides use the files; connections are verified by name.
	trust := Trust{Roots: r.Roots, Unnamed: true}
	byName := trust
	byName.Name = "second.example.org"
	c, s := connect(t, clientConfig(t, r.Certificate, byName), serverConfig(t, r.Certificate, trust))
	require.NoError(t, c.err)
	require.NoError(t, s.err)
	_, ok := PeerOf(s.state)
	require.False(t, ok, "it has no identity")
	byName.Name = "other.example.org"
	c, _ = connect(t, clientConfig(t, r.Certificate, byName), serverConfig(t, r.Certificate, trust))
	require.ErrorContains(t, c.err, "it is of another host: x509: certificate is valid for second.example.org, not other.example.org")

	// Another CA, for the same configurations.
	client, server := clientConfig(t, r.Certificate, trust), serverConfig(t, r.Certificate, trust)
	write(t, o.CA, newCA(t).PEM())
	later(r)
	c, _ = connect(t, client, server)
	require.ErrorIs(t, c.err, ErrUntrustedCA)
	require.Empty(t, o.reports)
}

// TestBrokenFilesAreReportedOnce keeps what was loaded before, and recovers.
func TestBrokenFilesAreReportedOnce(t *testing.T) {
	o := newOrganisation(t)
	r, err := OpenFiles(o.Files, o.report)
	require.NoError(t, err)
	roots := r.Roots()
	certPEM, _ := encodeCertificate(t, issueByTemplate(t, o.ca, &x509.Certificate{DNSNames: []string{"second.example.org"}}))
	write(t, o.Cert, certPEM) // the key follows later
	for range 3 {
		later(r)
		require.Equal(t, "first.example.org", nameIn(t, r))
	}
	require.Equal(t, []string{"what was loaded before stays in use: loading the certificate in " + o.Cert + " and its key in " + o.Key +
		": tls: private key does not match public key"}, o.reports)
	require.NoError(t, os.Remove(o.CA))
	for range 3 {
		later(r)
		require.Same(t, roots, r.Roots())
	}
	require.Len(t, o.reports, 2)
	require.Equal(t, "what was loaded before stays in use: examining a TLS file: stat "+o.CA+": no such file or directory", o.reports[1])
	write(t, o.CA, o.ca.PEM())
	o.issue(t, "third.example.org")
	later(r)
	require.Equal(t, "third.example.org", nameIn(t, r))
	require.Len(t, o.reports, 2)
}

// TestSettledFilesAreNotRead counts on stamps of files that were not modified just before.
func TestSettledFilesAreNotRead(t *testing.T) {
	o := newOrganisation(t)
	age := func(path string) {
		before := time.Now().Add(-time.Hour)
		require.NoError(t, os.Chtimes(path, before, before))
	}
	for _, path := range []string{o.Cert, o.Key, o.CA} {
		age(path)
	}
	r, err := OpenFiles(o.Files, o.report)
	require.NoError(t, err)
	before := r.Roots()
	later(r)
	require.Same(t, before, r.Roots(), "they were not loaded again")
	// Renamed over it, with the same size and time, as by tools that keep times.
	write(t, o.CA+".new", o.ca.PEM())
	require.NoError(t, os.Rename(o.CA+".new", o.CA))
	age(o.CA)
	later(r)
	require.NotSame(t, before, r.Roots())
}

func TestFilesThatCannotBeUsed(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*testing.T, *organisation)
		want   string
	}{
		"no certificate": {
			func(t *testing.T, o *organisation) { require.NoError(t, os.Remove(o.Cert)) },
			"examining a TLS file: stat DIR/tls.crt: no such file or directory",
		},
		"key is a directory": {
			func(_ *testing.T, o *organisation) { o.Key = filepath.Dir(o.Key) },
			"DIR is not a regular file",
		},
		"key without PEM": {
			func(t *testing.T, o *organisation) { write(t, o.Key, []byte("secret")) },
			"loading the certificate in DIR/tls.crt and its key in DIR/tls.key: tls: failed to find any PEM data in key input",
		},
		"expired certificate": {
			func(t *testing.T, o *organisation) {
				request, err := NewRequest("host")
				require.NoError(t, err)
				chain, err := o.ca.Sign(request.CSR(), Grant{HostID: "host", Role: RoleJoin, Lifetime: time.Nanosecond})
				require.NoError(t, err)
				certPEM, keyPEM := encodeCertificate(t, &tls.Certificate{Certificate: chain, PrivateKey: request.key})
				write(t, o.Cert, certPEM)
				write(t, o.Key, keyPEM)
			},
			"the certificate in DIR/tls.crt was valid until ",
		},
		"no CA": {
			func(t *testing.T, o *organisation) { write(t, o.CA, []byte("# none\n")) },
			"loading the CAs in DIR/ca.crt: there is no certificate in PEM",
		},
		"damaged CA": {
			func(t *testing.T, o *organisation) {
				write(t, o.CA, []byte(string(o.ca.PEM())+strings.Replace(string(newCA(t).PEM()), "\n", "\n!", 1)))
			},
			"loading the CAs in DIR/ca.crt: of 2 PEM blocks 1 are damaged",
		},
		"CA that is none": {
			func(t *testing.T, o *organisation) { write(t, o.CA, append(o.ca.PEM(), readAll(t, o.Cert)...)) },
			`loading the CAs in DIR/ca.crt: certificate 2 ("made by hand") is not that of a CA`,
		},
		"key as CA": {
			func(t *testing.T, o *organisation) { write(t, o.CA, readAll(t, o.Key)) },
			`loading the CAs in DIR/ca.crt: PEM block 1 is of the type "PRIVATE KEY", not CERTIFICATE`,
		},
		"huge CA": {
			func(t *testing.T, o *organisation) { write(t, o.CA, make([]byte, maxBundle+1)) },
			"DIR/ca.crt has more than 1048576 bytes",
		},
	} {
		t.Run(name, func(t *testing.T) {
			o := newOrganisation(t)
			dir := filepath.Dir(o.Cert)
			test.change(t, o)
			_, err := OpenFiles(o.Files, nil)
			require.ErrorContains(t, err, strings.ReplaceAll(test.want, "DIR", dir))
		})
	}
}

func readAll(t *testing.T, path string) []byte {
	t.Helper()
	content, err := os.ReadFile(path)
	require.NoError(t, err)
	return content
}
