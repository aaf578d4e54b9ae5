//go:build faults

package soak

import (
	"os"
	"os/exec"
	"regexp"
	"testing"

	"github.com/stretchr/testify/require"
)

// notices are what the soak says where a guard of the product is left out, see package faults, or where
// a node leaves something behind; and for how long it may have to look.
var notices = map[string]struct {
	says string
	soak string
}{
	"interruption":     {`(add|echo|fetch|async|nested|wait|count) failed: unavailable`, "2m"},
	"reordering":       {`call \d+ of caller \w+ ran on \S+ after call \d+`, "2m"},
	"redelivery":       {`call \d+ of caller \w+ ran on \S+ after call \d+`, "2m"},
	"lostnotification": {`returned \S+ after it should have|a call has not returned`, "5s"},
	"lostcancel":       {`a method was not told that its caller does not wait any more`, "5s"},
	"goroutine":        {`found unexpected goroutines`, "1s"},
	"memory":           {`memory is left|the heap has`, "5s"},
	"file":             {`open files are left`, "1s"},
	"process":          {`processes are left`, "1s"},
}

// TestSoakNotices runs the soak with each of the faults: it must fail, for the right reason. A run ends
// with the first fault that it finds.
func TestSoakNotices(t *testing.T) {
	for fault, notice := range notices {
		t.Run(fault, func(t *testing.T) {
			cmd := exec.Command(os.Args[0], "-test.run=^TestSoak$", "-soak="+notice.soak)
			cmd.Env = append(os.Environ(), faultVariable+"="+fault)
			out, err := cmd.CombinedOutput()
			require.Error(t, err)
			require.Regexp(t, regexp.MustCompile(notice.says), string(out))
		})
	}
}
