package dqn

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink/examples/cartpole/internal/pole"
	"github.com/raylink/raylink/examples/cartpole/internal/seed"
)

func anyPolicy(t *testing.T) *Policy {
	t.Helper()
	n, err := NewNetwork(seed.Stream(1, "network", 0), pole.Features, 16, pole.Actions)
	require.NoError(t, err)
	p, err := NewPolicy(n)
	require.NoError(t, err)
	return p
}

func TestActEachMatchesAct(t *testing.T) {
	t.Parallel()
	p, rng := anyPolicy(t), seed.Stream(2, "observations", 0)
	seen, want := make([]pole.Observation, 200), make([]int, 200)
	both := map[int]bool{}
	for n := range seen {
		for i := range seen[n] {
			seen[n][i] = float32(rng.NormFloat64())
		}
		want[n] = p.Act(seen[n])
		both[want[n]] = true
	}
	assert.Equal(t, want, p.ActEach(nil, seen))
	assert.Empty(t, p.ActEach(nil, nil))
	assert.Len(t, both, pole.Actions, "the test needs a policy that uses all actions")
}

func TestExplorationDecreases(t *testing.T) {
	t.Parallel()
	first, last := NewExploration(0, 2, 1000), NewExploration(1, 2, 1000)
	assert.InDelta(t, 1, first.Rate(0), 0, "all first actions are random")
	assert.Greater(t, first.Rate(100), first.Rate(500))
	assert.InDelta(t, 0.1, first.Rate(1000), 1e-9)
	assert.InDelta(t, 0.01, last.Rate(1_000_000), 1e-9)
	assert.InDelta(t, 0.03, NewExploration(0, 1, 0).Rate(0), 0.01, "a single worker has a medium rate")
}

func TestExplorerFollowsSchedule(t *testing.T) {
	t.Parallel()
	p := anyPolicy(t)
	const steps = 20_000
	e := NewExplorer(Exploration{Last: 0.3}, seed.Stream(1, "explorer", 0))
	strayed := 0
	for range steps {
		if e.Act(p, pole.Observation{1}) != p.Act(pole.Observation{1}) {
			strayed++
		}
	}
	// Half of the random actions match the policy's.
	assert.InDelta(t, 0.15, float64(strayed)/steps, 0.01)
}
