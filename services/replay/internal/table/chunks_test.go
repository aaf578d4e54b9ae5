package table

import "testing"

// TestChunksKeepElements grows an array until its slabs have huge pages: elements keep their
// address and value, and new ones are zero.
func TestChunksKeepElements(t *testing.T) {
	type element [1024]byte
	const n = slabShare * (5 << 20) / 1024
	var c chunks[element]
	at := make([]*element, 0, n)
	for size := uint32(1); len(at) < n; size = min(n, size+size/3+1) {
		c.grow(size)
		for i := uint32(len(at)); i < size; i++ {
			e := c.at(i)
			if *e != (element{}) {
				t.Fatalf("new element %d is not zero", i)
			}
			e[0], e[1023] = byte(i), byte(i>>8)
			at = append(at, e)
		}
	}
	for i, e := range at {
		if c.at(uint32(i)) != e || e[0] != byte(i) || e[1023] != byte(i>>8) {
			t.Fatalf("element %d has changed", i)
		}
	}
}
