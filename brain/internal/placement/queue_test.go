package placement

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// crowd is accounts with nodes that tests make and end.
type crowd struct {
	t     require.TestingT
	a     *Accounts
	nodes []string // in the order of their creation
	made  int
}

func newCrowd(t require.TestingT, machines ...Machine) *crowd {
	c := &crowd{t: t, a: New()}
	for _, m := range machines {
		require.NoError(t, c.a.Join(m))
	}
	return c
}

func (c *crowd) enter(places []Allocation) {
	for _, given := range places {
		c.made++
		node := fmt.Sprint("node-", c.made)
		require.NoError(c.t, c.a.Allocate(node, given))
		c.nodes = append(c.nodes, node)
	}
}

// place enters the nodes of a request, or returns why it can't.
func (c *crowd) place(r *Request) error {
	places, err := c.a.Place(r)
	c.enter(places)
	return err
}

func (c *crowd) wait(r *Request) uint64 {
	ticket, err := c.a.Wait(r)
	require.NoError(c.t, err)
	return ticket
}

// end releases the oldest nodes.
func (c *crowd) end(count int) {
	for _, node := range c.nodes[:count] {
		c.a.Release(node)
	}
	c.nodes = c.nodes[count:]
}

// serve enters what is served, and returns the tickets.
func (c *crowd) serve() []uint64 {
	var tickets []uint64
	for served := range c.a.Serve() {
		require.NoError(c.t, served.Err)
		inner := c.a.Begin()
		for i, given := range served.Places {
			require.NoError(c.t, inner.Allocate(fmt.Sprint("served-", served.Ticket, "-", i), given))
			c.nodes = append(c.nodes, fmt.Sprint("served-", served.Ticket, "-", i))
		}
		inner.Merge()
		tickets = append(tickets, served.Ticket)
	}
	return tickets
}

func newMachine(name string, cpu int64, gpus ...uint32) Machine {
	return Machine{ID: "id-" + name, Name: name, Total: Resources{"cpu": cpu * Unit}, GPUs: gpus}
}

func needs(count int, cpu, gpu int64) *Request {
	return &Request{Count: count, Resources: Resources{"cpu": cpu * Unit, GPU: gpu * Unit}}
}

func TestSmallRequestsWaitBehindALargeOne(t *testing.T) {
	c := newCrowd(t, newMachine("one", 8, 0, 1, 2, 3))
	require.NoError(t, c.place(needs(4, 0, 1)))
	c.end(1)
	large := c.wait(&Request{Count: 1, Resources: Resources{GPU: 4 * Unit}, By: "manager-0"})
	var lacking *LackingError
	require.ErrorAs(t, c.place(needs(1, 0, 1)), &lacking)
	require.Len(t, lacking.Behind, 1)
	require.Equal(t, "manager-0", lacking.Behind[0].By)
	small := c.wait(needs(1, 0, 1))
	require.NoError(t, c.place(needs(1, 4, 0)), "a request for other resources passes")
	require.Empty(t, c.serve())
	for range 2 {
		c.end(1)
		require.Empty(t, c.serve())
	}
	c.end(1)
	require.Equal(t, []uint64{large}, c.serve())
	c.end(2)
	require.Equal(t, []uint64{small}, c.serve())
	require.NoError(t, c.place(needs(1, 0, 1)))
}

func TestRequestsForOtherMachinesPass(t *testing.T) {
	c := newCrowd(t, newMachine("big", 8), newMachine("small", 2))
	require.NoError(t, c.place(&Request{Count: 1, Resources: Resources{"cpu": Unit}, On: "big"}))
	ticket := c.wait(needs(1, 8, 0))
	require.NoError(t, c.place(needs(2, 1, 0)), "the small machine is of no use to the request that waits")
	require.ErrorAs(t, c.place(needs(1, 1, 0)), new(*LackingError))
	require.NoError(t, c.place(&Request{Count: 5}), "a request without resources lacks none")
	c.a.Withdraw(ticket)
	require.NoError(t, c.place(needs(1, 1, 0)))
}

