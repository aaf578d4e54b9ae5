package ring

import (
	"fmt"
	"math/bits"
	"unicode/utf8"
)

// DType is the type of a column's elements. The numbers are those of raylink.tensor.v1.DataType,
// and part of the file format.
type DType uint8

// The element types.
const (
	// Bool is one byte, 0 or 1. It is represented as uint8, because a byte that another process
	// wrote may have any value.
	Bool DType = iota + 1
	Uint8
	Int8
	Int16
	Int32
	Int64
	Float32
	Float64
	Uint16
	Uint32
	Uint64
	// Float16 and BFloat16 are represented as uint16: package row converts them.
	Float16
	BFloat16
)

// Size returns the size of an element in bytes, or 0 if the type is invalid.
func (d DType) Size() int {
	switch d {
	case Bool, Uint8, Int8:
		return 1
	case Int16, Uint16, Float16, BFloat16:
		return 2
	case Int32, Uint32, Float32:
		return 4
	case Int64, Uint64, Float64:
		return 8
	default:
		return 0
	}
}

// String returns the type's name.
func (d DType) String() string {
	names := [...]string{
		"invalid", "bool", "uint8", "int8", "int16", "int32", "int64", "float32", "float64",
		"uint16", "uint32", "uint64", "float16", "bfloat16",
	}
	if int(d) < len(names) {
		return names[d]
	}
	return fmt.Sprintf("dtype(%d)", uint8(d))
}

// Column describes a named field: its element type and shape, which are the same in every row.
type Column struct {
	Name  string
	DType DType
	// Shape is empty for a scalar.
	Shape []uint64
}

// Layout describes a row's columns, and how many rows there is room for.
type Layout struct {
	Columns  []Column
	Capacity uint64
}

// Limits of a layout: generous for data, tight enough to reject nonsense in a file's header.
const (
	maxColumns = 256
	maxName    = 128
	maxRank    = 8
	// maxRow is the size of a row in bytes.
	maxRow = 1 << 32
	// maxFile is the size of a ring in bytes.
	maxFile = 1 << 46
)

// Index returns the position of the named column.
func (l Layout) Index(name string) (int, bool) {
	for i, c := range l.Columns {
		if c.Name == name {
			return i, true
		}
	}
	return 0, false
}

// Validate returns an error that wraps [ErrLayout] if the layout is invalid.
func (l Layout) Validate() error {
	_, err := l.sizes()
	return err
}

// Fitted returns the layout with the largest capacity whose ring has a file of at most the given
// size in bytes, or [ErrLayout] if not even one row fits. The layout's own capacity is ignored.
func (l Layout) Fitted(size uint64) (Layout, error) {
	l.Capacity = 1
	least, err := newGeometry(l)
	if err != nil {
		return Layout{}, err
	}
	if size < least.size {
		return Layout{}, fmt.Errorf("%w: a ring of at most %d bytes: one with a single row has %d", ErrLayout, size, least.size)
	}
	// Each row has at least a word. A capacity of n fits and none from more on does.
	n, more := uint64(1), min(size, maxFile)/wordSize+1
	for n+1 < more {
		l.Capacity = n + (more-n)/2
		if g, err := newGeometry(l); err == nil && g.size <= size {
			n = l.Capacity
		} else {
			more = l.Capacity
		}
	}
	l.Capacity = n
	return l, nil
}

// sizes validates the layout and returns the columns' sizes in bytes per row.
func (l Layout) sizes() ([]uint64, error) {
	switch {
	case l.Capacity == 0:
		return nil, fmt.Errorf("%w: a capacity of no rows", ErrLayout)
	case l.Capacity > maxFile:
		return nil, fmt.Errorf("%w: a capacity of %d rows", ErrLayout, l.Capacity)
	case len(l.Columns) == 0:
		return nil, fmt.Errorf("%w: no columns", ErrLayout)
	case len(l.Columns) > maxColumns:
		return nil, fmt.Errorf("%w: %d columns, and at most %d are possible", ErrLayout, len(l.Columns), maxColumns)
	}
	names := make(map[string]bool, len(l.Columns))
	sizes := make([]uint64, len(l.Columns))
	var row uint64
	for i, c := range l.Columns {
		switch {
		case c.Name == "":
			return nil, fmt.Errorf("%w: column %d has no name", ErrLayout, i)
		case len(c.Name) > maxName || !utf8.ValidString(c.Name):
			return nil, fmt.Errorf("%w: column %d's name is not UTF-8 of at most %d bytes", ErrLayout, i, maxName)
		case names[c.Name]:
			return nil, fmt.Errorf("%w: two columns named %q", ErrLayout, c.Name)
		}
		names[c.Name] = true
		size, err := c.size()
		if err != nil {
			return nil, err
		}
		sizes[i] = size
		if row += size; row > maxRow {
			return nil, fmt.Errorf("%w: a row of more than %d bytes", ErrLayout, uint64(maxRow))
		}
	}
	return sizes, nil
}

// size returns the column's size in bytes per row.
func (c Column) size() (uint64, error) {
	if c.DType.Size() == 0 {
		return 0, fmt.Errorf("%w: column %q has no such element type: %v", ErrLayout, c.Name, c.DType)
	}
	if len(c.Shape) > maxRank {
		return 0, fmt.Errorf("%w: column %q has %d dimensions, and at most %d are possible", ErrLayout, c.Name, len(c.Shape), maxRank)
	}
	size := uint64(c.DType.Size()) //nolint:gosec // 1 to 8
	for _, n := range c.Shape {
		over, product := bits.Mul64(size, n)
		if over != 0 || product == 0 || product > maxRow {
			return 0, fmt.Errorf("%w: column %q has the shape %v", ErrLayout, c.Name, c.Shape)
		}
		size = product
	}
	return size, nil
}

// Bytes returns the column's size in bytes per row; 0 if the column is invalid.
func (c Column) Bytes() uint64 {
	size, _ := c.size()
	return size
}

// RowBytes returns the size of a row in bytes, for a valid layout.
func (l Layout) RowBytes() uint64 {
	var row uint64
	for _, c := range l.Columns {
		row += c.Bytes()
	}
	return row
}

// SameRows reports whether another layout has the same columns. Capacities may differ.
func (l Layout) SameRows(other Layout) bool {
	if len(l.Columns) != len(other.Columns) {
		return false
	}
	for i, c := range l.Columns {
		o := other.Columns[i]
		if c.Name != o.Name || c.DType != o.DType || len(c.Shape) != len(o.Shape) {
			return false
		}
		for j := range c.Shape {
			if c.Shape[j] != o.Shape[j] {
				return false
			}
		}
	}
	return true
}

// clone returns a deep copy.
func (l Layout) clone() Layout {
	columns := make([]Column, len(l.Columns))
	for i, c := range l.Columns {
		columns[i] = Column{Name: c.Name, DType: c.DType, Shape: append([]uint64(nil), c.Shape...)}
	}
	return Layout{Columns: columns, Capacity: l.Capacity}
}
