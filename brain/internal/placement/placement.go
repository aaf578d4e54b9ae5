// Package placement keeps the accounts of a system's machines: what each has, what each node has of
// it, which machine gets a new node, and which requests wait for what.
//
// It is pure: it uses no clock, no goroutine and no disk. [Accounts] is one version of everything.
// Changes are made in a version of their own ([Accounts.Begin]), which sees its base with its
// changes, becomes the base's state with [Accounts.Merge], and has no effect if it is dropped.
// Versions share what they have in common (B-trees with copy-on-write nodes), so a version costs
// what it changes.
//
// What it promises: what is placed on a machine never exceeds its capacity, and no GPU is allocated
// twice. A request is placed entirely or not at all, and is placed if there is any way to do so. A
// request that lacks something reserves it, so that later requests can't starve it. The accounts
// are a function of the machines and of the allocations by node: the same records give the same
// accounts, in whatever order they are entered.
//
// Costs, for M machines: a default request for which the parent's machine has room O(log M),
// another one O(M + count log M); while requests wait also O(waiting), and M times the number of
// different requests that have reserved what it asks for. No operation visits all nodes.
//
// placement.go has the terms, accounts.go the capacities and allocations, demand.go how often a
// request fits a machine, decide.go the choice of machines, queue.go the requests that wait,
// errors.go why a request is not placed. Start with [Accounts.Place], [Accounts.Allocate] and
// [Accounts.Serve].
package placement

import "github.com/raylink/raylink/internal/machine"

// The resources with a meaning of their own, and the unit of all others than [Memory].
const (
	Memory = machine.Memory
	GPU    = machine.GPU
	Unit   = machine.Unit
)

// Resources are amounts by the name of the resource; see [machine.Resources].
type Resources = machine.Resources

// Labels are names with values; see [machine.Labels].
type Labels = machine.Labels

// MaxCount is how many nodes one request may be for.
const MaxCount = 10_000

// MaxWaiting is how many requests may wait at once.
const MaxWaiting = 4096

// What a machine or a request may have at most, in addition to the bounds of [machine.Resources].
// So what a request needs in sum does not overflow, and neither do sums over 32,768 machines.
const (
	maxAmount    = 1 << 48 // 256 TiB of memory
	maxNameBytes = 256
	maxGPUs      = 1024
)

// Machine is what a machine's keeper declares about it.
type Machine struct {
	// ID is the machine's identity. It is not empty.
	ID string
	// Name is what users call the machine. Machines should have different names; a request for a
	// name that several have may go to any of them.
	Name string
	// Platform is GOOS/GOARCH, for information: requests do not ask for it.
	Platform string
	// Total is the capacity. The amount of [GPU] may be absent; it follows from GPUs.
	Total Resources
	// GPUs are the numbers of the machine's GPUs.
	GPUs []uint32
	// Labels are names with values.
	Labels Labels
}

// Allocation is what one node has, and where. It is part of the node's record. It must not be
// modified, because the nodes of a request share its maps.
type Allocation struct {
	// Machine is the id of the node's machine.
	Machine string
	// Resources are the amounts that the node has; none is 0.
	Resources Resources
	// GPUs are the numbers of the node's GPUs, ascending: as many as Resources has units of [GPU].
	GPUs []uint32
}

// Strategy is how machines are chosen among those with room.
//
// Where strategies prefer a machine by its free share, that is the share of the machine's capacity
// that would be free after the node was placed, of the requested resource for which it is smallest.
// It is 1 for requests without resources. Among equal machines names decide, then ids.
type Strategy int

// The strategies.
const (
	// Default takes the parent's machine as long as it has room, then the machine with the largest
	// free share, then the one with the fewest nodes.
	Default Strategy = iota
	// Spread takes the machine with the fewest nodes of this request, then the one with the largest
	// free share, then the one with the fewest nodes.
	Spread
	// Pack takes the machine with the smallest free share, then the one with the most nodes.
	Pack
	// OnePerMachine is [Spread] with at most one node of this request on each machine.
	OnePerMachine
)

// Request asks for places for identical nodes. It must not be modified once passed to a method.
type Request struct {
	// Count is how many nodes there are, at least 1. They are placed all or none.
	Count int
	// Resources are what each node needs.
	Resources Resources
	// Labels are what a machine must have, with these values.
	Labels Labels
	// On is the id or the name of the machine to take; empty for any.
	On string
	// Near is the id of the machine to take, that of another node; empty for any.
	Near string
	// Parent is the id of the parent's machine, which [Default] prefers; empty if there is none.
	Parent string
	// By is the path of the requesting node, for the errors of requests that wait behind this one.
	By string
	// Strategy is how machines are chosen.
	Strategy Strategy
}
