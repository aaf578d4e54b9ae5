package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestCommandFindsTheOnlyBrain runs commands without an address while this user runs no Brain, one,
// two, and one of two that was killed.
func TestCommandFindsTheOnlyBrain(t *testing.T) {
	dir, err := os.MkdirTemp("", "rl") //nolint:usetesting // sockets are in it, so its path must be short
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	env := environment("RAYLINK_RUNTIME_DIR=" + dir)
	start := func() *process {
		p := background(t, env, filepath.Join(program, "raylink"), "brain", "--data", t.TempDir(), "--listen", "127.0.0.1:0", "-o", "json")
		p.serving()
		return p
	}
	tree := func() (stdout, stderr string, exit int) {
		cmd := exec.Command(filepath.Join(program, "raylink"), "tree")
		cmd.Env = env
		return finish(t, cmd)
	}

	_, stderr, exit := tree()
	assert.Equal(t, exitNoBrain, exit)
	assert.Contains(t, stderr, "127.0.0.1:6800", "where Brain listens by default")

	one := start()
	stdout, stderr, exit := tree()
	require.Zero(t, exit, stderr)
	assert.Contains(t, stdout, "storage-0")

	two := start()
	_, stderr, exit = tree()
	assert.Equal(t, exitUsage, exit)
	for _, p := range []*process{one, two} {
		assert.Contains(t, stderr, p.serving().Address, "all are listed")
	}

	one.end(syscall.SIGKILL)
	stdout, stderr, exit = tree()
	require.Zero(t, exit, "the address that the killed one left counts: %s", stderr)
	assert.Contains(t, stdout, two.serving().Address)
}
