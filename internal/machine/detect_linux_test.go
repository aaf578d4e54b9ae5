package machine

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// detectEnv makes the test binary print the machine's CPUs, and exit.
const detectEnv = "RAYLINK_TEST_DETECT"

func TestMain(m *testing.M) {
	if os.Getenv(detectEnv) == "" {
		os.Exit(m.Run())
	}
	d, err := Detect()
	if err != nil {
		panic(err)
	}
	fmt.Print(d.CPUs)
}

func TestThisMachine(t *testing.T) {
	t.Parallel()
	d, err := Detect()
	require.NoError(t, err)
	hostname, err := os.Hostname()
	require.NoError(t, err)
	assert.Equal(t, hostname, d.Hostname)
	assert.GreaterOrEqual(t, Unit*int64(runtime.NumCPU()), d.CPUs)
	assert.Positive(t, d.CPUs)
	assert.Positive(t, d.Memory)
	require.NoError(t, d.Resources().Check())
	t.Log(d.Resources().Summary())
}

// TestAffinity starts a process that may run on one CPU.
func TestAffinity(t *testing.T) {
	t.Parallel()
	// The mask is the thread's, which is not used again: the goroutine ends with it locked. A
	// process inherits that of the thread that starts it.
	output := make(chan string)
	go func() {
		defer close(output)
		runtime.LockOSThread()
		var mask, one unix.CPUSet
		if !assert.NoError(t, unix.SchedGetaffinity(0, &mask)) {
			return
		}
		for cpu := range 64 * len(mask) {
			if mask.IsSet(cpu) {
				one.Set(cpu)
				break
			}
		}
		if !assert.NoError(t, unix.SchedSetaffinity(0, &one)) {
			return
		}
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), detectEnv+"=1")
		printed, err := cmd.Output()
		assert.NoError(t, err)
		output <- string(printed)
	}()
	cpus, err := strconv.Atoi(<-output)
	require.NoError(t, err)
	assert.LessOrEqual(t, cpus, Unit)
	assert.Positive(t, cpus)
}
