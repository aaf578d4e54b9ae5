//go:build !amd64 || race

package ring

import "sync/atomic"

// fence is a word private to a head, in a cache line of its own; see word.go.
type fence struct {
	_    [cacheLine]byte
	word atomic.Uint64
	_    [cacheLine]byte
}

// barrier orders the memory accesses before it against those after it.
func (f *fence) barrier() { f.word.Add(1) }

// storeRelease stores a word after all memory accesses before it.
func storeRelease(at *atomic.Uint64, value uint64) { at.Store(value) }

// hasSeats reports whether heads may have seats; see seat.go.
func hasSeats() bool { return true }

// barrierForSeats is the barrier between the store that closes a ring and the loads of marks. Both
// are atomic.
func barrierForSeats() error { return nil }
