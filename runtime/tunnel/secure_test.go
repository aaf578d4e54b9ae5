package tunnel

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"io"
	"math/big"
	"net"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// TestSealKeepsEachByte seals buffers of random sizes, and compares what arrives, and the number of
// records.
func TestSealKeepsEachByte(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	near, far := net.Pipe()
	config := &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
	server := tls.Server(far, config)
	client := tls.Client(BelowTLS(near), &tls.Config{InsecureSkipVerify: true, DynamicRecordSizingDisabled: true})
	done := make(chan error, 1)
	go func() {
		_, err := server.Read(nil) // performs the handshake
		if err == nil {
			_, err = server.Write([]byte{1}) // after the session ticket
		}
		done <- err
	}()
	_, err = io.ReadFull(client, make([]byte, 1))
	require.NoError(t, err)
	require.NoError(t, <-done)
	s := takeTLS(client)
	require.NotNil(t, s)
	defer func() { require.NoError(t, near.Close()) }()
	size := rapid.OneOf(rapid.IntRange(1, 64), rapid.IntRange(1, 3*recordBytes), rapid.IntRange(recordBytes-2, recordBytes+2))
	rapid.Check(t, func(t *rapid.T) {
		var want []byte
		b := &batch{}
		for _, n := range rapid.SliceOfN(size, 1, 12).Draw(t, "sizes") {
			part := bytes.Repeat([]byte{byte(len(want))}, n)
			want = append(want, part...)
			b.cuts = append(b.cuts, cut{fragment: part})
		}
		got := make([]byte, len(want))
		go func() {
			_, err := io.ReadFull(server, got)
			done <- err
		}()
		n, err := s.write(b)
		require.NoError(t, err)
		require.EqualValues(t, len(want), n)
		require.NoError(t, <-done)
		require.True(t, bytes.Equal(want, got))
		require.False(t, s.unsent())
	})
}

func TestOtherConnectionsAreNotTaken(t *testing.T) {
	near, far := net.Pipe()
	require.Nil(t, takeTLS(near))
	require.Nil(t, takeTLS(tls.Client(near, &tls.Config{InsecureSkipVerify: true})))
	require.NoError(t, near.Close())
	require.NoError(t, far.Close())
}
