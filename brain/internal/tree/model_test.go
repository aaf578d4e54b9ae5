package tree

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
)

// modelNode is a node of the model, which has no index and no overlay.
type modelNode struct {
	nid, parent, path, kind, alias string
	host, launcher                 string
	restarts                       bool
	incarnation                    uint64
	state                          nodev1.NodeState
}

// model is a list of living nodes in the order of their creation, a list of dead nodes, and
// counters.
type model struct {
	living []*modelNode
	dead   map[string]*modelNode
	next   map[string]int
	gone   map[string]bool // hosts
}

func (m *model) clone() *model {
	c := &model{dead: make(map[string]*modelNode), next: make(map[string]int), gone: make(map[string]bool)}
	for _, n := range m.living {
		other := *n
		c.living = append(c.living, &other)
	}
	maps.Copy(c.dead, m.dead)
	maps.Copy(c.next, m.next)
	for host := range m.gone {
		c.gone[host] = true
	}
	return c
}

func (m *model) find(nid string) *modelNode {
	for _, n := range m.living {
		if n.nid == nid {
			return n
		}
	}
	return nil
}

func (m *model) remove(nid string) {
	for _, child := range slices.Clone(m.living) {
		if child.parent == nid {
			m.remove(child.nid)
		}
	}
	if n := m.find(nid); n != nil {
		m.dead[nid] = n
		m.living = slices.DeleteFunc(m.living, func(n *modelNode) bool { return n.nid == nid })
	}
}

// die ends a node: one that restarts stays, without its descendants.
func (m *model) die(nid string) {
	n := m.find(nid)
	if n == nil {
		return
	}
	if !n.restarts {
		m.remove(nid)
		return
	}
	n.state = nodev1.NodeState_NODE_STATE_DEAD
	for _, child := range slices.Clone(m.living) {
		if child.parent == nid {
			m.remove(child.nid)
		}
	}
}

func (m *model) hostDied(host string) {
	m.gone[host] = true
	for _, n := range slices.Clone(m.living) {
		if m.find(n.nid) == nil {
			continue
		}
		owner := n.host
		if owner == "" {
			owner = n.launcher
		}
		switch {
		case n.restarts && n.launcher == host:
			m.remove(n.nid)
		case owner == host && n.state != nodev1.NodeState_NODE_STATE_DEAD:
			m.die(n.nid)
		}
	}
}

