package play

import (
	"context"
	"math/rand/v2"

	"github.com/raylink/raylink/examples/cartpole/internal/dqn"
)

// Exam decides when training may stop. A few episodes are cheap, so they can be played often; but
// among many policies some pass a few episodes by luck. So a policy that passes a few episodes must
// also pass many others.
type Exam struct {
	// Few and Many are the numbers of episodes.
	Few, Many int
	// Pass is the mean return required in both. It exceeds the return required in the end by the
	// expected error of the mean of Many episodes.
	Pass float64
}

// DefaultExam returns an exam for a task that is solved at a mean return of 475 over 100 episodes.
func DefaultExam() Exam { return Exam{Few: 10, Many: 100, Pass: 490} }

// Result is the result of an exam.
type Result struct {
	// Mean is the mean return of the last part that was played.
	Mean float64
	// Episodes is the number of episodes of that part.
	Episodes int
	Passed   bool
}

// Take examines a policy.
func (e Exam) Take(ctx context.Context, policy *dqn.Policy, rng *rand.Rand) (Result, error) {
	result := Result{Passed: true}
	for _, count := range []int{e.Few, e.Many} {
		returns, err := Episodes(ctx, policy, count, rng)
		if err != nil {
			return Result{}, err
		}
		result.Mean, result.Episodes = Mean(returns), count
		if result.Mean < e.Pass {
			result.Passed = false
			break
		}
	}
	return result, nil
}
