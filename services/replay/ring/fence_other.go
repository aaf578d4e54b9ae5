//go:build !amd64

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
