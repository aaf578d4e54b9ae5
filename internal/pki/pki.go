// Package pki decides which processes belong to a system: its CA, the tokens by which a process
// joins, and the certificates of hosts, which are made, verified and renewed here.
//
// What it promises:
//
//   - A private key never leaves the process that made it. The CA's key lies in a directory that
//     its user alone can read; the key of a host's certificate is in memory only.
//   - The secret of a [Token] is in no error, log record or formatted value. It is revealed by
//     [Token.Reveal] alone.
//   - A process that joins proves its token without sending it, and the proof is of no use on
//     another connection ([Transcript]).
//   - Each connection is TLS 1.3, and each is verified in full, also when it resumes a session: CA,
//     validity, usage, host id, role and revocation ([Trust]).
//   - What does not fit is refused with one error, which names what was expected and what was
//     found. The peer sees only the number of a TLS alert; [Explain] adds what it means.
//
// The order of a first join: [ParseToken], [ClientConfig] with the token's fingerprint,
// [NewRequest], [NewTranscript] on both sides, [Token.Prove], [TokenStore.Admit], [CA.Sign],
// [Token.Verify], [Request.Accept]. From then on [Source] renews the certificate.
//
// The files: ca.go is the CA, request.go the requests of hosts; token.go, tokenstore.go and
// proof.go are the tokens and their proof, and known.go is what other hosts know of them; trust.go
// verifies peers, and explain.go explains alerts; source.go renews certificates, and files.go loads
// those of an organisation's own PKI; private.go reads and writes private files.
package pki

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"
)

// Role is what a token, and a certificate obtained with it, allows.
type Role string

// The roles, from the least to the greatest. Each includes those before it.
const (
	// RoleCall may call nodes. Its certificates can't be used by a server.
	RoleCall Role = "call"
	// RoleJoin may host nodes, too.
	RoleJoin Role = "join"
	// RoleAdmin may make and revoke tokens, too.
	RoleAdmin Role = "admin"
)

// ParseRole returns the role of this name.
func ParseRole(name string) (Role, error) {
	if r := Role(name); r.rank() > 0 {
		return r, nil
	}
	return "", fmt.Errorf("the role %q is not known: use %s, %s or %s", name, RoleAdmin, RoleJoin, RoleCall)
}

// Includes reports whether r allows all that other allows. A role that is not known includes none,
// and is included by none.
func (r Role) Includes(other Role) bool { return other.rank() > 0 && r.rank() >= other.rank() }

// rank is 0 for a role that is not known.
func (r Role) rank() int { return slices.Index([]Role{RoleCall, RoleJoin, RoleAdmin}, r) + 1 }

// Peer is the identity in a certificate.
type Peer struct {
	// HostID is the host's id.
	HostID string
	Role   Role
	// TokenID is the token by which the host has joined. It is empty if the certificate was not
	// obtained by a token: that of Brain.
	TokenID string
}

const (
	identityPrefix = "raylink://host/"
	// maxHostID is the longest common name of a certificate (ub-common-name of RFC 5280).
	maxHostID = 64
)

// uri returns the identity as it is in a certificate, as a subject alternative name. All its parts
// have characters only that need no escape.
func (p Peer) uri() string {
	text := identityPrefix + p.HostID + "?role=" + string(p.Role)
	if p.TokenID != "" {
		text += "&token=" + p.TokenID
	}
	return text
}

// parsePeer is the inverse of uri, and accepts nothing that uri does not return.
func parsePeer(u *url.URL) (Peer, error) {
	query := u.Query()
	p := Peer{
		HostID:  strings.TrimPrefix(u.Path, "/"),
		Role:    Role(query.Get("role")),
		TokenID: query.Get("token"),
	}
	if err := checkHostID(p.HostID); err != nil {
		return Peer{}, err
	}
	if _, err := ParseRole(string(p.Role)); err != nil {
		return Peer{}, err
	}
	if p.TokenID != "" && !isTokenID(p.TokenID) {
		return Peer{}, errors.New("its token id is not valid")
	}
	if p.uri() != u.String() {
		return Peer{}, fmt.Errorf("its identity is not of the form %s<host id>?role=<role>&token=<token id>", identityPrefix)
	}
	return p, nil
}

// errNoIdentity is the error for a certificate that no system's CA has signed for a host.
var errNoIdentity = errors.New("it has no identity of the form " + identityPrefix + "<host id>?role=<role>")

// peerIn returns the identity in a certificate. The error is errNoIdentity if it has none.
func peerIn(cert *x509.Certificate) (Peer, error) {
	uri, err := identityURI(cert.URIs)
	if err != nil {
		return Peer{}, err
	}
	return parsePeer(uri)
}

// identityURI returns the one URI that is an identity. Further ones are an error, so that no two
// readers of the same certificate choose different ones.
func identityURI(uris []*url.URL) (*url.URL, error) {
	var found *url.URL
	for _, u := range uris {
		switch {
		case u.Scheme != "raylink":
		case found != nil:
			return nil, errors.New("it has more than one identity")
		default:
			found = u
		}
	}
	if found == nil {
		return nil, errNoIdentity
	}
	return found, nil
}

func checkHostID(id string) error {
	if id == "" || len(id) > maxHostID || strings.ContainsFunc(id, isReserved) {
		return fmt.Errorf("the host id %.80q is not valid: it has 1 to %d characters of A-Z, a-z, 0-9, '-', '_' and '.'", id, maxHostID)
	}
	return nil
}

// isReserved reports whether a character is to be escaped in some part of a URI (RFC 3986, section
// 2.3, without the tilde).
func isReserved(r rune) bool {
	switch {
	case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', '0' <= r && r <= '9', r == '-', r == '_', r == '.':
		return false
	}
	return true
}

// fingerprintOf is the SHA-256 of a certificate's SubjectPublicKeyInfo in base64url: it stays the
// same if the certificate is made anew for the same key. RFC 7469, section 2.4, pins keys by it.
func fingerprintOf(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

func formatTime(t time.Time) string { return t.UTC().Format(time.RFC3339) }
