package safetensors

import (
	"fmt"
	"math/bits"
)

// elementBits has the size of each data type's elements in bits.
var elementBits = map[string]uint64{ //nolint:gochecknoglobals // a table
	"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
	"BOOL": 8, "I8": 8, "U8": 8,
	"F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
	"I16": 16, "U16": 16, "F16": 16, "BF16": 16,
	"I32": 32, "U32": 32, "F32": 32,
	"I64": 64, "U64": 64, "F64": 64, "C64": 64,
}

// dataSize returns the size of a tensor's data in bytes. Its error does not name the tensor.
func dataSize(dtype string, shape []int) (uint64, error) {
	width, ok := elementBits[dtype]
	if !ok {
		return 0, fmt.Errorf("unknown data type %.40q", dtype)
	}
	if len(shape) > MaxRank {
		return 0, fmt.Errorf("%d dimensions; at most %d are allowed", len(shape), MaxRank)
	}
	// In the order of the shape, as in the reference implementation: a 0 does not excuse an
	// overflow before it.
	total := uint64(1)
	for _, n := range shape {
		if n < 0 {
			return 0, fmt.Errorf("shape %v has a negative size", shape)
		}
		var high uint64
		if high, total = bits.Mul64(total, uint64(n)); high != 0 {
			return 0, fmt.Errorf("shape %v has too many elements", shape)
		}
	}
	high, total := bits.Mul64(total, width)
	if high != 0 {
		return 0, fmt.Errorf("shape %v has too many elements", shape)
	}
	if total%8 != 0 {
		return 0, fmt.Errorf("shape %v of %s ends within a byte", shape, dtype)
	}
	return total / 8, nil
}
