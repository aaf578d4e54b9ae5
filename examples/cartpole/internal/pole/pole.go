// Package pole implements the cart-pole balancing task: a pole hinged on a cart, which is pushed
// left or right to keep the pole upright.
//
// It is CartPole-v1 as defined by Gymnasium (physics, limits, reward, length), implemented from the
// published equations and tested against Gymnasium's own trajectories. Start with [New], then
// [Environment.Reset] and [Environment.Step].
package pole

import (
	"errors"
	"math"
	"math/rand/v2"
)

// Parameters of CartPole-v1, except for the physics.
const (
	// Features is the length of an observation: position, velocity, angle and angular velocity.
	Features = 4
	// Actions is the number of actions: 0 pushes to the left, 1 to the right.
	Actions = 2
	// MaxSteps is the maximum length of an episode, and, with a reward of 1 per step, the maximum
	// return.
	MaxSteps = 500
	// Solved is the mean return at which the task counts as solved.
	Solved = 475

	// trackEnd is the maximum distance of the cart from the middle in metres.
	trackEnd = 2.4
	// maxAngle is the maximum angle of the pole: 12 degrees.
	maxAngle = 12 * 2 * math.Pi / 360
	// spread bounds each feature of the initial state.
	spread = 0.05
)

// Errors of [Environment.Step].
var (
	ErrNoEpisode = errors.New("no episode in progress: reset the environment first")
	ErrAction    = errors.New("invalid action: use 0 (left) or 1 (right)")
)

// Observation is the agent's view of the state: position (m), velocity (m/s), angle (rad) and
// angular velocity (rad/s).
type Observation [Features]float32

// Outcome is the result of one step.
type Outcome struct {
	Observation Observation
	Reward      float32
	// Terminated means that the pole fell or the cart left the track: there are no further rewards.
	Terminated bool
	// Truncated means that the episode was ended at [MaxSteps]; its last state has a future value.
	Truncated bool
}

// Over reports whether the episode has ended.
func (o Outcome) Over() bool { return o.Terminated || o.Truncated }

// Environment plays episodes, one after another. It is not safe for concurrent use.
type Environment struct {
	rng     *rand.Rand
	state   State
	steps   int
	running bool
}

// New returns an environment that draws its initial states from rng.
func New(rng *rand.Rand) *Environment {
	return &Environment{rng: rng}
}

// Reset starts an episode.
func (e *Environment) Reset() Observation {
	draw := func() float64 { return spread * (2*e.rng.Float64() - 1) }
	return e.begin(State{Position: draw(), Velocity: draw(), Angle: draw(), AngularVelocity: draw()})
}

func (e *Environment) begin(state State) Observation {
	e.state, e.steps, e.running = state, 0, true
	return state.observe()
}

// Step pushes the cart for 20 ms.
func (e *Environment) Step(action int) (Outcome, error) {
	if !e.running {
		return Outcome{}, ErrNoEpisode
	}
	force := pushForce
	switch action {
	case 0:
		force = -pushForce
	case 1:
	default:
		return Outcome{}, ErrAction
	}
	e.state = e.state.Step(force)
	e.steps++
	out := Outcome{Observation: e.state.observe(), Reward: 1, Terminated: e.state.fallen()}
	out.Truncated = e.steps == MaxSteps && !out.Terminated
	e.running = !out.Over()
	return out, nil
}
