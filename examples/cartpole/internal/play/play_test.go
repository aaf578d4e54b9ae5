package play_test

import (
	"context"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink/examples/cartpole/internal/dqn"
	"github.com/raylink/raylink/examples/cartpole/internal/play"
	"github.com/raylink/raylink/examples/cartpole/internal/pole"
	"github.com/raylink/raylink/examples/cartpole/internal/seed"
)

// untrained returns a random policy, which balances for about ten steps.
func untrained(t *testing.T) *dqn.Policy {
	t.Helper()
	learner, err := dqn.NewLearner(dqn.Config{}, seed.Stream(1, "learner", 0))
	require.NoError(t, err)
	policy, err := dqn.NewPolicy(learner.Network())
	require.NoError(t, err)
	return policy
}

// The initial state and the policy determine an episode, whether it is played with others or alone.
func TestEpisodesAreIndependent(t *testing.T) {
	t.Parallel()
	policy := untrained(t)
	got, err := play.Episodes(t.Context(), policy, 20, seed.Stream(1, "episodes", 0))
	require.NoError(t, err)

	env := pole.New(seed.Stream(1, "episodes", 0))
	want := make([]float64, len(got))
	for i := range want {
		seen := env.Reset()
		for {
			out, err := env.Step(policy.Act(seen))
			require.NoError(t, err)
			want[i] += float64(out.Reward)
			seen = out.Observation
			if out.Over() {
				break
			}
		}
	}
	assert.Equal(t, want, got)
}

func TestEpisodesStopWhenCanceled(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := play.Episodes(ctx, untrained(t), 3, seed.Stream(1, "episodes", 0))
	require.ErrorIs(t, err, context.Canceled)
}

func TestMean(t *testing.T) {
	t.Parallel()
	assert.InDelta(t, 2, play.Mean([]float64{1, 3}), 0)
	assert.InDelta(t, 0, play.Mean(nil), 0)
}

func TestWeakPolicyFailsFirstPart(t *testing.T) {
	t.Parallel()
	result, err := play.DefaultExam().Take(t.Context(), untrained(t), seed.Stream(1, "exam", 0))
	require.NoError(t, err)
	assert.False(t, result.Passed)
	assert.Equal(t, 10, result.Episodes)
	assert.Less(t, result.Mean, 100.0)
}

func TestStrongPolicyPlaysBothParts(t *testing.T) {
	t.Parallel()
	result, err := play.Exam{Few: 2, Many: 5, Pass: 5}.Take(t.Context(), untrained(t), seed.Stream(1, "exam", 0))
	require.NoError(t, err)
	assert.True(t, result.Passed)
	assert.Equal(t, 5, result.Episodes)
}
