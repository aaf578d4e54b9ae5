package pki

import (
	"bytes"
	"cmp"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"
)

// Errors of tokens. They are returned wrapped.
var (
	// ErrTokenUnknown means that no token of the system has this id or secret.
	ErrTokenUnknown = errors.New("the token is not known here")
	// ErrTokenRevoked means that the token was revoked.
	ErrTokenRevoked = errors.New("the token was revoked")
	// ErrTokenExpired means that the token can no longer be used to join or call.
	ErrTokenExpired = errors.New("the token has expired")
)

const (
	tokensFile    = "tokens.json"
	tokensVersion = 1
	// maxTokens bounds a store. Revoked tokens count: certificates may name them.
	maxTokens = 10_000
	maxLabel  = 128 // bytes
	// maxTokensFile bounds the file, in bytes: a label can be escaped to six times its size.
	maxTokensFile = maxTokens * (400 + 6*maxLabel)
)

// TokenInfo is what may be shown of a token.
type TokenInfo struct {
	ID      string
	Role    Role
	Label   string
	Created time.Time
	// Expires is when the token can no longer be used to join or call; zero means never. Hosts that
	// have joined by it stay, and renew their certificates.
	Expires time.Time
	// Revoked is when it was revoked; zero means that it was not. Hosts that joined by it are
	// refused from then on.
	Revoked time.Time
}

// TokenStore has the tokens of a system, in the directory of its CA. It may be used concurrently.
// What its methods have changed is on disk when they return.
//
// It keeps a key for each token, from which the secret can't be computed, but by which proofs are
// made and verified: with a proof that is an HMAC, both sides have the same key. So a thief of the
// file can prove the tokens that are not revoked, though it can't show them. The same directory has
// the key of the CA, which is worth more: a thief of that needs no token. A proof by signature
// would not have this disadvantage, but also would not prove the server.
type TokenStore struct {
	path        string
	fingerprint string

	mu      sync.Mutex // guards the fields below, and writes of the file
	tokens  map[string]*storedToken
	changed chan struct{} // see Changed
}

// storedToken is immutable: a changed token is a new one. The key is a pointer for the same reason
// as in secret.
type storedToken struct {
	info TokenInfo
	key  *proofKey
}

// OpenTokenStore loads the tokens in the directory of a CA. It has none if the file is not there.
func OpenTokenStore(ca *CA) (*TokenStore, error) {
	s := &TokenStore{
		path: filepath.Join(ca.dir, tokensFile), fingerprint: ca.fingerprint, tokens: make(map[string]*storedToken),
		changed: make(chan struct{}),
	}
	content, err := readPrivate(s.path, maxTokensFile)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the tokens: %w", err)
	}
	if s.tokens, err = parseTokens(content); err != nil {
		return nil, fmt.Errorf("reading the tokens: %s is damaged: %w", s.path, err)
	}
	return s, nil
}

