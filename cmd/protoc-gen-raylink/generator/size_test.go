package generator_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestImportedCodeIsLeftOutUntilItIsUsed builds programs that import generated code, and looks for
// its functions in them: one that uses nothing has none, one that only calls has none of the
// handlers.
func TestImportedCodeIsLeftOutUntilItIsUsed(t *testing.T) {
	imports := "\"" + module + "/shapes/shapesv1raylink\""
	symbols := func(use string) string {
		dir := t.TempDir()
		source := "package main\n\nimport shapes " + imports + "\n\nfunc main() { " + use + " }\n"
		require.NoError(t, os.WriteFile(filepath.Join(dir, "main.go"), []byte(source), 0o600))
		program := filepath.Join(dir, "program")
		out, err := exec.CommandContext(t.Context(), "go", "build", "-o", program, filepath.Join(dir, "main.go")).CombinedOutput()
		require.NoError(t, err, "%s", out)
		out, err = exec.CommandContext(t.Context(), "go", "tool", "nm", program).CombinedOutput()
		require.NoError(t, err, "%s", out)
		// Those of the generated package alone, which make a failure short.
		var own []string
		for line := range strings.Lines(string(out)) {
			if strings.Contains(line, "raylink.") {
				own = append(own, line)
			}
		}
		return strings.Join(own, "")
	}
	assert.NotContains(t, symbols("var _ shapes.Echo"), "shapesv1raylink.")
	assert.NotContains(t, symbols("shapes.NewEchoTunnel(nil)"), "echoHandlers")
	assert.Contains(t, symbols("shapes.NewLocalEcho(nil)"), "echoHandlers")

	imports = "\"" + module + "/rowsopaque/rowsopaqueraylink\""
	assert.NotContains(t, symbols("var _ shapes.OpaqueColumns"), "rowsopaqueraylink.")
	used := symbols("println(shapes.OpaqueRow.Message())")
	assert.Contains(t, used, "rowsopaqueraylink.OpaqueRow")
	assert.NotContains(t, used, "rowsopaqueraylink.HybridRow")
}
