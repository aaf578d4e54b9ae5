package assemble

import (
	"os"
	"sync/atomic"

	"github.com/raylink/raylink/runtime"
)

// Go's collector runs once a program has allocated as much as was live after the last collection,
// or 4 MiB if that is more. A process with a small heap that serves many calls so collects dozens
// of times a second, and spends a quarter of its time on it (docs/speed.md). A live slice that is
// never touched makes collections rarer, and takes address space only.

// ballast is that slice.
var ballast atomic.Pointer[[]byte] //nolint:gochecknoglobals // a process has one heap

// raiseHeapFloor sets the heap at which collections start, see [runtime.Options].HeapFloor. It does
// nothing if the user tunes the collector by GOGC or GOMEMLIMIT.
func raiseHeapFloor(options *runtime.Options) {
	if options.HeapFloor <= 0 || os.Getenv("GOGC") != "" || os.Getenv("GOMEMLIMIT") != "" {
		return
	}
	memory := make([]byte, options.HeapFloor)
	ballast.Store(&memory)
}
