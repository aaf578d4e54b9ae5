package table

// chunkBits is the binary logarithm of the number of elements that are allocated at once.
const chunkBits = 10

// chunks is an array that grows without copying what it has. The garbage collector scans its
// pointers to chunks, not the elements: these have none.
type chunks[T any] []*[1 << chunkBits]T

// at returns the element with the given index, which must be below the length of the last grow.
func (c chunks[T]) at(i uint32) *T { return &c[i>>chunkBits][i&(1<<chunkBits-1)] }

// grow makes room for n elements. New ones are zero.
func (c *chunks[T]) grow(n uint32) {
	for uint64(len(*c))<<chunkBits < uint64(n) {
		*c = append(*c, new([1 << chunkBits]T))
	}
}
