package dqn

import "github.com/raylink/raylink/examples/cartpole/internal/pole"

// Transition is what the learner learns from: from Observation, Action earned Return within the next steps and led to Next,
// whose value counts Discount times (0 where the pole had fallen: there is nothing to come).
type Transition struct {
	Observation pole.Observation
	Action      int32
	Return      float32
	Next        pole.Observation
	Discount    float32
}

// Assembler makes n-step transitions of the steps of one environment. It is not for several goroutines at once.
type Assembler struct {
	steps    int
	discount float32
	// pending are the transitions that look fewer than `steps` ahead yet, oldest first.
	pending []Transition
}

// NewAssembler makes one that looks the given number of steps ahead, each step's reward counting discount times the one before.
func NewAssembler(steps int, discount float32) *Assembler {
	return &Assembler{steps: max(steps, 1), discount: discount}
}

// Add takes one step and appends to done the transitions that it completes: usually one, all that are left where the episode
// ends. An episode that was only cut off goes on in the value of its last observation.
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
