package play

import (
	"context"
	"math/rand/v2"

	"github.com/raylink/raylink/examples/cartpole/internal/dqn"
)

// Exam decides when training may stop. A few episodes are cheap and can be had often, but among many policies that are tried on
// a few episodes some pass by luck; so who does well in a few has to do well in many others.
type Exam struct {
	// Few and Many are the numbers of episodes.
	Few, Many int
	// Pass is the mean return to reach in both. It lies above what is asked of the policy in the end, by as much as the mean of
	// Many episodes may be off.
	Pass float64
}

// DefaultExam suits a task that is solved at a mean of 475 over 100 episodes.
func DefaultExam() Exam { return Exam{Few: 10, Many: 100, Pass: 490} }

// Result is how an exam went.
type Result struct {
	// Mean return over all the episodes of the last part that was played.
	Mean float64
	// Episodes is how many that were.
	Episodes int
	Passed   bool
}

// Take lets a policy sit the exam.
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
