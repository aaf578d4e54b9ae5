package main

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/raylink/raylink/internal/fences"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestTourInProcessesOfTheirOwn runs the program as a newcomer does: the driver is one process, and
// the counter another.
func TestTourInProcessesOfTheirOwn(t *testing.T) {
	t.Parallel()
	program := filepath.Join(t.TempDir(), "counter")
	output := combined(t, exec.CommandContext(t.Context(), "go", "build", "-o", program, "."))
	require.Empty(t, output)

	tour := exec.CommandContext(t.Context(), program)
	tour.Env = fences.Environment("RAYLINK_DATA=" + t.TempDir())
	assert.Equal(t, strings.TrimPrefix(`
created counter-0
added 2: 3
added 1, 2 and 3 without waiting: 4, 6, 9
refused: out_of_range: 9 and 1000 more would not be within 0 to 100 (at most 100)
waited for 50: deadline_exceeded
watching: 9
added 4 numbers at once: 15
watching: 15
tallied 20: 35
tallied -5: 30
`, "\n"), combined(t, tour))

	wrong := exec.CommandContext(t.Context(), program, "sevre")
	wrong.Env = fences.Environment("RAYLINK_DATA=" + t.TempDir())
	said, err := wrong.CombinedOutput()
	require.Error(t, err)
	assert.Contains(t, string(said), `unknown arguments ["sevre"]`)
}

// combined runs a command and returns what it printed on both outputs.
func combined(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	output, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s\n%s", cmd, output)
	return string(output)
}
