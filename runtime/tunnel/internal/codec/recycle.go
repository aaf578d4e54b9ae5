package codec

import (
	"math/bits"
	"runtime"
	"strings"
	"sync"
	"unsafe" //nolint:depguard // for uninitialised memory, of which only the length is known: a slice's, and the bytes of a string with no other reference
)

// A large message aliases its receive buffer (decode.go), and its receiver may hold it
// indefinitely. If such buffers were left to the garbage collector, they would be most of what a
// process allocates: every few MiB would trigger a collection, and new buffers would be faulted in
// page by page from the system. So a finalizer returns the memory of an unreachable message to a
// free list instead.

// recycler allocates memory for messages and gets it back when they have become unreachable. It
// keeps up to recycledBytes, less what was not used between two garbage collections.
type recycler struct {
	mu sync.Mutex // guards the fields below
	// free holds the returned memory, by class. It is a LIFO, since the last returned may still be
	// in a CPU cache.
	free [recycledClasses][]*byte
	// idle is the number of bytes in free, and lowest its minimum since the last collection.
	idle, lowest int
	watching     bool
}

const (
	recycledBytes = 32 << 20
	// There are four classes per doubling, from 32 KiB, so at most a fifth of a buffer is wasted.
	recycledSmallest = 15
	recycledLargest  = 22
	recycledClasses  = 4*(recycledLargest-recycledSmallest) + 1
)

var recycled recycler //nolint:gochecknoglobals // memory is shared by the process

// recycledClass returns the smallest class with room for n bytes and its size, or -1 and n if there
// is none.
func recycledClass(n int) (class, size int) {
	if n < 1<<(recycledSmallest-1) || n > 1<<recycledLargest {
		return -1, n
	}
	if n <= 1<<recycledSmallest {
		return 0, 1 << recycledSmallest
	}
	power := bits.Len(uint(n-1)) - 1
	step := 1 << power >> 2
	quarters := (n - 1<<power + step - 1) / step
	return 4*(power-recycledSmallest) + quarters, 1<<power + quarters*step
}

// alloc returns an empty slice with room for n bytes, n > 0. The caller owns it for good. It is not
// cleared.
func (r *recycler) alloc(n int) []byte {
	class, size := recycledClass(n)
	if class < 0 {
		return uncleared(n)
	}
	first := r.take(class, size)
	if first == nil {
		first = unsafe.SliceData(uncleared(size)) //nolint:gosec // its first byte
	}
	runtime.SetFinalizer(first, func(first *byte) { r.give(first, class, size) })
	return unsafe.Slice(first, size)[:0] //nolint:gosec // allocated with that size
}

func (r *recycler) take(class, size int) *byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.watch()
	list := r.free[class]
	if len(list) == 0 {
		return nil
	}
	first := list[len(list)-1]
	list[len(list)-1] = nil
	r.free[class] = list[:len(list)-1]
	r.idle -= size
	r.lowest = min(r.lowest, r.idle)
	return first
}

// give adds memory that is no longer reachable to the free list.
func (r *recycler) give(first *byte, class, size int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.idle+size <= recycledBytes {
		r.watch()
		r.free[class] = append(r.free[class], first)
		r.idle += size
	}
}

// watch arranges for a notification of the next collection. The caller must hold r.mu.
func (r *recycler) watch() {
	if !r.watching {
		r.watching = true
		runtime.SetFinalizer(&collection{r}, (*collection).happened)
	}
}

// collection is unreachable from the start: its finalizer runs after the next collection.
type collection struct{ of *recycler }

// happened frees the memory that was not needed since the previous collection.
func (c *collection) happened() {
	r := c.of
	r.mu.Lock()
	defer r.mu.Unlock()
	for class := range r.free {
		size := (4 + class%4) << (recycledSmallest - 2 + class/4)
		for r.lowest >= size && len(r.free[class]) > 0 {
			list := r.free[class]
			list[0] = nil
			r.free[class] = list[1:]
			r.idle -= size
			r.lowest -= size
		}
	}
	r.lowest = r.idle
	if r.watching = r.idle > 0; r.watching {
		runtime.SetFinalizer(c, (*collection).happened)
	}
}

// uncleared returns an empty slice with room for n bytes, n > 0, that has not been zeroed. Clearing
// a large buffer that will be overwritten costs as much as copying it. Only [strings.Builder]
// provides such memory, through the string that it builds.
func uncleared(n int) []byte {
	var b strings.Builder
	b.Grow(n)
	b.WriteByte(0) // an empty string might have no memory
	// The string is not used elsewhere, so its bytes may be modified.
	return unsafe.Slice(unsafe.StringData(b.String()), b.Cap())[:0] //nolint:gosec // allocated with that size
}
