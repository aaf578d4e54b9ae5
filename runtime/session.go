package runtime

import (
	"context"
	"errors"
	"weak"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connectinprocess"

	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
	"github.com/raylink/raylink/gen/raylink/brain/v1/brainv1connect"
	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	"github.com/raylink/raylink/internal/logs"
	"github.com/raylink/raylink/runtime/internal/session"
)

// join connects to Brain and gets this host's lease.
func (h *Host) join(ctx context.Context, embedded bool) error {
	var transport connect.Transport
	where := h.options.Brain
	if embedded {
		transport, where = connectinprocess.New(h.server), "embedded"
	} else {
		if where == "" {
			return connect.NewError(connect.CodeFailedPrecondition, "no Brain to join: give its address with --brain or RAYLINK_BRAIN, or start one with `raylink brain`")
		}
		transport = h.peers.Brain(where)
	}
	h.brain = brainClient{brainv1connect.NewBrainServiceClient(connect.NewClient(transport))}
	s, err := session.New(ctx, session.Config{
		Host: sessionHost{h}, Brain: h.brain, Address: where, Log: partOf(h.options.Logger, logs.Session), Spawn: h.goBackground,
	})
	if err != nil {
		return err
	}
	if !embedded {
		h.warnUnreachable(ctx, where, s.Root().GetHost())
	}
	h.session = s
	return s.Attach(ctx)
}

// sessionHost is the host as its session with Brain sees it.
type sessionHost struct{ host *Host }

var _ session.Host = sessionHost{}

// Info implements [session.Host].
func (s sessionHost) Info() *nodev1.HostInfo { return s.host.info() }

// Nodes implements [session.Host].
func (s sessionHost) Nodes() []*nodev1.NodeRef {
	nodes := s.host.localNodes()
	refs := make([]*nodev1.NodeRef, 0, len(nodes))
	for _, n := range nodes {
		refs = append(refs, n.Ref().NodeRef())
	}
	return refs
}

// OnPolicy implements [session.Host].
func (s sessionHost) OnPolicy(policy *brainv1.WebPolicy) { s.host.guard.setPolicy(policy) }

// OnRecord implements [session.Host]: it passes a record to the handles of the node in this
// process.
func (s sessionHost) OnRecord(rec *nodev1.NodeRecord) {
	s.host.mu.Lock()
	r := s.host.remotes[rec.GetNid()].Value()
	s.host.mu.Unlock()
	if r != nil {
		r.update(rec)
	}
}

// OnDeclaredDead implements [session.Host].
func (s sessionHost) OnDeclaredDead(nid string) {
	if n := s.host.localNode(nid); n != nil && !n.isStopping() {
		n.fail(errors.New("its host could not be reached, and it was declared dead"))
	}
}

// remote returns the remote of a nid, which all handles of this process share. The node is followed
// as long as a handle exists.
func (h *Host) remote(nid string) *remote {
	h.mu.Lock()
	defer h.mu.Unlock()
	if r := h.remotes[nid].Value(); r != nil {
		return r
	}
	r := newRemote(h, nid)
	h.remotes[nid] = weak.Make(r)
	return r
}
