package spelling

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestDistanceIsTheEditDistanceUpToTwo(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{
		{"learner", "learner", 0},
		{"learner", "Learner", 0},
		{"learner", "lerner", 1},
		{"learner", "leanrer", 2},
		{"learner", "worker", 3},
		{"", "ab", 2},
		{"", "abc", 3},
	} {
		require.Equal(t, c.want, Distance(c.a, c.b), "%s and %s", c.a, c.b)
		require.Equal(t, c.want, Distance(c.b, c.a), "%s and %s", c.b, c.a)
	}
}
