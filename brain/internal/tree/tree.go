// Package tree is the registry in memory: every node's record, and the rules by which records are
// created, changed and removed.
//
// It is pure: it uses no clock, no goroutine and no disk. A [Tree] is the acknowledged state.
// Changes are made in a [Txn], which sees the tree with its own staged changes, and has no effect
// if it is dropped. Nested transactions make each request all or nothing within a group of requests
// that is committed together. Before a transaction is merged into the tree, its owner must write
// [Txn.Writes] to disk, from which [Load] restores the same tree.
//
// What it promises: an index, and therefore a name and a path, is never reused, not even after a
// restart. A record that was returned never changes; a changed node has a new record. A lookup of a
// dead node returns its cause of death, for some time. The allocations of the records in the tree
// are those of its accounts ([placement.Accounts]), in each transaction.
//
// A node takes less than one KiB of memory. Records share what they have in common: hosts, types,
// services, and the allocations of nodes that have as much of the same machine.
//
// Concurrent reads of a Tree are safe, but not while a Txn is merged into it; the owner must hold a
// lock for that. Start with [Tree.Lookup], [Txn.Register] and [Txn.Remove]; machines.go has the
// machines and their keepers, place.go the places of nodes, wait.go requests that wait for one.
package tree

import (
	"cmp"
	"iter"
	"maps"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect/v2"

	"github.com/raylink/raylink/brain/internal/placement"
	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
)

// Limits bounds what a tree accepts and retains. The zero value of a field means its default.
type Limits struct {
	// MaxNodes is how many nodes may be alive at once. Default 1,048,576.
	MaxNodes int
	// MaxCount is how many nodes one registration may create. Default, and at most,
	// [placement.MaxCount].
	MaxCount int
	// MaxDepth is how many names a path may have. Default 64.
	MaxDepth int
	// MaxAttributes is how many attributes a node may have. Default 64.
	MaxAttributes int
	// MaxAttributeBytes bounds a node's attributes, keys and values together, in bytes. Default 16
	// KiB.
	MaxAttributeBytes int
	// Tombstones is how many dead nodes are remembered, the latest ones. Default 4,096.
	Tombstones int
	// TombstoneAge is for how long they are remembered. Default one hour.
	TombstoneAge time.Duration
	// Requests is how many registrations are remembered, so that repeating one has no effect.
	// Default 16,384.
	Requests int
	// RequestAge is for how long they are remembered. Default ten minutes.
	RequestAge time.Duration
	// DeadHosts is how many dead hosts are remembered; requests on their behalf are refused.
	// Default 4,096.
	DeadHosts int
	// Machines is how many machines hosts may declare. Default 8,192.
	Machines int
}

func (l Limits) withDefaults() Limits {
	l.MaxNodes = cmp.Or(l.MaxNodes, 1<<20)
	l.MaxCount = min(cmp.Or(l.MaxCount, placement.MaxCount), placement.MaxCount)
	l.MaxDepth = cmp.Or(l.MaxDepth, 64)
	l.MaxAttributes = cmp.Or(l.MaxAttributes, 64)
	l.MaxAttributeBytes = cmp.Or(l.MaxAttributeBytes, 16<<10)
	l.Tombstones = cmp.Or(l.Tombstones, 4096)
	l.TombstoneAge = cmp.Or(l.TombstoneAge, time.Hour)
	l.Requests = cmp.Or(l.Requests, 16384)
	l.RequestAge = cmp.Or(l.RequestAge, 10*time.Minute)
	l.DeadHosts = cmp.Or(l.DeadHosts, 4096)
	l.Machines = cmp.Or(l.Machines, 8192)
	return l
}

// node is one incarnation in the tree. It is immutable: a change makes a new one.
type node struct {
	rec *nodev1.NodeRecord
	// born is the revision at registration, which orders siblings.
	born     uint64
	launcher *nodev1.HostInfo
}

// owner is the host that is responsible for the node: its own, or its launcher until it has one. It
// is nil if there is none, as for a dead node that waits for its restart.
func (n *node) owner() *nodev1.HostInfo {
	if n.rec.GetState() == nodev1.NodeState_NODE_STATE_DEAD {
		return nil
	}
	if n.rec.GetHost() != nil {
		return n.rec.GetHost()
	}
	return n.launcher
}

