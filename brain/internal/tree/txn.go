package tree

import (
	"maps"
	"slices"
	"time"

	"github.com/raylink/raylink/brain/internal/placement"
	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
)

// Txn stages changes. They are visible in the transaction only, until it is merged. It must not be
// used concurrently.
type Txn struct {
	base     view
	limits   *Limits
	now      time.Time
	shared   *shared
	accounts *placement.Accounts

	revision       uint64
	count          int
	nodes          map[string]*node             // nil: removed
	childrenByName map[string]map[string]string // parent -> name -> nid; "": removed
	aliases        map[string]string            // "": freed
	indices        map[string]map[string]uint64 // parent -> type -> next; 0: dropped with its parent
	tombs          map[string]*tombstone
	tombList       []*tombstone
	requests       map[string]*request
	reqList        []*request
	hosts          map[string]*deadHost // nil: back
	hostList       []*deadHost
	changed        []*nodev1.NodeRecord
	// The numbers of oldest tombstones and requests that are dropped when the transaction is merged
	// into the tree.
	dropTombs, dropRequests int

	// See machines.go. These maps are made when they are needed, as those below.
	keepersByMachine map[string][]*keeper // empty: the machine has left
	keepsByHost      map[string]*keeper   // nil: the host keeps none
	back             map[string]struct{}
	keeping          int // hosts that keep a machine
	expecting        int // hosts that are expected back
	machinesChanged  bool

	// See wait.go.
	waiting     map[uint64]*Waiting // nil: waits no longer
	waitingByID map[string]*Waiting
	answers     []answer
	endedHosts  map[string]string // how they have ended, by id
	someEnded   bool              // a node or a host

	// spare is a nested transaction that has ended, whose maps the next one uses.
	spare *Txn
}

// Begin starts a transaction on the tree. While it is open no other one may be merged.
func (t *Tree) Begin(now time.Time) *Txn {
	x := newTxn(t, &t.limits, now)
	x.shared, x.accounts, x.keeping, x.expecting = t.shared, t.accounts.Begin(), len(t.keepsByHost), len(t.expected)
	return x
}

// Begin starts a nested transaction.
func (x *Txn) Begin() *Txn {
	inner := x.spare
	if inner == nil {
		inner = newTxn(x, x.limits, x.now)
	} else {
		x.spare = nil
		inner.base, inner.revision, inner.count = x, x.revision, x.count
	}
	inner.shared, inner.accounts, inner.keeping, inner.expecting = x.shared, x.accounts.Begin(), x.keeping, x.expecting
	return inner
}

func newTxn(base view, limits *Limits, now time.Time) *Txn {
	return &Txn{
		base: base, limits: limits, now: now,
		revision: base.rev(), count: base.size(),
		nodes:          make(map[string]*node),
		childrenByName: make(map[string]map[string]string),
		aliases:        make(map[string]string),
		indices:        make(map[string]map[string]uint64),
		tombs:          make(map[string]*tombstone),
		requests:       make(map[string]*request),
		hosts:          make(map[string]*deadHost),
	}
}

// Changed returns the new records of the nodes that the transaction changes, each node once.
func (x *Txn) Changed() []*nodev1.NodeRecord {
	latest := make(map[string]struct{}, len(x.changed))
	list := make([]*nodev1.NodeRecord, 0, len(x.changed))
	for _, rec := range slices.Backward(x.changed) {
		if _, ok := latest[rec.GetNid()]; !ok {
			latest[rec.GetNid()] = struct{}{}
			list = append(list, rec)
		}
	}
	slices.Reverse(list)
	return list
}

// MachinesChanged reports whether a machine has joined, left or changed.
func (x *Txn) MachinesChanged() bool { return x.machinesChanged }

// Merge applies the staged changes to the enclosing transaction, or to the tree. The transaction
// must not be used afterwards.
func (x *Txn) Merge() {
	x.accounts.Merge()
	switch base := x.base.(type) {
	case *Txn:
		base.apply(x)
		base.spare = x.cleared()
	case *Tree:
		base.apply(x)
	}
	x.base = nil
}

// cleared removes everything staged, and returns the transaction: its maps are what most of it
// costs, in a group of a thousand small ones.
func (x *Txn) cleared() *Txn {
	clear(x.nodes)
	clear(x.childrenByName)
	clear(x.aliases)
	clear(x.indices)
	clear(x.tombs)
	clear(x.requests)
	clear(x.hosts)
	*x = Txn{
		limits: x.limits, now: x.now, spare: x.spare,
		nodes: x.nodes, childrenByName: x.childrenByName, aliases: x.aliases, indices: x.indices, tombs: x.tombs, requests: x.requests, hosts: x.hosts,
	}
	return x
}

func (x *Txn) apply(inner *Txn) {
	x.revision, x.count = inner.revision, inner.count
	maps.Copy(x.nodes, inner.nodes)
	mergeNested(x.childrenByName, inner.childrenByName)
	maps.Copy(x.aliases, inner.aliases)
	mergeNested(x.indices, inner.indices)
	maps.Copy(x.tombs, inner.tombs)
	x.tombList = append(x.tombList, inner.tombList...)
	maps.Copy(x.requests, inner.requests)
	x.reqList = append(x.reqList, inner.reqList...)
	maps.Copy(x.hosts, inner.hosts)
	x.hostList = append(x.hostList, inner.hostList...)
	x.changed = append(x.changed, inner.changed...)
	x.applyMachines(inner)
	x.applyWaiting(inner)
}

