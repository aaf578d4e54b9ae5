package launch

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// runProgram runs this test binary as another program, which its TestMain selects by an environment
// variable.
func runProgram(t *testing.T, file, what string) string {
	t.Helper()
	cmd := exec.CommandContext(within(t), file, "-test.run=^$")
	cmd.Env = append(os.Environ(), program+"="+what)
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, string(out))
	return string(out)
}

func TestUnpreparedTestBinaryLaunchesNothing(t *testing.T) {
	file, err := os.Executable()
	require.NoError(t, err)
	assert.Contains(t, runProgram(t, file, "is not prepared"),
		"refused: launch: x-0: a test binary launches no processes unless its TestMain calls")
	assert.False(t, beforeTests(), "to be prepared within a test is too late")
}

func TestProgramWhoseFileIsGoneLaunchesItself(t *testing.T) {
	if _, err := os.Stat("/proc/self/exe"); err != nil {
		t.Skip("this system knows a program only by its file's name")
	}
	file, err := os.Executable()
	require.NoError(t, err)
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	file = filepath.Join(t.TempDir(), "program")
	require.NoError(t, os.WriteFile(file, text, 0o700))
	assert.Contains(t, runProgram(t, file, "removes its file"), "launched without a file")
	assert.NoFileExists(t, file)
}

func TestFlagsOfGoTestAreDropped(t *testing.T) {
	takes := func(name string) bool { return name == "test.run" }
	for _, c := range []struct{ args, want []string }{
		{nil, []string{}},
		{[]string{"-test.v", "-seed", "3", "--test.timeout=10m", "x"}, []string{"-seed", "3", "x"}},
		{[]string{"-test.run", "X", "y"}, []string{"y"}},
		{[]string{"-test.run=X", "y"}, []string{"y"}},
		{[]string{"-test.run"}, []string{}},
		{[]string{"-test.v", "--", "-test.v"}, []string{"--", "-test.v"}},
		{[]string{"-testing", "test.v", "-"}, []string{"-testing", "test.v", "-"}},
	} {
		assert.Equal(t, c.want, withoutTestFlags(c.args, takes), "%q", c.args)
	}
	assert.True(t, takesValue("test.run"))
	assert.False(t, takesValue("test.v"))
	assert.False(t, takesValue("test.nonesuch"))
}
