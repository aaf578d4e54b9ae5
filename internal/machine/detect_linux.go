package machine

import (
	"fmt"
	"os"
	"runtime"
)

// Detect describes this machine, as [Source.Detect] does.
func Detect() (Description, error) {
	hostname, err := os.Hostname()
	if err != nil {
		return Description{}, fmt.Errorf("machine: %w", err)
	}
	return Source{
		Root:      os.DirFS("/"),
		LookupEnv: os.LookupEnv,
		Hostname:  hostname,
		Affinity:  runtime.NumCPU(), // of sched_getaffinity, when the process started
	}.Detect()
}
