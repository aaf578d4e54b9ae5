package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestReadmeInModuleOfItsOwn follows the README's steps as a newcomer does, in a module outside this repository. Commands, files and output are the
// README's own: fences behind the marks `run`, `run elsewhere`, `file: PATH` and `prints`, which are comments there.
func TestReadmeInModuleOfItsOwn(t *testing.T) {
	t.Parallel()
	root, err := filepath.Abs("../..")
	require.NoError(t, err)
	if _, err := os.Stat(filepath.Join(os.Getenv("RAYLINK_TOOLS"), "buf")); err != nil || os.Getenv("RAYLINK_TOOLS") == "" {
		if os.Getenv("CI") != "" {
			t.Fatal("RAYLINK_TOOLS is not where buf is: run the tests by `make test`, after `make tools`")
		}
		t.Skip("the README's steps are not tested: RAYLINK_TOOLS is not where buf is (`make tools test` sees to that)")
	}
	readme, err := os.ReadFile(filepath.Join(root, "README.md"))
	require.NoError(t, err)

	var script, prints strings.Builder
	fmt.Fprintf(&script, "set -euo pipefail\ncd %q\n", root)
	marked := regexp.MustCompile("(?ms)^<!-- (run|run elsewhere|file: ([^ ]+)|prints) -->\n```[a-z]*\n(.*?)^```$")
	files := 0
	for _, fence := range marked.FindAllStringSubmatch(string(readme), -1) {
		switch kind, path, text := fence[1], fence[2], fence[3]; {
		case path != "":
			files++
			fmt.Fprintf(&script, "mkdir -p \"$(dirname %s)\"\ncat >%s <<'END OF FILE'\n%sEND OF FILE\n", path, path, text)
		case kind == "prints":
			prints.WriteString(text)
		case kind == "run elsewhere":
			fmt.Fprintf(&script, "cd %q\n%s", t.TempDir(), text)
		default:
			script.WriteString(text)
		}
	}
	require.Equal(t, 4, files, "the README's files")
	require.NotEmpty(t, prints.String(), "what the README's program prints")

	shell := exec.CommandContext(t.Context(), "bash", "-c", script.String())
	// The program gets no settings of anybody's; its go.mod is its own.
	shell.Env = clean("RAYLINK_DATA="+t.TempDir(), "GOFLAGS=-mod=mod", "GOWORK=off")
	var problems strings.Builder
	shell.Stderr = &problems
	output, err := shell.Output()
	require.NoError(t, err, "%s\n%s\n%s", script.String(), output, problems.String())
	assert.True(t, strings.HasSuffix(string(output), prints.String()), "it printed\n%s\ninstead of\n%s", output, prints.String())
}
