package assemble_test

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestJoinDoesNotLinkBrain checks the dependencies of a binary that only joins.
func TestJoinDoesNotLinkBrain(t *testing.T) {
	t.Parallel()
	for door, full := range map[string]bool{"github.com/raylink/raylink/join": false, "github.com/raylink/raylink": true} {
		deps, err := exec.CommandContext(t.Context(), "go", "list", "-deps", door).Output()
		require.NoError(t, err)
		for _, pkg := range []string{"github.com/cockroachdb/pebble/v2", "github.com/raylink/raylink/brain"} {
			assert.Equal(t, full, strings.Contains(string(deps), pkg+"\n"), "%s and %s", door, pkg)
		}
	}
}
