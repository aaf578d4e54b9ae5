package tunnel

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
)

// The token itself is never sent. Each side proves that it knows it by an HMAC-SHA-256 over
//
//   - a label, which differs for the two directions, so that a proof sent back to its author is
//     worthless;
//   - both greetings as they were sent, header and body: nonces, host ids, versions and limits. A
//     greeting that was changed on its way makes the proof wrong, and a recorded proof does not fit
//     the nonces of another connection;
//   - for the dialler's proof, the accepting side's.
//
// The accepting side goes first: a dialler that has a wrong address shows nothing that depends on
// the token before it knows that it has found a peer.
const (
	acceptLabel = "raylink tunnel 2: accepting side"
	dialLabel   = "raylink tunnel 2: dialling side"

	nonceBytes = 32
	proofBytes = sha256.Size

	// authOpen and authToken are the values of fieldAuth: whether its sender has a token to prove.
	authOpen  = 0
	authToken = 1
)

// prove makes the proof for one direction. Parts are told apart by their lengths.
func prove(token, label string, parts ...[]byte) []byte {
	mac := hmac.New(sha256.New, []byte(token))
	for _, part := range append([][]byte{[]byte(label)}, parts...) {
		_, _ = mac.Write(binary.BigEndian.AppendUint64(nil, uint64(len(part)))) // a hash takes all
		_, _ = mac.Write(part)
	}
	return mac.Sum(nil)
}

// proven compares in constant time.
func proven(proof []byte, token, label string, parts ...[]byte) bool {
	return hmac.Equal(proof, prove(token, label, parts...))
}

// newNonce is fresh for each handshake, unless a test has fixed it.
func newNonce(fixed func() string) string {
	if fixed != nil {
		return fixed()
	}
	b := make([]byte, nonceBytes)
	_, _ = rand.Read(b) // never fails
	return string(b)
}

// authOf is what a token, or none, means on the wire.
func authOf(token string) uint64 {
	if token == "" {
		return authOpen
	}
	return authToken
}
