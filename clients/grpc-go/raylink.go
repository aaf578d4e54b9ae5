package main

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"strings"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
)

// transportCredentials are how a client of grpc-go connects to a RayLink system: copy this file
// into your program. file is that of the CA's certificate (`raylink ca` prints it). If it is empty,
// the CA is the one whose fingerprint a token `rl1.FINGERPRINT.SECRET` has; other tokens are those
// of systems without TLS.
func transportCredentials(token, file string) (credentials.TransportCredentials, error) {
	var roots *x509.CertPool
	switch {
	case file != "":
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		if roots = x509.NewCertPool(); !roots.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("%s has no certificate in PEM: write it anew (`raylink ca > %s`)", file, file)
		}
	case !strings.HasPrefix(token, "rl1."):
		return insecure.NewCredentials(), nil
	}
	return credentials.NewTLS(&tls.Config{
		MinVersion:         tls.VersionTLS13,
		InsecureSkipVerify: true, // VerifyConnection does that, with errors that say what to do
		VerifyConnection: func(state tls.ConnectionState) error {
			return verify(state, roots, token, file)
		},
	}), nil
}

func verify(state tls.ConnectionState, roots *x509.CertPool, token, file string) error {
	others := x509.NewCertPool()
	for _, cert := range state.PeerCertificates[1:] {
		others.AddCert(cert)
	}
	if roots == nil {
		roots = x509.NewCertPool()
		cert := byFingerprint(state.PeerCertificates, strings.Split(token, ".")[1])
		if cert == nil {
			return errors.New("the server is of another system than the token: use a token of that system (`raylink token make --role call` there)")
		}
		roots.AddCert(cert)
	}
	_, err := state.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: others, DNSName: state.ServerName})
	var invalid x509.CertificateInvalidError
	var unknown x509.UnknownAuthorityError
	var name x509.HostnameError
	switch {
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return fmt.Errorf("the server's certificate has expired: restart that process, or set this machine's clock if it is wrong (%w)", err)
	case errors.As(err, &unknown):
		return fmt.Errorf("the server's certificate is not of the CA in %s: write that of its system (`raylink ca > %s`) (%w)", file, file, err)
	case errors.As(err, &name):
		return fmt.Errorf("the server's certificate is not for its address: use the one under which the process listens or is advertised (%w)", err)
	}
	return err
}

// byFingerprint returns the certificate whose public key has a SHA-256, or nil.
func byFingerprint(chain []*x509.Certificate, fingerprint string) *x509.Certificate {
	for _, cert := range chain {
		if sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo); base64.RawURLEncoding.EncodeToString(sum[:]) == fingerprint {
			return cert
		}
	}
	return nil
}