func mergeNested[V any](to, from map[string]map[string]V) {
	for parent, entries := range from {
		if to[parent] == nil {
			to[parent] = entries
			continue
		}
		maps.Copy(to[parent], entries)
	}
}

func (t *Tree) apply(x *Txn) {
	t.revision = x.revision
	for nid, n := range x.nodes {
		if old := t.nodes[nid]; old != nil {
			for host := range old.mentions() {
				dropNested(t.hosts, host, nid)
			}
		}
		if n == nil {
			delete(t.nodes, nid)
			continue
		}
		t.nodes[nid] = n
		for host := range n.mentions() {
			putNested(t.hosts, host, nid, struct{}{})
		}
	}
	for parent, names := range x.childrenByName {
		for name, nid := range names {
			if nid == "" {
				dropNested(t.childrenByName, parent, name)
			} else {
				putNested(t.childrenByName, parent, name, nid)
			}
		}
	}
	for alias, nid := range x.aliases {
		if nid == "" {
			delete(t.aliases, alias)
		} else {
			t.aliases[alias] = nid
		}
	}
	for parent, kinds := range x.indices {
		for kind, next := range kinds {
			if next == 0 {
				dropNested(t.indices, parent, kind)
			} else {
				putNested(t.indices, parent, kind, next)
			}
		}
	}
	for _, d := range x.tombList {
		t.addTombstone(d)
	}
	for range x.dropTombs {
		t.dropOldestTombstone()
	}
	for _, r := range x.reqList {
		t.requests[r.id] = r
		t.requestQueue = append(t.requestQueue, r)
	}
	for range x.dropRequests {
		delete(t.requests, t.requestQueue[0].id)
		t.requestQueue = t.requestQueue[1:]
	}
	for id, h := range x.hosts {
		if h == nil {
			delete(t.deadHosts, id)
		} else {
			t.deadHosts[id] = h
		}
	}
	for _, h := range x.hostList {
		if t.deadHosts[h.id] == h {
			t.deadHostQueue = append(t.deadHostQueue, h)
		}
	}
	for len(t.deadHostQueue) > t.limits.DeadHosts {
		oldest := t.deadHostQueue[0]
		t.deadHostQueue = t.deadHostQueue[1:]
		if t.deadHosts[oldest.id] == oldest {
			delete(t.deadHosts, oldest.id)
		}
	}
	t.applyMachines(x)
	t.applyWaiting(x)
}

func putNested[V any](m map[string]map[string]V, outer, inner string, value V) {
	if m[outer] == nil {
		m[outer] = make(map[string]V)
	}
	m[outer][inner] = value
}

func dropNested[V any](m map[string]map[string]V, outer, inner string) {
	delete(m[outer], inner)
	if len(m[outer]) == 0 {
		delete(m, outer)
	}
}

func (t *Tree) addTombstone(d *tombstone) {
	t.tombs[d.rec.GetNid()] = d
	t.tombPaths[d.rec.GetPath()] = d
	if alias := d.rec.GetAlias(); alias != "" {
		t.tombAliases[alias] = d
	}
	t.tombQueue = append(t.tombQueue, d)
}

func (t *Tree) dropOldestTombstone() {
	d := t.tombQueue[0]
	t.tombQueue[0] = nil
	t.tombQueue = t.tombQueue[1:]
	delete(t.tombs, d.rec.GetNid())
	delete(t.tombPaths, d.rec.GetPath())
	if alias := d.rec.GetAlias(); t.tombAliases[alias] == d {
		delete(t.tombAliases, alias)
	}
}

// Expire drops tombstones and requests that are too many or too old. It must be called once, last,
// on the transaction that will be merged into the tree.
func (x *Txn) Expire() {
	t, ok := x.base.(*Tree)
	if !ok {
		return
	}
	tombs := len(t.tombQueue) + len(x.tombList)
	for x.dropTombs < tombs && (tombs-x.dropTombs > x.limits.Tombstones ||
		x.now.Sub(nth(t.tombQueue, x.tombList, x.dropTombs).died) > x.limits.TombstoneAge) {
		x.dropTombs++
	}
	requests := len(t.requestQueue) + len(x.reqList)
	for x.dropRequests < requests && (requests-x.dropRequests > x.limits.Requests ||
		x.now.Sub(nth(t.requestQueue, x.reqList, x.dropRequests).done) > x.limits.RequestAge) {
		x.dropRequests++
	}
}

// nth is an element of the concatenation of two slices.
func nth[E any](a, b []E, i int) E {
	if i < len(a) {
		return a[i]
	}
	return b[i-len(a)]
}

