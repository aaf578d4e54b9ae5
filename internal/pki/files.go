package pki

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"time"
)

const (
	// reloadInterval is the least time between two looks at the files.
	reloadInterval = time.Second
	// settled is the age from which a file's time of modification is relied on: a file system's
	// clock is coarse, and a second write within one tick would not be noticed.
	settled = 2 * time.Second
	// maxBundle bounds each file, in bytes. A bundle of all public CAs has a quarter of that.
	maxBundle = 1 << 20
)

// Files are the PEM files of an organisation's own PKI. Their permissions are the organisation's
// matter.
type Files struct {
	// Cert has this host's certificate, followed by the intermediate ones, and Key its private key.
	Cert, Key string
	// CA has the certificates of the CAs that peers are verified by.
	CA string
}

// Reloader has what was loaded from [Files], and loads them again when they have changed. It
// notices that on use, at most a second late; there is no goroutine. It may be used concurrently.
type Reloader struct {
	files  Files
	report func(error)

	mu       sync.Mutex
	loaded   *loaded
	seen     stamp
	checked  time.Time // when the files were looked at
	reported string    // the text of the last error; it is reported once
}

// loaded is immutable.
type loaded struct {
	cert  *tls.Certificate
	roots *x509.CertPool
}

// OpenFiles loads the files, and fails if they can't be used. Later changes that can't be used are
// passed to report, each once, and what was loaded before stays in use. report may be nil; it must
// not use the Reloader.
func OpenFiles(files Files, report func(error)) (*Reloader, error) {
	if report == nil {
		report = func(error) {}
	}
	r := &Reloader{files: files, report: report, checked: time.Now()}
	var err error
	if r.seen, err = files.stamp(r.checked); err != nil {
		return nil, err
	}
	if r.loaded, err = files.load(r.checked); err != nil {
		return nil, err
	}
	return r, nil
}

// Certificate returns the certificate that is in the files now, for [ClientConfig] and
// [ServerConfig]. It fails if that has expired.
func (r *Reloader) Certificate() (*tls.Certificate, error) {
	cert := r.refresh().cert
	if now := time.Now(); now.After(cert.Leaf.NotAfter) {
		return nil, fmt.Errorf("the certificate in %s was valid until %s: %w", r.files.Cert, formatTime(cert.Leaf.NotAfter), ErrExpired)
	}
	return cert, nil
}

// Roots returns the CAs that are in the file now, for [Trust].
func (r *Reloader) Roots() *x509.CertPool { return r.refresh().roots }

func (r *Reloader) refresh() *loaded {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	if since := now.Sub(r.checked); since >= 0 && since < reloadInterval {
		return r.loaded
	}
	r.checked = now
	// Before the files are read: what is written meanwhile is noticed the next time.
	stamp, err := r.files.stamp(now)
	if err == nil && stamp == r.seen && stamp.isSettled {
		return r.loaded
	}
	var fresh *loaded
	if err == nil {
		fresh, err = r.files.load(now)
	}
	r.seen = stamp
	if err == nil {
		r.loaded, r.reported = fresh, ""
	} else if err.Error() != r.reported {
		r.reported = err.Error()
		r.report(fmt.Errorf("what was loaded before stays in use: %w", err))
	}
	return r.loaded
}

// stamp is a state of the files, as far as the file system shows it.
type stamp struct {
	cert, key, ca fileStamp
	isSettled     bool // no file was modified just before
}

type fileStamp struct {
	modified int64 // ns
	size     int64
	inode    uint64
}

func (f Files) stamp(now time.Time) (stamp, error) {
	s := stamp{isSettled: true}
	for path, to := range map[string]*fileStamp{f.Cert: &s.cert, f.Key: &s.key, f.CA: &s.ca} {
		info, err := os.Stat(path)
		if err != nil {
			return stamp{}, fmt.Errorf("examining a TLS file: %w", err)
		}
		*to = fileStamp{modified: info.ModTime().UnixNano(), size: info.Size(), inode: inode(info)}
		s.isSettled = s.isSettled && now.Sub(info.ModTime()) > settled
	}
	return s, nil
}

// load reads the files. Errors have nothing of the key.
func (f Files) load(now time.Time) (*loaded, error) {
	certPEM, err := readFile(f.Cert)
	if err != nil {
		return nil, err
	}
	keyPEM, err := readFile(f.Key)
	if err != nil {
		return nil, err
	}
	caPEM, err := readFile(f.CA)
	if err != nil {
		return nil, err
	}
	cert, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, fmt.Errorf("loading the certificate in %s and its key in %s: %w", f.Cert, f.Key, err)
	}
	switch leaf := cert.Leaf; {
	case now.Before(leaf.NotBefore):
		return nil, fmt.Errorf("the certificate in %s is valid from %s, and this machine's clock is at %s: %w",
			f.Cert, formatTime(leaf.NotBefore), formatTime(now), ErrNotYetValid)
	case now.After(leaf.NotAfter):
		return nil, fmt.Errorf("the certificate in %s was valid until %s: %w", f.Cert, formatTime(leaf.NotAfter), ErrExpired)
	}
	roots, err := parseRoots(caPEM)
	if err != nil {
		return nil, fmt.Errorf("loading the CAs in %s: %w", f.CA, err)
	}
	return &loaded{cert: &cert, roots: roots}, nil
}

// parseRoots parses a bundle of CA certificates. Text between them is allowed, as tools write it.
func parseRoots(content []byte) (*x509.CertPool, error) {
	roots := x509.NewCertPool()
	begun := bytes.Count(content, []byte("-----BEGIN ")) // pem.Decode skips damaged blocks
	for n := 1; ; n++ {
		var block *pem.Block
		block, content = pem.Decode(content)
		switch {
		case block == nil && begun == 0:
			return nil, errors.New("there is no certificate in PEM")
		case block == nil && n-1 < begun:
			return nil, fmt.Errorf("of %d PEM blocks %d are damaged", begun, begun-(n-1))
		case block == nil:
			return roots, nil
		}
		if block.Type != typeCertificate {
			return nil, fmt.Errorf("PEM block %d is of the type %.40q, not %s", n, block.Type, typeCertificate)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("parsing certificate %d: %w", n, err)
		}
		if !cert.IsCA {
			return nil, fmt.Errorf("certificate %d (%.80q) is not that of a CA", n, cert.Subject.CommonName)
		}
		roots.AddCert(cert)
	}
}

func readFile(path string) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("reading a TLS file: %w", err)
	}
	defer file.Close() //nolint:errcheck // nothing was written
	if info, err := file.Stat(); err != nil || info.Mode().Type() != fs.FileMode(0) {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	return readBounded(file, path, maxBundle)
}
