package fences_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink/internal/fences"
)

// page is a page whose fences are marked by three backticks, written ~~~ here.
func page(lines ...string) string {
	return strings.ReplaceAll(strings.Join(lines, "\n"), "~~~", "```") + "\n"
}

func parse(t *testing.T, lines ...string) []fences.Fence {
	t.Helper()
	found, err := fences.Parse(page(lines...))
	require.NoError(t, err)
	return found
}

func TestParseFindsMarkedFencesOnly(t *testing.T) {
	t.Parallel()
	found := parse(t, "# Title", "~~~sh", "rm -rf unmarked", "~~~", "<!-- file: a/b.txt -->", "~~~", "one", "", "two", "~~~",
		"<!-- run elsewhere -->", "~~~sh", "ls", "~~~", "<!-- a comment -->")
	assert.Equal(t, []fences.Fence{
		{Kind: fences.File, Path: "a/b.txt", Text: "one\n\ntwo\n", Line: 5},
		{Kind: fences.RunElsewhere, Text: "ls\n", Line: 11},
	}, found)
}

func TestParseRefusesMarksWithoutFence(t *testing.T) {
	t.Parallel()
	for _, wrong := range []string{"<!-- run -->\n\n~~~sh\nls\n~~~", "<!-- runs -->\n~~~sh\nls\n~~~\n<!-- run here -->", "<!-- file: -->\n~~~\n~~~"} {
		_, err := fences.Parse(page(strings.ReplaceAll(wrong, "<!-- runs", "<!-- run s")))
		require.ErrorContains(t, err, "line 1: <!-- ", "%s", wrong)
	}
}

func TestScriptDoesWhatThePageSays(t *testing.T) {
	t.Parallel()
	start, elsewhere := t.TempDir(), t.TempDir()
	found := parse(t, "<!-- run -->", "~~~sh", "pwd", "~~~", "<!-- prints -->", "~~~", start, "~~~",
		"<!-- run elsewhere -->", "~~~", "true", "~~~", "<!-- file: a/b.txt -->", "~~~", "$HOME", "~~~",
		"<!-- run -->", "~~~", "cat a/b.txt", "echo pid $$", "~~~", "<!-- prints -->", "~~~", "$HOME", "pid ...", "~~~")
	output, err := exec.CommandContext(t.Context(), "bash", "-c", fences.Script(found, start, func() string { return elsewhere })).Output()
	require.NoError(t, err)
	require.NoError(t, fences.Compare(found, string(output)))
	assert.FileExists(t, filepath.Join(elsewhere, "a", "b.txt"))

	require.ErrorContains(t, fences.Compare(found, strings.Replace(string(output), "$HOME", "/root", 1)), "line 22: printed\n/root")
	require.ErrorContains(t, fences.Compare(found, "nothing"), "line 5: nothing was run")
}

func TestQuotationsEqualTheirFile(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(root, "f.py"), []byte("def f():\n    if x:\n        y()\n\n    z()\n"), 0o600))
	same := parse(t, "<!-- from: f.py -->", "~~~py", "if x:", "    y()", "", "z()", "~~~")
	require.NoError(t, fences.CheckQuotations(same, root))
	for _, other := range []string{"if y:", "if x:\n    z()", "if x"} {
		changed := parse(t, "", "<!-- from: f.py -->", "~~~py", other, "~~~")
		require.ErrorContains(t, fences.CheckQuotations(changed, root), "line 2: these lines are not in f.py")
	}
}
