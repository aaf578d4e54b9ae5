package placement

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"github.com/google/btree"
)

// degree of the B-trees: a change copies a few nodes with at most 2*degree-1 items each.
const degree = 16

// Accounts are one version of the capacities, the allocations and the queue. Concurrent reads are
// safe, also while changes are made in another version, but not during a Merge into this one.
type Accounts struct {
	state

	base *Accounts // nil for the outermost version
	// owned reports whether the trees are this version's own. Until it changes something, it reads
	// those of its base.
	owned bool
}

// state is what a version consists of. All items are immutable, and may be in many versions.
type state struct {
	machines *btree.BTreeG[*account] // by id
	nodes    *btree.BTreeG[*holding] // by node
	// holders has an entry for each resource that a node has, by machine, resource and node, so
	// that the holders of a resource are found without a search among all nodes.
	holders *btree.BTreeG[holder]
	waiters *btree.BTreeG[*waiter] // by ticket

	lastTicket uint64
	// stale reports whether something has changed by which a waiter may be served or have become
	// impossible.
	stale bool
	// expecting reports whether more machines are expected to join.
	expecting bool
}

// account is one machine with what is allocated on it. It remains without the machine as long as
// nodes have allocations there.
type account struct {
	id       string
	machine  *Machine  // nil: the machine has left
	balances []balance // by name
	gpus     []uint32  // allocated ones, ascending
	nodes    int
}

// balance is one resource of a machine. used exceeds total where a machine came back with less.
type balance struct {
	name        string
	total, used int64
}

// free is what can be allocated.
func (b *balance) free() int64 { return max(b.total-b.used, 0) }

type holding struct {
	Allocation

	node string
}

// holder is one resource that a node has.
type holder struct {
	*holding

	resource string
}

func (h *holder) amount() int64 { return h.Resources[h.resource] }

// New makes accounts without machines.
func New() *Accounts {
	return &Accounts{owned: true, state: state{
		machines: btree.NewG(degree, func(a, b *account) bool { return a.id < b.id }),
		nodes:    btree.NewG(degree, func(a, b *holding) bool { return a.node < b.node }),
		holders: btree.NewG(degree, func(a, b holder) bool {
			if a.Machine != b.Machine {
				return a.Machine < b.Machine
			}
			if a.resource != b.resource {
				return a.resource < b.resource
			}
			return a.node < b.node
		}),
		waiters: btree.NewG(degree, func(a, b *waiter) bool { return a.ticket < b.ticket }),
	}}
}

// Begin starts a version based on a. As long as it is in use, a and other versions based on a must
// not be changed. It can be dropped at any time.
func (a *Accounts) Begin() *Accounts { return &Accounts{base: a, state: a.state} }

// Merge makes the state of this version that of its base. The version must not be used afterwards.
func (a *Accounts) Merge() {
	a.base.state = a.state
	a.base.owned = a.base.owned || a.owned
	a.base = nil
}

// own makes the trees this version's own, before they are changed. A clone takes constant time; the
// nodes of a tree are copied when they are changed.
func (a *Accounts) own() {
	if a.owned {
		return
	}
	a.machines, a.nodes, a.holders, a.waiters = a.machines.Clone(), a.nodes.Clone(), a.holders.Clone(), a.waiters.Clone()
	a.owned = true
}

// Join enters a machine, or replaces what is known of it. It fails with [InvalidError]. The
// ownership of the slices and maps passes to the accounts. Allocations on the machine remain; if
// they exceed its capacity, no node that needs the resource is placed there until they don't.
func (a *Accounts) Join(m Machine) error {
	if err := m.check(); err != nil {
		return err
	}
	m.Total = maps.Clone(m.Total)
	m.GPUs = slices.Sorted(slices.Values(m.GPUs))
	if len(m.GPUs) > 0 {
		if m.Total == nil {
			m.Total = make(Resources)
		}
		m.Total[GPU] = int64(len(m.GPUs)) * Unit
	}
	a.edit(m.ID, func(acct *account) {
		acct.machine = &m
		acct.setTotals()
	})
	a.stale = true
	return nil
}

// Leave removes a machine. Allocations on it remain until they are released; they count against
// nothing unless the machine comes back.
func (a *Accounts) Leave(id string) {
	if a.account(id) == nil {
		return
	}
	a.edit(id, func(acct *account) {
		acct.machine = nil
		acct.setTotals()
	})
	a.stale = true
}

// Expect sets whether machines are expected to join, as after a restart of their registry. Until
// then no request is impossible: one that the present machines could not serve waits
// ([ExpectingError]).
func (a *Accounts) Expect(machines bool) {
	if a.expecting != machines {
		a.own()
		a.expecting, a.stale = machines, true
	}
}

// Allocate enters what a node has: as [Accounts.Place] has decided, or as its record has it after a
// restart, also if its machine is not known or has too little. It fails if the node has an
// allocation, if another node has one of its GPUs, or if the allocation contradicts itself: records
// of this package's decisions do none of this.
func (a *Accounts) Allocate(node string, given Allocation) error {
	has := &holding{node: node, Allocation: given}
	if a.nodes.Has(has) {
		return fmt.Errorf("allocate resources to node %s: it has an allocation", node)
	}
	if err := given.check(); err != nil {
		return fmt.Errorf("allocate resources to node %s: %w", node, err)
	}
	if acct := a.account(given.Machine); acct != nil {
		for _, gpu := range given.GPUs {
			if _, taken := slices.BinarySearch(acct.gpus, gpu); taken {
				return fmt.Errorf("allocate resources to node %s: another node has GPU %d of the machine %s", node, gpu, given.Machine)
			}
		}
	}
	a.edit(given.Machine, func(acct *account) {
		acct.nodes++
		for name, amount := range given.Resources {
			acct.use(name, amount)
		}
		if len(given.GPUs) > 0 {
			acct.gpus = slices.Sorted(slices.Values(slices.Concat(acct.gpus, given.GPUs)))
		}
	})
	a.nodes.ReplaceOrInsert(has)
	for name := range given.Resources {
		a.holders.ReplaceOrInsert(holder{resource: name, holding: has})
	}
	return nil
}

