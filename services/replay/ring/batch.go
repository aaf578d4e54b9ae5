package ring

import (
	"fmt"
	"math/bits"
	"slices"
	"unsafe" //nolint:depguard // reinterprets aligned pointer-free bytes as numbers: see view
)

// Batch is a set of rows outside the ring, stored by column: rows to append, or rows that were
// read. It is not safe for concurrent use.
type Batch struct {
	layout    Layout
	sizes     []uint64
	rows      int
	columns   [][]byte
	sequences []uint64
}

// NewBatch returns a batch of n zeroed rows of a layout. The layout's capacity is ignored.
func NewBatch(layout Layout, n int) (*Batch, error) {
	layout = layout.clone()
	layout.Capacity = max(layout.Capacity, 1)
	sizes, err := layout.sizes()
	if err != nil {
		return nil, err
	}
	b := &Batch{layout: layout, sizes: sizes, columns: make([][]byte, len(sizes))}
	return b, b.Resize(n)
}

// BatchOf returns a batch of rows from an untrusted source. It validates their sizes. It shares a
// column's memory if that is aligned for the column's elements, and copies it otherwise. The
// sequence numbers are optional.
func BatchOf(layout Layout, rows uint64, columns [][]byte, sequences []uint64) (*Batch, error) {
	b, err := NewBatch(layout, 0)
	if err != nil {
		return nil, err
	}
	if len(columns) != len(b.sizes) {
		return nil, fmt.Errorf("%w: it has %d columns, and should have %d", ErrBatch, len(columns), len(b.sizes))
	}
	if len(sequences) != 0 && uint64(len(sequences)) != rows {
		return nil, fmt.Errorf("%w: it has %d rows and %d sequence numbers", ErrBatch, rows, len(sequences))
	}
	for i, column := range columns {
		if over, bytes := bits.Mul64(rows, b.sizes[i]); over != 0 || bytes != uint64(len(column)) {
			return nil, fmt.Errorf("%w: column %q has %d bytes, and should have %d times %d",
				ErrBatch, layout.Columns[i].Name, len(column), rows, b.sizes[i])
		}
		b.columns[i] = aligned(column, layout.Columns[i].DType.Size())
	}
	b.rows, b.sequences = int(rows), slices.Clone(sequences) //nolint:gosec // a column has that many rows
	return b, nil
}

// aligned returns the column, copied if its memory is not aligned for elements of the given size.
func aligned(column []byte, size int) []byte {
	if uintptr(unsafe.Pointer(unsafe.SliceData(column)))%uintptr(size) == 0 { //nolint:gosec // only the address is inspected
		return slices.Clip(column)
	}
	return append(resized(nil, len(column))[:0], column...)
}

// Slice returns a batch of the rows [from, to). It shares their memory and has no sequence numbers.
func (b *Batch) Slice(from, to int) (*Batch, error) {
	if from < 0 || to < from || to > b.rows {
		return nil, fmt.Errorf("%w: rows [%d, %d) of a batch of %d rows", ErrBatch, from, to, b.rows)
	}
	part := &Batch{layout: b.layout, sizes: b.sizes, rows: to - from, columns: make([][]byte, len(b.columns))}
	for i, column := range b.columns {
		size := int(b.sizes[i]) //nolint:gosec // at most maxRow
		part.columns[i] = column[from*size : to*size : to*size]
	}
	return part, nil
}

// Clone returns a deep copy.
func (b *Batch) Clone() *Batch {
	clone := &Batch{layout: b.layout, sizes: b.sizes, columns: make([][]byte, len(b.columns))}
	clone.add(b)
	return clone
}

// AppendRows adds the rows of another batch, and their sequence numbers if both batches have them.
func (b *Batch) AppendRows(other *Batch) error {
	if !b.layout.SameRows(other.layout) {
		return fmt.Errorf("%w: its columns are %v, and should be %v", ErrBatch, other.layout.Columns, b.layout.Columns)
	}
	b.add(other)
	return nil
}

func (b *Batch) add(other *Batch) {
	numbered := len(b.sequences) == b.rows && len(other.sequences) == other.rows
	for i, column := range other.columns {
		old := len(b.columns[i])
		b.columns[i] = grown(b.columns[i], old+len(column))
		copy(b.columns[i][old:], column)
	}
	b.rows += other.rows
	if numbered {
		b.sequences = append(b.sequences, other.sequences...)
	} else {
		b.sequences = b.sequences[:0]
	}
}

// SetSequences sets the rows' sequence numbers, for writers other than [WriteHead].
func (b *Batch) SetSequences(sequences []uint64) { b.sequences = append(b.sequences[:0], sequences...) }

