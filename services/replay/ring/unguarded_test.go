//go:build unguarded

package ring

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// Without the guards, the checker that the other tests rely on must find torn rows.

func TestCheckerFindsTornRowsWithoutTheGuards(t *testing.T) {
	const rounds = 50
	var copied, inPlace int
	for range rounds {
		r := newRing(t, testLayout(50))
		_, err := writeRows(r, part{Rows: 50, Batch: 1})
		require.NoError(t, err)
		outcomes := torture(t, r, 10000)
		copied += outcomes[2].Torn + outcomes[3].Torn
		inPlace += outcomes[4].Torn
		if copied > 0 && inPlace > 0 {
			return
		}
	}
	t.Fatalf("in %d rounds the checker found %d torn copies and %d torn rows in place", rounds, copied, inPlace)
}
