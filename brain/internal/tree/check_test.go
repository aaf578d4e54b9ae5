package tree

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
)

// TestCheckFindsEachContradiction breaks a tree in each way that check detects.
func TestCheckFindsEachContradiction(t *testing.T) {
	edit := func(tree *Tree, nid string, change func(*nodev1.NodeRecord)) {
		rec := proto.CloneOf(tree.nodes[nid].rec)
		change(rec)
		tree.nodes[nid] = &node{rec: rec, born: tree.nodes[nid].born, launcher: tree.nodes[nid].launcher}
	}
	for says, harm := range map[string]func(tree *Tree, parent, child string){
		"will be reused":          func(tree *Tree, parent, _ string) { delete(tree.indices, parent) },
		"has lost its parent":     func(tree *Tree, parent, _ string) { delete(tree.nodes, parent); delete(tree.childrenByName, "") },
		"are children":            func(tree *Tree, parent, _ string) { delete(tree.childrenByName, parent) },
		"is not found by":         func(tree *Tree, parent, _ string) { tree.childrenByName[parent]["child-0"] = NewUUID() },
		"is held by":              func(tree *Tree, _, _ string) { tree.aliases["alias"] = NewUUID() },
		"aliases are taken":       func(tree *Tree, parent, _ string) { tree.aliases["other"] = parent },
		"outlive its host":        func(tree *Tree, _, child string) { delete(tree.hosts[uuid("1")], child) },
		"is asked about":          func(tree *Tree, parent, _ string) { tree.hosts[uuid("1")][parent] = struct{}{} },
		"which is gone":           func(tree *Tree, _, _ string) { tree.indices[NewUUID()] = map[string]uint64{"x": 1} },
		"has a tombstone":         func(tree *Tree, _, child string) { tree.tombs[child] = &tombstone{rec: tree.nodes[child].rec} },
		"tombstones by nid":       func(tree *Tree, _, _ string) { tree.tombs[NewUUID()] = &tombstone{} },
		"and the tree has":        func(tree *Tree, _, _ string) { tree.revision = 0 },
		"has never lived":         func(tree *Tree, _, child string) { edit(tree, child, func(r *nodev1.NodeRecord) { r.Incarnation = 0 }) },
		"its record has the path": func(tree *Tree, _, child string) { edit(tree, child, func(r *nodev1.NodeRecord) { r.Path = "x" }) },
		"has the name":            func(tree *Tree, _, child string) { edit(tree, child, func(r *nodev1.NodeRecord) { r.Type = "x" }) },
		"is stored as":            func(tree *Tree, _, child string) { edit(tree, child, func(r *nodev1.NodeRecord) { r.Nid = "x" }) },
		"dead and still in": func(tree *Tree, _, child string) {
			edit(tree, child, func(r *nodev1.NodeRecord) { r.State = nodev1.NodeState_NODE_STATE_DEAD })
		},
	} {
		tree := New(testRoot(), Limits{})
		x := tree.Begin(time.Now())
		parents, err := x.Register(&brainv1.RegisterRequest{Type: "parent"})
		require.NoError(t, err)
		parent := parents[0].GetNid()
		children, err := x.Register(&brainv1.RegisterRequest{Type: "child", Parent: parent, Alias: "alias", Launcher: testHost("1")})
		require.NoError(t, err)
		x.Merge()
		require.NoError(t, tree.check())
		harm(tree, parent, children[0].GetNid())
		require.ErrorContains(t, tree.check(), says)
	}
}

func TestLoadRefusesInvalidEntries(t *testing.T) {
	for says, entry := range map[string]Write{
		"of no kind":       {Key: "x"},
		"read a node":      {Key: keyNode + "a", Value: []byte("rubbish")},
		"holds the node":   {Key: keyNode + "a"},
		"names no parent":  {Key: keyIndex + "a", Value: make([]byte, 8)},
		"where a number":   {Key: keyRevision, Value: []byte{1}},
		"read a tombstone": {Key: keyTomb + "a", Value: []byte("rubbish")},
		"read a request":   {Key: keyRequest + "a", Value: []byte("rubbish")},
		"entry \"q/a\"":    {Key: keyRequest + "a"},
		"entry \"i/a/b\"":  {Key: keyIndex + "a/b"},
	} {
		_, err := Load(testRoot(), Limits{}, disk{entry.Key: entry.Value}.entries())
		require.ErrorContains(t, err, says)
	}
}
