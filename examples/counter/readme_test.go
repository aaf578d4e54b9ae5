package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink/internal/fences"
)

// TestReadmeInModuleOfItsOwn follows the README's steps as a newcomer does, in a module outside
// this repository. Commands, files and output are the README's own: see package fences for its
// marks.
func TestReadmeInModuleOfItsOwn(t *testing.T) {
	t.Parallel()
	root, err := filepath.Abs("../..")
	require.NoError(t, err)
	if _, err := os.Stat(filepath.Join(os.Getenv("RAYLINK_TOOLS"), "buf")); err != nil || os.Getenv("RAYLINK_TOOLS") == "" {
		if os.Getenv("CI") != "" {
			t.Fatal("RAYLINK_TOOLS is not the directory of buf: run the tests by `make test`, after `make tools`")
		}
		t.Skip("the README's steps are not tested: RAYLINK_TOOLS is not the directory of buf (`make tools test` sets it)")
	}
	readme, err := fences.Read(filepath.Join(root, "README.md"))
	require.NoError(t, err)
	kinds := map[fences.Kind]int{}
	for _, f := range readme {
		kinds[f.Kind]++
	}
	require.Equal(t, 4, kinds[fences.File], "the README's files")
	require.NotZero(t, kinds[fences.Prints], "the output of the README's program")

	script := fences.Script(readme, root, t.TempDir)
	shell := exec.CommandContext(t.Context(), "bash", "-c", script)
	// The program gets no settings from outside; its go.mod is its own.
	shell.Env = fences.Environment("RAYLINK_DATA="+t.TempDir(), "GOFLAGS=-mod=mod", "GOWORK=off")
	var problems strings.Builder
	shell.Stderr = &problems
	output, err := shell.Output()
	require.NoError(t, err, "%s\n%s\n%s", script, output, problems.String())
	require.NoError(t, fences.Compare(readme, string(output)))
}
