package placement

import (
	"cmp"
	"fmt"
	"maps"
	"math/big"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// model has machines and allocations, and no index, version or queue.
type model struct {
	machines map[string]Machine
	nodes    map[string]Allocation
}

func newModel() *model {
	return &model{machines: make(map[string]Machine), nodes: make(map[string]Allocation)}
}

func (m *model) clone() *model {
	return &model{machines: maps.Clone(m.machines), nodes: maps.Clone(m.nodes)}
}

func (m *model) total(machine, resource string) int64 {
	if resource == GPU {
		return int64(len(m.machines[machine].GPUs)) * Unit
	}
	return m.machines[machine].Total[resource]
}

func (m *model) free(machine, resource string) int64 {
	free := m.total(machine, resource)
	for _, had := range m.nodes {
		if had.Machine == machine {
			free -= had.Resources[resource]
		}
	}
	return free
}

func (m *model) count(machine string) int {
	n := 0
	for _, had := range m.nodes {
		if had.Machine == machine {
			n++
		}
	}
	return n
}

// accepting are the machines that a request is for, by name.
func (m *model) accepting(r *Request) []Machine {
	var list []Machine
	for _, machine := range m.machines {
		ok := (r.On == "" || r.On == machine.ID || r.On == machine.Name) && (r.Near == "" || r.Near == machine.ID)
		for name, value := range r.Labels {
			ok = ok && machine.Labels[name] == value
		}
		if ok {
			list = append(list, machine)
		}
	}
	slices.SortFunc(list, func(a, b Machine) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID)) })
	return list
}

// exists tries all ways to put the nodes of a request on machines with amounts.
func exists(r *Request, machines []Machine, amount func(machine, resource string) int64) bool {
	chosen := make([]int, r.Count)
	var try func(i int) bool
	try = func(i int) bool {
		if i == r.Count {
			return fits(r, machines, chosen, amount)
		}
		for chosen[i] = range machines {
			if try(i + 1) {
				return true
			}
		}
		return false
	}
	return try(0)
}

func fits(r *Request, machines []Machine, chosen []int, amount func(machine, resource string) int64) bool {
	for at, machine := range machines {
		times := 0
		for _, c := range chosen {
			if c == at {
				times++
			}
		}
		if r.Strategy == OnePerMachine && times > 1 {
			return false
		}
		for resource, needed := range r.Resources {
			if times > 0 && needed > 0 && int64(times)*needed > amount(machine.ID, resource) {
				return false
			}
		}
	}
	return true
}

// place places nodes one after another by the definition of the strategy, each time in view of all
// machines, with exact shares.
func (m *model) place(r *Request) []Allocation {
	staged := m.clone()
	var places []Allocation
	placed := make(map[string]int)
	for i := range r.Count {
		given := Allocation{Machine: staged.choose(r, placed), Resources: make(Resources)}
		for name, amount := range r.Resources {
			if amount > 0 {
				given.Resources[name] = amount
			}
		}
		var taken []uint32
		for _, had := range staged.nodes {
			if had.Machine == given.Machine {
				taken = append(taken, had.GPUs...)
			}
		}
		for _, gpu := range slices.Sorted(slices.Values(m.machines[given.Machine].GPUs)) {
			if int64(len(given.GPUs))*Unit < r.Resources[GPU] && !slices.Contains(taken, gpu) {
				given.GPUs = append(given.GPUs, gpu)
			}
		}
		placed[given.Machine]++
		places = append(places, given)
		staged.nodes[fmt.Sprint("new ", i)] = given
	}
	return places
}

func (m *model) choose(r *Request, placed map[string]int) string {
	room := slices.DeleteFunc(m.accepting(r), func(machine Machine) bool {
		return !fits(r, []Machine{machine}, []int{0}, m.free) || r.Strategy == OnePerMachine && placed[machine.ID] > 0
	})
	share := func(machine string) *big.Rat {
		least := big.NewRat(1, 1)
		for resource, needed := range r.Resources {
			if needed > 0 {
				if s := big.NewRat(m.free(machine, resource)-needed, m.total(machine, resource)); s.Cmp(least) < 0 {
					least = s
				}
			}
		}
		return least
	}
	return slices.MinFunc(room, func(a, b Machine) int {
		shares, nodes := share(b.ID).Cmp(share(a.ID)), cmp.Compare(m.count(a.ID), m.count(b.ID))
		switch r.Strategy {
		case Default:
			if r.Parent != "" && (a.ID == r.Parent) != (b.ID == r.Parent) {
				return map[bool]int{true: -1, false: 1}[a.ID == r.Parent]
			}
			return cmp.Or(shares, nodes)
		case Pack:
			return cmp.Or(-shares, -nodes)
		case Spread, OnePerMachine:
		}
		return cmp.Or(cmp.Compare(placed[a.ID], placed[b.ID]), shares, nodes)
	}).ID
}

