package tree

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
	machinev1 "github.com/raylink/raylink/gen/raylink/machine/v1"
	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	"github.com/raylink/raylink/internal/machine"
)

// cluster is a tree with machines, each change of which is a transaction of its own.
type cluster struct {
	*testing.T

	p *placer
}

// newCluster has a machine of each of the hosts: 1 is on m2, 2 on m3 and 3 on m1, which has no GPU.
func newCluster(t *testing.T, hosts ...int) *cluster {
	t.Helper()
	c := &cluster{T: t, p: newPlacer()}
	for _, host := range hosts {
		c.attach(host)
	}
	return c
}

func (c *cluster) attach(host int) {
	c.p.x.HostBack(placedHost(host), nil)
	require.NoError(c, c.p.x.Keep(placedHost(host), testMachine(placedHost(host), false)))
	c.p.commit(c)
}

func (c *cluster) die(host int) {
	c.p.x.HostDied(placedHost(host), "killed")
	c.p.commit(c)
}

func (c *cluster) reload() {
	loaded, err := Load(testRoot(), Limits{}, c.p.disk.entries())
	require.NoError(c, err)
	c.p.tree = loaded
	c.p.begin()
}

// try registers nodes that need GPUs, launched on the machine of host 3.
func (c *cluster) try(req *brainv1.RegisterRequest) ([]*nodev1.NodeRecord, *caller, error) {
	if req.GetType() == "" {
		req.Type = "worker"
	}
	if req.GetLauncher() == nil {
		req.Launcher = placedHost(3)
	}
	who := new(caller)
	inner := c.p.x.Begin()
	nodes, w, err := inner.RegisterOrWait(req, who)
	if err != nil {
		return nil, nil, err
	}
	inner.Merge()
	c.p.commit(c)
	if w == nil {
		who = nil
	}
	return nodes, who, nil
}

func (c *cluster) place(req *brainv1.RegisterRequest) *nodev1.NodeRecord {
	nodes, who, err := c.try(req)
	require.NoError(c, err)
	require.Nil(c, who, "the request waits")
	return nodes[0]
}

func (c *cluster) wait(req *brainv1.RegisterRequest) *caller {
	_, who, err := c.try(req)
	require.NoError(c, err)
	require.NotNil(c, who, "the request does not wait")
	return who
}

func (c *cluster) remove(nodes ...*nodev1.NodeRecord) {
	for _, n := range nodes {
		_, err := c.p.x.Remove([]string{n.GetNid()}, "by a test")
		require.NoError(c, err)
	}
	c.p.commit(c)
}

func gpus(n int64) *nodev1.Place {
	return &nodev1.Place{Resources: map[string]int64{machine.GPU: 1000 * n}}
}

func TestNodeGetsWhatItAskedFor(t *testing.T) {
	c := newCluster(t, 1, 3)
	node := c.place(&brainv1.RegisterRequest{Place: gpus(2)})
	want := &nodev1.Allocation{Machine: "m2", Name: "name-of-m2", Resources: map[string]int64{machine.GPU: 2000}, Gpus: []uint32{0, 1}}
	require.True(t, proto.Equal(want, node.GetAllocation()), "%v", node.GetAllocation())
	child := c.place(&brainv1.RegisterRequest{Parent: node.GetNid(), Place: &nodev1.Place{}})
	require.Equal(t, "m2", child.GetAllocation().GetMachine(), "the parent's machine")
	near := c.place(&brainv1.RegisterRequest{Place: &nodev1.Place{Near: child.GetNid()}})
	require.Equal(t, "m2", near.GetAllocation().GetMachine())
	uses, err := c.p.tree.Machines("m2")
	require.NoError(t, err)
	require.EqualValues(t, 3, uses[0].GetNodes())
	require.Equal(t, map[string]int64{machine.GPU: 2000}, uses[0].GetUsed())
	c.remove(node)
	last := c.p.tree.Record(node.GetNid())
	require.True(t, proto.Equal(want, last.GetAllocation()), "the last record shows what the node had")
	require.NotNil(t, c.place(&brainv1.RegisterRequest{Place: gpus(2)}))
}

