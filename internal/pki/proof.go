package pki

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
)

// ErrProof means that a peer does not know the token that it claims to have.
var ErrProof = errors.New("the proof of the token is wrong")

const (
	exporterLabel = "EXPORTER-raylink-join"
	exporterSize  = 32 // bytes

	// NonceSize is the size of a nonce, in bytes.
	NonceSize = 32

	// The two proofs have domains of their own, so that neither can be reflected as the other.
	clientProof = "raylink join v1: proof of the client"
	serverProof = "raylink join v1: proof of the server"
)

// NewNonce returns random bytes, for one [Transcript].
func NewNonce() []byte {
	nonce := make([]byte, NonceSize)
	rand.Read(nonce) // never fails
	return nonce
}

// Transcript is what a process that joins and its server agree on before they prove to each other
// that they know the token: the TLS connection, a nonce of each, and the certificate request.
//
// Each proof is an HMAC-SHA-256 over the transcript. It covers the connection's exporter value
// (RFC 8446, section 7.5; used as by RFC 9266), which no two connections share. So an impostor in
// the middle, which has a connection to each side, can't pass a proof on, and a proof that was
// recorded is of no use later.
type Transcript struct {
	fields [][]byte
}

// NewTranscript makes the transcript of a connection whose handshake is complete. It fails if the
// connection is not TLS 1.3, or a part does not have the size that it must have.
func NewTranscript(state tls.ConnectionState, clientNonce, serverNonce, csr []byte) (Transcript, error) {
	switch {
	case state.Version != tls.VersionTLS13 || !state.HandshakeComplete:
		return Transcript{}, errors.New("a token can be proven only on a connection of TLS 1.3, after its handshake")
	case len(clientNonce) != NonceSize || len(serverNonce) != NonceSize:
		return Transcript{}, fmt.Errorf("the nonces of client and server have %d and %d bytes, not %d", len(clientNonce), len(serverNonce), NonceSize)
	case len(csr) == 0 || len(csr) > MaxRequest:
		return Transcript{}, fmt.Errorf("the certificate request has %d bytes, not 1 to %d", len(csr), MaxRequest)
	}
	exporter, err := state.ExportKeyingMaterial(exporterLabel, nil, exporterSize)
	if err != nil {
		return Transcript{}, fmt.Errorf("exporting a value of the TLS connection: %w", err)
	}
	return Transcript{fields: [][]byte{exporter, clientNonce, serverNonce, csr}}, nil
}

// Prove returns the client's proof that it knows the token. Call it only when the server's
// certificate was verified by the token's fingerprint.
func (t Token) Prove(transcript Transcript) []byte {
	return t.key().prove(clientProof, transcript)
}

// Verify verifies the server's proof that it knows the token, from [TokenStore.Admit]. Any host of
// the system has a certificate of its CA, but only the server that made the token has this proof.
func (t Token) Verify(transcript Transcript, proof []byte) error {
	if !t.key().verify(serverProof, transcript, proof) {
		return fmt.Errorf("the server does not know the token %s, so it is not the one that made it: %w", t.ID(), ErrProof)
	}
	return nil
}

// prove computes an HMAC over the domain and the transcript. All parts are preceded by their
// lengths, so that no two transcripts are the same bytes.
func (k *proofKey) prove(domain string, transcript Transcript) []byte {
	mac := hmac.New(sha256.New, k[:])
	for _, part := range append([][]byte{[]byte(domain)}, transcript.fields...) {
		mac.Write(binary.BigEndian.AppendUint32(nil, uint32(len(part)))) //nolint:gosec // bounded by MaxRequest
		mac.Write(part)
	}
	return mac.Sum(nil)
}

func (k *proofKey) verify(domain string, transcript Transcript, proof []byte) bool {
	return len(transcript.fields) > 0 && hmac.Equal(proof, k.prove(domain, transcript))
}
