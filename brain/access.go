package brain

import (
	"context"

	"connectrpc.com/connect/v2"

	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	"github.com/raylink/raylink/internal/access"
	"github.com/raylink/raylink/internal/pki"
)

// SetAccess makes Brain pass on to hosts which clients they serve, and end the leases of hosts
// whose token is revoked. Call it before Brain serves calls.
func (b *Brain) SetAccess(source access.Source) { b.access = source }

// policy returns what hosts need to know, and a channel that is closed when that has changed; both
// are nil in a system without a CA.
func (b *Brain) policy() (*brainv1.AccessPolicy, <-chan struct{}) {
	if b.access == nil {
		return nil, nil
	}
	return b.access.Policy()
}

func (b *Brain) isRevoked(peer pki.Peer) bool {
	return b.access != nil && peer.TokenID != "" && b.access.Revoked(peer.TokenID)
}

// mayAttach refuses a lease for another host than the one whose certificate the caller has, and
// returns the caller's identity, which is empty for one in this process.
func (b *Brain) mayAttach(ctx context.Context, host *nodev1.HostInfo) (pki.Peer, error) {
	peer, _ := access.Peer(ctx)
	if peer.TokenID != "" && peer.HostID != host.GetId() {
		return peer, connect.Errorf(connect.CodePermissionDenied, "host %s asks for a lease of host %s", peer.HostID, host.GetId())
	}
	return peer, nil
}

// expel ends a host whose token was revoked, and returns the reason for it to know.
func (b *Brain) expel(ctx context.Context, host *nodev1.HostInfo, peer pki.Peer) error {
	cause := "the token by which its host has joined was revoked (" + peer.TokenID + ")"
	if err := b.leases.Report(ctx, host.GetId(), cause); err != nil {
		return err
	}
	return connect.Errorf(connect.CodePermissionDenied, "%s", cause)
}
