package main

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink/examples/cartpole/internal/dqn"
	"github.com/raylink/raylink/examples/cartpole/internal/pole"
	"github.com/raylink/raylink/examples/cartpole/internal/seed"
)

// A seed that learns quickly; `go run ./examples/cartpole/internal/solo` runs twenty seeds.
func TestTrainsInOneProcess(t *testing.T) {
	t.Parallel()
	c := defaultConfig()
	c.limit = 5_000
	res, err := train(t.Context(), c, 3)
	require.NoError(t, err)
	assert.Less(t, res.first, 100.0, "the policy is untrained at first")
	assert.True(t, res.passed)
	assert.GreaterOrEqual(t, res.last, float64(pole.Solved))
}

func TestRingOverwritesOldest(t *testing.T) {
	t.Parallel()
	r := &ring{capacity: 3}
	for i := range 5 {
		r.add([]dqn.Transition{{Return: float32(i)}})
	}
	var batch dqn.Batch
	r.sample(&batch, 100, seed.Stream(1, "sampler", 0))
	assert.Equal(t, 100, batch.Rows())
	for _, earned := range batch.Returns {
		assert.GreaterOrEqual(t, earned, float32(2))
	}
}
