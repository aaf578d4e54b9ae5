package placement

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// maxListed bounds the lists in errors.
const maxListed = 8

// InvalidError is the error of a request or a machine that contradicts the rules.
type InvalidError struct{ Why string }

func (e *InvalidError) Error() string { return e.Why }

// UnknownMachineError is the error of a request for a machine that is not there.
type UnknownMachineError struct {
	// On is the name or id of the machine that was asked for, or empty.
	On string
	// Near is the id of the machine to be near to, if On is empty.
	Near string
	// Known are names of machines that are there, at most eight, and Count is how many there are.
	Known []string
	Count int
}

func (e *UnknownMachineError) Error() string {
	text := fmt.Sprintf("no machine has the name or the id %q", clip(e.On))
	if e.On == "" {
		text = fmt.Sprintf("the machine %q of the node to be near to is not there", clip(e.Near))
	}
	if e.Count == 0 {
		return text + ": no machine has joined"
	}
	return text + "; there are " + listText(e.Known, e.Count)
}

// TooFewMachinesError is the error of a request for one node per machine, for more nodes than
// machines.
type TooFewMachinesError struct {
	Request *Request
	// Machines is how many machines the request is for: those with its labels.
	Machines int
}

func (e *TooFewMachinesError) Error() string {
	return fmt.Sprintf("%s can't be placed, one per machine: %d %s", e.Request, e.Machines, plural(e.Machines, "machine matches", "machines match"))
}

// ImpossibleError is the error of a request that could not be placed if all machines were empty.
type ImpossibleError struct {
	Request *Request
	// Matching is how many machines have what is asked for besides resources.
	Matching int
	// Machines are those that match, or all if none does: by name, at most eight, out of Count.
	Machines []Machine
	Count    int
}

func (e *ImpossibleError) Error() string {
	text := fmt.Sprintf("%s can never be placed: ", e.Request)
	if e.Count == 0 {
		return text + "no machine has joined"
	}
	if e.Matching == 0 {
		text += "no machine matches; "
	}
	machines := make([]string, len(e.Machines))
	for i := range e.Machines {
		m := &e.Machines[i]
		has := entriesText(amountTexts(m.Total))
		if e.Matching == 0 && len(m.Labels) > 0 {
			has += " and the labels " + entriesText(labelTexts(m.Labels))
		}
		machines[i] = clip(m.Name) + " has " + has
	}
	return text + joinText(machines, e.Count, "; ")
}

// ExpectingError is the error of a request that the present machines could never serve, while
// others are expected to join.
type ExpectingError struct {
	// Present is why they can't.
	Present error
}

func (e *ExpectingError) Error() string {
	return e.Present.Error() + "; but other machines are expected to join again"
}

// Unwrap returns the error without the expectation.
func (e *ExpectingError) Unwrap() error { return e.Present }

// QueueFullError is the error of a request that can't wait because too many do.
type QueueFullError struct{ Request *Request }

func (e *QueueFullError) Error() string {
	return fmt.Sprintf("%s can't be placed now, and can't wait for it: %d requests wait, which is the bound", e.Request, MaxWaiting)
}

// LackingError is the error of a request that could be placed if nodes gave back what they have.
type LackingError struct {
	Request *Request
	// Machines is how many machines could have nodes of the request.
	Machines int
	// Lacks are the resources that lack on them, by name.
	Lacks []Lack
	// Holders are nodes that have these resources there, at most eight. More reports whether there
	// are others.
	Holders []Holder
	More    bool
	// Behind are the earlier requests that have reserved some of these resources: at most eight of
	// Waiters, those that differ in what they need.
	Behind  []*Request
	Waiters int
}

// Lack is a resource that lacks on the machines that could have a request's nodes.
type Lack struct {
	Resource string
	// Total is what these machines have, Free what is not allocated, and Largest the most of it on
	// one machine.
	Total, Free, Largest int64
}

// Holder is a node that has some of a resource.
type Holder struct {
	// Node is the node's id. [LackingError.Named] replaces it.
	Node string
	// Machine is the machine's name.
	Machine  string
	Resource string
	Amount   int64
}

// Named returns a copy of the error that shows nodes by other names than their ids, such as paths.
func (e *LackingError) Named(name func(node string) string) *LackingError {
	named := *e
	named.Holders = slices.Clone(e.Holders)
	for i := range named.Holders {
		named.Holders[i].Node = name(named.Holders[i].Node)
	}
	return &named
}

