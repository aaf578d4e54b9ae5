//go:build unguarded

package brain_test

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// Pebble writes its log in blocks, so a kill just after a full block loses nothing: about one in
// four on a fast disk.
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
	require.Fail(t, "the test of kills detects nothing", "%d kills lost none of %d acknowledged registrations", kills, total)
}
