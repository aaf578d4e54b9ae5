package tree

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/raylink/raylink/brain/internal/placement"
	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
	machinev1 "github.com/raylink/raylink/gen/raylink/machine/v1"
	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	"github.com/raylink/raylink/internal/machine"
)

// caller records the answer to a request that waits.
type caller struct {
	gone    bool
	results []Result
}

func (c *caller) Gone() bool      { return c.gone }
func (c *caller) Answer(r Result) { c.results = append(c.results, r) }
func (c *caller) answered() bool  { return len(c.results) > 0 }
func (c *caller) result() Result  { return c.results[0] }
func keeperOf(pid int) string     { return []string{"m1", "m2", "m3"}[pid%3] }
func placedHost(pid int) *nodev1.HostInfo {
	host := testHost(strconv.Itoa(pid))
	host.Machine = keeperOf(pid)
	return host
}

// testMachine is what a host declares: a machine has the same capacity with each keeper.
func testMachine(host *nodev1.HostInfo, agent bool) *machinev1.Machine {
	m := &machinev1.Machine{
		Id: host.GetMachine(), Name: "name-of-" + host.GetMachine(), Agent: agent,
		Labels:    map[string]string{"keeper": strconv.Itoa(int(host.GetPid()))},
		Resources: map[string]int64{machine.CPU: 2000, machine.GPU: 0},
	}
	if host.GetMachine() != "m1" {
		m.Resources = map[string]int64{machine.CPU: 4000, machine.GPU: 2000}
		m.Gpus = []string{"GPU-a", "GPU-b"}
	}
	return m
}

// kept is a declaration of the model.
type kept struct {
	host  int
	agent bool
}

// placeModel has what the tree can't derive from its records: keepers by machine, hosts that are
// expected back, and callers that wait.
type placeModel struct {
	keepers  map[string][]kept // in the order of their arrival
	expected map[string]bool
	callers  map[*caller]*Waiting
}

func (m *placeModel) clone() *placeModel {
	c := &placeModel{keepers: make(map[string][]kept), expected: maps.Clone(m.expected), callers: maps.Clone(m.callers)}
	for id, list := range m.keepers {
		c.keepers[id] = slices.Clone(list)
	}
	return c
}

// inEffect is the host whose declaration counts, or 0.
func (m *placeModel) inEffect(id string) int {
	for _, k := range m.keepers[id] {
		if k.agent {
			return k.host
		}
	}
	if len(m.keepers[id]) == 0 {
		return 0
	}
	return m.keepers[id][0].host
}

func (m *placeModel) gone(host int) {
	delete(m.expected, placedHost(host).GetId())
	m.keepers[keeperOf(host)] = slices.DeleteFunc(m.keepers[keeperOf(host)], func(k kept) bool { return k.host == host })
}

// placer applies random changes to a tree with machines. Several share a transaction; some are
// dropped, as if their commit had failed; sometimes the tree is loaded again from what was written.
type placer struct {
	tree  *Tree
	model *placeModel
	disk  disk
	now   time.Time

	x      *Txn
	staged *placeModel
}

func newPlacer() *placer {
	p := &placer{tree: New(testRoot(), Limits{}), disk: make(disk), now: time.Unix(1_700_000_000, 0)}
	p.model = &placeModel{keepers: make(map[string][]kept), expected: make(map[string]bool), callers: make(map[*caller]*Waiting)}
	p.begin()
	return p
}

func (p *placer) begin() { p.x, p.staged = p.tree.Begin(p.now), p.model.clone() }

