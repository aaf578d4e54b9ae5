package rundir

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestSweepsRemoveDeadHostsOnly(t *testing.T) {
	parent := shortDir(t)
	rapid.Check(t, func(t *rapid.T) {
		base, err := os.MkdirTemp(parent, "") //nolint:usetesting // one for each check, with a short path
		require.NoError(t, err)
		steps := rapid.SliceOf(rapid.SampledFrom([]step{made, closed, died, swept, rushed})).Draw(t, "steps")
		require.NoError(t, runSteps(base, steps))
	})
}