func TestNodesWithoutAPlaceHaveNoAllocation(t *testing.T) {
	c := newCluster(t, 1)
	require.Nil(t, c.place(&brainv1.RegisterRequest{}).GetAllocation())
	require.Nil(t, c.place(&brainv1.RegisterRequest{Place: &nodev1.Place{}}).GetAllocation(), "the launcher's machine, m1, has no keeper")
	require.Nil(t, c.place(&brainv1.RegisterRequest{Launcher: placedHost(3), Place: &nodev1.Place{Resources: map[string]int64{"cpu": 0}}}).GetAllocation())
	require.Equal(t, "m2", c.place(&brainv1.RegisterRequest{Launcher: placedHost(4), Place: &nodev1.Place{}}).GetAllocation().GetMachine())
}

func TestPlacesThatAreRefused(t *testing.T) {
	c := newCluster(t, 1, 3)
	gone := c.place(&brainv1.RegisterRequest{})
	c.remove(gone)
	for says, test := range map[string]struct {
		place *nodev1.Place
		code  connect.Code
	}{
		"a node with gpu=3 can never be placed: name-of-m1 has cpu=2; name-of-m2 has cpu=4, gpu=2": {gpus(3), connect.CodeFailedPrecondition},
		`no machine has the name or the id "m9"; there are name-of-m1, name-of-m2`:                 {&nodev1.Place{On: "m9"}, connect.CodeFailedPrecondition},
		`an amount can't be negative`:                              {&nodev1.Place{Resources: map[string]int64{"cpu": -1}}, connect.CodeInvalidArgument},
		`"Upper": the name of a resource is`:                       {&nodev1.Place{Resources: map[string]int64{"Upper": 1}}, connect.CodeInvalidArgument},
		"a key is up to 63 letters":                                {&nodev1.Place{Labels: map[string]string{"": "x"}}, connect.CodeInvalidArgument},
		"7 is not a strategy":                                      {&nodev1.Place{Strategy: 7}, connect.CodeInvalidArgument},
		`a node to be near to: "x" is not an nid, which is a UUID`: {&nodev1.Place{Near: "x"}, connect.CodeInvalidArgument},
		"a node to be near to: there is no node with the nid 00000000-0000-4000-9000-000000000099":         {&nodev1.Place{Near: uuid("99")}, connect.CodeNotFound},
		fmt.Sprintf("a node to be near to: the node worker-0 (%s) is dead: by a test", gone.GetNid()):      {&nodev1.Place{Near: gone.GetNid()}, connect.CodeNotFound},
		"the machine of Brain, to be near to, is not known":                                                {&nodev1.Place{Near: testRoot().GetNid()}, connect.CodeFailedPrecondition},
		"a node, label zone=a can never be placed: no machine matches; name-of-m1 has cpu=2 and the label": {&nodev1.Place{Labels: map[string]string{"zone": "a"}}, connect.CodeFailedPrecondition},
	} {
		_, _, err := c.try(&brainv1.RegisterRequest{Place: test.place})
		require.ErrorContains(t, err, says)
		require.Equal(t, test.code, connect.CodeOf(err), says)
	}
	require.Equal(t, 0, c.p.tree.Len(), "something of a refused registration is left")
}

func TestWaitingRegistrationsAreServedInOrder(t *testing.T) {
	c := newCluster(t, 1, 3)
	holder := c.place(&brainv1.RegisterRequest{Place: gpus(1)})
	other := c.place(&brainv1.RegisterRequest{Place: gpus(1)})
	large := c.wait(&brainv1.RegisterRequest{Place: gpus(2)})
	small := c.wait(&brainv1.RegisterRequest{Place: gpus(1)})
	c.place(&brainv1.RegisterRequest{Place: &nodev1.Place{Resources: map[string]int64{machine.CPU: 500}}})
	c.remove(holder)
	require.False(t, large.answered() || small.answered(), "a small request has passed a large one")
	c.remove(other)
	require.True(t, large.answered())
	require.NoError(t, large.result().Err)
	require.Equal(t, placedHost(1).GetId(), large.result().Machines[0].GetKeeper().GetId())
	require.False(t, small.answered())
	c.remove(large.result().Nodes...)
	require.NoError(t, small.result().Err)
}

