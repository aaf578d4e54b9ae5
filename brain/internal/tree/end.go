package tree

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"

	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
)

// ending is the end of one node and its descendants.
type ending struct {
	nid   string
	cause string
	// final also ends nodes that restart.
	final bool
}

// manner is how nodes end, for the causes of their descendants.
type manner bool

const (
	died    manner = false
	orderly manner = true
)

// Remove removes nodes and their descendants from the tree, children before parents. Nodes that are
// already gone are skipped, so Remove can be repeated.
func (x *Txn) Remove(nids []string, cause string) ([]*nodev1.NodeRecord, error) {
	if len(nids) > maxChanges {
		return nil, connect.Errorf(connect.CodeInvalidArgument, "%d nodes at once are too many; the bound is %d", len(nids), maxChanges)
	}
	ends := make([]ending, 0, len(nids))
	for _, nid := range nids {
		if nid == x.rootNid() || nid == "" {
			return nil, connect.NewError(connect.CodeInvalidArgument, "the root can't be removed: stop Brain instead")
		}
		if _, err := x.find(nid); err != nil {
			if x.tomb(nid) != nil {
				continue
			}
			return nil, err
		}
		ends = append(ends, ending{nid: nid, cause: cmp.Or(cause, "removed"), final: true})
	}
	return x.end(ends, orderly), nil
}

// HostEnded ends the remaining nodes of a host after its goodbye.
func (x *Txn) HostEnded(host *nodev1.HostInfo) []*nodev1.NodeRecord {
	x.hostGone(host, "has ended")
	return x.end(x.endingsOf(host.GetId(), "ended"), orderly)
}

// HostDied ends the nodes of a dead host, with their descendants: the nodes that lived there or
// were about to.
func (x *Txn) HostDied(host *nodev1.HostInfo, cause string) []*nodev1.NodeRecord {
	cause = clipTo(cause, maxCauseBytes/2)
	h := &deadHost{id: host.GetId(), cause: cause}
	x.hosts[h.id] = h
	x.hostList = append(x.hostList, h)
	x.hostGone(host, "died: "+cause)
	return x.end(x.endingsOf(host.GetId(), "died: "+cause), died)
}

// hostGone ends what a host has beside nodes: the machine that it keeps, and its requests that
// wait.
func (x *Txn) hostGone(host *nodev1.HostInfo, how string) {
	x.unkeep(host.GetId())
	x.arrived(host.GetId())
	x.noteEnd(host, how)
}

// endingsOf returns the nodes that end with a host. how completes the cause: `died: killed by
// signal 9`.
func (x *Txn) endingsOf(host, how string) []ending {
	var ends []ending
	for nid := range x.onHost(host) {
		n := x.node(nid)
		owner := n.owner()
		switch {
		case owner.GetId() == host:
			// A node that restarts does so only while its launcher is alive.
			final := n.rec.GetRestarts() && n.launcher.GetId() == host
			ends = append(ends, ending{nid: nid, cause: "its " + Describe(owner) + " " + how, final: final})
		case n.rec.GetRestarts():
			ends = append(ends, ending{nid: nid, cause: "its launcher, the " + Describe(n.launcher) + ", " + how, final: true})
		}
	}
	return ends
}

// HostBack admits a host, even one that was declared dead, and returns which of its nodes are no
// longer its own.
func (x *Txn) HostBack(host *nodev1.HostInfo, nodes []*nodev1.NodeRef) (unknown []string) {
	if x.deadHost(host.GetId()) != nil {
		x.hosts[host.GetId()] = nil
	}
	x.arrived(host.GetId())
	for _, ref := range nodes {
		n := x.node(ref.GetNid())
		if n == nil || n.rec.GetState() == nodev1.NodeState_NODE_STATE_DEAD || n.rec.GetIncarnation() != ref.GetIncarnation() ||
			n.rec.GetHost() != nil && n.rec.GetHost().GetId() != host.GetId() {
			unknown = append(unknown, ref.GetNid())
		}
	}
	return unknown
}

