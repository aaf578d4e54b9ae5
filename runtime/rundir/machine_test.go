package rundir

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestMachine(t *testing.T) {
	t.Setenv(MachineEnv, "")
	machine, err := Machine()
	require.NoError(t, err)
	assert.Len(t, machine, 10)
	again, err := Machine()
	require.NoError(t, err)
	assert.Equal(t, machine, again)

	t.Setenv(MachineEnv, "gpu-7.lab")
	machine, err = Machine()
	require.NoError(t, err)
	assert.Equal(t, "gpu-7.lab", machine)
	for _, bad := range []string{"a/b", "a b", strings.Repeat("x", maxMachine+1), "é"} {
		t.Setenv(MachineEnv, bad)
		_, err := Machine()
		require.ErrorContains(t, err, MachineEnv)
	}
}