// audit verifies that the accounts are those of the model, by making them anew from its records.
func (m *model) audit(t require.TestingT, a *Accounts) {
	anew := New()
	for node, had := range m.nodes {
		require.NoError(t, anew.Allocate(node, had))
	}
	for _, machine := range m.machines {
		require.NoError(t, anew.Join(machine))
	}
	require.Equal(t, dump(anew), dump(a), "the same machines and nodes have other accounts")
	gpus := make(map[string]string)
	for node, had := range m.nodes {
		require.Len(t, had.GPUs, int(had.Resources[GPU]/Unit))
		for _, gpu := range had.GPUs {
			at := fmt.Sprint("GPU ", gpu, " of ", had.Machine)
			require.Empty(t, gpus[at], "%s and %s have %s", gpus[at], node, at)
			gpus[at] = node
		}
	}
}

// dump prints capacities and allocations.
func dump(a *Accounts) string {
	var b strings.Builder
	a.machines.Ascend(func(acct *account) bool {
		fmt.Fprintln(&b, acct.id, acct.machine, acct.balances, acct.gpus, acct.nodes)
		return true
	})
	a.nodes.Ascend(func(h *holding) bool {
		fmt.Fprintln(&b, h.node, h.Allocation)
		return true
	})
	a.holders.Ascend(func(h holder) bool {
		fmt.Fprintln(&b, h.Machine, h.resource, h.node, h.amount())
		return true
	})
	return b.String()
}

// dumpAll prints the queue as well.
func dumpAll(a *Accounts) string {
	var b strings.Builder
	a.waiters.Ascend(func(w *waiter) bool {
		fmt.Fprintln(&b, w.ticket, w.class.key, w.demand.Count, w.lacking)
		return true
	})
	return fmt.Sprint(dump(a), b.String(), a.lastTicket, a.stale)
}

func drawMachine(t *rapid.T) Machine {
	id := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "machine")
	m := Machine{ID: id, Name: rapid.SampledFrom([]string{id + "1", "same"}).Draw(t, "name"), Total: Resources{
		"cpu":  rapid.Int64Range(0, 4).Draw(t, "cpu") * 500,
		Memory: rapid.Int64Range(0, 3).Draw(t, "memory") * 100,
	}}
	m.GPUs = rapid.SliceOfNDistinct(rapid.Uint32Range(0, 4), 0, 3, rapid.ID).Draw(t, "gpus")
	if rapid.Bool().Draw(t, "labelled") {
		m.Labels = map[string]string{"role": rapid.SampledFrom([]string{"x", "y"}).Draw(t, "role")}
	}
	return m
}

func drawRequest(t *rapid.T) *Request {
	r := &Request{
		Count:     rapid.IntRange(1, 4).Draw(t, "count"),
		Resources: make(Resources),
		Strategy:  rapid.SampledFrom([]Strategy{Default, Spread, Pack, OnePerMachine}).Draw(t, "strategy"),
		Parent:    rapid.SampledFrom([]string{"", "a", "b", "gone"}).Draw(t, "parent"),
	}
	for _, resource := range []string{"cpu", GPU, Memory} {
		unit := map[string]int64{"cpu": 250, GPU: Unit, Memory: 30}[resource]
		if rapid.Bool().Draw(t, "needs "+resource) {
			r.Resources[resource] = rapid.Int64Range(0, 3).Draw(t, resource) * unit
		}
	}
	switch rapid.IntRange(0, 5).Draw(t, "where") {
	case 0:
		r.On = rapid.SampledFrom([]string{"a", "same", "b1"}).Draw(t, "on")
	case 1:
		r.Near = rapid.SampledFrom([]string{"a", "c"}).Draw(t, "near")
	case 2:
		r.Labels = map[string]string{"role": "x"}
	}
	return r
}

// versions are nested versions of accounts with their models, the innermost last.
type versions struct {
	accounts []*Accounts
	models   []*model
	next     int
}

func (v *versions) top() (*Accounts, *model) {
	return v.accounts[len(v.accounts)-1], v.models[len(v.models)-1]
}

func (v *versions) pop() {
	v.accounts, v.models = v.accounts[:len(v.accounts)-1], v.models[:len(v.models)-1]
}

