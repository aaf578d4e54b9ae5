//go:build !unguarded

package tunnel

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestMemoryIsItsMessagesWhileAnybodyHoldsIt(t *testing.T) {
	require.Zero(t, heldAndDropped(&recycler{early: !guarded}))
}
