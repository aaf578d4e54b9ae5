package main

import (
	"encoding/base64"
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestParameterServerIsConfigured shows that each incarnation of ps-0 has the configuration of the
// Brain that started it.
func TestParameterServerIsConfigured(t *testing.T) {
	b := startBrain(t, t.TempDir(), "127.0.0.1:0", "--ps-max-bytes", "1KiB")
	accepts := func(size int) bool {
		request := fmt.Sprintf(`{"tag": "a", "parameters": %q}`, base64.StdEncoding.EncodeToString(make([]byte, size)))
		_, stderr, exit := b.raylink(t, "call", "ps-0", "Push", request)
		if exit != 0 {
			require.Contains(t, stderr, fmt.Sprintf("%d bytes", size), "it was refused for another reason")
		}
		return exit == 0
	}
	kill := func() {
		t.Helper()
		pid := b.records(t)["ps-0"].GetHost().GetPid()
		require.NoError(t, syscall.Kill(int(pid), syscall.SIGKILL))
		gone(t, pid)
		require.Eventually(t, func() bool {
			now := b.records(t)["ps-0"].GetHost().GetPid()
			return now != 0 && now != pid
		}, patience, 10*time.Millisecond)
	}
	assert.True(t, accepts(1024))
	assert.False(t, accepts(1025))
	kill()
	assert.True(t, accepts(1024))
	assert.False(t, accepts(1025), "the next incarnation has the configuration too")

	pid := b.records(t)["ps-0"].GetHost().GetPid()
	b.end(syscall.SIGKILL)
	b = startBrain(t, b.data, b.address, "--ps-max-bytes", "2KiB")
	assert.Equal(t, pid, b.records(t)["ps-0"].GetHost().GetPid(), "it outlives Brain")
	assert.False(t, accepts(1025))
	kill()
	assert.True(t, accepts(2048), "an incarnation has the configuration of the Brain that starts it")
	assert.False(t, accepts(2049))
}

// TestSizesOfFlags shows the error for a size that can't be parsed.
func TestSizesOfFlags(t *testing.T) {
	var b brain
	_, stderr, exit := b.raylink(t, "brain", "--ps-max-bytes", "64MB")
	assert.Equal(t, exitUsage, exit)
	assert.Contains(t, stderr, `invalid argument "64MB" for "--ps-max-bytes" flag: "64MB" is not a size: write bytes, or a number and one of B, KiB, MiB, GiB, TiB, as in 64MiB`)
}
