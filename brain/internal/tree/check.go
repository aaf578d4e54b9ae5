package tree

import (
	"fmt"
	"maps"
	"slices"

	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
)

// check verifies the tree's invariants. It runs on what was loaded, and in tests after every step.
func (t *Tree) check() error {
	children, aliases := 0, 0
	for _, names := range t.childrenByName {
		children += len(names)
	}
	if children != len(t.nodes) {
		return fmt.Errorf("%d nodes are children, and %d are in the tree", children, len(t.nodes))
	}
	allocations := 0
	for nid, n := range t.nodes {
		if err := t.checkNode(nid, n); err != nil {
			return err
		}
		if n.rec.GetAllocation() != nil {
			allocations++
		}
		if n.rec.GetAlias() != "" {
			aliases++
		}
	}
	if aliases != len(t.aliases) {
		return fmt.Errorf("%d nodes have an alias, and %d aliases are taken", aliases, len(t.aliases))
	}
	if allocations != t.accounts.Len() {
		return fmt.Errorf("%d nodes have an allocation, and the accounts have %d", allocations, t.accounts.Len())
	}
	for parent := range t.indices {
		if parent != "" && t.nodes[parent] == nil {
			return fmt.Errorf("indices are counted below %s, which is gone", parent)
		}
	}
	for host, nids := range t.hosts {
		for nid := range nids {
			if n := t.nodes[nid]; n == nil || !slices.Contains(slices.Collect(n.mentions()), host) {
				return fmt.Errorf("the host %s is asked about the node %s, which is not there", host, nid)
			}
		}
	}
	if len(t.tombs) != len(t.tombQueue) || len(t.tombPaths) != len(t.tombQueue) || len(t.requests) != len(t.requestQueue) {
		return fmt.Errorf("%d tombstones by nid, %d by path, %d in their queue; %d requests, %d in theirs",
			len(t.tombs), len(t.tombPaths), len(t.tombQueue), len(t.requests), len(t.requestQueue))
	}
	return nil
}

func (t *Tree) checkNode(nid string, n *node) error {
	rec := n.rec
	path := rec.GetName()
	if parent := rec.GetParent(); parent != "" {
		above := t.nodes[parent]
		if above == nil {
			return fmt.Errorf("the node %s (%s) has lost its parent %s", rec.GetPath(), nid, parent)
		}
		path = above.rec.GetPath() + "/" + path
	}
	next := t.indices[rec.GetParent()][rec.GetType()]
	switch {
	case rec.GetNid() != nid:
		return fmt.Errorf("the node %s is stored as %s", rec.GetNid(), nid)
	case rec.GetPath() != path:
		return fmt.Errorf("the node %s is at %s, but its record has the path %s", nid, path, rec.GetPath())
	case rec.GetName() != nameOf(rec.GetType(), rec.GetIndex()):
		return fmt.Errorf("the node %s has the name %s, type %s and index %d", nid, rec.GetName(), rec.GetType(), rec.GetIndex())
	case rec.GetIndex() >= next:
		return fmt.Errorf("the node %s has an index that will be reused: the next is %d", path, next)
	case rec.GetIncarnation() == 0:
		return fmt.Errorf("the node %s has never lived", path)
	case rec.GetRevision() > t.revision || n.born > rec.GetRevision():
		return fmt.Errorf("the node %s has revision %d, born at %d, and the tree has %d", path, rec.GetRevision(), n.born, t.revision)
	case rec.GetState() == nodev1.NodeState_NODE_STATE_DEAD && !rec.GetRestarts():
		return fmt.Errorf("the node %s is dead and still in the tree", path)
	case t.tombs[nid] != nil:
		return fmt.Errorf("the node %s lives, and has a tombstone", path)
	case t.childrenByName[rec.GetParent()][rec.GetName()] != nid:
		return fmt.Errorf("the node %s is not found by its path", path)
	}
	given := rec.GetAllocation()
	had, ok := t.accounts.Allocation(nid)
	same := had.Machine == given.GetMachine() && maps.Equal(had.Resources, given.GetResources()) && slices.Equal(had.GPUs, given.GetGpus())
	if ok != (given != nil) || !same {
		return fmt.Errorf("the node %s has the allocation %v, and in the accounts %v", path, given, had)
	}
	if alias := rec.GetAlias(); alias != "" {
		if t.aliases[alias] != nid {
			return fmt.Errorf("the alias %s is held by %s and by %s", alias, t.aliases[alias], nid)
		}
	}
	for host := range n.mentions() {
		if _, ok := t.hosts[host][nid]; !ok {
			return fmt.Errorf("the node %s would outlive its host %s", path, host)
		}
	}
	return nil
}