// put stages a record: a new one, or one that replaces the node's current one.
func (x *Txn) put(n *node) {
	nid := n.rec.GetNid()
	if x.node(nid) == nil {
		x.count++
		putNested(x.childrenByName, n.rec.GetParent(), n.rec.GetName(), nid)
		if alias := n.rec.GetAlias(); alias != "" {
			x.aliases[alias] = nid
		}
	}
	x.nodes[nid] = n
	x.changed = append(x.changed, n.rec)
}

// edit stages a changed copy of a node's record.
func (x *Txn) edit(n *node, change func(rec *nodev1.NodeRecord)) *nodev1.NodeRecord {
	rec := copyOf(n.rec)
	change(rec)
	x.someEnded = x.someEnded || rec.GetState() >= nodev1.NodeState_NODE_STATE_STOPPING
	x.revision++
	rec.Revision = x.revision
	x.put(&node{rec: rec, born: n.born, launcher: n.launcher})
	return rec
}

// copyOf returns a copy of a record. They share messages and the map of attributes, which are
// immutable: a change replaces them.
func copyOf(rec *nodev1.NodeRecord) *nodev1.NodeRecord {
	return &nodev1.NodeRecord{
		Nid: rec.GetNid(), Name: rec.GetName(), Path: rec.GetPath(), Type: rec.GetType(), Index: rec.GetIndex(), Parent: rec.GetParent(),
		Service: rec.GetService(), Alias: rec.GetAlias(), Incarnation: rec.GetIncarnation(), State: rec.GetState(), Host: rec.GetHost(),
		Attributes: rec.GetAttributes(), Created: rec.GetCreated(), Revision: rec.GetRevision(), Cause: rec.GetCause(),
		Restarts: rec.GetRestarts(), Allocation: rec.GetAllocation(),
	}
}

// remove stages the removal of a node without children.
func (x *Txn) remove(n *node, cause string) *nodev1.NodeRecord {
	rec := copyOf(n.rec)
	x.revision++
	rec.Revision = x.revision
	rec.State = nodev1.NodeState_NODE_STATE_DEAD
	rec.Cause = clipTo(cause, maxCauseBytes)
	nid := rec.GetNid()
	if rec.GetAllocation() != nil {
		x.accounts.Release(nid)
	}
	x.someEnded = true
	for kind := range x.counters(nid) {
		putNested(x.indices, nid, kind, 0)
	}
	x.count--
	x.nodes[nid] = nil
	putNested(x.childrenByName, rec.GetParent(), rec.GetName(), "")
	if alias := rec.GetAlias(); alias != "" {
		x.aliases[alias] = ""
	}
	d := &tombstone{rec: rec, died: x.now}
	x.tombs[nid] = d
	x.tombList = append(x.tombList, d)
	x.changed = append(x.changed, rec)
	return rec
}

func (x *Txn) node(nid string) *node {
	if n, ok := x.nodes[nid]; ok {
		return n
	}
	return x.base.node(nid)
}

func (x *Txn) child(parent, name string) string {
	if nid, ok := x.childrenByName[parent][name]; ok {
		return nid
	}
	return x.base.child(parent, name)
}

func (x *Txn) children(parent string) map[string]string {
	return overlaid(x.base.children(parent), x.childrenByName[parent])
}

func (x *Txn) counters(parent string) map[string]uint64 {
	return overlaid(x.base.counters(parent), x.indices[parent])
}

// overlaid is a map with staged changes applied, in which zero values delete.
func overlaid[V comparable](base, staged map[string]V) map[string]V {
	if len(staged) == 0 {
		return base
	}
	seen := maps.Clone(base)
	if seen == nil {
		seen = make(map[string]V, len(staged))
	}
	var gone V
	for name, value := range staged {
		if value == gone {
			delete(seen, name)
		} else {
			seen[name] = value
		}
	}
	return seen
}

func (x *Txn) alias(alias string) string {
	if nid, ok := x.aliases[alias]; ok {
		return nid
	}
	return x.base.alias(alias)
}

func (x *Txn) next(parent, kind string) uint64 {
	if next, ok := x.indices[parent][kind]; ok {
		return next
	}
	return x.base.next(parent, kind)
}

func (x *Txn) tomb(nid string) *tombstone {
	if d, ok := x.tombs[nid]; ok {
		return d
	}
	return x.base.tomb(nid)
}

func (x *Txn) request(id string) *request {
	if r, ok := x.requests[id]; ok {
		return r
	}
	return x.base.request(id)
}

func (x *Txn) deadHost(id string) *deadHost {
	if h, ok := x.hosts[id]; ok {
		return h
	}
	return x.base.deadHost(id)
}

func (x *Txn) onHost(host string) map[string]struct{} {
	seen := maps.Clone(x.base.onHost(host))
	for nid, n := range x.nodes {
		delete(seen, nid)
		if n == nil {
			continue
		}
		for mentioned := range n.mentions() {
			if mentioned == host {
				if seen == nil {
					seen = make(map[string]struct{})
				}
				seen[nid] = struct{}{}
			}
		}
	}
	return seen
}

func (x *Txn) rev() uint64 { return x.revision }
func (x *Txn) size() int   { return x.count }

func (x *Txn) root() *nodev1.NodeRecord { return x.base.root() }
