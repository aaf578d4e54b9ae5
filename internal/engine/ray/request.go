package ray

import (
	"net"
	"slices"

	"github.com/raylink/raylink/internal/engine"
	"github.com/raylink/raylink/internal/machine"
)

// checkRequest is the first line to the process.
type checkRequest struct {
	Address  string               `json:"address"`
	Bundles  []map[string]float64 `json:"bundles"`
	Strategy string               `json:"strategy"`
	Wait     bool                 `json:"wait"`
}

// startRequest is the second line.
type startRequest struct {
	Brain    string           `json:"brain"`
	Token    string           `json:"token"`
	Raylink  string           `json:"raylink"`
	Machines []requestMachine `json:"machines"`
	Restarts int              `json:"restarts"`
}

type requestMachine struct {
	Name  string   `json:"name"`
	Flags []string `json:"flags"`
}

// resources returns what each machine of a group has. Ray allocates what it is asked for, so that a
// machine has one CPU and no GPU if none are named. Memory that is not named is what is there.
func resources(g engine.Group) machine.Resources {
	r := g.Resources.Clone()
	if r == nil {
		r = make(machine.Resources)
	}
	if _, named := r[machine.CPU]; !named {
		r[machine.CPU] = machine.Unit
	}
	if _, named := r[machine.GPU]; !named {
		r[machine.GPU] = 0
	}
	return r
}

// bundles are what Ray is asked for, by its names of resources.
func bundles(groups []engine.Group) []map[string]float64 {
	var all []map[string]float64
	for _, g := range groups {
		bundle := make(map[string]float64)
		for name, amount := range resources(g) {
			switch {
			case amount == 0:
			case name == machine.Memory:
				bundle["memory"] = float64(amount)
			case name == machine.CPU:
				bundle["CPU"] = float64(amount) / machine.Unit
			case name == machine.GPU:
				bundle["GPU"] = float64(amount) / machine.Unit
			default:
				bundle[name] = float64(amount) / machine.Unit
			}
		}
		for range g.Machines {
			all = append(all, bundle)
		}
	}
	return all
}

func startRequestOf(request engine.Request) startRequest {
	s := startRequest{Brain: request.Brain, Token: request.Token, Raylink: request.Raylink, Restarts: request.Restarts}
	var listen []string
	if host, _, err := net.SplitHostPort(request.Brain); err == nil && net.ParseIP(host).IsLoopback() {
		listen = []string{"--listen", net.JoinHostPort(host, "0")} // all nodes are on this computer: it is no mistake
	}
	for _, g := range request.Groups {
		has := slices.Concat(engine.ResourceFlags(resources(g)), listen)
		for i := range g.Machines {
			s.Machines = append(s.Machines, requestMachine{Name: g.MachineName(i), Flags: append(g.AgentFlags(i), has...)})
		}
	}
	return s
}
