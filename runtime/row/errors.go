package row

import (
	"fmt"
	"strings"

	tensorv1 "github.com/raylink/raylink/gen/raylink/tensor/v1"
)

// LengthError is the error of setting a row from a message in which a field has a wrong length. The
// row is unchanged.
type LengthError struct {
	// Message is the full name of the message, and Field the name of the field.
	Message, Field string
	// Row is the index of the row that was to be set.
	Row int
	// Got and Want are the lengths of the field: in bytes for a bytes field, else in elements.
	Got, Want int
}

// Error returns what was to be set, and both lengths.
func (e *LengthError) Error() string {
	return fmt.Sprintf("set row %d of %s: field %s has length %d, and its column takes %d", e.Row, e.Message, e.Field, e.Got, e.Want)
}

// RangeError is the error of setting a row from a message with a value that the type of the field's
// column does not have. The row is unchanged.
type RangeError struct {
	// Message is the full name of the message, and Field the name of the field.
	Message, Field string
	// Row is the index of the row that was to be set, and Element that of the value among the
	// field's values; 0 for a scalar.
	Row, Element int
	// Value is the integer or enum.
	Value any
	// DType is the type of the column's elements.
	DType tensorv1.DataType
}

// Error returns what was to be set, the value, and the type that does not have it.
func (e *RangeError) Error() string {
	return fmt.Sprintf("set row %d of %s: element %d of field %s is %d, which its column of %s can't hold",
		e.Row, e.Message, e.Element, e.Field, e.Value, strings.ToLower(strings.TrimPrefix(e.DType.String(), "DATA_TYPE_")))
}
