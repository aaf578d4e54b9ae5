package assemble

import (
	"os"
	"sync/atomic"

	"github.com/raylink/raylink/runtime"
)

// The collector runs whenever what a program has allocated since the last time is as much as what was alive then, or 4 MiB if that is more. A
// process with little in it that serves many small calls so collects dozens of times a second, and spends a quarter of its time on it
// (docs/speed.md). Memory that is alive, though nothing ever touches it, makes those times rarer: it takes room in the address space alone.

// ballast is that memory. A process has one.
var ballast atomic.Pointer[[]byte] //nolint:gochecknoglobals // the collector is the process's

// raiseHeapFloor keeps the collector from running for less than the options say. Who has told Go's runtime what to do (GOGC, GOMEMLIMIT) is not
// contradicted.
func raiseHeapFloor(options *runtime.Options) {
	if options.HeapFloor <= 0 || os.Getenv("GOGC") != "" || os.Getenv("GOMEMLIMIT") != "" {
		return
	}
	memory := make([]byte, options.HeapFloor)
	ballast.Store(&memory)
}