func (e *LackingError) Error() string {
	lacks := make([]string, len(e.Lacks))
	for i, l := range e.Lacks {
		lacks[i] = fmt.Sprintf("%s (%s of %s free", clip(l.Resource), valueText(l.Resource, l.Free), valueText(l.Resource, l.Total))
		if l.Largest < l.Free {
			lacks[i] += fmt.Sprintf(", at most %s on one machine", valueText(l.Resource, l.Largest))
		}
		lacks[i] += ")"
	}
	text := fmt.Sprintf("%s can't be placed now: the %s that could have %s %s %s",
		e.Request, plural(e.Machines, "machine", strconv.Itoa(e.Machines)+" machines"), plural(e.Request.Count, "it", "them"),
		plural(e.Machines, "lacks", "lack"), joinText(lacks[:min(len(lacks), maxListed)], len(lacks), ", "))
	if len(e.Holders) > 0 {
		holders := make([]string, len(e.Holders))
		for i, h := range e.Holders {
			holders[i] = fmt.Sprintf("%s (%s on %s)", clip(h.Node), amountText(h.Resource, h.Amount), clip(h.Machine))
		}
		text += "; nodes that have it: " + strings.Join(holders, ", ")
		if e.More {
			text += " and others"
		}
	}
	if len(e.Behind) > 0 {
		requests := make([]string, len(e.Behind))
		for i, r := range e.Behind {
			requests[i] = r.String()
			if r.By != "" {
				requests[i] += " for " + clip(r.By)
			}
		}
		text += "; reserved for earlier requests: " + joinText(requests, e.Waiters, ", ")
	}
	return text
}

// String describes what is asked for, such as `2 nodes with cpu=0.5, gpu=1 each`.
func (r *Request) String() string {
	text := "a node"
	if r.Count != 1 {
		text = strconv.Itoa(r.Count) + " nodes"
	}
	if amounts := amountTexts(r.Resources); len(amounts) > 0 {
		text += " with " + entriesText(amounts)
		if r.Count != 1 {
			text += " each"
		}
	}
	if labels := labelTexts(r.Labels); len(labels) > 0 {
		text += plural(len(labels), ", label ", ", labels ") + entriesText(labels)
	}
	if r.On != "" {
		text += fmt.Sprintf(", on the machine %q", clip(r.On))
	}
	if r.Near != "" {
		text += fmt.Sprintf(", on the machine %q of another node", clip(r.Near))
	}
	return text
}

// unknown returns an [UnknownMachineError] if a request names a machine that is not there, or nil.
func (a *Accounts) unknown(d *demand) error {
	all := a.present("")
	known := func(name string) bool {
		return name == "" || slices.ContainsFunc(all, func(acct *account) bool { return acct.id == name || acct.machine.Name == name })
	}
	if near := a.account(d.Near); known(d.On) && (d.Near == "" || near != nil && near.machine != nil) {
		return nil
	}
	e := &UnknownMachineError{Near: d.Near, Count: len(all)}
	if !known(d.On) {
		e.On = d.On
	}
	for _, acct := range all[:min(len(all), maxListed)] {
		e.Known = append(e.Known, acct.machine.Name)
	}
	return e
}

func (a *Accounts) impossible(d *demand) error {
	all := a.present("")
	matching := slices.DeleteFunc(slices.Clone(all), func(acct *account) bool { return !d.accepts(acct) })
	e := &ImpossibleError{Request: d.Request, Matching: len(matching)}
	if len(matching) > 0 {
		all = matching
	}
	e.Count = len(all)
	for _, acct := range all[:min(len(all), maxListed)] {
		e.Machines = append(e.Machines, *acct.machine)
	}
	return e
}

// shortage is what a request lacks.
type shortage struct {
	lacks []Lack
	// machines are those that could have nodes of the request.
	machines []*account
}

func (s shortage) names() []string {
	names := make([]string, len(s.lacks))
	for i := range s.lacks {
		names[i] = s.lacks[i].Resource
	}
	return names
}

// shortage returns what a request lacks that could be placed if all machines were empty: the
// resources of which the machines have too little, each considered alone and without what is
// reserved. If there is enough of each, but not together on the same machines, these are the
// resources of which a machine has the least, among the machines that could have more nodes if they
// were empty. There is always at least one.
func (a *Accounts) shortage(d *demand, claims claims) shortage {
	var s shortage
	type count struct {
		Lack

		alone    int  // how many nodes could be placed if they needed this resource only
		limiting bool // whether a machine has the least of it
	}
	counts := make([]count, len(d.needs))
	times := make([]int, len(d.needs))
	a.machines.Ascend(func(acct *account) bool {
		if !d.accepts(acct) {
			return true
		}
		capacity := d.capacity(acct)
		if capacity == 0 {
			return true
		}
		s.machines = append(s.machines, acct)
		least := capacity
		at := 0
		for i := range d.needs {
			n, c := &d.needs[i], &counts[i]
			var b *balance
			b, at = acct.next(at, n.name)
			c.Total += b.total
			c.Free += b.free()
			c.Largest = max(c.Largest, b.free())
			times[i] = 0
			if !claims.reserveOf(acct, n.name) {
				times[i] = n.times(b.free(), d.each)
			}
			c.alone += times[i]
			least = min(least, times[i])
		}
		for i := range times {
			if least < capacity && times[i] == least {
				counts[i].limiting = true
			}
		}
		return true
	})
	enough := !slices.ContainsFunc(counts, func(c count) bool { return c.alone < d.Count })
	for i, c := range counts {
		if c.alone < d.Count || enough && c.limiting {
			c.Resource = d.needs[i].name
			s.lacks = append(s.lacks, c.Lack)
		}
	}
	return s
}

