package tunnel

import (
	"math/bits"
	"runtime"
	"strings"
	"sync"
	"unsafe" //nolint:depguard // for memory of the collector's that only its length is known of: a slice's, and the bytes of a string that nobody else has
)

// The buffer of a large message is the message's own (decode.go), and so its receiver's for as long
// as it likes. Left to the collector, such buffers are most of what a process allocates: each few
// MiB of them is a collection, and new memory for the next ones, page by page from the system. So
// the collector is asked to give them back instead of freeing them: a finalizer takes the memory of
// a message that nobody holds any more.

// recycler lends memory to messages and gets it back when they have been collected. It keeps up to
// recycledBytes of it, less what was not used between two collections.
type recycler struct {
	mu sync.Mutex // guards what follows
	// free has what was given back, by class; what came last goes first, as it may be in a
	// processor's cache.
	free [recycledClasses][]*byte
	// idle is how many bytes those are, and lowest how few they were since the last collection.
	idle, lowest int
	watching     bool
	// early takes memory back while it is held: only the test that shows that this is noticed does
	// so.
	early bool
}

const (
	recycledBytes = 32 << 20
	// Classes are four to a doubling, from 32 KiB: no more than a fifth of a buffer is in vain.
	recycledSmallest = 15
	recycledLargest  = 22
	recycledClasses  = 4*(recycledLargest-recycledSmallest) + 1
)

var recycled recycler //nolint:gochecknoglobals // memory is the process's

// recycledClass is the smallest class with room for n bytes, or -1 where there is none for it.
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

// lend returns an empty slice with room for n bytes, n > 0, that is the caller's for good. It is
// not cleared.
func (r *recycler) lend(n int) []byte {
	class, size := recycledClass(n)
	if class < 0 {
		return uncleared(n)
	}
	first := r.take(class, size)
	if first == nil {
		first = unsafe.SliceData(uncleared(size)) //nolint:gosec // its first byte
	}
	if r.early {
		r.give(first, class, size)
	} else {
		runtime.SetFinalizer(first, func(first *byte) { r.give(first, class, size) })
	}
	return unsafe.Slice(first, size)[:0] //nolint:gosec // so large it was made
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

// give takes memory that nobody holds any more.
func (r *recycler) give(first *byte, class, size int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.idle+size <= recycledBytes {
		r.watch()
		r.free[class] = append(r.free[class], first)
		r.idle += size
	}
}

// watch makes the next collection known. Callers hold the lock.
func (r *recycler) watch() {
	if !r.watching {
		r.watching = true
		runtime.SetFinalizer(&collection{r}, (*collection).happened)
	}
}

// collection is garbage: its finalizer says that there has been a collection.
type collection struct{ of *recycler }

// happened gives up what was not needed since the last time.
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

// uncleared is an empty slice with room for n bytes, n > 0, that nobody has set to zero: where all
// of it is going to be overwritten, clearing a large one costs as much as copying it. Only
// [strings.Builder] has such memory, and keeps it for itself until it is asked for its string.
func uncleared(n int) []byte {
	var b strings.Builder
	b.Grow(n)
	b.WriteByte(0) // an empty string would have no memory to speak of
	// Nobody else has that string: this is the only use of its bytes.
	return unsafe.Slice(unsafe.StringData(b.String()), b.Cap())[:0] //nolint:gosec // so large it was made
}
