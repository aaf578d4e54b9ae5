//go:build unguarded

package rundir

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// The checker of the sweeps notices one that doesn't ask who is alive.
func TestCheckerNoticesASweepThatTakesTheLiving(t *testing.T) {
	require.ErrorContains(t, tell(shortDir(t), []step{made, swept}), "the directory of a living host is gone")
}
