package engine_test

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink/internal/engine"
)

func TestHomesOfKilledProcessesAreRemoved(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	alive, err := engine.NewHome()
	require.NoError(t, err)
	killed, err := engine.NewHome()
	require.NoError(t, err)
	engine.Abandon(t, killed)
	next, err := engine.NewHome()
	require.NoError(t, err)
	assert.NoDirExists(t, killed.Path)
	assert.DirExists(t, alive.Path, "its process lives")
	require.NoError(t, next.Remove())
	require.NoError(t, alive.Remove())
	assert.NoDirExists(t, alive.Path)
}
