//go:build faults

package soak

import (
	"os"
	"os/exec"
	"regexp"
	"testing"

	"github.com/stretchr/testify/require"
)

// detections are the faults that can be injected: a guard of the product that is left out, see
// package faults, or something that a node leaks. Each has a pattern of the soak's report, and how
// long the soak may need to detect it.
var detections = map[string]struct {
	says string
	soak string
}{
	"interruption":     {`(add|echo|fetch|async|nested|wait|count) failed: unavailable`, "2m"},
	"reordering":       {`call \d+ of caller \w+ ran on \S+ after call \d+`, "2m"},
	"redelivery":       {`call \d+ of caller \w+ ran on \S+ after call \d+`, "2m"},
	"lostnotification": {`returned \S+ after it should have|a call has not returned`, "5s"},
	"lostcancel":       {`a method's context did not end with its call`, "5s"},
	"goroutine":        {`found unexpected goroutines`, "1s"},
	"memory":           {`memory is left|the heap has`, "5s"},
	"file":             {`open files are left`, "1s"},
	"process":          {`processes are left`, "1s"},
}

// TestSoakDetects runs the soak with each fault. The run must fail for the right reason. It ends
// with the first failure.
func TestSoakDetects(t *testing.T) {
	for fault, notice := range detections {
		t.Run(fault, func(t *testing.T) {
			cmd := exec.Command(os.Args[0], "-test.run=^TestSoak$", "-soak="+notice.soak)
			cmd.Env = append(os.Environ(), faultVariable+"="+fault)
			out, err := cmd.CombinedOutput()
			require.Error(t, err)
			require.Regexp(t, regexp.MustCompile(notice.says), string(out))
		})
	}
}
