package placement

import (
	"iter"
	"slices"
)

// A request that lacks something can wait ([Accounts.Wait]). Waiting requests are served in the
// order of their arrival, and each reserves what it lacks: until it is served, no later request
// gets of these resources on the machines that it could use. Later requests for other resources or
// other machines pass.
//
// What a request has reserved once it does not give up. Otherwise it could starve: while it lacks
// GPUs, processors could be given to others, and while it lacks processors, GPUs. So what it
// reserves grows, at the latest until that is all it needs, and what nodes give back is for it.
//
// A request that has become impossible, because a machine has left, fails at once instead of
// waiting for a machine that may never come.

// waiter is a request that waits. It is immutable: a change makes a new one.
type waiter struct {
	ticket uint64
	demand *demand
	class  *class
	// lacking are the names of the resources that it has reserved.
	lacking []string
}

// class is what waiting requests have in common that fit the same machines, equally often. Those
// with equal keys share it.
type class struct{ key string }

// Wait appends a request to the queue, and returns its ticket for [Accounts.Withdraw] and
// [Accounts.Waiting]. It fails as [Accounts.Place] does if no wait can help, and with
// [QueueFullError] if [MaxWaiting] requests wait. A request that lacks nothing is served by the
// next [Accounts.Serve].
func (a *Accounts) Wait(r *Request) (ticket uint64, err error) {
	d, err := r.demand()
	if err != nil {
		return 0, err
	}
	if a.waiters.Len() >= MaxWaiting {
		return 0, &QueueFullError{Request: r}
	}
	w := &waiter{ticket: a.lastTicket + 1, demand: d}
	claims := a.claims(w.ticket)
	w.class = claims.class(d.classKey())
	places, err := a.decide(d, claims)
	switch {
	case err != nil:
		return 0, err
	case places == nil:
		w.lacking = a.shortage(d, claims.against(d)).names()
	default:
		a.stale = true
	}
	a.own()
	a.lastTicket = w.ticket
	a.waiters.ReplaceOrInsert(w)
	return w.ticket, nil
}

// Withdraw ends the wait of a request. It does nothing if the request does not wait.
func (a *Accounts) Withdraw(ticket uint64) {
	if a.waiter(ticket) == nil {
		return
	}
	a.own()
	a.waiters.Delete(&waiter{ticket: ticket})
	a.stale = true
}

// Waiting returns what a request waits for, a [LackingError] or [ExpectingError]. It returns nil if
// the request does not wait, or could be placed by Serve.
func (a *Accounts) Waiting(ticket uint64) error {
	w := a.waiter(ticket)
	if w == nil {
		return nil
	}
	claims := a.claims(ticket)
	if places, err := a.decide(w.demand, claims); err != nil || places != nil {
		return err
	}
	return a.why(w.demand, claims)
}

// Served is a request that waits no longer.
type Served struct {
	Ticket  uint64
	Request *Request
	// Places has the decision, as from [Accounts.Place], if Err is nil.
	Places []Allocation
	// Err is why the request has become impossible.
	Err error
}

// Serve yields the requests that can be placed now or have become impossible, in the order of their
// arrival, and removes them from the queue. The caller enters the allocations before it continues,
// in this version or in one that it merges into this; what it does not enter remains for later
// requests.
//
// Call it after each change by which something can become available, and before other requests are
// placed: Join, Leave, Expect, Release and Withdraw. If there was none, it takes constant time.
func (a *Accounts) Serve() iter.Seq[Served] {
	return func(yield func(Served) bool) {
		if !a.stale {
			return
		}
		a.own()
		a.stale = false
		var waiting []*waiter
		a.waiters.Ascend(func(w *waiter) bool {
			waiting = append(waiting, w)
			return true
		})
		var before claims
		for _, w := range waiting {
			if a.stale && a.waiter(w.ticket) == nil {
				continue // the caller has withdrawn it in the meantime
			}
			served, ok := a.serve(w, &before)
			if ok && !yield(served) {
				a.stale = true
				return
			}
		}
	}
}

// serve removes a request from the queue that can be placed or has become impossible. Another one
// is added to the claims of those before the next.
func (a *Accounts) serve(w *waiter, before *claims) (Served, bool) {
	if c := before.byClass[w.class]; c != nil && c.count >= w.demand.Count {
		// The same is asked for by an earlier request for as many nodes, which could be placed on
		// empty machines, and has reserved some of it.
		before.add(w)
		return Served{}, false
	}
	places, err := a.decide(w.demand, *before)
	a.own()
	if err != nil || places != nil {
		a.waiters.Delete(w)
		return Served{Ticket: w.ticket, Request: w.demand.Request, Places: places, Err: err}, true
	}
	lacking := slices.Concat(w.lacking, a.shortage(w.demand, before.against(w.demand)).names())
	slices.Sort(lacking)
	now := &waiter{ticket: w.ticket, demand: w.demand, class: w.class, lacking: slices.Compact(lacking)}
	a.waiters.ReplaceOrInsert(now)
	before.add(now)
	return Served{}, false
}

func (a *Accounts) waiter(ticket uint64) *waiter {
	w, _ := a.waiters.Get(&waiter{ticket: ticket})
	return w
}

// claim is what the waiting requests of one class have reserved.
type claim struct {
	class *class
	// first is the oldest of them.
	first *demand
	// count is the largest number of nodes of one of them.
	count   int
	lacking []string
}

// claims are what requests before a certain one have reserved, in the order of their arrival.
type claims struct {
	list    []*claim
	byClass map[*class]*claim
}

// claims returns what the requests have reserved whose tickets are lower.
func (a *Accounts) claims(ticket uint64) claims {
	var c claims
	a.waiters.AscendLessThan(&waiter{ticket: ticket}, func(w *waiter) bool {
		c.add(w)
		return true
	})
	return c
}

// class returns the class with a key: that of the requests, or a new one.
func (c *claims) class(key string) *class {
	for _, one := range c.list {
		if one.class.key == key {
			return one.class
		}
	}
	return &class{key: key}
}

func (c *claims) add(w *waiter) {
	one := c.byClass[w.class]
	if one == nil {
		if c.byClass == nil {
			c.byClass = make(map[*class]*claim)
		}
		one = &claim{class: w.class, first: w.demand}
		c.byClass[w.class] = one
		c.list = append(c.list, one)
	}
	one.count = max(one.count, w.demand.Count)
	for _, name := range w.lacking {
		if !slices.Contains(one.lacking, name) {
			one.lacking = append(one.lacking, name)
		}
	}
}

// against returns the claims to resources that a request needs.
func (c *claims) against(d *demand) claims {
	var some claims
	for _, one := range c.list {
		if slices.ContainsFunc(d.needs, func(n need) bool { return slices.Contains(one.lacking, n.name) }) {
			some.list = append(some.list, one)
		}
	}
	return some
}

// reserve reports whether one of the claims is to the machine. If it is a claim against a request,
// that gets no place there.
func (c *claims) reserve(acct *account) bool {
	return slices.ContainsFunc(c.list, func(one *claim) bool { return one.on(acct) })
}

// reserveOf reports whether one of the claims is to a resource of the machine.
func (c *claims) reserveOf(acct *account, resource string) bool {
	return slices.ContainsFunc(c.list, func(one *claim) bool { return slices.Contains(one.lacking, resource) && one.on(acct) })
}

// on reports whether the claim is to the machine: the requests could use it if it were empty.
func (c *claim) on(acct *account) bool { return c.first.accepts(acct) && c.first.capacity(acct) > 0 }
