// Package access carries the identity of a call's caller in the call's context: the runtime sets
// it, and whatever serves the call can decide by it, such as Brain.
package access

import (
	"context"

	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
	"github.com/raylink/raylink/internal/pki"
)

// Source decides which clients a system serves.
type Source interface {
	// Policy returns what hosts need to know, and a channel that is closed when that has changed.
	Policy() (*brainv1.AccessPolicy, <-chan struct{})
	// Revoked reports whether what joined by a token must be refused.
	Revoked(tokenID string) bool
}

type peerKey struct{}

// WithPeer returns a context with the identity of the peer that a call came from.
func WithPeer(ctx context.Context, peer pki.Peer) context.Context {
	return context.WithValue(ctx, peerKey{}, peer)
}

// Peer returns the identity of the peer that a call came from. It reports false for a call from
// within the process.
func Peer(ctx context.Context) (pki.Peer, bool) {
	peer, ok := ctx.Value(peerKey{}).(pki.Peer)
	return peer, ok
}
