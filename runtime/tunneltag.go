package runtime

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"sync/atomic"

	"connectrpc.com/connect/v2"

	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	"github.com/raylink/raylink/runtime/tunnel"
)

// maxTunnels bounds the tagged tunnels of one node.
const maxTunnels = 1024

// tunnelTag is a tagged tunnel of a node. Each process that uses it has a connection of its own.
type tunnelTag struct {
	tag   string
	calls atomic.Uint64

	mu sync.Mutex // guards the fields below
	// open are the open connections; past is the traffic of those that have ended.
	open  map[*tunnel.Conn]struct{}
	total uint64
	past  tunnel.Stats
}

// CreateTunnel opens a tagged tunnel to the node: each process that uses it makes a connection that
// carries only its calls. Within a system, make a handle from the node reference in the result
// (`LearnerFrom(rt, info.GetNode())`, see also [Ref.Tagged]); a process outside uses [DialTunnel].
// The tag has 1 to 128 bytes and must be new for this node.
func (n *Node) CreateTunnel(tag string) (*nodev1.TunnelInfo, error) {
	if n.host == nil {
		return nil, errNoSystem()
	}
	if tag == "" || len(tag) > 128 {
		return nil, connect.Errorf(connect.CodeInvalidArgument, "a tunnel's tag has 1 to 128 bytes, not %d", len(tag))
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if _, ok := n.tunnels[tag]; ok {
		return nil, connect.Errorf(connect.CodeAlreadyExists, "%s has a tunnel %q already", n.path, tag)
	}
	if len(n.tunnels) >= maxTunnels {
		return nil, connect.Errorf(connect.CodeResourceExhausted, "%s has %d tunnels, the most it may", n.path, len(n.tunnels))
	}
	n.tunnels[tag] = &tunnelTag{tag: tag, open: make(map[*tunnel.Conn]struct{})}
	return &nodev1.TunnelInfo{Node: refOf(n.record, tag), Tag: tag}, nil
}

// TunnelStats returns the traffic of the node's tagged tunnels, sorted by tag; an empty tag selects
// all of them. A connection and its bytes are counted from the end of the handshake on, which a
// connection's first calls may overtake.
func (n *Node) TunnelStats(tag string) ([]*nodev1.TunnelStats, error) {
	n.mu.Lock()
	var tags []*tunnelTag
	for name, t := range n.tunnels {
		if tag == "" || tag == name {
			tags = append(tags, t)
		}
	}
	n.mu.Unlock()
	if tag != "" && len(tags) == 0 {
		return nil, n.noTunnel(tag)
	}
	slices.SortFunc(tags, func(a, b *tunnelTag) int { return cmp.Compare(a.tag, b.tag) })
	out := make([]*nodev1.TunnelStats, len(tags))
	for i, t := range tags {
		out[i] = t.stats()
	}
	return out, nil
}

func (n *Node) noTunnel(tag string) error {
	return connect.Errorf(connect.CodeNotFound, "%s has no tunnel %q: make one with CreateTunnel", n.path, tag)
}

// tunnelTag finds a tagged tunnel.
func (n *Node) tunnelTag(tag string) (*tunnelTag, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if t := n.tunnels[tag]; t != nil {
		return t, nil
	}
	return nil, n.noTunnel(tag)
}

// carry counts a connection until it ends.
func (t *tunnelTag) carry(c *tunnel.Conn) {
	t.mu.Lock()
	t.total++
	t.open[c] = struct{}{}
	t.mu.Unlock()
	c.AfterEnd(func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		delete(t.open, c)
		s := c.Stats()
		t.past.BytesReceived += s.BytesReceived
		t.past.BytesSent += s.BytesSent
	})
}

func (t *tunnelTag) stats() *nodev1.TunnelStats {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := &nodev1.TunnelStats{
		Tag: t.tag, ConnectionsOpen: uint64(len(t.open)), ConnectionsTotal: t.total, Calls: t.calls.Load(),
		BytesReceived: t.past.BytesReceived, BytesSent: t.past.BytesSent,
	}
	for c := range t.open {
		s := c.Stats()
		out.BytesReceived += s.BytesReceived
		out.BytesSent += s.BytesSent
	}
	return out
}

// refOf makes a NodeRef from a record and the tag of a tunnel, which may be empty.
func refOf(rec *nodev1.NodeRecord, tag string) *nodev1.NodeRef {
	return &nodev1.NodeRef{
		Nid: rec.GetNid(), Path: rec.GetPath(), Service: rec.GetService(), Incarnation: rec.GetIncarnation(), Host: rec.GetHost(), Tag: tag,
	}
}

// Tunnel is a connection to one node, dialled by its TunnelInfo.
type Tunnel struct {
	conn   *tunnel.Conn
	target string
}

// DialTunnel opens a connection to a node from the result of its CreateTunnel. It works without a
// runtime in this process. token is the system's; if it is empty, DialTunnel uses RAYLINK_TOKEN, or
// the token that a system of the same user on this machine has generated. The caller must Close the
// tunnel.
//
// In a system that uses TLS with a CA of its own the tunnel has the role of the token, and ends
// when that is revoked. DialTunnel gets a certificate from Brain at RAYLINK_BRAIN, or at the node's
// own address if that is not set.
// In one with an organisation's certificates it uses those of RAYLINK_TLS_CERT, RAYLINK_TLS_KEY and
// RAYLINK_TLS_CA.
func DialTunnel(ctx context.Context, info *nodev1.TunnelInfo, token string) (*Tunnel, error) {
	ref := info.GetNode()
	hello := tunnel.Hello{Host: ref.GetHost().GetId(), Tag: info.GetTag(), Target: ref.GetNid()}
	conn, err := dialOutside(ctx, ref.GetHost().GetAddress(), hello, token)
	if err != nil {
		return nil, err
	}
	return &Tunnel{conn: conn, target: targetOf(ref.GetNid(), ref.GetIncarnation())}, nil
}

// Client returns a connect client, as generated `New...Tunnel` functions take it.
func (t *Tunnel) Client() *connect.Client { return connect.NewClient(t.conn.Transport(t.target, "")) }

// Close closes the connection; calls in progress fail with Unavailable.
func (t *Tunnel) Close() error { return t.conn.Close() }