// lacking returns the error for a request that could be placed, but not now.
func (a *Accounts) lacking(d *demand, claims claims) error {
	claims = claims.against(d)
	s := a.shortage(d, claims)
	e := &LackingError{Request: d.Request, Machines: len(s.machines), Lacks: s.lacks}
	for _, c := range claims.list {
		if slices.ContainsFunc(s.machines, c.on) {
			e.Waiters++
			if len(e.Behind) < maxListed {
				e.Behind = append(e.Behind, c.first.Request)
			}
		}
	}
	for i := range s.lacks {
		for _, acct := range s.machines {
			if e.More {
				return e
			}
			a.addHolders(e, acct, s.lacks[i].Resource)
		}
	}
	return e
}

// addHolders adds the nodes that have a resource of a machine, until the list is full.
func (a *Accounts) addHolders(e *LackingError, acct *account, resource string) {
	if i, found := acct.find(resource); !found || acct.balances[i].used == 0 {
		return
	}
	first := holder{resource: resource, holding: &holding{Allocation: Allocation{Machine: acct.id}}}
	a.holders.AscendGreaterOrEqual(first, func(h holder) bool {
		if h.Machine != acct.id || h.resource != resource {
			return false
		}
		e.More = len(e.Holders) == maxListed
		if !e.More {
			e.Holders = append(e.Holders, Holder{Node: h.node, Machine: acct.machine.Name, Resource: resource, Amount: h.amount()})
		}
		return !e.More
	})
}

// amountText is an amount as users write it: `cpu=0.5`, `memory=64GiB`.
func amountText(resource string, amount int64) string {
	return clip(resource) + "=" + valueText(resource, amount)
}

func valueText(resource string, amount int64) string {
	if resource == Memory {
		return bytesText(amount)
	}
	return strconv.FormatFloat(float64(amount)/Unit, 'f', -1, 64)
}

// bytesText is a number of bytes in the largest unit of which it has one, with up to two decimals.
func bytesText(n int64) string {
	size, unit := float64(n), 0
	units := []string{"", "KiB", "MiB", "GiB", "TiB"}
	for size >= 1024 && unit < len(units)-1 {
		size /= 1024
		unit++
	}
	text := strconv.FormatFloat(size, 'f', 2, 64)
	return strings.TrimSuffix(strings.TrimRight(text, "0"), ".") + units[unit]
}

func amountTexts(resources Resources) []string {
	var texts []string
	for _, name := range slices.Sorted(maps.Keys(resources)) {
		if resources[name] != 0 {
			texts = append(texts, amountText(name, resources[name]))
		}
	}
	return texts
}

func labelTexts(labels map[string]string) []string {
	texts := make([]string, 0, len(labels))
	for _, name := range slices.Sorted(maps.Keys(labels)) {
		texts = append(texts, clip(name)+"="+clip(labels[name]))
	}
	return texts
}

// entriesText lists resources or labels, at most eight.
func entriesText(entries []string) string {
	if len(entries) == 0 {
		return "no resources"
	}
	return joinText(entries[:min(len(entries), maxListed)], len(entries), ", ")
}

// listText lists names, which are some of a number of them.
func listText(names []string, count int) string {
	clipped := make([]string, len(names))
	for i, name := range names {
		clipped[i] = clip(name)
	}
	return joinText(clipped, count, ", ")
}

// joinText joins items, which are some of a number of them.
func joinText(items []string, count int, separator string) string {
	text := strings.Join(items, separator)
	if count > len(items) {
		text += fmt.Sprintf(" and %d more", count-len(items))
	}
	return text
}

func plural(n int, one, several string) string {
	if n == 1 {
		return one
	}
	return several
}

// clip shortens a text from the wire for an error.
func clip(s string) string {
	const bound = 64
	s = strings.ToValidUTF8(s, "\uFFFD")
	if len(s) <= bound {
		return s
	}
	end := bound
	for !utf8.RuneStart(s[end]) {
		end--
	}
	return s[:end] + "..."
}
