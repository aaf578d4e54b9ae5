package row

import (
	"encoding/binary"
	"slices"
	"unsafe" //nolint:depguard // reinterprets aligned pointer-free bytes as numbers: see GeneratedView

	tensorv1 "github.com/raylink/raylink/gen/raylink/tensor/v1"
)

// This file is the whole contract between this package and the row code that protoc-gen-raylink
// generates, apart from [Type], the errors and the conversions of floats. The names begin with
// Generated, so that documentation lists them in one block; programs need none of them. Whatever
// changes here changes [MaxGenerated] and the plugin's rowVersion with it.

// Generated code states the version of its contract with this package; the constants below are the
// range of versions that this package supports. A generated file outside that range does not
// compile, and the comment beside its guard says how to fix it.
const (
	// MinGenerated is the oldest version of generated code that this package supports.
	MinGenerated = 1
	// MaxGenerated is the newest version of generated code that this package supports: the version
	// that its own plugin emits.
	MaxGenerated = 1
)

// EnforceVersion is the type of the guard in generated code. A constant of it cannot be negative.
type EnforceVersion uint

// GeneratedRow describes a row in generated code. It is plain data, which the linker drops if it is
// not used: importing generated code costs nothing.
type GeneratedRow[C any] struct {
	// Message is the full name of the row's message.
	Message string
	Columns []GeneratedColumn
	// View sets the slices of c to columns, which were checked.
	View func(c *C, columns [][]byte)
}

// GeneratedColumn describes a column of a [GeneratedRow].
type GeneratedColumn struct {
	Name  string
	DType tensorv1.DataType
	// Shape is empty for a scalar.
	Shape []uint64
	// Bytes is the size of the column's elements in one row; at least 1.
	Bytes uint64
	// Initial is the initial element as it is stored; empty for 0.
	Initial string
}

// GeneratedElement is a Go type of a column's elements: uint8 for BOOL, uint16 for FLOAT16 and
// BFLOAT16, else the type of the same name.
type GeneratedElement interface {
	uint8 | uint16 | uint32 | uint64 | int8 | int16 | int32 | int64 | float32 | float64
}

// littleEndian reports whether numbers in memory are little-endian.
var littleEndian = binary.NativeEndian.Uint16([]byte{1, 0}) == 1 //nolint:gochecknoglobals // constant

// GeneratedView returns the elements whose bytes are given. It is sound because elements have no
// pointers, every pattern of bits is one of them, and the bytes are aligned and their length is a
// multiple of the element size: [Type.View] checks that.
func GeneratedView[T GeneratedElement](column []byte) []T {
	if len(column) == 0 {
		return nil
	}
	var zero T
	return unsafe.Slice((*T)(unsafe.Pointer(unsafe.SliceData(column))), len(column)/int(unsafe.Sizeof(zero))) //nolint:gosec // see above
}

// GeneratedBytes returns the bytes of elements. It shares their memory.
func GeneratedBytes[T GeneratedElement](elements []T) []byte {
	if len(elements) == 0 {
		return nil
	}
	size := int(unsafe.Sizeof(elements[0]))
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(elements))), size*len(elements)) //nolint:gosec // the same memory, in bytes
}

// GeneratedFill sets all elements to one, as it is stored.
func GeneratedFill[T GeneratedElement](to []T, element string) { fill(GeneratedBytes(to), element) }

// GeneratedInteger is a Go type of integers: also that of an enum.
type GeneratedInteger interface {
	~uint8 | ~uint16 | ~uint32 | ~uint64 | ~int8 | ~int16 | ~int32 | ~int64
}

// GeneratedMisfit returns the index of the first value that type T does not have, or -1. T has no
// values that S does not have.
func GeneratedMisfit[T, S GeneratedInteger](values []S) int {
	for i, v := range values {
		if S(T(v)) != v {
			return i
		}
	}
	return -1
}

// GeneratedNumber is a Go type of numbers.
type GeneratedNumber interface {
	GeneratedInteger | ~float32 | ~float64
}

// GeneratedConvert converts values of a field to elements of its column. There is room for them.
func GeneratedConvert[T, S GeneratedNumber](to []T, from []S) {
	to = to[:len(from)]
	for i, v := range from {
		to[i] = T(v)
	}
}

// GeneratedAppend appends elements of a column to values of its field.
func GeneratedAppend[S, T GeneratedNumber](to []S, from []T) []S {
	to = slices.Grow(to, len(from))
	for _, v := range from {
		to = append(to, S(v))
	}
	return to
}

// GeneratedConvertBy is [GeneratedConvert] by a function.
func GeneratedConvertBy[T, S any](to []T, from []S, convert func(S) T) {
	to = to[:len(from)]
	for i, v := range from {
		to[i] = convert(v)
	}
}

// GeneratedAppendBy is [GeneratedAppend] by a function.
func GeneratedAppendBy[S, T any](to []S, from []T, convert func(T) S) []S {
	to = slices.Grow(to, len(from))
	for _, v := range from {
		to = append(to, convert(v))
	}
	return to
}

// GeneratedBool returns the element of a BOOL column.
func GeneratedBool(v bool) uint8 {
	if v {
		return 1
	}
	return 0
}

// GeneratedIsTrue returns the value of an element of a BOOL column: a byte that another process
// wrote may be neither 0 nor 1.
func GeneratedIsTrue(v uint8) bool { return v != 0 }