// Make makes a token. The label is for people, and has at most 128 bytes. The token is not stored
// and can't be shown again. expires is zero for a token that doesn't expire.
func (s *TokenStore) Make(role Role, label string, expires time.Time) (Token, TokenInfo, error) {
	now := time.Now().UTC().Truncate(time.Second)
	info := TokenInfo{Role: role, Label: label, Created: now, Expires: expires.UTC().Truncate(time.Second)}
	if expires.IsZero() {
		info.Expires = time.Time{}
	} else if !info.Expires.After(now) {
		return Token{}, TokenInfo{}, fmt.Errorf("making a token: it would expire at %s, and now is %s", formatTime(expires), formatTime(now))
	}
	token := newToken(s.fingerprint)
	key := token.key()
	info.ID = key.id()
	if err := checkInfo(info); err != nil {
		return Token{}, TokenInfo{}, fmt.Errorf("making a token: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.tokens) >= maxTokens {
		return Token{}, TokenInfo{}, fmt.Errorf("making a token: there are %d already", len(s.tokens))
	}
	if err := s.put(&storedToken{info: info, key: key}); err != nil {
		return Token{}, TokenInfo{}, fmt.Errorf("making a token: %w", err)
	}
	return token, info, nil
}

// List returns all tokens, the oldest first.
func (s *TokenStore) List() []TokenInfo {
	s.mu.Lock()
	defer s.mu.Unlock()
	infos := make([]TokenInfo, 0, len(s.tokens))
	for _, t := range s.tokens {
		infos = append(infos, t.info)
	}
	slices.SortFunc(infos, func(a, b TokenInfo) int {
		return cmp.Or(a.Created.Compare(b.Created), strings.Compare(a.ID, b.ID))
	})
	return infos
}

// Find returns the token with this id.
func (s *TokenStore) Find(id string) (TokenInfo, bool) {
	if t := s.find(id); t != nil {
		return t.info, true
	}
	return TokenInfo{}, false
}

// Revoke revokes a token. To revoke one again changes nothing. The error is ErrTokenUnknown if
// there is none with this id.
func (s *TokenStore) Revoke(id string) (TokenInfo, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.tokens[id]
	if t == nil {
		return TokenInfo{}, fmt.Errorf("revoking the token %.80q: %w", id, ErrTokenUnknown)
	}
	if !t.info.Revoked.IsZero() {
		return t.info, nil
	}
	revoked := *t
	revoked.info.Revoked = time.Now().UTC().Truncate(time.Second)
	if err := s.put(&revoked); err != nil {
		return TokenInfo{}, fmt.Errorf("revoking the token %s: %w", id, err)
	}
	return revoked.info, nil
}

// Revoked reports whether what joined by this token must be refused, for [Trust]. A token that is
// not known counts as revoked.
func (s *TokenStore) Revoked(id string) bool {
	t := s.find(id)
	return t == nil || !t.info.Revoked.IsZero()
}

// Authenticate verifies a token that a client has sent, as one in another language does over HTTP.
// The secret is compared in constant time.
func (s *TokenStore) Authenticate(token Token) (TokenInfo, error) {
	if token.fingerprint != s.fingerprint {
		return TokenInfo{}, fmt.Errorf("it is for the CA %s, and this is %s: %w", token.fingerprint, s.fingerprint, ErrTokenUnknown)
	}
	key := token.key()
	t := s.find(key.id())
	if t == nil || subtle.ConstantTimeCompare(t.key[:], key[:]) != 1 {
		return TokenInfo{}, ErrTokenUnknown
	}
	return t.usable()
}

// Admit verifies a client's proof that it knows the token with this id, and returns the server's
// proof, which [Token.Verify] verifies. An unknown id and a wrong proof are the same error, and
// that a token has expired or was revoked is said only to a client that has it.
func (s *TokenStore) Admit(id string, transcript Transcript, proof []byte) (TokenInfo, []byte, error) {
	t := s.find(id)
	if t == nil || !t.key.verify(clientProof, transcript, proof) {
		return TokenInfo{}, nil, fmt.Errorf("refused to admit a client with the token %.80q: %w, or %w", id, ErrTokenUnknown, ErrProof)
	}
	info, err := t.usable()
	if err != nil {
		return TokenInfo{}, nil, fmt.Errorf("refused to admit a client with the token %s: %w", id, err)
	}
	return info, t.key.prove(serverProof, transcript), nil
}

// usable returns an error if the token was revoked or has expired.
func (t *storedToken) usable() (TokenInfo, error) {
	switch {
	case !t.info.Revoked.IsZero():
		return TokenInfo{}, fmt.Errorf("%w at %s", ErrTokenRevoked, formatTime(t.info.Revoked))
	case !t.info.Expires.IsZero() && !time.Now().Before(t.info.Expires):
		return TokenInfo{}, fmt.Errorf("%w at %s", ErrTokenExpired, formatTime(t.info.Expires))
	}
	return t.info, nil
}

func (s *TokenStore) find(id string) *storedToken {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tokens[id]
}

// put adds or replaces a token, in the file and then in memory. The caller holds the lock.
func (s *TokenStore) put(changed *storedToken) error {
	tokens := maps.Clone(s.tokens)
	tokens[changed.info.ID] = changed
	content, err := formatTokens(tokens)
	if err != nil {
		return err
	}
	if err := writePrivate(s.path, content); err != nil {
		return err
	}
	s.tokens = tokens
	close(s.changed)
	s.changed = make(chan struct{})
	return nil
}

// tokensJSON is the content of the file.
type tokensJSON struct {
	Version int         `json:"version"`
	Tokens  []tokenJSON `json:"tokens"`
}

type tokenJSON struct {
	ID      string    `json:"id"`
	Role    Role      `json:"role"`
	Label   string    `json:"label,omitempty"`
	Created time.Time `json:"created"`
	Expires time.Time `json:"expires,omitzero"`
	Revoked time.Time `json:"revoked,omitzero"`
	Key     []byte    `json:"key"` // base64
}

func formatTokens(tokens map[string]*storedToken) ([]byte, error) {
	file := tokensJSON{Version: tokensVersion, Tokens: make([]tokenJSON, 0, len(tokens))}
	for _, t := range tokens {
		file.Tokens = append(file.Tokens, tokenJSON{
			ID: t.info.ID, Role: t.info.Role, Label: t.info.Label,
			Created: t.info.Created, Expires: t.info.Expires, Revoked: t.info.Revoked, Key: t.key[:],
		})
	}
	slices.SortFunc(file.Tokens, func(a, b tokenJSON) int { return strings.Compare(a.ID, b.ID) })
	content, err := json.MarshalIndent(file, "", "  ")
	return append(content, '\n'), err
}

// parseTokens parses a file. Its errors name a token by its number, since the rest of the file may
// be anything.
func parseTokens(content []byte) (map[string]*storedToken, error) {
	var file tokensJSON
	decoder := json.NewDecoder(bytes.NewReader(content))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&file); err != nil {
		return nil, errors.New("it is not the JSON that was written")
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows the tokens")
	}
	if file.Version != tokensVersion {
		return nil, fmt.Errorf("its version is %d, and this program knows %d", file.Version, tokensVersion)
	}
	if len(file.Tokens) > maxTokens {
		return nil, fmt.Errorf("it has %d tokens, more than %d", len(file.Tokens), maxTokens)
	}
	tokens := make(map[string]*storedToken, len(file.Tokens))
	for i, t := range file.Tokens {
		stored, err := t.parse()
		if err == nil && tokens[t.ID] != nil {
			err = errors.New("its id occurs twice")
		}
		if err != nil {
			return nil, fmt.Errorf("token %d: %w", i, err)
		}
		tokens[t.ID] = stored
	}
	return tokens, nil
}

func (t *tokenJSON) parse() (*storedToken, error) {
	stored := &storedToken{key: new(proofKey), info: TokenInfo{
		ID: t.ID, Role: t.Role, Label: t.Label, Created: t.Created, Expires: t.Expires, Revoked: t.Revoked,
	}}
	if copy(stored.key[:], t.Key) != len(t.Key) || len(t.Key) != len(stored.key) {
		return nil, fmt.Errorf("its key has %d bytes, not %d", len(t.Key), len(stored.key))
	}
	if stored.key.id() != t.ID {
		return nil, errors.New("its id is not that of its key")
	}
	return stored, checkInfo(stored.info)
}

func checkInfo(info TokenInfo) error {
	if _, err := ParseRole(string(info.Role)); err != nil {
		return err
	}
	if len(info.Label) > maxLabel || !utf8.ValidString(info.Label) || strings.ContainsFunc(info.Label, unicode.IsControl) {
		return fmt.Errorf("its label must be at most %d bytes of text in one line", maxLabel)
	}
	if info.Created.IsZero() {
		return errors.New("it has no time of creation")
	}
	return nil
}
