package placement

import (
	"cmp"
	"container/heap"
	"slices"
	"strings"
)

// Place decides where the nodes of a request go, and returns what each would have. It changes
// nothing: [Accounts.Allocate] does. It fails with [InvalidError], [UnknownMachineError],
// [TooFewMachinesError] or [ImpossibleError] if no wait can help, and with [LackingError] or
// [ExpectingError] if it can; see [Accounts.Wait].
//
// Requests that wait have priority: what they have reserved is not given to this one.
func (a *Accounts) Place(r *Request) ([]Allocation, error) {
	d, err := r.demand()
	if err != nil {
		return nil, err
	}
	claims := a.claims(a.lastTicket + 1)
	places, err := a.decide(d, claims)
	if err != nil {
		return nil, err
	}
	if places == nil {
		return nil, a.why(d, claims)
	}
	return places, nil
}

// decide returns the places of a request, nil if it lacks something, or an error if it can never be
// placed.
//
// Because the nodes of a request are identical, what a machine gives to one of them is independent
// of where the others go. So there are places for all if and only if the machines have room for as
// many nodes in sum, and it does not matter to that in which order machines are filled.
func (a *Accounts) decide(d *demand, claims claims) ([]Allocation, error) {
	claims = claims.against(d)
	places := make([]Allocation, 0, d.Count)
	if d.Strategy == Default && d.Parent != "" {
		places = a.beParent(d, claims, places)
		if len(places) == d.Count {
			return places, nil
		}
	}
	room := 0
	rest := d.Count - len(places)
	var best candidate // if one place is missing
	var all candidates // if several are
	a.machines.Ascend(func(acct *account) bool {
		if !d.accepts(acct) {
			return true
		}
		here := d.room(acct)
		if here == 0 || claims.reserve(acct) {
			return true
		}
		room += here
		if len(places) > 0 && acct.id == d.Parent {
			return true
		}
		c := newCandidate(d, acct, here)
		if rest > 1 {
			all = append(all, c)
		} else if best.acct == nil || c.compare(&best) < 0 {
			best = c
		}
		return true
	})
	switch {
	case room < d.Count && a.expecting:
		return nil, nil
	case room < d.Count:
		return nil, a.never(d)
	case rest == 1:
		return append(places, best.place()), nil
	default:
		return all.place(places, rest), nil
	}
}

// beParent places nodes on the parent's machine, as many as it has room for.
func (a *Accounts) beParent(d *demand, claims claims, places []Allocation) []Allocation {
	acct := a.account(d.Parent)
	if acct == nil || !d.accepts(acct) || claims.reserve(acct) {
		return places
	}
	if room := d.room(acct); room > 0 {
		c := newCandidate(d, acct, room)
		for range room {
			places = append(places, c.place())
		}
	}
	return places
}

// why returns the error for a request that can't be placed now, for which waiting can help.
func (a *Accounts) why(d *demand, claims claims) error {
	if a.expecting {
		if err := a.never(d); err != nil {
			return &ExpectingError{Present: err}
		}
	}
	return a.lacking(d, claims)
}

// never returns why a request can't be placed even if all machines were empty, or nil if it could.
func (a *Accounts) never(d *demand) error {
	accepting, capacity := 0, 0
	a.machines.Ascend(func(acct *account) bool {
		if d.accepts(acct) {
			accepting++
			capacity += d.capacity(acct)
		}
		return true
	})
	switch {
	case accepting == 0:
		if err := a.unknown(d); err != nil {
			return err
		}
	case d.Strategy == OnePerMachine && accepting < d.Count:
		return &TooFewMachinesError{Request: d.Request, Machines: accepting}
	}
	if capacity < d.Count {
		return a.impossible(d)
	}
	return nil
}

// candidate is a machine with room for nodes of a request.
type candidate struct {
	demand *demand
	acct   *account
	room   int
	placed int
	// share is the free share after the next node.
	share float64
	// gpus are free and not yet given to a node of the request. They are nil until one is.
	gpus []uint32
}

func newCandidate(d *demand, acct *account, room int) candidate {
	return candidate{demand: d, acct: acct, room: room, share: d.share(acct, 1)}
}

// compare orders candidates by the request's strategy, the best first.
func (c *candidate) compare(other *candidate) int {
	order := 1
	switch c.demand.Strategy {
	case Spread, OnePerMachine:
		if c.placed != other.placed {
			return cmp.Compare(c.placed, other.placed)
		}
	case Pack:
		order = -1
	case Default:
	}
	if c.share != other.share {
		return order * cmp.Compare(other.share, c.share)
	}
	if nodes := cmp.Compare(c.acct.nodes+c.placed, other.acct.nodes+other.placed); nodes != 0 {
		return order * nodes
	}
	if names := strings.Compare(c.acct.machine.Name, other.acct.machine.Name); names != 0 {
		return names
	}
	return strings.Compare(c.acct.id, other.acct.id)
}

// place gives a place to a node.
func (c *candidate) place() Allocation {
	d := c.demand
	given := Allocation{Machine: c.acct.id, Resources: d.granted}
	if gpus := int(d.Resources[GPU] / Unit); gpus > 0 {
		if c.gpus == nil {
			c.gpus = c.acct.freeGPUs()
		}
		given.GPUs = c.gpus[:gpus:gpus]
		c.gpus = c.gpus[gpus:]
	}
	c.placed++
	if c.room--; c.room > 0 {
		c.share = d.share(c.acct, c.placed+1)
	}
	return given
}

// freeGPUs returns the machine's GPUs that no node has, ascending. They are at least as many as its
// balance has, because each allocated unit has its number.
func (acct *account) freeGPUs() []uint32 {
	return slices.DeleteFunc(slices.Clone(acct.machine.GPUs), func(gpu uint32) bool {
		_, taken := slices.BinarySearch(acct.gpus, gpu)
		return taken
	})
}

// candidates are a heap, the best first.
type candidates []candidate

// place gives places to a number of nodes, for which there is room.
func (h *candidates) place(places []Allocation, count int) []Allocation {
	heap.Init(h)
	for range count {
		best := &(*h)[0]
		places = append(places, best.place())
		if best.room > 0 {
			heap.Fix(h, 0)
		} else {
			heap.Pop(h)
		}
	}
	return places
}

func (h *candidates) Len() int           { return len(*h) }
func (h *candidates) Less(i, j int) bool { return (*h)[i].compare(&(*h)[j]) < 0 }
func (h *candidates) Swap(i, j int)      { (*h)[i], (*h)[j] = (*h)[j], (*h)[i] }

// Push is never called.
func (h *candidates) Push(c any) { *h = append(*h, c.(candidate)) } //nolint:forcetypeassert // required by heap.Interface

func (h *candidates) Pop() any {
	*h = (*h)[:len(*h)-1]
	return nil
}