// TestReservationsAreKept has a request that lacks GPUs and processors in turns. If it gave up what
// it has reserved as soon as it no longer lacks it, others would get it each time.
func TestReservationsAreKept(t *testing.T) {
	c := newCrowd(t, newMachine("one", 1, 0))
	require.NoError(t, c.place(needs(1, 0, 1)))
	ticket := c.wait(needs(1, 1, 1))
	require.NoError(t, c.place(needs(1, 1, 0)), "processors do not lack yet")
	c.end(1)
	require.Empty(t, c.serve())
	require.ErrorAs(t, c.place(needs(1, 0, 1)), new(*LackingError), "the GPU was given to a later request")
	c.end(1)
	require.Equal(t, []uint64{ticket}, c.serve())
}

func TestRequestFailsOnceItIsImpossible(t *testing.T) {
	c := newCrowd(t, newMachine("one", 2), newMachine("two", 4))
	require.NoError(t, c.place(needs(2, 2, 0)))
	first, second := c.wait(needs(1, 4, 0)), c.wait(needs(1, 2, 0))
	require.Empty(t, c.serve())
	c.a.Leave("id-two")
	var failed []uint64
	for served := range c.a.Serve() {
		failed = append(failed, served.Ticket)
		require.Nil(t, served.Places)
		require.EqualError(t, served.Err, "a node with cpu=4 can never be placed: one has cpu=2")
	}
	require.Equal(t, []uint64{first}, failed)
	require.NoError(t, c.a.Waiting(first), "it waits no longer")
	require.Error(t, c.a.Waiting(second))
	_, err := c.a.Wait(needs(1, 4, 0))
	require.ErrorAs(t, err, new(*ImpossibleError))
	require.NoError(t, c.a.Join(newMachine("three", 2)))
	require.Equal(t, []uint64{second}, c.serve())
}

// TestLargerRequestOfTheSameClassBecomesImpossible has a smaller one before it, which remains
// possible.
func TestLargerRequestOfTheSameClassBecomesImpossible(t *testing.T) {
	c := newCrowd(t, newMachine("one", 2), newMachine("two", 2))
	require.NoError(t, c.place(needs(4, 1, 0)))
	small, large, last := c.wait(needs(1, 1, 0)), c.wait(needs(3, 1, 0)), c.wait(needs(2, 1, 0))
	require.NoError(t, c.place(&Request{Count: 1}))
	c.a.Leave("id-two")
	var failed []uint64
	for served := range c.a.Serve() {
		failed = append(failed, served.Ticket)
		require.ErrorAs(t, served.Err, new(*ImpossibleError))
	}
	require.Equal(t, []uint64{large}, failed)
	require.Error(t, c.a.Waiting(small))
	require.Error(t, c.a.Waiting(last))
}

func TestWaitInADroppedVersionHasNoEffect(t *testing.T) {
	c := newCrowd(t, newMachine("one", 1))
	require.NoError(t, c.place(needs(1, 1, 0)))
	before := dumpAll(c.a)
	inner := c.a.Begin()
	ticket, err := inner.Wait(needs(1, 1, 0))
	require.NoError(t, err)
	inner.Release("node-1")
	for served := range inner.Serve() {
		require.Equal(t, ticket, served.Ticket)
	}
	require.Equal(t, before, dumpAll(c.a))
}

func TestServeContinuesAfterABreak(t *testing.T) {
	c := newCrowd(t, newMachine("one", 2))
	require.NoError(t, c.place(needs(1, 2, 0)))
	first, second, third := c.wait(needs(1, 1, 0)), c.wait(needs(1, 1, 0)), c.wait(needs(1, 1, 0))
	c.end(1)
	for served := range c.a.Serve() {
		require.Equal(t, first, served.Ticket)
		break // and enter nothing
	}
	for served := range c.a.Serve() {
		require.Equal(t, second, served.Ticket)
		c.enter(served.Places)
		c.a.Withdraw(third)
	}
	require.NoError(t, c.a.Waiting(third))
}

