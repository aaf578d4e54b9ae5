package dqn

import (
	"fmt"
	"math"
	"math/rand/v2"

	"github.com/raylink/raylink/examples/cartpole/internal/pole"
)

// Policy acts by a network's values. It is not for several goroutines at once.
type Policy struct {
	network *Network
	pass    activations
	input   []float32
}

// NewPolicy makes a policy that acts by a network, from an observation's features to a value for each action, which must not
// change while it does.
func NewPolicy(network *Network) (*Policy, error) {
	if network.Inputs() != pole.Features || network.Outputs() != pole.Actions {
		return nil, fmt.Errorf("%w: this task needs one from %d features to %d actions, not from %d to %d",
			ErrShape, pole.Features, pole.Actions, network.Inputs(), network.Outputs())
	}
	return &Policy{network: network}, nil
}

// Act is the action with the highest value.
func (p *Policy) Act(seen pole.Observation) int {
	p.input = appendFeatures(p.input[:0], seen[:])
	return argmax(p.network.forward(&p.pass, p.input))
}

// ActEach appends to actions what Act says to each observation, in one pass.
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

// appendFeatures makes a network's input of observations: each feature scaled so that what matters of it is about as large as one. A
// pole that leans by a tenth of a radian is in as much danger as a cart a metre away from the middle.
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

// Exploration says how often a worker takes a random action instead of its policy's: always at first, then less and less.
type Exploration struct {
	// Last is the rate at which it ends.
	Last float64
	// Steps is how many steps of its own the worker takes to get there.
	Steps int
}

// NewExploration makes the schedule of one of several workers. They end at different rates, so that one follows the policy to
// where it is good while another still finds out what is beside: D. Horgan and others, "Distributed prioritized experience
// replay" (2018), spread their actors so.
func NewExploration(worker, workers, steps int) Exploration {
	const boldest, spread = 0.1, 1.0
	share := 0.5
	if workers > 1 {
		share = float64(worker) / float64(workers-1)
	}
	return Exploration{Last: math.Pow(boldest, 1+spread*share), Steps: steps}
}

// Rate is how often a random action is taken at a worker's step.
func (e Exploration) Rate(step int) float64 {
	if step >= e.Steps {
		return e.Last
	}
	return 1 + (e.Last-1)*float64(step)/float64(e.Steps)
}

// Explorer acts like a policy, but for random actions now and then. It is not for several goroutines at once.
type Explorer struct {
	schedule Exploration
	rng      *rand.Rand
	steps    int
}

// NewExplorer makes an explorer at its first step.
func NewExplorer(schedule Exploration, rng *rand.Rand) *Explorer {
	return &Explorer{schedule: schedule, rng: rng}
}

// Act chooses an action. How many random numbers it draws does not depend on the policy.
func (e *Explorer) Act(policy *Policy, seen pole.Observation) int {
	stray, action := e.rng.Float64() < e.schedule.Rate(e.steps), e.rng.IntN(pole.Actions)
	e.steps++
	if stray {
		return action
	}
	return policy.Act(seen)
}
