package pki

import (
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"path/filepath"
	"time"
)

// bearerLabel begins what the hash of a [Verifier] covers.
const bearerLabel = "raylink token v1: bearer\x00"

// Verifier recognizes a token that a client has sent, as one in another language does over HTTP.
// Hosts have it from the server that made the token. Neither the token nor a proof of it can be
// computed from the hash.
type Verifier struct {
	ID   string
	Role Role
	// Expires is zero for never.
	Expires time.Time
	Hash    [sha256.Size]byte
}

// bearerHash is a function of the key, which must not leave the server that made the token: proofs
// are made by it.
func (k *proofKey) bearerHash() [sha256.Size]byte {
	return sha256.Sum256(append([]byte(bearerLabel), k[:]...))
}

// Verifiers returns those of all tokens that can be used, and the ids of those that were revoked.
func (s *TokenStore) Verifiers() (verifiers []Verifier, revoked []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	for id, t := range s.tokens {
		switch info := t.info; {
		case !info.Revoked.IsZero():
			revoked = append(revoked, id)
		case info.Expires.IsZero() || now.Before(info.Expires):
			verifiers = append(verifiers, Verifier{ID: id, Role: info.Role, Expires: info.Expires, Hash: t.key.bearerHash()})
		}
	}
	return verifiers, revoked
}

// Changed returns a channel that is closed when a token was made or revoked after the call.
func (s *TokenStore) Changed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

// Known is what a host knows of the tokens of its system. It is immutable. The zero value knows
// none.
type Known struct {
	fingerprint string
	verifiers   map[string]Verifier
	revoked     map[string]struct{}
}

// NewKnown makes what a host of the CA with this fingerprint knows.
func NewKnown(fingerprint string, verifiers []Verifier, revoked []string) *Known {
	k := &Known{fingerprint: fingerprint, verifiers: make(map[string]Verifier, len(verifiers)), revoked: make(map[string]struct{}, len(revoked))}
	for _, v := range verifiers {
		k.verifiers[v.ID] = v
	}
	for _, id := range revoked {
		k.revoked[id] = struct{}{}
	}
	return k
}

// Authenticate verifies a token that a client has sent, and returns the identity that it gives. The
// secret is compared in constant time.
func (k *Known) Authenticate(token Token) (Peer, error) {
	if token.fingerprint != k.fingerprint {
		return Peer{}, fmt.Errorf("it is for the CA %s, and this is %s: %w", token.fingerprint, k.fingerprint, ErrTokenUnknown)
	}
	key := token.key()
	id, hash := key.id(), key.bearerHash()
	v, found := k.verifiers[id]
	switch {
	case k.Revoked(id):
		return Peer{}, ErrTokenRevoked
	case !found || subtle.ConstantTimeCompare(v.Hash[:], hash[:]) != 1:
		return Peer{}, ErrTokenUnknown
	case !v.Expires.IsZero() && !time.Now().Before(v.Expires):
		return Peer{}, fmt.Errorf("%w at %s", ErrTokenExpired, formatTime(v.Expires))
	}
	return Peer{Role: v.Role, TokenID: id}, nil
}

// Revoked reports whether what joined by this token must be refused, for [Trust].
func (k *Known) Revoked(id string) bool {
	_, revoked := k.revoked[id]
	return revoked
}

const (
	secretFile   = "secret"
	maxTokenFile = 1 << 10
)

// Secret returns a random secret that is kept with the CA, and makes it on the first call. The
// hosts of a system know each other by it where they share a machine.
func (c *CA) Secret() (string, error) {
	text, err := keep(filepath.Join(c.dir, secretFile), func() (string, error) {
		return encoding.EncodeToString(newSecret().random()[:]), nil
	})
	if err != nil {
		return "", fmt.Errorf("reading the secret of the system: %w", err)
	}
	if secret, err := encoding.DecodeString(text); err != nil || len(secret) != secretSize {
		return "", fmt.Errorf("the secret of the system in %s is damaged: remove the file, and restart all hosts", secretFile)
	}
	return text, nil
}

// KeepToken returns the token of a role that is kept in the CA's directory under a name, and makes
// it where there is none, or the kept one can't be used any more. The label is for people.
func (s *TokenStore) KeepToken(name string, role Role, label string) (Token, error) {
	path := filepath.Join(filepath.Dir(s.path), name+".token")
	text, err := keep(path, func() (string, error) { return s.makeText(role, label) })
	if err != nil {
		return Token{}, fmt.Errorf("reading the token %s: %w", name, err)
	}
	token, err := ParseToken(text)
	if err == nil {
		_, err = s.Authenticate(token)
	}
	if err == nil {
		return token, nil
	}
	if text, err = s.makeText(role, label); err != nil {
		return Token{}, err
	}
	if err := writePrivate(path, []byte(text+"\n")); err != nil {
		return Token{}, err
	}
	return ParseToken(text)
}

func (s *TokenStore) makeText(role Role, label string) (string, error) {
	token, _, err := s.Make(role, label, time.Time{})
	if err != nil {
		return "", err
	}
	return token.Reveal(), nil
}