func TestRequestThatLacksNothingIsServed(t *testing.T) {
	c := newCrowd(t, newMachine("one", 1))
	ticket := c.wait(needs(1, 1, 0))
	require.NoError(t, c.a.Waiting(ticket))
	require.Equal(t, []uint64{ticket}, c.serve())
	require.Empty(t, c.serve())
}

// TestNoRequestStarves has random requests compete with one that waits, and get all that they can.
// Nodes end in the order of their creation. The request must be served when as many have ended as
// can be alive, for each resource that it may have to reserve one after another.
func TestNoRequestStarves(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := newCrowd(t, newMachine("one", 4, 0, 1), newMachine("two", 2, 0))
		draw := func() *Request {
			return needs(rapid.IntRange(1, 3).Draw(t, "count"), rapid.Int64Range(0, 2).Draw(t, "cpu"), rapid.Int64Range(0, 2).Draw(t, "gpu"))
		}
		compete := func() {
			for range 6 {
				if r := draw(); r.Resources["cpu"]+r.Resources[GPU] > 0 {
					_ = c.place(r)
				}
			}
		}
		compete()
		r := draw()
		ticket, err := c.a.Wait(r)
		if err != nil {
			return
		}
		const alive = 9 // processors and GPUs
		for range 3 * alive {
			if slices.Contains(c.serve(), ticket) {
				return
			}
			compete()
			c.end(min(1, len(c.nodes)))
		}
		require.Contains(t, c.serve(), ticket, "the request starves")
	})
}

// TestQueueAgreesWithTheModel is about requests for one resource each, where the rule is simple: a
// request is placed if there is a way on the machines that no earlier request for the resource
// could use.
func TestQueueAgreesWithTheModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, m := New(), newModel()
		waiting := make(map[uint64]*Request)
		made := 0
		enter := func(places []Allocation) {
			for _, given := range places {
				made++
				node := fmt.Sprint("node ", made)
				require.NoError(t, a.Allocate(node, given))
				m.nodes[node] = given
			}
		}
		// unreserved are the machines that a request before a ticket may use.
		unreserved := func(r *Request, ticket uint64) []Machine {
			return slices.DeleteFunc(m.accepting(r), func(machine Machine) bool {
				for other, w := range waiting {
					if other < ticket && usesSame(r, w) && len(slices.DeleteFunc(m.accepting(w), func(o Machine) bool {
						return o.ID != machine.ID || !fits(w, []Machine{o}, []int{0}, m.total)
					})) > 0 {
						return true
					}
				}
				return false
			})
		}
		serve := func() {
			last := uint64(0)
			for served := range a.Serve() {
				r := waiting[served.Ticket]
				require.NotNil(t, r)
				require.Greater(t, served.Ticket, last, "served out of order")
				last = served.Ticket
				require.Equal(t, served.Err == nil, exists(r, m.accepting(r), m.total))
				if served.Err == nil {
					require.True(t, exists(r, unreserved(r, served.Ticket), m.free), "what was reserved for others was given away")
				}
				delete(waiting, served.Ticket)
				enter(served.Places)
			}
			for ticket, r := range waiting {
				require.True(t, exists(r, m.accepting(r), m.total), "a request waits that is impossible")
				require.False(t, exists(r, unreserved(r, ticket), m.free), "a request waits though it could be placed")
				require.ErrorAs(t, a.Waiting(ticket), new(*LackingError))
			}
		}
		place := func(t *rapid.T) {
			r := drawRequest(t)
			for _, resource := range []string{"cpu", GPU} {
				if len(r.Resources) > 1 {
					delete(r.Resources, resource)
				}
			}
			places, err := a.Place(r)
			require.Equal(t, err == nil, exists(r, unreserved(r, a.lastTicket+1), m.free), "placed: %v, error: %v", places, err)
			ticket, waitErr := a.Wait(r)
			require.Equal(t, waitErr == nil, exists(r, m.accepting(r), m.total))
			switch {
			case waitErr == nil && err == nil:
				a.Withdraw(ticket)
				enter(places)
			case waitErr == nil:
				waiting[ticket] = r
			}
			serve()
		}
		t.Repeat(map[string]func(*rapid.T){
			"place": place,
			"wait":  place,
			"join": func(t *rapid.T) {
				machine := drawMachine(t)
				require.NoError(t, a.Join(machine))
				m.machines[machine.ID] = machine
				serve()
			},
			"leave": func(t *rapid.T) {
				id := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "machine")
				a.Leave(id)
				delete(m.machines, id)
				serve()
			},
			"release": func(t *rapid.T) {
				if len(m.nodes) == 0 {
					t.Skip()
				}
				node := rapid.SampledFrom(slices.Sorted(maps.Keys(m.nodes))).Draw(t, "node")
				a.Release(node)
				delete(m.nodes, node)
				serve()
			},
			"withdraw": func(t *rapid.T) {
				if len(waiting) == 0 {
					t.Skip()
				}
				ticket := rapid.SampledFrom(slices.Sorted(maps.Keys(waiting))).Draw(t, "ticket")
				a.Withdraw(ticket)
				delete(waiting, ticket)
				serve()
			},
		})
		m.audit(t, a)
		for range 1000 {
			for node := range m.nodes {
				a.Release(node)
			}
			clear(m.nodes)
			serve()
		}
		require.Empty(t, waiting, "requests wait though all nodes have ended")
	})
}