// end ends nodes and their descendants, children before parents. Nodes with an ending of their own
// keep its cause.
func (x *Txn) end(ends []ending, how manner) []*nodev1.NodeRecord {
	// The topmost come first, so that a descendant of several gets the cause of the one nearest to
	// the root.
	slices.SortFunc(ends, func(a, b ending) int {
		return cmp.Or(cmp.Compare(depth(x.node(a.nid)), depth(x.node(b.nid))), cmp.Compare(a.nid, b.nid))
	})
	own := make(map[string]*ending, len(ends))
	for i := range ends {
		if own[ends[i].nid] == nil {
			own[ends[i].nid] = &ends[i]
		}
	}
	all := make(map[string]ending)
	for _, e := range ends {
		top := x.node(e.nid)
		if _, seen := all[e.nid]; !seen {
			all[e.nid] = e
		}
		for _, n := range below(x, e.nid) {
			nid := n.rec.GetNid()
			if _, seen := all[nid]; seen {
				continue
			}
			ended := ending{nid: nid, cause: e.cause, final: true}
			if how == died {
				kinship := "ancestor "
				if n.rec.GetParent() == e.nid {
					kinship = "parent "
				}
				ended.cause = kinship + top.rec.GetPath() + " died: " + e.cause
			}
			if mine := own[nid]; mine != nil {
				ended.cause = mine.cause
			}
			all[nid] = ended
		}
	}
	order := make([]*node, 0, len(all))
	for nid := range all {
		order = append(order, x.node(nid))
	}
	slices.SortFunc(order, func(a, b *node) int {
		return cmp.Or(cmp.Compare(depth(b), depth(a)), cmp.Compare(b.born, a.born))
	})
	records := make([]*nodev1.NodeRecord, 0, len(order))
	for _, n := range order {
		e := all[n.rec.GetNid()]
		if n.rec.GetRestarts() && !e.final {
			if n.rec.GetState() != nodev1.NodeState_NODE_STATE_DEAD {
				records = append(records, x.edit(n, func(rec *nodev1.NodeRecord) {
					rec.State = nodev1.NodeState_NODE_STATE_DEAD
					rec.Cause = clipTo(e.cause, maxCauseBytes)
				}))
			}
			continue
		}
		records = append(records, x.remove(n, e.cause))
	}
	return records
}

func depth(n *node) int { return strings.Count(n.rec.GetPath(), "/") }

// Describe names a host in a sentence.
func Describe(host *nodev1.HostInfo) string {
	switch {
	case host.GetPid() != 0 && host.GetMachine() != "":
		return fmt.Sprintf("host (pid %d on %s)", host.GetPid(), clip(host.GetMachine()))
	case host.GetPid() != 0:
		return fmt.Sprintf("host (pid %d)", host.GetPid())
	default:
		return fmt.Sprintf("host (%s)", clip(host.GetId()))
	}
}

// CheckHost refuses a host without a valid id, or with too large a description.
func CheckHost(role string, host *nodev1.HostInfo) error {
	if !IsUUID(host.GetId()) {
		return connect.Errorf(connect.CodeInvalidArgument, "the %s's id %q is not a UUID", role, clip(host.GetId()))
	}
	if size := proto.Size(host); size > maxHostBytes {
		return connect.Errorf(connect.CodeInvalidArgument, "what describes the %s has %d bytes; the bound is %d", role, size, maxHostBytes)
	}
	return CheckText(host)
}

// checkHost refuses a host that is invalid or was declared dead. Nil, for no host, is valid.
func (x *Txn) checkHost(role string, host *nodev1.HostInfo) error {
	if host == nil {
		return nil
	}
	if err := CheckHost(role, host); err != nil {
		return err
	}
	if h := x.deadHost(host.GetId()); h != nil {
		return connect.Errorf(connect.CodeFailedPrecondition, "the %s was declared dead: %s; it must attach again first", Describe(host), h.cause)
	}
	return nil
}
