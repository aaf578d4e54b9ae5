// Package play evaluates a policy: it plays whole episodes, always taking the action with the
// highest value.
package play

import (
	"context"
	"fmt"
	"math/rand/v2"

	"github.com/raylink/raylink/examples/cartpole/internal/dqn"
	"github.com/raylink/raylink/examples/cartpole/internal/pole"
)

// Episodes plays a number of new episodes concurrently, and returns the return of each. rng draws
// the initial states.
func Episodes(ctx context.Context, policy *dqn.Policy, count int, rng *rand.Rand) ([]float64, error) {
	type table struct {
		env    *pole.Environment
		earned *float64
	}
	returns := make([]float64, count)
	tables := make([]table, count)
	seen := make([]pole.Observation, count)
	for i := range tables {
		tables[i] = table{env: pole.New(rng), earned: &returns[i]}
		seen[i] = tables[i].env.Reset()
	}
	var actions []int
	for len(tables) > 0 {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("play %d episodes: %w", count, err)
		}
		actions = policy.ActEach(actions[:0], seen)
		running := 0
		for i, action := range actions {
			out, err := tables[i].env.Step(action)
			if err != nil {
				return nil, fmt.Errorf("play %d episodes: %w", count, err)
			}
			*tables[i].earned += float64(out.Reward)
			if !out.Over() {
				tables[running], seen[running] = tables[i], out.Observation
				running++
			}
		}
		tables, seen = tables[:running], seen[:running]
	}
	return returns, nil
}

// Mean returns the mean of returns.
func Mean(returns []float64) float64 {
	sum := 0.0
	for _, r := range returns {
		sum += r
	}
	return sum / float64(max(len(returns), 1))
}