func usesSame(r, other *Request) bool {
	for resource, amount := range r.Resources {
		if amount > 0 && other.Resources[resource] > 0 {
			return true
		}
	}
	return false
}

// TestRequestsWaitForMachinesThatAreExpected has a request that the present machine could never
// serve, before and after others were expected.
func TestRequestsWaitForMachinesThatAreExpected(t *testing.T) {
	c := newCrowd(t, newMachine("one", 2))
	c.a.Expect(true)
	for _, r := range []*Request{needs(1, 4, 0), {Count: 1, On: "two"}, {Count: 2, Strategy: OnePerMachine}, {Count: 1, Labels: Labels{"role": "x"}}} {
		var expecting *ExpectingError
		require.ErrorAs(t, c.place(r), &expecting)
		require.ErrorContains(t, expecting, "; but other machines are expected to join again")
		ticket := c.wait(r)
		require.ErrorAs(t, c.a.Waiting(ticket), &expecting)
		require.Empty(t, c.serve())
	}
	require.NoError(t, c.place(needs(1, 1, 0)), "the present machine is used meanwhile")
	require.NoError(t, c.a.Join(newMachine("two", 4)))
	require.Equal(t, []uint64{1, 2, 3}, c.serve())
	require.NoError(t, c.a.Join(newMachine("three", 4)))
	require.Empty(t, c.serve())
	c.a.Expect(false)
	for served := range c.a.Serve() {
		require.EqualValues(t, 4, served.Ticket)
		require.ErrorAs(t, served.Err, new(*ImpossibleError))
	}
	require.ErrorAs(t, c.place(&Request{Count: 1, On: "four"}), new(*UnknownMachineError))
}

func TestQueueIsBounded(t *testing.T) {
	c := newCrowd(t, newMachine("one", 1))
	require.NoError(t, c.place(needs(1, 1, 0)))
	for range MaxWaiting {
		c.wait(needs(1, 1, 0))
	}
	_, err := c.a.Wait(needs(1, 1, 0))
	require.EqualError(t, err, "a node with cpu=1 can't be placed now, and can't wait for it: 4096 requests wait, which is the bound")
	c.a.Withdraw(7)
	c.wait(needs(1, 1, 0))
}
