//go:build unguarded

package tunnel

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestMemoryThatComesBackTooEarlyIsNoticed(t *testing.T) {
	require.NotZero(t, heldAndDropped(&recycler{early: !guarded}))
}