// check verifies that an allocation is one that Place could have made.
func (given *Allocation) check() error {
	if given.Machine == "" {
		return &InvalidError{Why: "the allocation names no machine"}
	}
	if err := check(given.Resources, nil); err != nil {
		return err
	}
	if int64(len(given.GPUs))*Unit != given.Resources[GPU] {
		return &InvalidError{Why: fmt.Sprintf("the allocation has %s, but %d GPUs with numbers", amountText(GPU, given.Resources[GPU]), len(given.GPUs))}
	}
	for i := 1; i < len(given.GPUs); i++ {
		if given.GPUs[i] <= given.GPUs[i-1] {
			return &InvalidError{Why: fmt.Sprintf("the allocation has GPU %d after GPU %d", given.GPUs[i], given.GPUs[i-1])}
		}
	}
	return nil
}

// Release gives back what a node has. It does nothing if the node has no allocation.
func (a *Accounts) Release(node string) {
	had, ok := a.nodes.Get(&holding{node: node})
	if !ok {
		return
	}
	a.edit(had.Machine, func(acct *account) {
		acct.nodes--
		for name, amount := range had.Resources {
			acct.use(name, -amount)
		}
		if len(had.GPUs) > 0 {
			acct.gpus = slices.DeleteFunc(slices.Clone(acct.gpus), func(gpu uint32) bool { return slices.Contains(had.GPUs, gpu) })
		}
	})
	a.nodes.Delete(had)
	for name := range had.Resources {
		a.holders.Delete(holder{resource: name, holding: had})
	}
	a.stale = true
}

// Allocation returns what a node has.
func (a *Accounts) Allocation(node string) (Allocation, bool) {
	had, ok := a.nodes.Get(&holding{node: node})
	if !ok {
		return Allocation{}, false
	}
	return had.Allocation, true
}

// Len is how many nodes have allocations.
func (a *Accounts) Len() int { return a.nodes.Len() }

// Usage is a machine with what is used of it.
type Usage struct {
	Machine

	// Used are the allocated amounts, which may exceed the capacity.
	Used Resources
	// Nodes is how many nodes have their place there.
	Nodes int
}

// Machines returns the machines that are there and have a name or an id, or all for an empty one,
// by name. They must not be modified.
func (a *Accounts) Machines(name string) []Usage {
	present := a.present(name)
	list := make([]Usage, 0, len(present))
	for _, acct := range present {
		list = append(list, acct.usage())
	}
	return list
}

// Machine returns a machine that is there. It must not be modified.
func (a *Accounts) Machine(id string) (Usage, bool) {
	acct := a.account(id)
	if acct == nil || acct.machine == nil {
		return Usage{}, false
	}
	return acct.usage(), true
}

func (acct *account) usage() Usage {
	used := make(Resources)
	for i := range acct.balances {
		if b := &acct.balances[i]; b.used > 0 {
			used[b.name] = b.used
		}
	}
	return Usage{Machine: *acct.machine, Used: used, Nodes: acct.nodes}
}

// present returns the accounts of the machines that are there and have a name or an id, or all for
// an empty one, by name.
func (a *Accounts) present(name string) []*account {
	var list []*account
	a.machines.Ascend(func(acct *account) bool {
		if acct.machine != nil && (name == "" || acct.id == name || acct.machine.Name == name) {
			list = append(list, acct)
		}
		return true
	})
	slices.SortFunc(list, func(x, y *account) int {
		return cmp.Or(cmp.Compare(x.machine.Name, y.machine.Name), cmp.Compare(x.id, y.id))
	})
	return list
}

// account returns the account of a machine, or nil if there is none.
func (a *Accounts) account(id string) *account {
	acct, _ := a.machines.Get(&account{id: id})
	return acct
}

// edit replaces the account of a machine with a changed copy, which it makes or drops as needed.
// The slice gpus is shared with the original.
func (a *Accounts) edit(id string, change func(*account)) {
	a.own()
	acct := &account{id: id}
	if old := a.account(id); old != nil {
		*acct = *old
		acct.balances = slices.Clone(old.balances)
	}
	change(acct)
	acct.balances = slices.DeleteFunc(acct.balances, func(b balance) bool { return b.total == 0 && b.used == 0 })
	if acct.machine == nil && acct.nodes == 0 {
		a.machines.Delete(acct)
		return
	}
	a.machines.ReplaceOrInsert(acct)
}

// setTotals sets the totals of the balances to the capacity of the machine.
func (acct *account) setTotals() {
	for i := range acct.balances {
		acct.balances[i].total = 0
	}
	if acct.machine != nil {
		for name, total := range acct.machine.Total {
			acct.balance(name).total = total
		}
	}
}

func (acct *account) use(name string, amount int64) { acct.balance(name).used += amount }

// balance returns the balance of a resource, and makes it if there is none.
func (acct *account) balance(name string) *balance {
	i, found := acct.find(name)
	if !found {
		acct.balances = slices.Insert(acct.balances, i, balance{name: name})
	}
	return &acct.balances[i]
}

// find returns where the balance of a resource is, or would be.
func (acct *account) find(name string) (int, bool) {
	return slices.BinarySearchFunc(acct.balances, name, func(b balance, name string) int { return cmp.Compare(b.name, name) })
}
