package runtime

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"

	"connectrpc.com/connect/v2"

	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	"github.com/raylink/raylink/internal/machine"
)

// Resources are what a node needs of its machine, or has of it. Brain's accounts are of amounts
// that were asked for: a process that uses more than it has asked for is not stopped.
type Resources struct {
	// CPUs is a number of processors, with up to three decimals.
	CPUs float64
	// Memory is in bytes.
	Memory int64
	// GPUs is a number of whole GPUs. The node's process finds its own in CUDA_VISIBLE_DEVICES.
	GPUs int
	// Other are amounts of what users call otherwise, such as licences, with up to three decimals.
	Other map[string]float64
}

// String returns the resources as `cpu=0.5,gpu=1,licence=2,memory=16GiB`, and why they are not
// valid if they are not.
func (r Resources) String() string {
	amounts, err := r.amounts()
	if err != nil {
		return fmt.Sprintf("invalid resources (%v)", err)
	}
	return machine.Resources(amounts).String()
}

// amounts returns the amounts by name, as they travel: in bytes or thousandths, without zeros.
func (r Resources) amounts() (map[string]int64, error) {
	amounts := machine.Resources{machine.Memory: r.Memory, machine.GPU: machine.Unit * int64(r.GPUs)}
	own := maps.Clone(r.Other)
	if own == nil {
		own = make(map[string]float64)
	}
	for _, name := range []string{machine.CPU, machine.GPU, machine.Memory} {
		if _, twice := own[name]; twice {
			return nil, fmt.Errorf("%s is a field of its own, and no other resource", name)
		}
	}
	own[machine.CPU] = r.CPUs
	for _, name := range slices.Sorted(maps.Keys(own)) {
		amount := math.Round(own[name] * machine.Unit)
		// The comparison is false for what is not a number. Three decimals are exact up to 2^43.
		if !(math.Abs(amount) < 1<<53) || math.Abs(amount/machine.Unit-own[name]) > 1e-9*max(1, math.Abs(own[name])) {
			return nil, fmt.Errorf("%g of %s is no amount: it has more than three decimals, or is too large", own[name], name)
		}
		amounts[name] = int64(amount)
	}
	maps.DeleteFunc(amounts, func(_ string, amount int64) bool { return amount == 0 })
	return amounts, amounts.Check()
}

// resourcesOf is the reverse of amounts.
func resourcesOf(amounts map[string]int64) Resources {
	r := Resources{
		CPUs: float64(amounts[machine.CPU]) / machine.Unit, Memory: amounts[machine.Memory], GPUs: int(amounts[machine.GPU] / machine.Unit),
	}
	for name, amount := range amounts {
		if name != machine.CPU && name != machine.GPU && name != machine.Memory {
			if r.Other == nil {
				r.Other = make(map[string]float64)
			}
			r.Other[name] = float64(amount) / machine.Unit
		}
	}
	return r
}

// Labels are what a machine must have, as values by keys: `role` -> `trainer`.
type Labels map[string]string

// Requires sets what each of the new nodes needs: resources, which no other node gets as long as it
// has them, and labels of its machine. It replaces the resources that the schema has for nodes with
// processes of their own.
//
// If no set of machines could have the nodes even if they were empty, the creation fails at once,
// and the error has what was asked for and what each machine has. If others have what is needed,
// the creation waits for it until its context ends; then the error names those nodes.
//
// A node in its parent's process is on its parent's machine, which must have what the node needs.
func Requires(resources Resources, labels Labels) CreateOption {
	return func(o *createOptions) {
		amounts, err := resources.amounts()
		if err != nil {
			o.refuse("the resources that new nodes require: %v", err)
		}
		if err := machine.Labels(labels).Check(); err != nil {
			o.refuse("the labels that new nodes require: %v", err)
		}
		place := o.place()
		place.Resources, place.Labels, place.NoDefaults = amounts, maps.Clone(labels), true
	}
}

// On runs the new nodes on a machine, by its name or id.
func On(machine string) CreateOption {
	return func(o *createOptions) { o.place().On = machine }
}

