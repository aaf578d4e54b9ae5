package mapfile

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestSpaceHintNamesSmallSharedMemory(t *testing.T) {
	require.Contains(t, spaceHint("/dev/shm/ring", true, 64<<20), "--shm-size")
	require.NotContains(t, spaceHint("/dev/shm/ring", true, 65<<20), "--shm-size")
	require.Contains(t, spaceHint("/data/rings/a", false, 64<<20), "/data/rings")
}
