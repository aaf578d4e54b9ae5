package placement

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// demand is a valid request in the form in which it is compared with machines.
type demand struct {
	*Request

	needs []need // by name
	// granted is what each node gets: the resources without those of which it needs 0.
	granted Resources
	// each is how many nodes one machine may get.
	each int
}

// need is a resource that each node of a request needs. The amount is not 0.
type need struct {
	name   string
	amount int64
}

// demand validates a request. It fails with [InvalidError].
func (r *Request) demand() (*demand, error) {
	if r.Count < 1 {
		return nil, &InvalidError{Why: fmt.Sprintf("%d nodes are asked for; a request is for at least one", r.Count)}
	}
	if r.Count > MaxCount {
		return nil, &InvalidError{Why: fmt.Sprintf("%d nodes in one request are too many; the bound is %d", r.Count, MaxCount)}
	}
	if r.Strategy < Default || r.Strategy > OnePerMachine {
		return nil, &InvalidError{Why: fmt.Sprintf("%d is not a strategy", r.Strategy)}
	}
	if err := check(r.Resources, r.Labels); err != nil {
		return nil, err
	}
	d := &demand{Request: r, needs: make([]need, 0, len(r.Resources)), granted: r.Resources, each: r.Count}
	for name, amount := range r.Resources {
		if amount > 0 {
			d.needs = append(d.needs, need{name: name, amount: amount})
		}
	}
	if len(d.needs) < len(r.Resources) {
		d.granted = maps.Clone(r.Resources)
		maps.DeleteFunc(d.granted, func(_ string, amount int64) bool { return amount == 0 })
	}
	slices.SortFunc(d.needs, func(x, y need) int { return cmp.Compare(x.name, y.name) })
	if r.Strategy == OnePerMachine {
		d.each = 1
	}
	return d, nil
}

// check validates what a keeper declares. It fails with [InvalidError].
func (m *Machine) check() error {
	if m.ID == "" || len(m.ID) > maxNameBytes || len(m.Name) > maxNameBytes {
		return &InvalidError{Why: fmt.Sprintf("a machine's id has 1 to %d bytes, and its name at most that; those of the machine %q (%q) don't",
			maxNameBytes, clip(m.Name), clip(m.ID))}
	}
	if err := check(m.Total, m.Labels); err != nil {
		return err
	}
	if len(m.GPUs) > maxGPUs {
		return &InvalidError{Why: fmt.Sprintf("%d GPUs of one machine are too many; the bound is %d", len(m.GPUs), maxGPUs)}
	}
	sorted := slices.Sorted(slices.Values(m.GPUs))
	for i := 1; i < len(sorted); i++ {
		if sorted[i] == sorted[i-1] {
			return &InvalidError{Why: fmt.Sprintf("two GPUs of the machine %q have the number %d", clip(m.Name), sorted[i])}
		}
	}
	if total, ok := m.Total[GPU]; ok && total != int64(len(m.GPUs))*Unit {
		return &InvalidError{Why: fmt.Sprintf("the machine %q has %s, but %d GPUs with numbers", clip(m.Name), amountText(GPU, total), len(m.GPUs))}
	}
	return nil
}

// check validates resources and labels. It fails with [InvalidError].
func check(resources Resources, labels Labels) error {
	if err := cmp.Or(resources.Check(), labels.Check()); err != nil {
		return &InvalidError{Why: err.Error()}
	}
	for _, name := range slices.Sorted(maps.Keys(resources)) {
		if amount := resources[name]; amount > maxAmount {
			return &InvalidError{Why: fmt.Sprintf("%s is too much; the bound is %s", amountText(name, amount), amountText(name, maxAmount))}
		}
	}
	return nil
}

// accepts reports whether a machine is one that the request is for: it is there, and has the
// labels.
func (d *demand) accepts(acct *account) bool {
	m := acct.machine
	if m == nil || d.On != "" && d.On != m.ID && d.On != m.Name || d.Near != "" && d.Near != m.ID {
		return false
	}
	// Most requests have no labels; they don't pay for an iteration.
	return len(d.Labels) == 0 || m.Labels.Match(d.Labels)
}

// capacity is how many nodes of the request a machine could have if it were empty.
func (d *demand) capacity(acct *account) int {
	return d.fit(acct, func(b *balance) int64 { return b.total })
}

// room is how many nodes of the request a machine can have now.
func (d *demand) room(acct *account) int {
	return d.fit(acct, func(b *balance) int64 { return b.free() })
}

// fit is how many nodes of the request a machine can have with an amount of each resource.
func (d *demand) fit(acct *account, amount func(*balance) int64) int {
	times := d.each
	at := 0
	for i := range d.needs {
		var b *balance
		if b, at = acct.next(at, d.needs[i].name); b == nil {
			return 0
		}
		times = d.needs[i].times(amount(b), times)
	}
	return times
}

// share is which part of a machine is free after placing a number of nodes, for which it has room:
// of the resource for which it is smallest.
func (d *demand) share(acct *account, placed int) float64 {
	share := 1.0
	at := 0
	for i := range d.needs {
		var b *balance
		b, at = acct.next(at, d.needs[i].name)
		share = min(share, float64(b.free()-d.needs[i].amount*int64(placed))/float64(b.total))
	}
	return share
}

// times is how often an amount contains what is needed, at most limit times.
func (n *need) times(amount int64, limit int) int {
	if n.amount*int64(limit) <= amount {
		return limit
	}
	return int(amount / n.amount)
}

// next returns the balance of a resource, nil if the machine has none, and where the search for the
// next resource by name begins.
func (acct *account) next(at int, name string) (*balance, int) {
	for i := at; i < len(acct.balances); i++ {
		if b := &acct.balances[i]; b.name == name {
			return b, i + 1
		}
	}
	return nil, at
}

// classKey identifies what a machine must have. Requests of the same class fit the same machines,
// equally often.
func (d *demand) classKey() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%q %q %t", d.On, d.Near, d.Strategy == OnePerMachine)
	for _, name := range slices.Sorted(maps.Keys(d.Labels)) {
		fmt.Fprintf(&b, " %q=%q", name, d.Labels[name])
	}
	for _, n := range d.needs {
		fmt.Fprintf(&b, " %q:%d", n.name, n.amount)
	}
	return b.String()
}
