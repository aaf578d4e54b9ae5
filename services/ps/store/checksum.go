package store

import (
	"hash/crc32"
	"math/bits"
	"sync"
)

// Checksum returns the CRC-32C of parameters.
func Checksum(parameters []byte) uint32 { return update(0, parameters) }

// combine returns the CRC-32C of parameters of the given size, from those of their chunks. So the
// parameters themselves are read once.
func combine(chunks []uint32, size uint64) uint32 {
	var sum uint32
	if len(chunks) == 0 {
		return sum
	}
	last := len(chunks) - 1
	full := zerosOfChunk()
	for _, chunk := range chunks[:last] {
		sum = full.apply(sum) ^ chunk
	}
	rest := zeros(size - uint64(last)*ChunkSize) //nolint:gosec // not negative
	return rest.apply(sum) ^ chunks[last]
}

// operator is a linear map over GF(2), on the bits of a checksum: column i is the image of bit i.
type operator [32]uint32

// zeros returns the operator that appends n zero bytes to what a checksum was computed of: the
// checksum of two pieces is that of the first with the length of the second in zeros appended,
// xor that of the second.
func zeros(n uint64) operator {
	power := operator{crc32.Castagnoli} // appends one bit: polynomials are in reversed order
	for i := 1; i < len(power); i++ {
		power[i] = 1 << (i - 1)
	}
	for range 3 {
		power = power.after(&power) // appends one byte
	}
	var result operator
	for i := range result {
		result[i] = 1 << i
	}
	for ; n > 0; n >>= 1 {
		if n&1 != 0 {
			result = power.after(&result)
		}
		power = power.after(&power)
	}
	return result
}

// zerosOfChunk is zeros(ChunkSize), which each push needs.
var zerosOfChunk = sync.OnceValue(func() operator { return zeros(ChunkSize) }) //nolint:gochecknoglobals // constant

func (o *operator) apply(sum uint32) uint32 {
	var result uint32
	for ; sum != 0; sum &= sum - 1 {
		result ^= o[bits.TrailingZeros32(sum)]
	}
	return result
}

// after returns the operator that applies another one first.
func (o *operator) after(first *operator) operator {
	var result operator
	for i, column := range first {
		result[i] = o.apply(column)
	}
	return result
}

// update returns the checksum of what a checksum was computed of, followed by more.
func update(sum uint32, more []byte) uint32 {
	return crc32.Update(sum, crc32.MakeTable(crc32.Castagnoli), more) // made once, by crc32
}