// TestPlacementsAgreeWithTheModel changes nested versions at random. A request must be placed if
// and only if there is a way among all, as the strategy is defined, and never be refused for good
// if there is a way on empty machines.
func TestPlacementsAgreeWithTheModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := &versions{accounts: []*Accounts{New()}, models: []*model{newModel()}}
		t.Repeat(map[string]func(*rapid.T){
			"": func(t *rapid.T) {
				a, m := v.top()
				m.audit(t, a)
			},
			"join": func(t *rapid.T) {
				a, m := v.top()
				machine := drawMachine(t)
				require.NoError(t, a.Join(machine))
				m.machines[machine.ID] = machine
			},
			"leave": func(t *rapid.T) {
				a, m := v.top()
				id := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "machine")
				a.Leave(id)
				delete(m.machines, id)
			},
			"place":  v.place,
			"placed": v.place,
			"release": func(t *rapid.T) {
				a, m := v.top()
				if len(m.nodes) == 0 {
					t.Skip()
				}
				node := rapid.SampledFrom(slices.Sorted(maps.Keys(m.nodes))).Draw(t, "node")
				a.Release(node)
				a.Release(node)
				delete(m.nodes, node)
			},
			"begin": func(t *rapid.T) {
				a, m := v.top()
				if len(v.accounts) == 3 {
					t.Skip()
				}
				v.accounts, v.models = append(v.accounts, a.Begin()), append(v.models, m.clone())
			},
			"merge": func(t *rapid.T) {
				a, m := v.top()
				if a.base == nil {
					t.Skip()
				}
				a.Merge()
				v.pop()
				v.models[len(v.models)-1] = m
			},
			"drop": func(t *rapid.T) {
				if len(v.accounts) == 1 {
					t.Skip()
				}
				v.pop()
			},
		})
	})
}

func (v *versions) place(t *rapid.T) {
	a, m := v.top()
	r := drawRequest(t)
	accepting := m.accepting(r)
	before := dumpAll(a)
	places, err := a.Place(r)
	require.Equal(t, before, dumpAll(a), "a decision has changed the accounts")
	switch {
	case exists(r, accepting, m.free):
		require.NoError(t, err)
	case exists(r, accepting, m.total):
		var lacking *LackingError
		require.ErrorAs(t, err, &lacking)
		v.lacks(t, r, lacking)
		return
	case r.Strategy == OnePerMachine && len(accepting) > 0 && len(accepting) < r.Count:
		require.ErrorAs(t, err, new(*TooFewMachinesError))
		return
	default:
		require.Error(t, err)
		require.NotErrorAs(t, err, new(*LackingError))
		return
	}
	want := m.place(r)
	require.Equal(t, fmt.Sprint(want), fmt.Sprint(places))
	for _, given := range places {
		node := fmt.Sprint("node ", v.next)
		v.next++
		require.NoError(t, a.Allocate(node, given))
		require.Error(t, a.Allocate(node, given))
		m.nodes[node] = given
		for resource := range r.Resources {
			if r.Resources[resource] > 0 {
				require.GreaterOrEqual(t, m.free(given.Machine, resource), int64(0), "%s has too little %s", given.Machine, resource)
			}
		}
	}
}

// lacks verifies the amounts of an error, and its holders.
func (v *versions) lacks(t *rapid.T, r *Request, e *LackingError) {
	_, m := v.top()
	require.NotEmpty(t, e.Lacks)
	require.Empty(t, e.Behind)
	usable := slices.DeleteFunc(m.accepting(r), func(machine Machine) bool { return !fits(r, []Machine{machine}, []int{0}, m.total) })
	require.Len(t, usable, e.Machines)
	holders := 0
	for _, lack := range e.Lacks {
		require.Positive(t, r.Resources[lack.Resource])
		want := Lack{Resource: lack.Resource}
		for _, machine := range usable {
			free := max(m.free(machine.ID, lack.Resource), 0)
			want.Total += m.total(machine.ID, lack.Resource)
			want.Free += free
			want.Largest = max(want.Largest, free)
			for _, had := range m.nodes {
				if had.Machine == machine.ID && had.Resources[lack.Resource] > 0 {
					holders++
				}
			}
		}
		require.Equal(t, want, lack)
	}
	require.Len(t, e.Holders, min(holders, maxListed))
	require.Equal(t, holders > maxListed, e.More)
	for _, h := range e.Holders {
		had := m.nodes[h.Node]
		require.Equal(t, h.Amount, had.Resources[h.Resource])
		require.Equal(t, h.Machine, m.machines[had.Machine].Name)
	}
}
