package launch

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// The test is the grandparent of a process, whose parent it kills.
func TestChildDetectsThatItsParentWasKilled(t *testing.T) {
	note := filepath.Join(t.TempDir(), "note")
	parent, _ := begin(t, "has a child:notes its parent's death:"+note)
	payload, err := parent.Ready(within(t))
	require.NoError(t, err)
	leaf, err := strconv.Atoi(string(payload))
	require.NoError(t, err)
	fd, err := unix.PidfdOpen(leaf, 0)
	require.NoError(t, err)
	defer func() { require.NoError(t, unix.Close(fd)) }()

	require.NoError(t, parent.Kill())
	awaitDone(t, parent)

	// The grandchild can't be reaped here; its pidfd reports its end nevertheless.
	ended, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(patience/time.Millisecond))
	require.NoError(t, err)
	require.Equal(t, 1, ended, "the orphan is still running")
	text, err := os.ReadFile(note)
	require.NoError(t, err, "it didn't end gracefully")
	assert.Equal(t, "orphaned, stdout: true, stderr: true", string(text))
}
