package tunnel

import (
	"math/bits"
	"sync"
	"sync/atomic"
)

// Buffers are pooled by size class, powers of two from 512 bytes to 4 MiB. Larger buffers are left
// to the garbage collector.
const (
	smallestClass = 9
	largestClass  = 22
)

type buffer struct {
	b []byte
	// shared is the number of holders besides the first. Every holder calls free, and the last call
	// releases the buffer.
	shared atomic.Int32
	// cost and extra are set if the buffer holds one large message of a stream: the credit that the
	// message used, and the part of it granted beyond the window.
	cost, extra int
}

//nolint:gochecknoglobals // shared by the process: buffers outlive connections
var pools [largestClass - smallestClass + 1]sync.Pool

func classOf(n int) int {
	return max(bits.Len(uint(max(n, 1)-1)), smallestClass) - smallestClass
}

// newBuffer returns an empty buffer with room for n bytes.
func newBuffer(n int) *buffer {
	class := classOf(n)
	if class >= len(pools) {
		return &buffer{b: make([]byte, 0, n)}
	}
	if got, ok := pools[class].Get().(*buffer); ok {
		return got
	}
	return &buffer{b: make([]byte, 0, 1<<(class+smallestClass))}
}

// free releases the caller's hold on the buffer, which must not be used afterwards. It does nothing
// on nil.
func (b *buffer) free() {
	if b == nil || b.shared.Load() > 0 && b.shared.Add(-1) >= 0 {
		return
	}
	b.shared.Store(0)
	b.cost, b.extra = 0, 0
	class := classOf(cap(b.b))
	// Only exact classes go back to the pools: a buffer that grew to another size would be smaller
	// than its class promises.
	if class < len(pools) && cap(b.b) == 1<<(class+smallestClass) {
		b.b = b.b[:0]
		pools[class].Put(b)
	}
}

// share adds a holder and returns the buffer.
func (b *buffer) share() *buffer {
	b.shared.Add(1)
	return b
}

// held reports whether the buffer has further holders.
func (b *buffer) held() bool { return b != nil && b.shared.Load() > 0 }

// lend returns an empty pooled slice with room for n bytes. It may be grown, and recycle accepts it
// afterwards in either case.
func lend(n int) []byte { return newBuffer(n).b }

// recycle returns a slice to the pools, if it has the size of a class.
func recycle(b []byte) {
	if cap(b) >= 1<<smallestClass {
		(&buffer{b: b}).free()
	}
}

// extend appends n uninitialised bytes to the buffer and returns them. The capacity is doubled up
// to whole, so a size that a peer only announces is not allocated before its bytes arrive.
func (b *buffer) extend(n, whole int) []byte {
	old := len(b.b)
	if need := old + n; need > cap(b.b) {
		larger := newBuffer(min(max(need, 2*cap(b.b)), max(whole, need)))
		larger.b = append(larger.b, b.b...)
		b.b, larger.b = larger.b, b.b
		larger.free()
	}
	b.b = b.b[:old+n]
	return b.b[old:]
}
