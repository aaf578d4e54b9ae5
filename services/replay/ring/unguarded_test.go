//go:build unguarded

package ring

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// Without the guards, the other tests' checker must find torn rows.

func TestCheckerFindsTornRowsWithoutGuards(t *testing.T) {
	const rounds = 50
	var copied, inPlace int
	for range rounds {
		r := newRing(t, testLayout(50))
		_, err := writeRows(r, task{Rows: 50, Batch: 1})
		require.NoError(t, err)
		results := stress(t, r, 10000)
		copied += results[2].Torn + results[3].Torn
		inPlace += results[4].Torn
		if copied > 0 && inPlace > 0 {
			return
		}
	}
	t.Fatalf("the checker found %d torn copies and %d torn rows in place in %d rounds", copied, inPlace, rounds)
}
