package pki

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"strings"
)

const (
	tokenPrefix = "rl1."
	secretSize  = 32 // bytes

	// idSize is the size of a token's id, in bytes. It only distinguishes tokens, and is no secret.
	idSize = 8

	// Labels of derivations, so that no two of them give the same value.
	keyLabel = "raylink token v1: key of proofs"
	idLabel  = "raylink token v1: id\x00"

	redacted = "[redacted]"
)

// encoding is strict, so that there is one text for each value.
var encoding = base64.RawURLEncoding.Strict() //nolint:gochecknoglobals // immutable

// encodedSize is that of a fingerprint, and of a secret, as text.
const encodedSize = 43

// Token lets a process join a system, or call its nodes. Its text is
// `rl1.<fingerprint of the CA>.<secret>`, and only Reveal returns it: formatted or logged, a token
// shows its fingerprint and id. The zero Token is not valid. Tokens are immutable.
type Token struct {
	fingerprint string
	secret      *secret
}

// secret is a secret behind two pointers. Package fmt can't call the methods of a token in an
// unexported field, and prints what it has instead. It follows one pointer at most, and of the
// second it prints the address.
type secret struct {
	bytes *[secretSize]byte
}

func newSecret() *secret { return &secret{bytes: new([secretSize]byte)} }

// newToken makes a token with a random secret.
func newToken(fingerprint string) Token {
	t := Token{fingerprint: fingerprint, secret: newSecret()}
	t.secret.random()
	return t
}

// random fills the secret with random bytes, and returns them.
func (s *secret) random() *[secretSize]byte {
	rand.Read(s.bytes[:]) // never fails
	return s.bytes
}

// ParseToken parses the text of a token. It accepts exactly what [Token.Reveal] returns. Its errors
// have nothing of the text.
func ParseToken(text string) (Token, error) {
	const form = "a token has the form " + tokenPrefix + "<fingerprint>.<secret>"
	body, found := strings.CutPrefix(text, tokenPrefix)
	if !found {
		return Token{}, errors.New("it does not begin with " + tokenPrefix + ": " + form)
	}
	fingerprint, text, found := strings.Cut(body, ".")
	if !found {
		return Token{}, errors.New("it has no secret: " + form)
	}
	if err := checkFingerprint(fingerprint); err != nil {
		return Token{}, fmt.Errorf("its fingerprint is not valid: %w", err)
	}
	t := Token{fingerprint: fingerprint, secret: newSecret()}
	if len(text) != encodedSize {
		return Token{}, fmt.Errorf("its secret has %d characters, not %d: it was truncated, or something was added", len(text), encodedSize)
	}
	if n, err := encoding.Decode(t.secret.bytes[:], []byte(text)); err != nil || n != secretSize {
		return Token{}, errors.New("its secret is not in base64url")
	}
	return t, nil
}

func checkFingerprint(text string) error {
	if len(text) != encodedSize {
		return fmt.Errorf("it has %d characters, not %d", len(text), encodedSize)
	}
	if hash, err := encoding.DecodeString(text); err != nil || len(hash) != sha256.Size {
		return errors.New("it is not in base64url")
	}
	return nil
}

// Fingerprint returns that of the CA, for [Trust].
func (t Token) Fingerprint() string { return t.fingerprint }

// ID returns the token's public id, by which it is listed and revoked.
func (t Token) ID() string { return t.key().id() }

// Reveal returns the token's text, with the secret.
func (t Token) Reveal() string {
	return tokenPrefix + t.fingerprint + "." + encoding.EncodeToString(t.secret.bytes[:])
}

// String returns the token's text without the secret.
func (t Token) String() string { return tokenPrefix + t.fingerprint + "." + redacted }

// GoString is String, for the verb %#v.
func (t Token) GoString() string { return "pki.Token(" + t.String() + ")" }

// LogValue is String, for package slog.
func (t Token) LogValue() slog.Value { return slog.StringValue(t.String()) }

// MarshalText is String, for encoders. It never has the secret, so there is no UnmarshalText.
func (t Token) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// proofKey is what a verifier needs to know of a token: HMAC-SHA-256 of a label with the secret as
// the key, so that the secret can't be computed from it.
type proofKey [sha256.Size]byte

func (t Token) key() *proofKey {
	mac := hmac.New(sha256.New, t.secret.bytes[:])
	mac.Write([]byte(keyLabel))
	return (*proofKey)(mac.Sum(nil))
}

// id is a function of the key, so that a stored token can be checked for damage.
func (k *proofKey) id() string {
	hash := sha256.Sum256(append([]byte(idLabel), k[:]...))
	return hex.EncodeToString(hash[:idSize])
}

func isTokenID(id string) bool {
	b, err := hex.DecodeString(id)
	return err == nil && len(b) == idSize && strings.ToLower(id) == id
}
