// Package row is what generated row code imports: the schema of a row, and how the bytes of columns
// are seen as slices of numbers.
//
// A message with option (raylink.options.v1.row) is a row, and each of its fields a column of a
// fixed size. For a message Step the plugin writes StepColumns, a struct with one slice for each
// column, and StepRow, a [Type] of them. Columns are stored one after the other, each with the
// elements of all rows back to back, row-major and little-endian, as in raylink.tensor.v1.Tensor.
// Whatever stores rows deals in these bytes: a mapped ring, a batch, a message. [Type.View] makes a
// StepColumns that shares their memory; nothing is copied, and no protobuf is encoded.
//
// This package is a leaf: it imports no service and not package runtime, and it maps nothing.
//
// Columns need a little-endian machine, as all platforms of RayLink are. On another one
// [Type.View] returns an error that wraps [errors.ErrUnsupported].
package row

import (
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"unsafe" //nolint:depguard // inspects the alignment of bytes, see View

	tensorv1 "github.com/raylink/raylink/gen/raylink/tensor/v1"
)

// Limits of a row. The plugin refuses a schema that exceeds one of them.
const (
	// MaxColumns is how many columns a row may have.
	MaxColumns = 256
	// MaxName is the size of a column's name in bytes.
	MaxName = 128
	// MaxDimensions is how many dimensions a column's shape may have.
	MaxDimensions = 8
	// MaxBytes is the size of a row in bytes.
	MaxBytes = 1 << 32
)

// Type is the schema of a row, whose columns C has as slices. The plugin makes one for each row;
// the zero Type is of no use. It is immutable, and safe for concurrent use.
type Type[C any] struct {
	// Generated is set by the plugin, and must not be modified.
	Generated *GeneratedRow[C]
}

// Message returns the full name of the row's message.
func (t Type[C]) Message() string { return t.Generated.Message }

// Columns returns the description of the columns, in the order of the message's fields. Ownership
// passes to the caller.
func (t Type[C]) Columns() []*tensorv1.Column {
	columns := make([]*tensorv1.Column, len(t.Generated.Columns))
	for i, c := range t.Generated.Columns {
		columns[i] = &tensorv1.Column{Name: c.Name, Dtype: c.DType, Shape: slices.Clone(c.Shape), Initial: []byte(c.Initial)}
	}
	return columns
}

// View lets the slices of into share the memory of columns: writing to one changes the other. Each
// column has the elements of rows rows, in the order of [Type.Columns], and begins at an address
// that is a multiple of its element size.
//
// The slices have no spare capacity, and are nil if there are no rows. They are valid for as long
// as the memory is: a view of mapped memory must not be used after it was unmapped, which the
// garbage collector does not know of. View allocates nothing. On an error into is unchanged.
func (t Type[C]) View(into *C, rows int, columns [][]byte) error {
	if err := t.check(rows, columns); err != nil {
		return fmt.Errorf("view columns as rows of %s: %w", t.Generated.Message, err)
	}
	t.Generated.View(into, columns)
	return nil
}

func (t Type[C]) check(rows int, columns [][]byte) error {
	switch {
	case !littleEndian:
		return fmt.Errorf("this machine is big-endian: %w", errors.ErrUnsupported)
	case rows < 0:
		return fmt.Errorf("there can't be %d rows", rows)
	case len(columns) != len(t.Generated.Columns):
		return fmt.Errorf("there are %d columns, and the row has %d", len(columns), len(t.Generated.Columns))
	}
	for i := range t.Generated.Columns {
		c := &t.Generated.Columns[i]
		if over, want := bits.Mul64(uint64(rows), c.Bytes); over != 0 || want != uint64(len(columns[i])) {
			return fmt.Errorf("column %s has %d bytes, and should have %d rows of %d bytes", c.Name, len(columns[i]), rows, c.Bytes)
		}
		address := uintptr(unsafe.Pointer(unsafe.SliceData(columns[i]))) //nolint:gosec // only the address is inspected
		size := Size(c.DType)                                            // a power of two
		if rows > 0 && address&uintptr(size-1) != 0 {
			return fmt.Errorf("column %s begins at an address that is not a multiple of its elements' %d bytes", c.Name, size)
		}
	}
	return nil
}

// New returns columns with memory of their own for n rows, whose elements have their initial
// values. It panics if n is negative or too large, as make does.
func (t Type[C]) New(n int) *C {
	columns := make([][]byte, len(t.Generated.Columns))
	for i, c := range t.Generated.Columns {
		if n < 0 || uint64(n) > 1<<62/c.Bytes {
			panic(fmt.Sprintf("row: %d rows of %s", n, t.Generated.Message))
		}
		// In words, so that elements of each type are aligned.
		words := make([]uint64, (uint64(n)*c.Bytes+7)/8)
		columns[i] = GeneratedBytes(words)[:uint64(n)*c.Bytes]
	}
	t.Initialize(columns)
	made := new(C)
	if err := t.View(made, n, columns); err != nil {
		panic(err)
	}
	return made
}

// Initialize sets the elements of those columns that have an initial value in the schema, in all
// rows. The others keep what they hold. It takes columns that [Type.View] takes.
func (t Type[C]) Initialize(columns [][]byte) {
	for i, c := range t.Generated.Columns {
		if c.Initial != "" {
			fill(columns[i], c.Initial)
		}
	}
}

// fill repeats an element.
func fill(to []byte, element string) {
	for n := copy(to, element); n < len(to); {
		n += copy(to[n:], to[:n])
	}
}

// sizes are those of the element types in bytes.
var sizes = [...]uint8{ //nolint:gochecknoglobals // constant
	tensorv1.DataType_DATA_TYPE_BOOL: 1, tensorv1.DataType_DATA_TYPE_UINT8: 1, tensorv1.DataType_DATA_TYPE_INT8: 1,
	tensorv1.DataType_DATA_TYPE_UINT16: 2, tensorv1.DataType_DATA_TYPE_INT16: 2,
	tensorv1.DataType_DATA_TYPE_FLOAT16: 2, tensorv1.DataType_DATA_TYPE_BFLOAT16: 2,
	tensorv1.DataType_DATA_TYPE_UINT32: 4, tensorv1.DataType_DATA_TYPE_INT32: 4, tensorv1.DataType_DATA_TYPE_FLOAT32: 4,
	tensorv1.DataType_DATA_TYPE_UINT64: 8, tensorv1.DataType_DATA_TYPE_INT64: 8, tensorv1.DataType_DATA_TYPE_FLOAT64: 8,
}

// Size returns the size of an element in bytes, or 0 if there is no such type.
func Size(dtype tensorv1.DataType) int {
	if dtype < 0 || int(dtype) >= len(sizes) {
		return 0
	}
	return int(sizes[dtype])
}