func (p *placer) commit(t require.TestingT) {
	p.x.Serve()
	p.x.Expire()
	p.disk.write(t, p.x)
	p.x.Merge()
	p.x.Answer()
	p.model = p.staged
	for c, w := range p.model.callers {
		require.LessOrEqual(t, len(c.results), 1, "a request was answered twice")
		switch {
		case c.answered() && c.result().Err == nil:
			require.False(t, c.gone, "a request was placed whose caller was gone")
			for _, rec := range c.result().Nodes {
				require.NotNil(t, rec.GetAllocation())
			}
			delete(p.model.callers, c)
		case c.answered():
			require.NotEmpty(t, c.result().Err.Error())
			delete(p.model.callers, c)
		case c.gone && p.tree.waits(w.ticket) == nil:
			delete(p.model.callers, c)
		}
	}
	p.begin()
}

// check verifies the accounts of the merged tree against its records and the model.
func (p *placer) check(t *rapid.T) {
	require.NoError(t, p.tree.check())
	records, err := p.tree.List("", false)
	require.NoError(t, err)
	used := make(map[string]int64)
	nodes := make(map[string]uint64)
	gpus := make(map[string]string)
	for _, rec := range records {
		given := rec.GetAllocation()
		if given == nil {
			continue
		}
		nodes[given.GetMachine()]++
		for name, amount := range given.GetResources() {
			used[given.GetMachine()+" "+name] += amount
		}
		for _, gpu := range given.GetGpus() {
			at := fmt.Sprint("GPU ", gpu, " of ", given.GetMachine())
			require.Empty(t, gpus[at], "%s has been given to %s and to %s", at, gpus[at], rec.GetPath())
			gpus[at] = rec.GetPath()
		}
	}
	uses, err := p.tree.Machines("")
	require.NoError(t, err)
	present := make(map[string]bool)
	for _, use := range uses {
		id := use.GetMachine().GetId()
		present[id] = true
		require.Equal(t, placedHost(p.model.inEffect(id)).GetId(), use.GetKeeper().GetId(), "another keeper of %s is in effect", id)
		require.Equal(t, strconv.Itoa(int(use.GetKeeper().GetPid())), use.GetMachine().GetLabels()["keeper"])
		require.Equal(t, nodes[id], use.GetNodes(), "the accounts of %s have another number of nodes", id)
		for _, name := range []string{machine.CPU, machine.GPU} {
			require.Equal(t, used[id+" "+name], use.GetUsed()[name], "the accounts of %s differ from the records in %s", id, name)
			require.LessOrEqual(t, use.GetUsed()[name], use.GetMachine().GetResources()[name], "%s gives more %s than it has", id, name)
		}
	}
	for id := range p.model.keepers {
		require.Equal(t, p.model.inEffect(id) != 0, present[id], "the machine %s is there without a keeper, or is not there with one", id)
	}
	// Each request that waits has a reason, and a caller without an answer.
	require.Len(t, p.tree.waiting, len(p.model.callers))
	for c, w := range p.model.callers {
		require.Same(t, w, p.tree.waits(w.ticket))
		if !c.gone {
			err := p.tree.accounts.Waiting(w.ticket)
			require.True(t, err != nil && isLacking(err), "a request waits without a reason: %v", err)
		}
		_, err := p.tree.Begin(p.now).living(w.parent)
		require.NoError(t, err, "a request waits whose parent has ended")
		if w.nid != "" {
			require.NotNil(t, p.tree.nodes[w.nid], "the restart of a removed node waits")
		}
	}
	_, err = p.tree.accounts.Place(&placement.Request{Count: 1, On: "nowhere"})
	require.Equal(t, len(p.model.expected) > 0, isLacking(err), "impossible requests must wait while hosts are expected back, and only then")
}

// node draws a node of the tree, as it is in the transaction; nil if there is none.
func (p *placer) node(t *rapid.T) *node {
	list := below(p.x, "")
	if len(list) == 0 {
		return nil
	}
	return list[rapid.IntRange(0, len(list)-1).Draw(t, "node")]
}

