// Package pole is the cart-pole balancing task: a pole hinged on a cart that is pushed left or right, and must not fall.
//
// It is CartPole-v1 as Gymnasium defines it (physics, limits, reward, length), written from the published equations and
// held to Gymnasium's own trajectories by a test. Start with [New], then [Environment.Reset] and [Environment.Step].
package pole

import (
	"errors"
	"math"
	"math/rand/v2"
)

// What defines CartPole-v1 beside the physics.
const (
	// Features is the length of an observation: position, velocity, angle and angular velocity.
	Features = 4
	// Actions is how many there are: 0 pushes to the left, 1 to the right.
	Actions = 2
	// MaxSteps is where an episode is cut off, and, with a reward of 1 a step, the highest return there is.
	MaxSteps = 500
	// Solved is the mean return at which the task counts as solved.
	Solved = 475

	// trackEnd is how far the cart may go from the middle, in metres.
	trackEnd = 2.4
	// maxAngle is how far the pole may lean: 12 degrees.
	maxAngle = 12 * 2 * math.Pi / 360
	// spread bounds each feature of the initial state.
	spread = 0.05
)

// Errors of a caller who steps where no step can be taken.
var (
	ErrNoEpisode = errors.New("no episode is running: reset the environment first")
	ErrAction    = errors.New("no such action: there are 0 (left) and 1 (right)")
)

// Observation is what an agent sees: position (m), velocity (m/s), angle (rad) and angular velocity (rad/s).
type Observation [Features]float32

// Outcome is what one step led to.
type Outcome struct {
	Observation Observation
	Reward      float32
	// Terminated says that the pole fell or the cart left the track: there is no future to hope for.
	Terminated bool
	// Truncated says that the episode was cut off at [MaxSteps]: it would have gone on.
	Truncated bool
}

// Over says that the episode has ended, either way.
func (o Outcome) Over() bool { return o.Terminated || o.Truncated }

// Environment plays one episode after the other. It is not for several goroutines at once.
type Environment struct {
	rng     *rand.Rand
	state   State
	steps   int
	running bool
}

// New makes an environment that draws its initial states from rng.
func New(rng *rand.Rand) *Environment {
	return &Environment{rng: rng}
}

// Reset begins an episode, whatever became of the one before.
func (e *Environment) Reset() Observation {
	draw := func() float64 { return spread * (2*e.rng.Float64() - 1) }
	return e.begin(State{Position: draw(), Velocity: draw(), Angle: draw(), AngularVelocity: draw()})
}

func (e *Environment) begin(state State) Observation {
	e.state, e.steps, e.running = state, 0, true
	return state.observe()
}

// Step pushes the cart for a fiftieth of a second.
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
