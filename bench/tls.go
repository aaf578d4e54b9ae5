package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"math/big"
	"net"
	"os"
	"strings"
	"time"
)

// tlsNetwork is the network of rows over TCP within TLS 1.3.
const tlsNetwork = "tls"

// Rows over TLS.
const (
	tlsMany  = "rpc/tls/16B/inflight=512"
	tlsOne   = "rpc/tls/16B/inflight=1"
	tlsLarge = "rpc/tls/1MiB/inflight=64"
)

func tlsRows() []row {
	of := func(name string, size, inflight int, unit, peer string) row {
		return row{
			name: name, network: tlsNetwork, unit: unit, systems: []string{"raylink", peer}, with: "machines",
			job: job{Kind: unary, Size: size, Inflight: inflight},
		}
	}
	return []row{
		of(tlsMany, 16, 512, "calls/s", "grpc-go"), of(tlsOne, 16, 1, "calls/s", "grpc-go"), of(tlsLarge, 1<<20, 64, "MB/s", "floor"),
	}
}

// encrypts reports whether RayLink uses TLS in this process.
func encrypts() bool { return os.Getenv("RAYLINK_TLS") == "1" }

// selfSigned returns the configuration of a server on loopback, and its certificate.
func selfSigned() (_ *tls.Config, certificate []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(24 * time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, nil, err
	}
	return &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}, der, nil
}

// securedAddress is an address with the server's certificate, which clients trust.
func securedAddress(address string, der []byte) string {
	return address + "," + base64.StdEncoding.EncodeToString(der)
}

// trusting splits what securedAddress has made into the address, and a client's configuration.
func trusting(server string) (address string, config *tls.Config, err error) {
	address, certificate, _ := strings.Cut(server, ",")
	der, err := base64.StdEncoding.DecodeString(certificate)
	if err != nil {
		return "", nil, err
	}
	trusted, err := x509.ParseCertificate(der)
	if err != nil {
		return "", nil, fmt.Errorf("the certificate of the server at %s: %w", address, err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(trusted)
	return address, &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: pool}, nil
}

// dialNetwork opens a connection by a network, also by tlsNetwork.
func dialNetwork(ctx context.Context, network, address string) (net.Conn, error) {
	if network != tlsNetwork {
		return new(net.Dialer).DialContext(ctx, network, address)
	}
	address, config, err := trusting(address)
	if err != nil {
		return nil, err
	}
	return (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", address)
}