// Resize changes the number of rows to n. Existing rows are kept, new rows are zero, and sequence
// numbers are cleared.
func (b *Batch) Resize(n int) error {
	if n < 0 {
		return fmt.Errorf("%w: a batch of %d rows", ErrBatch, n)
	}
	for i, size := range b.sizes {
		if uint64(n) > maxFile/size {
			return fmt.Errorf("%w: a batch of %d rows", ErrBatch, n)
		}
		b.columns[i] = resized(b.columns[i], n*int(size)) //nolint:gosec // at most maxFile
	}
	b.rows = n
	b.sequences = b.sequences[:0]
	return nil
}

// grown extends a column to n bytes, with spare capacity if it has to be reallocated.
func grown(column []byte, n int) []byte {
	if n <= cap(column) {
		return column[:n]
	}
	return resized(column, n+len(column))[:n]
}

// resized returns a column with n bytes, aligned for every element type. Added bytes are zero.
func resized(column []byte, n int) []byte {
	if n <= cap(column) {
		old := len(column)
		column = column[:n]
		if n > old {
			clear(column[old:])
		}
		return column
	}
	words := make([]uint64, (n+7)/8)
	grown := unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(words))), 8*len(words)) //nolint:gosec // the same memory, in bytes
	copy(grown, column)
	return grown[:n]
}

// Layout returns the batch's columns. It must not be modified.
func (b *Batch) Layout() Layout { return b.layout }

// Rows returns the number of rows.
func (b *Batch) Rows() int { return b.rows }

// Bytes returns a column of all rows, little-endian. Writing to it changes the batch;
// [Batch.Resize] may reallocate it.
func (b *Batch) Bytes(column int) []byte { return b.columns[column] }

// Sequences returns the rows' sequence numbers after they were read or appended. After a partial
// append it has one for each row that was written.
func (b *Batch) Sequences() []uint64 { return b.sequences }

// row returns one row's part of a column.
func (b *Batch) row(column, i int) []byte {
	size := int(b.sizes[column]) //nolint:gosec // at most maxRow
	return b.columns[column][i*size : (i+1)*size]
}

// Rows has typed columns: a [Batch], or a [Span] of an area.
type Rows interface {
	// Layout returns the columns.
	Layout() Layout
	// Bytes returns a column of all rows.
	Bytes(column int) []byte
}

// Element is a Go type that a column's elements can be represented as: uint8 also for Bool, uint16
// also for Float16 and BFloat16, which package runtime/row converts.
type Element interface {
	uint8 | uint16 | uint32 | uint64 | int8 | int16 | int32 | int64 | float32 | float64
}

// Values returns the named column as a slice of its elements, row after row, without a copy. It
// returns [ErrLayout] if there is no such column, or if its elements are not of type T.
func Values[T Element](rows Rows, name string) ([]T, error) {
	layout := rows.Layout()
	i, ok := layout.Index(name)
	if !ok {
		return nil, fmt.Errorf("%w: no column %q; there are %v", ErrLayout, name, layout.names())
	}
	if dtype := layout.Columns[i].DType; !isOf[T](dtype) {
		var zero T
		return nil, fmt.Errorf("%w: column %q has elements of type %v, not %T", ErrLayout, name, dtype, zero)
	}
	return view[T](rows.Bytes(i)), nil
}

func isOf[T Element](dtype DType) bool {
	var zero T
	switch any(zero).(type) {
	case uint8:
		return dtype == Uint8 || dtype == Bool
	case uint16:
		return dtype == Uint16 || dtype == Float16 || dtype == BFloat16
	case uint32:
		return dtype == Uint32
	case uint64:
		return dtype == Uint64
	case int8:
		return dtype == Int8
	case int16:
		return dtype == Int16
	case int32:
		return dtype == Int32
	case int64:
		return dtype == Int64
	case float32:
		return dtype == Float32
	case float64:
		return dtype == Float64
	}
	return false
}

// view reinterprets bytes as elements. Columns are aligned for every type, in a batch and in the
// file.
func view[T Element](b []byte) []T {
	var zero T
	n := len(b) / int(unsafe.Sizeof(zero))
	if n == 0 {
		return nil
	}
	return unsafe.Slice((*T)(unsafe.Pointer(unsafe.SliceData(b))), n) //nolint:gosec // n elements fit, and are aligned
}

// names are the columns' names, for errors that say what exists.
func (l Layout) names() []string {
	names := make([]string, len(l.Columns))
	for i, c := range l.Columns {
		names[i] = c.Name
	}
	return names
}
