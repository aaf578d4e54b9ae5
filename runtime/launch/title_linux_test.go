package launch

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestProcessIsNamedAfterItsNodeAndShowsNoSecret examines a launched process as other users of the
// machine can.
func TestProcessIsNamedAfterItsNodeAndShowsNoSecret(t *testing.T) {
	before := start.args
	t.Cleanup(func() { start.args = before })
	long := strings.Repeat("x", 100<<10) // more than a pipe holds
	start.args = []string{"/opt/bin/trainer", "--token", "s3cret-in-arguments", long}
	t.Setenv("RAYLINK_TOKEN", "s3cret-in-environment")
	p, _ := begin(t, "describes itself")
	payload, err := p.Ready(within(t))
	require.NoError(t, err)
	assert.Contains(t, string(payload), fmt.Sprintf("args=%q ", start.args[1:]), "the program has lost its arguments")

	p, _ = begin(t, "ok:here I am", func(s *Spec) { s.Name = "manager-0/tester-0" })
	_, err = p.Ready(within(t))
	require.NoError(t, err)

	proc := func(file string) string {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", p.PID(), file))
		require.NoError(t, err)
		return string(b)
	}
	assert.Equal(t, "trainer: manager-0/tester-0\x00", proc("cmdline"))
	assert.Equal(t, "tester-0\n", proc("comm"))
	environ := proc("environ")
	assert.NotContains(t, environ, "s3cret")
	assert.Contains(t, environ, marker)
}

func TestNameThatIsTooLongKeepsItsIndex(t *testing.T) {
	assert.Equal(t, "learner-0", short("learner-0", 15))
	assert.Equal(t, "eter_server-123", short("parameter_server-123", 15))
}
