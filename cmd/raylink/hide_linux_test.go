package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestTokenIsInNoProcessList gives the token by a flag, which other users could list.
func TestTokenIsInNoProcessList(t *testing.T) {
	const secret = "s3cret-on-the-command-line"
	for _, form := range [][]string{{"--token", secret}, {"--token=" + secret}} {
		b := startBrain(t, t.TempDir(), "127.0.0.1:0", form...)
		_, stderr, exit := b.raylink(t, "call", "--token", secret, "storage-0", "Has", `{"key": "x"}`)
		require.Zero(t, exit, stderr)
		files, err := filepath.Glob("/proc/[0-9]*/cmdline")
		require.NoError(t, err)
		titles := make(map[string]bool)
		for _, file := range files {
			line, err := os.ReadFile(file)
			if err != nil {
				continue // it has exited
			}
			assert.NotContains(t, string(line), secret)
			titles[strings.TrimRight(string(line), "\x00")] = true
		}
		for _, node := range []string{"storage-0", "ps-0"} {
			assert.True(t, titles["raylink: "+node], "no process is called after %s", node)
		}
	}
}
