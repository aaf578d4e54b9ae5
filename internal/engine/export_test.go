package engine

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// Abandon has a directory be one whose process was killed.
func Abandon(t *testing.T, h *Home) {
	t.Helper()
	require.NoError(t, h.lock.Close())
}
