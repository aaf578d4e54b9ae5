package dqn

import "github.com/raylink/raylink/examples/cartpole/internal/pole"

// Transition is the learner's input: from Observation, Action earned Return within the next steps
// and led to Next. The value of Next is weighted by Discount, which is 0 if the pole had fallen.
type Transition struct {
	Observation pole.Observation
	Action      int32
	Return      float32
	Next        pole.Observation
	Discount    float32
}

// Assembler turns the steps of one environment into n-step transitions. It is not safe for
// concurrent use.
type Assembler struct {
	steps    int
	discount float32
	// pending are the transitions with fewer than `steps` steps so far, oldest first.
	pending []Transition
}

// NewAssembler returns an assembler of transitions of the given number of steps. Each step's reward
// is weighted by discount relative to the previous one.
func NewAssembler(steps int, discount float32) *Assembler {
	return &Assembler{steps: max(steps, 1), discount: discount}
}

// Add processes one step, and appends the transitions that it completes to done: usually one, and
// all pending ones at the end of an episode. A truncated episode continues with the value of its
// last observation.
func (a *Assembler) Add(done []Transition, before pole.Observation, action int, out pole.Outcome) []Transition {
	a.pending = append(a.pending, Transition{Observation: before, Action: int32(action), Discount: 1}) //nolint:gosec // 0 or 1
	for i := range a.pending {
		p := &a.pending[i]
		p.Return += p.Discount * out.Reward
		p.Discount *= a.discount
		p.Next = out.Observation
		if out.Terminated {
			p.Discount = 0
		}
	}
	complete := 0
	switch {
	case out.Over():
		complete = len(a.pending)
	case len(a.pending) == a.steps:
		complete = 1
	}
	done = append(done, a.pending[:complete]...)
	a.pending = append(a.pending[:0], a.pending[complete:]...)
	return done
}
