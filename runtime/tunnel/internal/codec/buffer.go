package codec

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
	// MinBuffer is the smallest capacity of a pooled buffer.
	MinBuffer = 1 << smallestClass
)

// Buffer is a pooled slice of bytes with one or more holders.
type Buffer struct {
	// B is the content. The holders may append to it and reslice it.
	B []byte
	// sharers is the number of holders besides the first. Every holder calls Free, and the last
	// call releases the buffer.
	sharers atomic.Int32
	// Cost and Excess are for the holders' accounting, and zero in a new buffer. In the tunnel they
	// are set if the buffer holds one large message of a stream: the credit that the message used,
	// and the part of it granted beyond the window.
	Cost, Excess int
}

//nolint:gochecknoglobals // shared by the process: buffers outlive connections
var pools [largestClass - smallestClass + 1]sync.Pool

func classOf(n int) int {
	return max(bits.Len(uint(max(n, 1)-1)), smallestClass) - smallestClass
}

// NewBuffer returns an empty buffer with room for n bytes.
func NewBuffer(n int) *Buffer {
	class := classOf(n)
	if class >= len(pools) {
		return &Buffer{B: make([]byte, 0, n)}
	}
	if got, ok := pools[class].Get().(*Buffer); ok {
		return got
	}
	return &Buffer{B: make([]byte, 0, 1<<(class+smallestClass))}
}

// Free releases the caller's hold on the buffer, which must not be used afterwards. It does nothing
// on nil.
func (b *Buffer) Free() {
	if b == nil || b.sharers.Load() > 0 && b.sharers.Add(-1) >= 0 {
		return
	}
	b.sharers.Store(0)
	b.Cost, b.Excess = 0, 0
	class := classOf(cap(b.B))
	// Only exact classes go back to the pools: a buffer that grew to another size would be smaller
	// than its class promises.
	if class < len(pools) && cap(b.B) == 1<<(class+smallestClass) {
		b.B = b.B[:0]
		pools[class].Put(b)
	}
}

// Share adds a holder and returns the buffer.
func (b *Buffer) Share() *Buffer {
	b.sharers.Add(1)
	return b
}

// Shared reports whether the buffer has further holders. It is false for nil.
func (b *Buffer) Shared() bool { return b != nil && b.sharers.Load() > 0 }

// GetBytes returns an empty pooled slice with room for n bytes. It may be grown: PutBytes accepts
// it afterwards in either case.
func GetBytes(n int) []byte { return NewBuffer(n).B }

// PutBytes returns a slice to the pools, if it has the size of a class.
func PutBytes(b []byte) {
	if cap(b) >= MinBuffer {
		(&Buffer{B: b}).Free()
	}
}

// NewAliasable returns an empty buffer for a message that is expected to alias its memory, with
// room for n bytes, n > 0. If the message does, the buffer must not be freed: the memory is reused
// once the message is unreachable. Otherwise it is freed like any other.
func NewAliasable(n int) *Buffer { return &Buffer{B: recycled.alloc(n)} }

// Extend appends n uninitialised bytes to the buffer and returns them. The capacity is doubled up
// to whole, so a size that a peer only announces is not allocated before its bytes arrive.
func (b *Buffer) Extend(n, whole int) []byte {
	old := len(b.B)
	if need := old + n; need > cap(b.B) {
		larger := NewBuffer(min(max(need, 2*cap(b.B)), max(whole, need)))
		larger.B = append(larger.B, b.B...)
		b.B, larger.B = larger.B, b.B
		larger.Free()
	}
	b.B = b.B[:old+n]
	return b.B[old:]
}
