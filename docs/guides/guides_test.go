// Package guides_test runs the guides: files, commands and output are those of the pages.
package guides_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink/internal/fences"
)

// root is the repository.
const root = "../.."

// index is the page that the others are listed on, and whose commands precede theirs.
const index = "README.md"

// TestGuides follows each guide in a module of its own. The build of a program is most of the time
// that it takes.
func TestGuides(t *testing.T) {
	t.Parallel()
	start, err := filepath.Abs(root)
	require.NoError(t, err)
	before := read(t, index)
	for _, page := range pages(t) {
		t.Run(strings.TrimSuffix(page, ".md"), func(t *testing.T) {
			t.Parallel()
			guide := read(t, page)
			require.NoError(t, fences.CheckQuotations(guide, start), page)
			runs := 0
			for _, f := range guide {
				if f.Kind == fences.Run {
					runs++
				}
			}
			if runs == 0 {
				return
			}
			steps := slices.Concat(before, guide)
			script := fences.Script(steps, start, t.TempDir)
			shell := exec.CommandContext(t.Context(), "bash", "-c", script)
			shell.Env = fences.Environment("RAYLINK_DATA="+t.TempDir(), "GOFLAGS=", "GOWORK=off")
			var problems strings.Builder
			shell.Stderr = &problems
			output, err := shell.Output()
			require.NoError(t, err, "%s:\n%s\n%s", page, output, problems.String())
			require.NoError(t, fences.Compare(steps, string(output)), "%s:\n%s", page, problems.String())
		})
	}
}

// pages are the guides' files.
func pages(t *testing.T) []string {
	t.Helper()
	all, err := filepath.Glob("*.md")
	require.NoError(t, err)
	var guides []string
	for _, page := range all {
		if page != index {
			guides = append(guides, page)
		}
	}
	return guides
}

func read(t *testing.T, page string) []fences.Fence {
	t.Helper()
	found, err := fences.Read(page)
	require.NoError(t, err)
	return found
}

// TestGuidesAreListed follows the links from the README to the index, and from there to each guide.
func TestGuidesAreListed(t *testing.T) {
	t.Parallel()
	readme, err := os.ReadFile(filepath.Join(root, "README.md"))
	require.NoError(t, err)
	require.Contains(t, string(readme), "(docs/guides/README.md)")
	list, err := os.ReadFile(index)
	require.NoError(t, err)
	for _, page := range pages(t) {
		require.Contains(t, string(list), "("+page+")", "the guides' index does not link to it")
	}
}
