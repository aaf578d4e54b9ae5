package tunnel

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
)

// The token itself is never sent. Each side proves that it knows the token by an HMAC-SHA-256 over
//
//   - a label that differs between the two directions, so that a reflected proof is worthless;
//   - HELLO and WELCOME as sent, header and body, with nonces, host ids, versions and limits. A
//     frame that was modified in transit invalidates the proof, and a recorded proof does not
//     match the nonces of another connection;
//   - for the dialler's proof, the accepting side's proof.
//
// The accepting side proves first. A dialler that has reached a wrong address thus reveals nothing
// derived from the token.
const (
	acceptLabel = "raylink tunnel 2: accepting side"
	dialLabel   = "raylink tunnel 2: dialling side"

	nonceBytes = 32
	proofBytes = sha256.Size

	// authOpen and authToken are the values of fieldAuth: whether the sender has a token.
	authOpen  = 0
	authToken = 1
)

// prove returns the proof for one direction. Each part is preceded by its length, so the encoding
// is unambiguous.
func prove(token, label string, parts ...[]byte) []byte {
	mac := hmac.New(sha256.New, []byte(token))
	for _, part := range append([][]byte{[]byte(label)}, parts...) {
		_, _ = mac.Write(binary.BigEndian.AppendUint64(nil, uint64(len(part)))) // writing to a hash never fails
		_, _ = mac.Write(part)
	}
	return mac.Sum(nil)
}

// proven verifies a proof in constant time.
func proven(proof []byte, token, label string, parts ...[]byte) bool {
	return hmac.Equal(proof, prove(token, label, parts...))
}

// newNonce returns a new nonce for a handshake. fixed, if not nil, replaces it in tests.
func newNonce(fixed func() string) string {
	if fixed != nil {
		return fixed()
	}
	b := make([]byte, nonceBytes)
	_, _ = rand.Read(b) // never fails
	return string(b)
}

// authOf returns the value of fieldAuth for a token, which may be empty.
func authOf(token string) uint64 {
	if token == "" {
		return authOpen
	}
	return authToken
}
