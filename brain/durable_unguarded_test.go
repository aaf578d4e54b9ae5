//go:build unguarded

package brain_test

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestKillWithoutSyncLosesWhatWasAcknowledged(t *testing.T) {
	acknowledged, lost := lostByKill(t)
	require.NotEmpty(t, lost, "all of %d acknowledged registrations are there: the test that kills sees nothing", acknowledged)
}
