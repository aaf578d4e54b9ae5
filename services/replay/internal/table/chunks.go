package table

// chunkBits is the binary logarithm of the number of elements that have one pointer.
const chunkBits = 10

// slabShare is the share of an array that is allocated at once, as a divisor. So there is room for
// at most a sixteenth more elements than are needed, or for a chunk.
const slabShare = 16

// chunks is an array that grows without copying what it has. The garbage collector scans its
// pointers to chunks, not the elements: these have none.
//
// Chunks are allocated in slabs, in huge pages where the system has them. Random elements of a
// large array are in none of the processor's caches, and with small pages, neither are the entries
// of the page table.
type chunks[T any] []*[1 << chunkBits]T

// at returns the element with the given index, which must be below the length of the last grow.
func (c chunks[T]) at(i uint32) *T { return &c[i>>chunkBits][i&(1<<chunkBits-1)] }

// grow makes room for n elements. New ones are zero.
func (c *chunks[T]) grow(n uint32) {
	for uint64(len(*c))<<chunkBits < uint64(n) {
		slab := make([][1 << chunkBits]T, max(1, len(*c)/slabShare))
		adviseHuge(slab)
		for i := range slab {
			*c = append(*c, &slab[i])
		}
	}
}
