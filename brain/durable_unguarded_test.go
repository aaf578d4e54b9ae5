//go:build unguarded

package brain_test

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// Pebble's log goes to the file a block at a time, so a kill that comes just after a block was full loses nothing: about one in four does
// on a fast disk.
func TestKillWithoutSyncLosesWhatWasAcknowledged(t *testing.T) {
	const kills = 30
	total := 0
	for range kills {
		acknowledged, lost := lostByKill(t)
		if len(lost) > 0 {
			return
		}
		total += acknowledged
	}
	require.Fail(t, "the test that kills sees nothing", "%d kills lost none of %d acknowledged registrations", kills, total)
}
