package dqn

import (
	"fmt"
	"math"
	"math/rand/v2"

	"github.com/raylink/raylink/examples/cartpole/internal/pole"
)

// Policy acts by a network's action values. It is not safe for concurrent use.
type Policy struct {
	network *Network
	pass    activations
	input   []float32
}

// NewPolicy returns a policy that uses a network from an observation's features to action values.
// The network must not be modified afterwards.
func NewPolicy(network *Network) (*Policy, error) {
	if network.Inputs() != pole.Features || network.Outputs() != pole.Actions {
		return nil, fmt.Errorf("%w: the task needs %d inputs and %d outputs, not %d and %d",
			ErrShape, pole.Features, pole.Actions, network.Inputs(), network.Outputs())
	}
	return &Policy{network: network}, nil
}

// Act returns the action with the highest value.
func (p *Policy) Act(seen pole.Observation) int {
	p.input = appendFeatures(p.input[:0], seen[:])
	return argmax(p.network.forward(&p.pass, p.input))
}

// ActEach appends the result of Act for each observation to actions, computed in one pass.
func (p *Policy) ActEach(actions []int, seen []pole.Observation) []int {
	p.input = p.input[:0]
	for i := range seen {
		p.input = appendFeatures(p.input, seen[i][:])
	}
	values := p.network.forward(&p.pass, p.input)
	for i := range seen {
		actions = append(actions, argmax(values[i*pole.Actions:(i+1)*pole.Actions]))
	}
	return actions
}

// appendFeatures appends a network's input for observations: each feature is scaled to a relevant
// range of about one. A pole that leans by a tenth of a radian is in as much danger as a cart one
// metre from the middle.
func appendFeatures(input, observations []float32) []float32 {
	for i := 0; i < len(observations); i += pole.Features {
		o := observations[i : i+pole.Features]
		input = append(input, o[0], o[1]/2, o[2]*5, o[3]/2)
	}
	return input
}

func argmax(values []float32) int {
	best := 0
	for i, v := range values {
		if v > values[best] {
			best = i
		}
	}
	return best
}

// Exploration is a schedule for the probability of random actions. It starts at 1, and decreases
// linearly.
type Exploration struct {
	// Last is the final probability.
	Last float64
	// Steps is the number of the worker's own steps until it is reached.
	Steps int
}

// NewExploration returns the schedule of one of several workers. Final rates differ between
// workers, so that some follow the policy while others explore, as in D. Horgan and others,
// "Distributed prioritized experience replay" (2018).
func NewExploration(worker, workers, steps int) Exploration {
	const boldest, spread = 0.1, 1.0
	share := 0.5
	if workers > 1 {
		share = float64(worker) / float64(workers-1)
	}
	return Exploration{Last: math.Pow(boldest, 1+spread*share), Steps: steps}
}

// Rate returns the probability of a random action at a worker's step.
func (e Exploration) Rate(step int) float64 {
	if step >= e.Steps {
		return e.Last
	}
	return 1 + (e.Last-1)*float64(step)/float64(e.Steps)
}

// Explorer acts like a policy, except for occasional random actions. It is not safe for concurrent
// use.
type Explorer struct {
	schedule Exploration
	rng      *rand.Rand
	steps    int
}

// NewExplorer returns an explorer at its first step.
func NewExplorer(schedule Exploration, rng *rand.Rand) *Explorer {
	return &Explorer{schedule: schedule, rng: rng}
}

// Act selects an action. The number of random numbers that it draws does not depend on the policy.
func (e *Explorer) Act(policy *Policy, seen pole.Observation) int {
	stray, action := e.rng.Float64() < e.schedule.Rate(e.steps), e.rng.IntN(pole.Actions)
	e.steps++
	if stray {
		return action
	}
	return policy.Act(seen)
}