// Near runs the new nodes on the machine of another node.
func Near(node Ref) CreateOption {
	return func(o *createOptions) {
		if node.IsZero() {
			o.refuse("new nodes should be near to a node: %v", errors.New("the reference is to none"))
			return
		}
		o.place().Near = node.NID()
	}
}

// Spread distributes the nodes of a creation: each runs on the machine with the fewest of them that
// has room, and among those on the one with the largest share of free resources. By default nodes
// run on their parent's machine as long as that has room, and then on the one with the largest
// share of free resources.
func Spread() CreateOption { return strategy(nodev1.PlaceStrategy_PLACE_STRATEGY_SPREAD) }

// Pack runs each new node on the machine with the smallest share of free resources that has room,
// so that others stay free for large nodes.
func Pack() CreateOption { return strategy(nodev1.PlaceStrategy_PLACE_STRATEGY_PACK) }

// OnePerMachine runs each node of a creation on a machine of its own. More nodes than machines are
// an error.
func OnePerMachine() CreateOption {
	return strategy(nodev1.PlaceStrategy_PLACE_STRATEGY_ONE_PER_MACHINE)
}

func strategy(s nodev1.PlaceStrategy) CreateOption {
	return func(o *createOptions) { o.place().Strategy = s }
}

// refuse records the error of an option: the first one is that of the creation.
func (o *createOptions) refuse(format string, err error) {
	if o.err == nil {
		o.err = connect.Errorf(connect.CodeInvalidArgument, format, err).WithCause(err)
	}
}

// place returns the place of the request, and makes it on first use.
func (o *createOptions) place() *nodev1.Place {
	if o.request.GetPlace() == nil {
		o.request.Place = new(nodev1.Place)
	}
	return o.request.GetPlace()
}

// placeOf returns where the nodes of a creation may run: what was asked for, or else what the type
// needs. It is nil for nodes in this process that need nothing of its machine.
func (h *Host) placeOf(t NodeType, req *nodev1.CreateRequest, placement nodev1.Placement) (*nodev1.Place, error) {
	place := req.GetPlace()
	if place == nil {
		place = new(nodev1.Place)
	}
	if placement != nodev1.Placement_PLACEMENT_PARENT_PROCESS {
		if !place.GetNoDefaults() && len(place.GetResources()) == 0 {
			place.Resources = t.service.config.resources
		}
		if placement == nodev1.Placement_PLACEMENT_AGENT_PROCESS && place.GetResources()[machine.GPU] > 0 {
			return nil, connect.Errorf(connect.CodeInvalidArgument,
				"new nodes should have %s, and be in the processes of agents (AgentProcess): nodes with GPUs need processes of their own (OwnProcess)",
				machine.Resources(place.GetResources()))
		}
		return place, nil
	}
	here := &nodev1.Place{Resources: place.GetResources(), Labels: place.GetLabels(), On: h.machine, Near: place.GetNear()}
	switch {
	case place.GetOn() != "" && place.GetOn() != h.machine && place.GetOn() != h.machineName():
		return nil, connect.Errorf(connect.CodeInvalidArgument,
			"new nodes should run on machine %q, and in a process on %s: give them processes of their own (OwnProcess)", place.GetOn(), h.machine)
	case place.GetStrategy() == nodev1.PlaceStrategy_PLACE_STRATEGY_ONE_PER_MACHINE && req.GetCount() > 1:
		return nil, connect.Errorf(connect.CodeInvalidArgument,
			"%d new nodes should run on different machines, and in one process: give them processes of their own (OwnProcess)", req.GetCount())
	case len(here.GetResources()) == 0 && len(here.GetLabels()) == 0 && here.GetNear() == "":
		return nil, nil //nolint:nilnil // as said
	}
	return here, nil
}

// Resources returns what the node has of its machine. A node that has asked for nothing has
// nothing.
func (n *Node) Resources() Resources {
	return resourcesOf(n.snapshot().GetAllocation().GetResources())
}