func (m *model) print() string {
	lines := make([]string, 0, len(m.living))
	for _, n := range m.living {
		lines = append(lines, fmt.Sprintf("%s %s %v %d %q %q %t", n.path, n.nid, n.state, n.incarnation, n.alias, n.host, n.restarts))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

func printTree(t *Tree) string {
	list, err := t.List("", false)
	if err != nil {
		return err.Error()
	}
	lines := make([]string, 0, len(list))
	for _, n := range list {
		lines = append(lines, fmt.Sprintf("%s %s %v %d %q %q %t", n.GetPath(), n.GetNid(), n.GetState(), n.GetIncarnation(),
			n.GetAlias(), n.GetHost().GetId(), n.GetRestarts()))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// changer applies random changes to the tree and to the model. Several share a transaction; some
// transactions are dropped, as if their commit had failed; sometimes the tree is loaded again from
// what was written.
type changer struct {
	tree  *Tree
	model *model
	disk  disk
	now   time.Time

	x      *Txn
	staged *model
}

func TestTreeAgreesWithAModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := &changer{tree: New(testRoot(), Limits{}), disk: make(disk), now: time.Unix(1_700_000_000, 0)}
		m.model = &model{dead: make(map[string]*modelNode), next: make(map[string]int), gone: make(map[string]bool)}
		m.begin()
		t.Repeat(map[string]func(*rapid.T){
			"register": m.register,
			"update":   m.update,
			"restart":  m.restart,
			"remove":   m.removeSome,
			"hostDied": func(t *rapid.T) {
				host := drawHost(t)
				m.x.HostDied(host, "killed")
				m.staged.hostDied(host.GetId())
			},
			"hostBack": func(t *rapid.T) {
				host := drawHost(t)
				m.x.HostBack(host, nil)
				delete(m.staged.gone, host.GetId())
			},
			"commit": func(t *rapid.T) {
				m.x.Expire()
				m.disk.write(t, m.x)
				m.x.Merge()
				m.model = m.staged
				m.begin()
			},
			"drop": func(*rapid.T) { m.begin() },
			"load": func(t *rapid.T) {
				m.begin() // uncommitted changes are lost
				loaded, err := Load(testRoot(), Limits{}, m.disk.entries())
				require.NoError(t, err)
				require.Equal(t, m.tree.Revision(), loaded.Revision())
				m.tree = loaded
				m.model.gone = make(map[string]bool)
				m.begin()
			},
			"": m.check,
		})
	})
}

func (m *changer) begin() { m.x, m.staged = m.tree.Begin(m.now), m.model.clone() }

func (m *changer) check(t *rapid.T) {
	require.NoError(t, m.tree.check())
	require.Equal(t, m.model.print(), printTree(m.tree))
	require.Equal(t, len(m.staged.living), m.x.size())
	for _, n := range m.model.living {
		for by, where := range map[By]string{ByPath: n.path, ByNID: n.nid, ByAlias: n.alias} {
			if where == "" {
				continue
			}
			rec, err := m.tree.Lookup(by, where)
			require.NoError(t, err)
			require.Equal(t, n.nid, rec.GetNid())
			rec, err = m.tree.Lookup(ByAny, where)
			require.NoError(t, err)
			require.Equal(t, n.nid, rec.GetNid())
		}
	}
	for nid, n := range m.model.dead {
		_, err := m.tree.Lookup(ByNID, nid)
		require.ErrorContains(t, err, n.path+" ("+nid+") is dead: ")
		_, err = m.tree.Lookup(ByPath, n.path)
		require.ErrorContains(t, err, nid)
	}
}

func drawHost(t *rapid.T) *nodev1.HostInfo {
	return testHost(strconv.Itoa(rapid.IntRange(1, 4).Draw(t, "host")))
}

// drawNid draws the nid of a node, rarely of a dead one.
func (m *changer) drawNid(t *rapid.T) string {
	var nids []string
	for _, n := range m.staged.living {
		nids = append(nids, n.nid)
	}
	nids = append(nids, slices.Sorted(maps.Keys(m.staged.dead))[:min(len(m.staged.dead), 2)]...)
	if len(nids) == 0 {
		return NewUUID()
	}
	return nids[rapid.IntRange(0, len(nids)-1).Draw(t, "node")]
}

func (m *changer) register(t *rapid.T) {
	req := &brainv1.RegisterRequest{
		Type:     rapid.SampledFrom([]string{"a", "b"}).Draw(t, "type"),
		Count:    rapid.Uint32Range(0, 3).Draw(t, "count"),
		Restarts: rapid.Bool().Draw(t, "restarts"),
	}
	if rapid.Bool().Draw(t, "below") {
		req.Parent = m.drawNid(t)
	}
	if rapid.Bool().Draw(t, "launched") {
		req.Launcher = drawHost(t)
	}
	if req.GetCount() < 2 {
		req.Alias = rapid.SampledFrom([]string{"", "x", "y"}).Draw(t, "alias")
	}
	inner := m.x.Begin()
	records, err := inner.Register(req)

	parent := m.staged.find(req.GetParent())
	taken := req.GetAlias() != "" && slices.ContainsFunc(m.staged.living, func(n *modelNode) bool { return n.alias == req.GetAlias() })
	switch {
	case taken:
		require.Equal(t, connect.CodeAlreadyExists, connect.CodeOf(err))
		return
	case req.GetLauncher() != nil && m.staged.gone[req.GetLauncher().GetId()]:
		require.Equal(t, connect.CodeFailedPrecondition, connect.CodeOf(err))
		return
	case req.GetParent() != "" && parent == nil:
		require.Error(t, err)
		return
	case parent != nil && parent.state >= nodev1.NodeState_NODE_STATE_STOPPING:
		require.Equal(t, connect.CodeFailedPrecondition, connect.CodeOf(err))
		return
	}
	require.NoError(t, err)
	require.Len(t, records, max(1, int(req.GetCount())))
	inner.Merge()
	for _, rec := range records {
		key := req.GetParent() + "/" + req.GetType()
		path := fmt.Sprintf("%s-%d", req.GetType(), m.staged.next[key])
		if parent != nil {
			path = parent.path + "/" + path
		}
		m.staged.next[key]++
		require.Equal(t, path, rec.GetPath())
		m.staged.living = append(m.staged.living, &modelNode{
			nid: rec.GetNid(), parent: req.GetParent(), path: path, kind: req.GetType(), alias: req.GetAlias(),
			launcher: req.GetLauncher().GetId(), restarts: req.GetRestarts(), incarnation: 1, state: nodev1.NodeState_NODE_STATE_STARTING,
		})
	}
}

func (m *changer) update(t *rapid.T) {
	nid := m.drawNid(t)
	change := &brainv1.Change{
		Nid: nid, Incarnation: rapid.Uint64Range(1, 2).Draw(t, "incarnation"),
		State: nodev1.NodeState(rapid.Int32Range(2, 4).Draw(t, "state")),
	}
	if rapid.Bool().Draw(t, "move") {
		change.Host = drawHost(t)
	}
	n := m.staged.find(nid)
	if n != nil && change.GetIncarnation() == n.incarnation+1 && n.restarts {
		return // restart tries this
	}
	_, err := m.x.Update([]*brainv1.Change{change})
	switch {
	case n == nil, n.incarnation != change.GetIncarnation(), n.state > change.GetState(), n.state == nodev1.NodeState_NODE_STATE_DEAD,
		m.staged.gone[change.GetHost().GetId()], change.GetHost() != nil && n.host != "" && n.host != change.GetHost().GetId():
		require.Error(t, err)
		return
	}
	require.NoError(t, err)
	if change.GetHost() != nil {
		n.host = change.GetHost().GetId()
	}
	n.state = change.GetState()
	if n.state == nodev1.NodeState_NODE_STATE_DEAD {
		m.staged.die(nid)
	}
}

func (m *changer) restart(t *rapid.T) {
	nid, host := m.drawNid(t), drawHost(t)
	n := m.staged.find(nid)
	if n == nil || !n.restarts {
		return
	}
	_, err := m.x.Update([]*brainv1.Change{{
		Nid: nid, Incarnation: n.incarnation + 1, State: nodev1.NodeState_NODE_STATE_STARTING, Host: host,
	}})
	if m.staged.gone[host.GetId()] {
		require.Error(t, err)
		return
	}
	require.NoError(t, err)
	m.staged.die(nid)
	n.incarnation++
	n.state, n.host = nodev1.NodeState_NODE_STATE_STARTING, host.GetId()
}

func (m *changer) removeSome(t *rapid.T) {
	nids := []string{m.drawNid(t), m.drawNid(t)}
	for _, nid := range nids {
		if m.staged.find(nid) == nil && m.staged.dead[nid] == nil {
			return
		}
	}
	removed, err := m.x.Remove(nids, "by a test")
	require.NoError(t, err)
	before := len(m.staged.living)
	for _, nid := range nids {
		m.staged.remove(nid)
	}
	require.Len(t, removed, before-len(m.staged.living))
	for i, rec := range removed {
		require.Equal(t, nodev1.NodeState_NODE_STATE_DEAD, rec.GetState())
		for _, later := range removed[i+1:] {
			require.False(t, strings.HasPrefix(later.GetPath(), rec.GetPath()+"/"), "%s ended before %s", rec.GetPath(), later.GetPath())
		}
	}
}
