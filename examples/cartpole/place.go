package main

import (
	"connectrpc.com/connect/v2"

	"github.com/raylink/raylink/runtime"
)

// labelRole is the label by which a machine says which nodes should run there: trainer (learner and
// replay) or worker. Machines need not have it.
const labelRole = "role"

// What nodes need of their machine. A worker spends much of its time waiting for the learner.
func learnerNeeds() runtime.Resources { return runtime.Resources{CPUs: 0.5} }
func workerNeeds() runtime.Resources  { return runtime.Resources{CPUs: 0.01} }

// preferring creates nodes on machines with a role. In a system without such machines they run
// wherever there is room.
func preferring[T any](role string, needs runtime.Resources, create func(...runtime.CreateOption) (T, error)) (T, error) {
	created, err := create(runtime.Requires(needs, runtime.Labels{labelRole: role}))
	if connect.CodeOf(err) == connect.CodeFailedPrecondition { // no set of machines could ever have them
		return create(runtime.Requires(needs, nil))
	}
	return created, err
}