func (p *placer) place(t *rapid.T) *nodev1.Place {
	place := &nodev1.Place{Strategy: nodev1.PlaceStrategy(rapid.Int32Range(0, 3).Draw(t, "strategy")), Resources: make(map[string]int64)}
	if cpu := rapid.Int64Range(0, 5).Draw(t, "cpu"); cpu > 0 {
		place.Resources[machine.CPU] = cpu * 500
	}
	if gpu := rapid.Int64Range(0, 2).Draw(t, "gpu"); gpu > 0 {
		place.Resources[machine.GPU] = gpu * 1000
	}
	switch rapid.IntRange(0, 6).Draw(t, "where") {
	case 0:
		place.On = rapid.SampledFrom([]string{"m2", "name-of-m3"}).Draw(t, "on")
	case 1:
		if n := p.node(t); n != nil {
			place.Near = n.rec.GetNid()
		}
	}
	return place
}

// wait enters the caller of a request that waits.
func (p *placer) wait(c *caller, w *Waiting) {
	for other, earlier := range p.staged.callers {
		if earlier.ticket == w.ticket {
			delete(p.staged.callers, other)
		}
	}
	p.staged.callers[c] = w
}

func (p *placer) register(t *rapid.T) {
	req := &brainv1.RegisterRequest{
		Type: "a", Count: rapid.Uint32Range(1, 3).Draw(t, "count"), Restarts: rapid.Bool().Draw(t, "restarts"),
		Launcher: placedHost(rapid.IntRange(1, 6).Draw(t, "launcher")), Place: p.place(t), RequestId: NewUUID(),
	}
	if n := p.node(t); n != nil && rapid.Bool().Draw(t, "below") {
		req.Parent = n.rec.GetNid()
	}
	inner, c := p.x.Begin(), new(caller)
	nodes, w, err := inner.RegisterOrWait(req, c)
	if err != nil {
		return
	}
	uses := inner.Uses(nodes)
	inner.Merge()
	if w != nil {
		p.wait(c, w)
		return
	}
	require.Len(t, nodes, int(req.GetCount()))
	again, w, err := p.x.RegisterOrWait(req, c)
	require.NoError(t, err)
	require.Nil(t, w)
	require.Equal(t, nodes, again)
	require.Equal(t, uses, p.x.Uses(again), "a repeated request returns other machines")
}

// restart begins the next incarnation of a node, with a place.
func (p *placer) restart(t *rapid.T) {
	n := p.node(t)
	if n == nil || !n.rec.GetRestarts() {
		return
	}
	change := &brainv1.Change{
		Nid: n.rec.GetNid(), Incarnation: n.rec.GetIncarnation() + 1, State: nodev1.NodeState_NODE_STATE_STARTING, Place: p.place(t),
	}
	had := n.rec.GetAllocation()
	_, there := p.x.accounts.Machine(had.GetMachine())
	inner, c := p.x.Begin(), new(caller)
	nodes, w, err := inner.UpdateOrWait([]*brainv1.Change{change}, c)
	switch {
	case there:
		require.NoError(t, err)
		require.Nil(t, w)
		require.Same(t, had, nodes[0].GetAllocation(), "a node on a machine that is there keeps what it has")
	case err != nil:
		return
	case w == nil && nodes[0].GetAllocation() != nil:
		_, there := inner.accounts.Machine(nodes[0].GetAllocation().GetMachine())
		require.True(t, there, "a node was placed on a machine that is not there")
	}
	inner.Merge()
	if w != nil {
		p.wait(c, w)
	}
}

// oldest returns the oldest request that waits, with its caller.
func (p *placer) oldest() (c *caller, w *Waiting) {
	for one, waiting := range p.staged.callers {
		if w == nil || waiting.ticket < w.ticket {
			c, w = one, waiting
		}
	}
	return c, w
}

