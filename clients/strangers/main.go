// Strangers serves what clients must refuse, for the tests of clients in other languages: a server
// whose certificate has expired, and one of another system.
//
// It writes the certificate of the CA of both, `ca.pem`, into the directory that is its argument,
// prints a line of JSON, and ends with its standard input.
package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/raylink/raylink/internal/pki"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "strangers: the argument is a directory")
		os.Exit(2) //nolint:forbidigo // this is the main function
	}
	if err := serve(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "strangers:", err)
		os.Exit(1) //nolint:forbidigo // this is the main function
	}
}

func serve(dir string) error {
	ca, err := pki.OpenCA(filepath.Join(dir, "ca"))
	if err != nil {
		return err
	}
	file := filepath.Join(dir, "ca.pem")
	if err := os.WriteFile(file, ca.PEM(), 0o600); err != nil { //nolint:gosec // the directory is the caller's
		return err
	}
	// A token by whose fingerprint clients find this CA.
	store, err := pki.OpenTokenStore(ca)
	if err != nil {
		return err
	}
	token, _, err := store.Make(pki.RoleCall, "", time.Time{})
	if err != nil {
		return err
	}
	line := map[string]string{"ca": file, "token": token.Reveal()}
	for name, lifetime := range map[string]time.Duration{"expired": time.Nanosecond, "other": time.Hour} {
		cert, err := issue(ca, lifetime)
		if err != nil {
			return err
		}
		if line[name], err = listen(cert); err != nil {
			return err
		}
	}
	if err := json.NewEncoder(os.Stdout).Encode(line); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// issue makes a certificate for 127.0.0.1.
func issue(ca *pki.CA, lifetime time.Duration) (*tls.Certificate, error) {
	request, err := pki.NewRequest("stranger")
	if err != nil {
		return nil, err
	}
	grant := pki.Grant{HostID: "stranger", Role: pki.RoleAdmin, IPs: []net.IP{net.IPv4(127, 0, 0, 1)}, Lifetime: time.Hour}
	chain, err := ca.Sign(request.CSR(), grant)
	if err != nil {
		return nil, err
	}
	cert, err := request.Accept(chain, pki.Trust{Roots: ca.Roots})
	if err != nil {
		return nil, err
	}
	// The same key, for the lifetime that is asked for: one that has expired is not accepted.
	grant.Lifetime = lifetime
	if cert.Certificate, err = ca.Sign(request.CSR(), grant); err != nil {
		return nil, err
	}
	cert.Leaf, err = x509.ParseCertificate(cert.Certificate[0])
	return cert, err
}

// listen serves nothing but handshakes, and returns the address.
func listen(cert *tls.Certificate) (string, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{*cert}, NextProtos: []string{"h2", "http/1.1"}}
	l, err := tls.Listen("tcp", "127.0.0.1:0", config)
	if err != nil {
		return "", err
	}
	server := &http.Server{Handler: http.NotFoundHandler(), ReadHeaderTimeout: time.Minute, TLSConfig: config}
	go func() {
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			fmt.Fprintln(os.Stderr, "strangers:", err)
		}
	}()
	return l.Addr().String(), nil
}
