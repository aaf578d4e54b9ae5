package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestTokenThatBrainMakes shows that programs of Brain's user find its token, and that it is
// printed only if the process at the address knows it.
func TestTokenThatBrainMakes(t *testing.T) {
	data := t.TempDir()
	b := startBrain(t, data, "127.0.0.1:0")
	kept, err := os.ReadFile(filepath.Join(data, "token"))
	require.NoError(t, err)
	stdout, stderr, exit := b.raylink(t, "token")
	require.Zero(t, exit, stderr)
	assert.Equal(t, string(kept), stdout)
	require.Len(t, strings.TrimSpace(stdout), 64)
	stdout, stderr, exit = b.raylink(t, "tree")
	require.Zero(t, exit, stderr)
	assert.Contains(t, stdout, "storage-0")

	// A process with another runtime directory, as another user has, does not find it.
	cmd := exec.Command(filepath.Join(program, "raylink"), "tree", "--brain", b.address)
	cmd.Env = environment("RAYLINK_RUNTIME_DIR=" + t.TempDir())
	_, stderr, exit = finish(t, cmd)
	assert.Equal(t, exitNoBrain, exit)
	assert.Contains(t, stderr, "this user has started no Brain there on this machine")

	stdout, stderr, exit = b.raylink(t, "token", "--token", "guess")
	assert.Equal(t, exitNoBrain, exit, "printed for what has not proven that it knows it")
	assert.Empty(t, stdout)
	assert.Contains(t, stderr, "did not prove")

	again := startBrain(t, t.TempDir(), "127.0.0.1:0")
	stdout, stderr, exit = again.raylink(t, "token")
	require.Zero(t, exit, stderr)
	assert.NotEqual(t, string(kept), stdout, "two systems have one token")
}
