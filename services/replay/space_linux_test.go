package replay

import (
	"testing"

	"github.com/raylink/raylink/internal/proctest"
	"github.com/raylink/raylink/services/replay/ring"
)

// TestReplaysThatDoNotFitAreRefused has the /dev/shm that containers get by default.
func TestReplaysThatDoNotFitAreRefused(t *testing.T) {
	if !proctest.WithOwnMounts(t) {
		return
	}
	proctest.Mount(t, "/dev/shm", 64<<20)
	for _, file := range []bool{false, true} {
		config := testConfig(8 << 20)
		requireRefused(t, config, "/dev/shm", file, ring.ErrSpace, []string{
			"/dev/shm/", "reserve ", " bytes: ", "64 MiB that a container gets", "--shm-size", "67108864 are available",
		})
	}
}
