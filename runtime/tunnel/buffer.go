package tunnel

import (
	"math/bits"
	"sync"
	"sync/atomic"
)

// Buffers come from pools by size class, powers of two from 512 bytes to 4 MiB. Larger ones are
// made and left to the collector.
const (
	smallestClass = 9
	largestClass  = 22
)

type buffer struct {
	b []byte
	// shared is how many there are who hold it beside the one that it was made for. Each frees it,
	// and the last one does.
	shared atomic.Int32
	// cost and extra are, where it has one large message of a stream, what that took of the window
	// and beyond.
	cost, extra int
}

//nolint:gochecknoglobals // the pools are the process's: connections come and go, their buffers stay useful
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

// free gives the buffer back. Nobody may use it from then on. A nil buffer is none.
func (b *buffer) free() {
	if b == nil || b.shared.Load() > 0 && b.shared.Add(-1) >= 0 {
		return
	}
	b.shared.Store(0)
	b.cost, b.extra = 0, 0
	class := classOf(cap(b.b))
	// Only whole classes go back: a buffer that grew to an odd size would hand out less than its
	// class promises.
	if class < len(pools) && cap(b.b) == 1<<(class+smallestClass) {
		b.b = b.b[:0]
		pools[class].Put(b)
	}
}

// share makes one more hold the buffer.
func (b *buffer) share() *buffer {
	b.shared.Add(1)
	return b
}

// held says whether others hold the buffer too.
func (b *buffer) held() bool { return b != nil && b.shared.Load() > 0 }

// lend is an empty slice of a pool with room for n bytes. It may grow, and recycle takes it back
// whatever became of it.
func lend(n int) []byte { return newBuffer(n).b }

// recycle takes a slice for the pools, if it is of a size that they have.
func recycle(b []byte) {
	if cap(b) >= 1<<smallestClass {
		(&buffer{b: b}).free()
	}
}

// extend makes room for n more bytes and returns them, uninitialised, as part of the buffer. It
// grows by doubling up to whole, so that a size that a peer merely claims is not allocated before
// its bytes come.
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