func TestWaitSaysWhatLacks(t *testing.T) {
	c := newCluster(t, 1)
	root := c.place(&brainv1.RegisterRequest{Type: "manager", Place: gpus(2)})
	first, second := new(caller), new(caller)
	_, w1, err := c.p.x.RegisterOrWait(&brainv1.RegisterRequest{Type: "worker", Parent: root.GetNid(), Place: gpus(2)}, first)
	require.NoError(t, err)
	_, w2, err := c.p.x.RegisterOrWait(&brainv1.RegisterRequest{Type: "worker", Place: gpus(1)}, second)
	require.NoError(t, err)
	c.p.commit(t)
	why, ok := c.p.x.StopWaiting(w2)
	require.True(t, ok)
	require.Equal(t, "a node with gpu=1 can't be placed now: the machine that could have it lacks gpu (0 of 2 free); "+
		"nodes that have it: manager-0 (gpu=2 on name-of-m2); reserved for earlier requests: a node with gpu=2 for manager-0", why)
	_, ok = c.p.x.StopWaiting(w2)
	require.False(t, ok)
	c.p.commit(t)
	require.False(t, second.answered(), "a request that was given up is answered")
	require.Len(t, c.p.tree.waiting, 1)
	require.Same(t, w1, c.p.tree.waits(w1.ticket))
}

func TestWaitingRegistrationsEndWithTheirReason(t *testing.T) {
	for name, test := range map[string]struct {
		end  func(c *cluster, parent *nodev1.NodeRecord)
		says string
		code connect.Code
	}{
		"the parent is removed": {
			func(c *cluster, parent *nodev1.NodeRecord) { c.remove(parent) },
			"the parent parent-0 (", connect.CodeFailedPrecondition,
		},
		"the launcher dies": {
			func(c *cluster, _ *nodev1.NodeRecord) { c.die(6) },
			"the launcher host (pid 6 on m1) died: killed", connect.CodeFailedPrecondition,
		},
		"the launcher ends": {
			func(c *cluster, _ *nodev1.NodeRecord) {
				c.p.x.HostEnded(placedHost(6))
				c.p.commit(c)
			},
			"the launcher host (pid 6 on m1) has ended", connect.CodeFailedPrecondition,
		},
		"the machine leaves": {
			func(c *cluster, _ *nodev1.NodeRecord) { c.die(1) },
			"a node with gpu=2 can never be placed: name-of-m1 has cpu=2", connect.CodeFailedPrecondition,
		},
		"it is repeated": {
			func(c *cluster, parent *nodev1.NodeRecord) {
				again := c.wait(&brainv1.RegisterRequest{Parent: parent.GetNid(), Launcher: placedHost(6), Place: gpus(2), RequestId: uuid("7")})
				require.Len(c, c.p.tree.waiting, 1, "a repeated request waits twice")
				require.False(c, again.answered())
				_, _, err := c.try(&brainv1.RegisterRequest{Parent: parent.GetNid(), Launcher: placedHost(6), Place: gpus(1), RequestId: uuid("7")})
				require.ErrorContains(c, err, "was used for another registration")
			},
			"the request was repeated by another call", connect.CodeAborted,
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t, 1, 3)
			parent := c.place(&brainv1.RegisterRequest{Type: "parent"})
			c.place(&brainv1.RegisterRequest{Place: gpus(1)})
			who := c.wait(&brainv1.RegisterRequest{Parent: parent.GetNid(), Launcher: placedHost(6), Place: gpus(2), RequestId: uuid("7")})
			test.end(c, parent)
			require.True(t, who.answered())
			require.ErrorContains(t, who.result().Err, test.says)
			require.Equal(t, test.code, connect.CodeOf(who.result().Err))
			if test.code != connect.CodeAborted {
				require.Empty(t, c.p.tree.waiting)
			}
		})
	}
}

func TestWithdrawnRegistrationWaitsNoLonger(t *testing.T) {
	c := newCluster(t, 1, 3)
	holder := c.place(&brainv1.RegisterRequest{Place: gpus(2)})
	who := c.wait(&brainv1.RegisterRequest{Place: gpus(1), RequestId: uuid("7")})
	_, err := c.p.x.Withdraw([]string{uuid("7")}, "by a test")
	require.NoError(t, err)
	c.p.commit(t)
	require.True(t, who.answered(), "a withdrawn registration waits")
	require.Equal(t, connect.CodeCanceled, connect.CodeOf(who.result().Err))
	_, _, err = c.try(&brainv1.RegisterRequest{Place: gpus(1), RequestId: uuid("7")})
	require.Equal(t, connect.CodeCanceled, connect.CodeOf(err))
	c.remove(holder)
	require.Zero(t, c.p.tree.Len())
}