// mentions yields the ids of the hosts whose death affects the node.
func (n *node) mentions() iter.Seq[string] {
	return func(yield func(string) bool) {
		host, launcher := n.owner().GetId(), n.launcher.GetId()
		if host != "" && !yield(host) {
			return
		}
		if launcher != "" && launcher != host {
			yield(launcher)
		}
	}
}

// tombstone is the last record of a node that is gone, with state dead and a cause.
type tombstone struct {
	rec  *nodev1.NodeRecord
	died time.Time
}

// request is a completed registration.
type request struct {
	id    string
	asked string
	nids  []string
	done  time.Time
	// seq is the revision of its first node, under which it is stored.
	seq uint64
}

// deadHost is a host that was declared dead.
type deadHost struct {
	id    string
	cause string
}

// view is what a transaction is based on: the tree, or another transaction.
type view interface {
	recordsView
	machinesView
	waitingView
}

type recordsView interface {
	node(nid string) *node
	child(parent, name string) string
	children(parent string) map[string]string
	alias(alias string) string
	counters(parent string) map[string]uint64
	next(parent, kind string) uint64
	tomb(nid string) *tombstone
	request(id string) *request
	deadHost(id string) *deadHost
	onHost(host string) map[string]struct{}
	rev() uint64
	size() int
}

type machinesView interface {
	// root is Brain's own record.
	root() *nodev1.NodeRecord
	keepers(machine string) []*keeper
	keeps(host string) *keeper
	expects(host string) bool
}

type waitingView interface {
	waits(ticket uint64) *Waiting
	waitingFor(id string) *Waiting
	waitingCount() int
	eachWaiting(visit func(*Waiting))
}

// Tree is the acknowledged state of the registry.
type Tree struct {
	limits   Limits
	self     *nodev1.NodeRecord // Brain's own
	revision uint64
	shared   *shared
	// accounts have the machines that are kept, the allocations of the nodes, and the queue.
	accounts *placement.Accounts

	nodes          map[string]*node
	childrenByName map[string]map[string]string // parent's nid -> name -> nid
	aliases        map[string]string
	indices        map[string]map[string]uint64   // parent's nid -> type -> the next index
	hosts          map[string]map[string]struct{} // host id -> nids of the nodes that its death affects

	tombs       map[string]*tombstone
	tombQueue   []*tombstone // oldest first
	tombPaths   map[string]*tombstone
	tombAliases map[string]*tombstone // the latest holder

	requests     map[string]*request
	requestQueue []*request // oldest first

	deadHosts     map[string]*deadHost
	deadHostQueue []*deadHost // oldest first

	keepersByMachine map[string][]*keeper // oldest first
	keepsByHost      map[string]*keeper
	expected         map[string]struct{} // hosts that were known before a restart, until they attach

	waiting     map[uint64]*Waiting // by ticket
	waitingByID map[string]*Waiting
}

// New makes an empty tree below a root, which is Brain's own record.
func New(root *nodev1.NodeRecord, limits Limits) *Tree {
	return &Tree{
		limits:         limits.withDefaults(),
		self:           root,
		shared:         newShared(),
		accounts:       placement.New(),
		nodes:          make(map[string]*node),
		childrenByName: make(map[string]map[string]string),
		aliases:        make(map[string]string),
		indices:        make(map[string]map[string]uint64),
		hosts:          make(map[string]map[string]struct{}),
		tombs:          make(map[string]*tombstone),
		tombPaths:      make(map[string]*tombstone),
		tombAliases:    make(map[string]*tombstone),
		requests:       make(map[string]*request),
		deadHosts:      make(map[string]*deadHost),

		keepersByMachine: make(map[string][]*keeper),
		keepsByHost:      make(map[string]*keeper),
		expected:         make(map[string]struct{}),
		waiting:          make(map[uint64]*Waiting),
		waitingByID:      make(map[string]*Waiting),
	}
}

// Revision is the revision of the latest change.
func (t *Tree) Revision() uint64 { return t.revision }

// Len is how many nodes are in the tree.
func (t *Tree) Len() int { return len(t.nodes) }

// Root is Brain's own record.
func (t *Tree) Root() *nodev1.NodeRecord { return t.self }

// SetRoot replaces Brain's own record, once its address is known.
func (t *Tree) SetRoot(root *nodev1.NodeRecord) { t.self = root }

