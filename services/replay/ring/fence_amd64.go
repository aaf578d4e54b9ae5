//go:build !race

package ring

import (
	"sync/atomic"
	"unsafe" //nolint:depguard // stores an aligned word: see storeRelease

	"github.com/raylink/raylink/services/internal/mapfile"
)

// fence orders the memory accesses of a head; see word.go.
type fence struct{}

// barrier orders the memory accesses before it against those after it. Here the processor does.
func (*fence) barrier() {}

// storeRelease stores a word after all memory accesses before it. Here a plain store is one: the
// processor keeps the order of stores, and that of loads and later stores. Go's atomic store is a
// full barrier besides, which would wait until all of the row has reached the cache.
func storeRelease(at *atomic.Uint64, value uint64) {
	*(*uint64)(unsafe.Pointer(at)) = value //nolint:gosec // a word, aligned as atomic ones are
}

// hasSeats reports whether heads may have seats; see seat.go.
func hasSeats() bool { return mapfile.HasBarrier() }

// barrierForSeats is the barrier between the store that closes a ring and the loads of marks.
func barrierForSeats() error { return mapfile.Barrier() }