func TestPlaceBelongsToTheRequest(t *testing.T) {
	c := newCluster(t, 1, 3)
	req := &brainv1.RegisterRequest{Place: gpus(1), RequestId: uuid("7")}
	node := c.place(req)
	require.Equal(t, node, c.place(req))
	_, _, err := c.try(&brainv1.RegisterRequest{Place: gpus(2), RequestId: uuid("7")})
	require.ErrorContains(t, err, "was used for another registration")
	require.Less(t, len(appendPlace(nil, &nodev1.Place{On: strings.Repeat("x", 10_000)})), 100)
	c.reload()
	require.True(t, proto.Equal(node, c.place(req)))
	uses := c.p.x.Uses([]*nodev1.NodeRecord{node})
	require.Len(t, uses, 1)
	require.Equal(t, "name-of-m2", uses[0].GetMachine().GetName())
	require.Nil(t, uses[0].GetKeeper(), "the machine is not back yet")
}

// TestRestartedNodeGetsANewPlace has a node whose machine leaves.
func TestRestartedNodeGetsANewPlace(t *testing.T) {
	c := newCluster(t, 1, 2, 3)
	node := c.place(&brainv1.RegisterRequest{Place: &nodev1.Place{Resources: gpus(1).GetResources(), On: "m2"}, Restarts: true})
	c.die(1)
	next := func(incarnation uint64, place *nodev1.Place) []*brainv1.Change {
		return []*brainv1.Change{{Nid: node.GetNid(), Incarnation: incarnation, State: nodev1.NodeState_NODE_STATE_STARTING, Place: place}}
	}
	records, w, err := c.p.x.UpdateOrWait(next(2, gpus(1)), new(caller))
	require.NoError(t, err)
	require.Nil(t, w)
	require.Equal(t, "m3", records[0].GetAllocation().GetMachine())
	c.p.commit(t)
	require.NoError(t, c.p.tree.check())

	records, _, err = c.p.x.UpdateOrWait(next(3, &nodev1.Place{On: "m1"}), new(caller))
	require.NoError(t, err)
	require.Equal(t, "m3", records[0].GetAllocation().GetMachine(), "its machine is there")
	c.p.commit(t)
	c.die(2)
	_, _, err = c.p.x.UpdateOrWait(next(4, gpus(1)), new(caller))
	require.Equal(t, connect.CodeFailedPrecondition, connect.CodeOf(err))
	_, _, err = c.p.x.UpdateOrWait(append(next(4, gpus(1)), next(5, nil)...), new(caller))
	require.ErrorContains(t, err, "must be the only one")
	records, err = c.p.x.Update(next(4, nil))
	require.NoError(t, err)
	require.Equal(t, "m3", records[0].GetAllocation().GetMachine(), "without a place nothing changes")
}

func TestRestartDoesNotWaitForWhatTheNodeHas(t *testing.T) {
	c := newCluster(t, 1, 2, 3)
	node := c.place(&brainv1.RegisterRequest{Place: &nodev1.Place{Resources: gpus(2).GetResources(), On: "m2"}, Restarts: true})
	c.place(&brainv1.RegisterRequest{Place: gpus(2)})
	c.die(1)
	who := new(caller)
	_, w, err := c.p.x.UpdateOrWait([]*brainv1.Change{{
		Nid: node.GetNid(), Incarnation: 2, State: nodev1.NodeState_NODE_STATE_STARTING, Place: gpus(2),
	}}, who)
	require.NoError(t, err)
	require.NotNil(t, w)
	c.p.commit(t)
	require.False(t, who.answered())
	require.NoError(t, c.p.tree.check())
	require.Nil(t, c.p.tree.Record(node.GetNid()).GetAllocation())
	c.attach(4) // m2 again
	require.True(t, who.answered(), "the node waits for what it has")
	require.NoError(t, who.result().Err)
	require.Equal(t, "m2", who.result().Nodes[0].GetAllocation().GetMachine())
	require.EqualValues(t, 2, who.result().Nodes[0].GetIncarnation())
	require.NoError(t, c.p.tree.check())
}

