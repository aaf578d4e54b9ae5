package tunnel_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink/runtime/tunnel"
)

// withinTLS is the environment variable that makes all tunnels of this test binary's fixtures run
// within TLS.
const withinTLS = "TUNNEL_TEST_TLS"

// serverTLS and clientTLS are nil unless the tunnels of the fixtures run within TLS.
var serverTLS, clientTLS *tls.Config

// testTLS returns configurations of the two sides.
func testTLS() (server, client *tls.Config, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(24 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, nil, err
	}
	server = &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
		DynamicRecordSizingDisabled: true,
	}
	// What is tested is what happens after the handshake.
	client = &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true, DynamicRecordSizingDisabled: true} // see above
	return server, client, nil
}

// secure wraps the two ends of a connection in TLS, if the fixtures are to run within it. The
// handshake takes place at the first read or write.
func secure(near, far net.Conn) (net.Conn, net.Conn) {
	if serverTLS == nil {
		return near, far
	}
	return tls.Client(tunnel.BelowTLS(near), clientTLS), tls.Server(tunnel.BelowTLS(far), serverTLS)
}

// TestWithinTLS runs the tests that any tunnel must pass once more, within TLS.
func TestWithinTLS(t *testing.T) {
	if os.Getenv(withinTLS) != "" {
		t.Skip("this is the other run")
	}
	tests := []string{
		"Test.*Cancel", "Test.*Interrupt", "Test.*Shutdown", "Test.*Stalled", "TestStopped", "Test.*Deadline", "TestStreamOfAllSizes",
		"TestUnaryCallsOfAllSizes", "TestOneCallTakesOneWriteAndOneReadPerSide", "TestBurst", "TestSilent", "TestLostConnection",
		"TestReading", "TestReadOwnerChanges", "TestInline", "TestBlocked", "TestStartBlocks", "TestCallsOfOneCaller", "TestTunnelOverPeeked",
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0], "-test.count=1", "-test.short", "-test.run=^("+strings.Join(tests, "|")+")")
	cmd.Env = append(os.Environ(), withinTLS+"=1")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.NotContains(t, string(out), "no tests to run")
}