func TestAccountsAgreeWithTheRecords(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := newPlacer()
		host := func(t *rapid.T) int { return rapid.IntRange(1, 6).Draw(t, "host") }
		t.Repeat(map[string]func(*rapid.T){
			"register":  p.register,
			"register2": p.register,
			"restart":   p.restart,
			"end": func(t *rapid.T) { // one that restarts stays, dead
				if n := p.node(t); n != nil {
					_, err := p.x.Update([]*brainv1.Change{{Nid: n.rec.GetNid(), Incarnation: n.rec.GetIncarnation(), State: nodev1.NodeState_NODE_STATE_DEAD}})
					require.True(t, err == nil || n.rec.GetState() == nodev1.NodeState_NODE_STATE_DEAD)
				}
			},
			"stop": func(t *rapid.T) {
				if n := p.node(t); n != nil {
					// Of a dead node it fails.
					_, _ = p.x.Update([]*brainv1.Change{{Nid: n.rec.GetNid(), Incarnation: n.rec.GetIncarnation(), State: nodev1.NodeState_NODE_STATE_STOPPING}})
				}
			},
			"remove": func(t *rapid.T) {
				if n := p.node(t); n != nil {
					_, err := p.x.Remove([]string{n.rec.GetNid()}, "by a test")
					require.NoError(t, err)
				}
			},
			"attach": func(t *rapid.T) {
				at, agent := host(t), rapid.Bool().Draw(t, "agent")
				p.x.HostBack(placedHost(at), nil)
				delete(p.staged.expected, placedHost(at).GetId())
				if rapid.IntRange(0, 4).Draw(t, "keeps") == 0 {
					require.NoError(t, p.x.Keep(placedHost(at), nil))
					p.staged.gone(at)
					return
				}
				require.NoError(t, p.x.Keep(placedHost(at), testMachine(placedHost(at), agent)))
				list := p.staged.keepers[keeperOf(at)]
				if i := slices.IndexFunc(list, func(k kept) bool { return k.host == at }); i >= 0 {
					list[i].agent = agent
				} else {
					p.staged.keepers[keeperOf(at)] = append(list, kept{at, agent})
				}
			},
			"hostDied": func(t *rapid.T) {
				at := host(t)
				p.x.HostDied(placedHost(at), "killed")
				p.staged.gone(at)
			},
			"hostEnded": func(t *rapid.T) {
				at := host(t)
				p.x.HostEnded(placedHost(at))
				p.staged.gone(at)
			},
			"withdraw": func(t *rapid.T) {
				if _, w := p.oldest(); w != nil && w.nid == "" {
					_, err := p.x.Withdraw([]string{w.id}, "by a test")
					require.NoError(t, err)
				}
			},
			"giveUp": func(t *rapid.T) {
				if c, w := p.oldest(); w != nil {
					if why, ok := p.x.StopWaiting(w); ok {
						require.NotEmpty(t, why)
						delete(p.staged.callers, c)
					}
				}
			},
			"hangUp": func(*rapid.T) {
				if c, _ := p.oldest(); c != nil {
					c.gone = true
				}
			},
			"commit": func(t *rapid.T) { p.commit(t) },
			"drop":   func(*rapid.T) { p.begin() },
			"load": func(t *rapid.T) {
				loaded, err := Load(testRoot(), Limits{}, p.disk.entries())
				require.NoError(t, err)
				p.tree = loaded
				clear(p.model.keepers)
				clear(p.model.callers)
				clear(p.model.expected)
				for _, owner := range loaded.Owners() {
					p.model.expected[owner.GetId()] = true
				}
				p.begin()
			},
			"": p.check,
		})
		// Once everything has ended, and no host is expected, nothing is used and no request waits.
		p.commit(t)
		for range 100 {
			for _, rec := range below(p.x, "") {
				_, err := p.x.Remove([]string{rec.rec.GetNid()}, "at the end")
				require.True(t, err == nil || connect.CodeOf(err) == connect.CodeNotFound)
			}
			for at := range 7 {
				p.x.HostBack(placedHost(at), nil)
				delete(p.staged.expected, placedHost(at).GetId())
			}
			p.commit(t)
		}
		require.Empty(t, p.tree.waiting, "requests wait though all nodes have ended")
		require.Zero(t, p.tree.accounts.Len())
	})
}