// TestNothingIsImpossibleUntilHostsAreBack is about the time after a restart.
func TestNothingIsImpossibleUntilHostsAreBack(t *testing.T) {
	c := newCluster(t, 1, 3)
	node := c.place(&brainv1.RegisterRequest{Place: gpus(1), Launcher: placedHost(1)})
	c.place(&brainv1.RegisterRequest{Launcher: placedHost(2)})
	c.reload()
	first := c.wait(&brainv1.RegisterRequest{Place: gpus(1)})
	never := c.wait(&brainv1.RegisterRequest{Place: gpus(7)})
	require.False(t, first.answered())
	c.attach(1)
	require.True(t, first.answered())
	require.NoError(t, first.result().Err)
	require.Equal(t, []uint32{1}, first.result().Nodes[0].GetAllocation().GetGpus(), "the other one is %s's", node.GetPath())
	require.False(t, never.answered(), "a host is expected back")
	c.die(2)
	require.True(t, never.answered())
	require.ErrorContains(t, never.result().Err, "can never be placed")
}

func TestDeclarationsThatAreRefused(t *testing.T) {
	host := placedHost(1)
	valid := testMachine(host, true)
	require.NoError(t, CheckMachine(host, valid))
	require.NoError(t, CheckMachine(host, nil))
	many := make(map[string]string)
	for i := range 1000 {
		many[fmt.Sprint("l", i)] = ""
	}
	for says, change := range map[string]func(*machinev1.Machine){
		`its keeper is on the machine "m2"`:     func(m *machinev1.Machine) { m.Id = "m3" },
		`its keeper is on the machine ""`:       func(m *machinev1.Machine) { m.Id = "" },
		"a name has 1 to 128 bytes":             func(m *machinev1.Machine) { m.Name = "" },
		"a name has 1 to 128":                   func(m *machinev1.Machine) { m.Name = strings.Repeat("x", 129) },
		"no spaces or control characters":       func(m *machinev1.Machine) { m.Name = "a\x1b[31mb" },
		"is not UTF-8":                          func(m *machinev1.Machine) { m.Name = "caf\xe9" },
		"the field labels":                      func(m *machinev1.Machine) { m.Labels = map[string]string{"a": "\xff"} },
		"there are 1000 labels":                 func(m *machinev1.Machine) { m.Labels = many },
		"the bound is 16384":                    func(m *machinev1.Machine) { m.Labels = map[string]string{"a": strings.Repeat("x", 1<<20)} },
		"a value is empty, or up to 63":         func(m *machinev1.Machine) { m.Labels = map[string]string{"a": strings.Repeat("x", 64)} },
		"an amount can't be negative":           func(m *machinev1.Machine) { m.Resources["cpu"] = -1 << 63 },
		"is too much; the bound is":             func(m *machinev1.Machine) { m.Resources["memory"] = 1<<63 - 1 },
		`resources: "NaN"`:                      func(m *machinev1.Machine) { m.Resources["NaN"] = 1 },
		"GPUs are whole":                        func(m *machinev1.Machine) { m.Resources["gpu"] = 1500 },
		"it has gpu=3, but lists 2 GPUs":        func(m *machinev1.Machine) { m.Resources["gpu"] = 3000 },
		"it has gpu=0, but lists 2 GPUs":        func(m *machinev1.Machine) { delete(m.GetResources(), "gpu") },
		"1025 GPUs of one machine are too many": func(m *machinev1.Machine) { m.Resources["gpu"], m.Gpus = 1025*1000, make([]string, 1025) },
	} {
		m := proto.CloneOf(valid)
		change(m)
		at := host
		if m.GetId() == "" {
			at = proto.CloneOf(host)
			at.Machine = ""
		}
		err := CheckMachine(at, m)
		require.ErrorContains(t, err, says)
		require.Equal(t, connect.CodeInvalidArgument, connect.CodeOf(err))
		require.Less(t, len(err.Error()), 1000)
	}
}

func TestMachinesAreBounded(t *testing.T) {
	tree := New(testRoot(), Limits{Machines: 2})
	x := tree.Begin(time.Unix(1, 0))
	require.NoError(t, x.Keep(placedHost(1), testMachine(placedHost(1), false)))
	require.NoError(t, x.Keep(placedHost(2), testMachine(placedHost(2), false)))
	require.Equal(t, connect.CodeResourceExhausted, connect.CodeOf(x.Keep(placedHost(3), testMachine(placedHost(3), false))))
	require.NoError(t, x.Keep(placedHost(1), testMachine(placedHost(1), true)), "it keeps one already")
	x.HostDied(placedHost(2), "killed")
	require.NoError(t, x.Keep(placedHost(3), testMachine(placedHost(3), false)))
}