// Owners returns the hosts that are responsible for some node, once each: those whose leases
// matter.
func (t *Tree) Owners() []*nodev1.HostInfo {
	owners := make(map[string]*nodev1.HostInfo)
	for _, n := range t.nodes {
		if owner := n.owner(); owner != nil {
			owners[owner.GetId()] = owner
		}
		if n.launcher != nil {
			owners[n.launcher.GetId()] = n.launcher
		}
	}
	return slices.Collect(maps.Values(owners))
}

// Record returns a node's current record; for a node that is gone but still remembered, it has the
// state dead. It returns nil for an nid that the tree does not know.
func (t *Tree) Record(nid string) *nodev1.NodeRecord {
	if n := t.nodes[nid]; n != nil {
		return n.rec
	}
	if d := t.tombs[nid]; d != nil {
		return d.rec
	}
	if nid == t.self.GetNid() {
		return t.self
	}
	return nil
}

// List returns the subtree of a node, including the node, or of the root (also for an empty nid),
// without the root: parents before children, siblings in the order of their creation. If direct is
// set, it returns only the children.
func (t *Tree) List(root string, direct bool) ([]*nodev1.NodeRecord, error) {
	var list []*nodev1.NodeRecord
	if root == t.self.GetNid() {
		root = ""
	}
	if root != "" {
		n := t.nodes[root]
		if n == nil {
			return nil, t.unknownNid(root)
		}
		if !direct {
			list = append(list, n.rec)
		}
	}
	if direct {
		for _, n := range childrenInOrder(t, root) {
			list = append(list, n.rec)
		}
		return list, nil
	}
	for _, n := range below(t, root) {
		list = append(list, n.rec)
	}
	return list, nil
}

// childrenInOrder returns a node's children in the order of their creation.
func childrenInOrder(v view, parent string) []*node {
	children := v.children(parent)
	list := make([]*node, 0, len(children))
	for _, nid := range children {
		list = append(list, v.node(nid))
	}
	slices.SortFunc(list, func(a, b *node) int { return cmp.Compare(a.born, b.born) })
	return list
}

// below returns a node's descendants, parents before children. It does not recurse: the depth comes
// from the wire.
func below(v view, root string) []*node {
	var list []*node
	stack := childrenInOrder(v, root)
	slices.Reverse(stack)
	for len(stack) > 0 {
		n := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		list = append(list, n)
		children := childrenInOrder(v, n.rec.GetNid())
		slices.Reverse(children)
		stack = append(stack, children...)
	}
	return list
}

// Lookup finds a living node; `BRAIN` finds the root. For any other it fails with NotFound, and the
// error says how the node died or what exists instead.
func (t *Tree) Lookup(by By, where string) (*nodev1.NodeRecord, error) {
	if by == ByAny {
		by = formOf(where)
	}
	switch by {
	case ByPath:
		return t.lookupPath(where)
	case ByAlias:
		if n := t.nodes[t.aliases[where]]; n != nil {
			return n.rec, nil
		}
		if d := t.tombAliases[where]; d != nil {
			return nil, deadError(d.rec)
		}
		return nil, t.unknownAlias(where)
	case ByNID:
		where = strings.ToLower(where)
		if n := t.nodes[where]; n != nil {
			return n.rec, nil
		}
		if where == t.self.GetNid() {
			return t.self, nil
		}
		return nil, t.unknownNid(where)
	case ByAny:
	}
	return nil, connect.Errorf(connect.CodeInvalidArgument, "%q is not asked for by path, alias or nid", clip(where))
}

func (t *Tree) node(nid string) *node                    { return t.nodes[nid] }
func (t *Tree) child(parent, name string) string         { return t.childrenByName[parent][name] }
func (t *Tree) children(parent string) map[string]string { return t.childrenByName[parent] }
func (t *Tree) alias(alias string) string                { return t.aliases[alias] }
func (t *Tree) counters(parent string) map[string]uint64 { return t.indices[parent] }
func (t *Tree) next(parent, kind string) uint64          { return t.indices[parent][kind] }
func (t *Tree) tomb(nid string) *tombstone               { return t.tombs[nid] }
func (t *Tree) request(id string) *request               { return t.requests[id] }
func (t *Tree) deadHost(id string) *deadHost             { return t.deadHosts[id] }
func (t *Tree) onHost(host string) map[string]struct{}   { return t.hosts[host] }
func (t *Tree) rev() uint64                              { return t.revision }
func (t *Tree) size() int                                { return len(t.nodes) }
func (t *Tree) root() *nodev1.NodeRecord                 { return t.self }
