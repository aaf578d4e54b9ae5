package seed_test

import (
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/raylink/raylink/examples/cartpole/internal/seed"
)

func TestPartsDrawIndependently(t *testing.T) {
	t.Parallel()
	once, again := seed.Stream(1, "worker", 0), seed.Stream(1, "worker", 0)
	assert.Equal(t, once.Uint64(), again.Uint64(), "streams are repeatable")
	first := map[uint64]string{}
	for run := range uint64(3) {
		for _, part := range []string{"worker", "explore", "learner"} {
			for index := range 3 {
				drawn := seed.Stream(run, part, index).Uint64()
				assert.Empty(t, first[drawn], "two streams begin with the same number")
				first[drawn] = part
			}
		}
	}
}
