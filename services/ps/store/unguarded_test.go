//go:build unguarded

package store

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// Without the guards, the other tests' checker must find torn versions and versions that go back.

func TestCheckerFindsTornAndOldVersionsWithoutGuards(t *testing.T) {
	const rounds, versions, size = 20, 200, 1_000_000
	var torn, back int
	for range rounds {
		s := newStore(t, Options{})
		follower := start(t, task{Name: "reader", Directory: s.Directory(), Until: versions})
		for id := uint64(1); id <= versions; id++ {
			_, err := put(s, id, size)
			require.NoError(t, err)
			if id > 2 && id < versions {
				if _, err := put(s, id-2, size); err != nil {
					continue // its file still exists
				}
			}
		}
		o := follower.end()
		torn += o.Torn
		back += o.Back
		if torn > 0 && back > 0 {
			return
		}
	}
	t.Fatalf("the checker found %d torn versions and %d that go back in %d rounds", torn, back, rounds)
}
