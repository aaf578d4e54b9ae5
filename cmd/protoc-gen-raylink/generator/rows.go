package generator

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/bits"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/compiler/protogen"
	"google.golang.org/protobuf/reflect/protoreflect"

	optionsv1 "github.com/raylink/raylink/gen/raylink/options/v1"
	tensorv1 "github.com/raylink/raylink/gen/raylink/tensor/v1"
	"github.com/raylink/raylink/runtime/row"
)

// rowType is a message that is a row, with its options checked.
type rowType struct {
	message *protogen.Message
	// columns are in the order of the message's fields.
	columns []*column
}

// column is how one field of a row is stored.
type column struct {
	field *protogen.Field
	dtype tensorv1.DataType
	// shape is empty for a scalar, and count the number of elements in one row.
	shape []uint64
	count uint64
	// initial is one element as it is stored, and initialText what the schema says; both empty for
	// none.
	initial, initialText string
}

// bytes is the size of the column in one row.
func (c *column) bytes() uint64 { return c.count * uint64(row.Size(c.dtype)) } //nolint:gosec // 1 to 8

// length is that of the field: a bytes field has bytes, whatever its elements are.
func (c *column) length() uint64 {
	if c.field.Desc.Kind() == protoreflect.BytesKind {
		return c.bytes()
	}
	return c.count
}

// elementType is the Go type of the elements of a column.
func elementType(dtype tensorv1.DataType) string {
	switch dtype {
	case tensorv1.DataType_DATA_TYPE_BOOL:
		return "uint8"
	case tensorv1.DataType_DATA_TYPE_FLOAT16, tensorv1.DataType_DATA_TYPE_BFLOAT16:
		return "uint16"
	default:
		return dtypeName(dtype)
	}
}

// dtypeName is the short name of an element type.
func dtypeName(dtype tensorv1.DataType) string {
	return strings.ToLower(strings.TrimPrefix(dtype.String(), "DATA_TYPE_"))
}

// Kinds of fields, for which a column's type has to fit.
const (
	boolField   = "bool"
	int32Field  = "int32"
	uint32Field = "uint32"
	int64Field  = "int64"
	uint64Field = "uint64"
	floatField  = "float32"
	doubleField = "float64"
	enumField   = "enum"
	bytesField  = "bytes"
)

// fieldKind is the kind of a field as far as columns are concerned: its type in Go, if that has a
// name. It is empty for fields that can't be columns.
func fieldKind(kind protoreflect.Kind) string {
	switch kind {
	case protoreflect.BoolKind:
		return boolField
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind:
		return int32Field
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
		return uint32Field
	case protoreflect.Int64Kind, protoreflect.Sint64Kind, protoreflect.Sfixed64Kind:
		return int64Field
	case protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		return uint64Field
	case protoreflect.FloatKind:
		return floatField
	case protoreflect.DoubleKind:
		return doubleField
	case protoreflect.EnumKind:
		return enumField
	case protoreflect.BytesKind:
		return bytesField
	default:
		return ""
	}
}

// fitting are the types that the column of a field can have, the default first. Each value of such
// a type is one of the field, so that a column can always be read; values of the field that the
// type does not have are refused when a row is set, or rounded where both are floats. The elements
// of bytes are stored as they are, and those of a BOOL column must be 0 or 1.
func fitting(kind string) []tensorv1.DataType {
	const (
		boolean, float16, bfloat16        = tensorv1.DataType_DATA_TYPE_BOOL, tensorv1.DataType_DATA_TYPE_FLOAT16, tensorv1.DataType_DATA_TYPE_BFLOAT16
		uint8Type, uint16Type, uint32Type = tensorv1.DataType_DATA_TYPE_UINT8, tensorv1.DataType_DATA_TYPE_UINT16, tensorv1.DataType_DATA_TYPE_UINT32
		int8Type, int16Type, int32Type    = tensorv1.DataType_DATA_TYPE_INT8, tensorv1.DataType_DATA_TYPE_INT16, tensorv1.DataType_DATA_TYPE_INT32
		int64Type, uint64Type             = tensorv1.DataType_DATA_TYPE_INT64, tensorv1.DataType_DATA_TYPE_UINT64
		float32Type, float64Type          = tensorv1.DataType_DATA_TYPE_FLOAT32, tensorv1.DataType_DATA_TYPE_FLOAT64
	)
	switch kind {
	case boolField:
		return []tensorv1.DataType{boolean}
	case int32Field, enumField:
		return []tensorv1.DataType{int32Type, int16Type, int8Type, uint16Type, uint8Type}
	case uint32Field:
		return []tensorv1.DataType{uint32Type, uint16Type, uint8Type}
	case int64Field:
		return []tensorv1.DataType{int64Type, int32Type, int16Type, int8Type, uint32Type, uint16Type, uint8Type}
	case uint64Field:
		return []tensorv1.DataType{uint64Type, uint32Type, uint16Type, uint8Type}
	case floatField:
		return []tensorv1.DataType{float32Type, float16, bfloat16}
	case doubleField:
		return []tensorv1.DataType{float64Type, float32Type, float16, bfloat16}
	default:
		return []tensorv1.DataType{
			uint8Type, int8Type, int16Type, uint16Type, int32Type, uint32Type, int64Type, uint64Type,
			float16, bfloat16, float32Type, float64Type,
		}
	}
}

// rowsReader finds the rows of one file, and checks them.
type rowsReader struct {
	file       *protogen.File
	extensions extensions
	rows       []*rowType
	problems   problems
}

// findRows finds the rows of all files, and what is wrong with those of files to be generated.
func findRows(plugin *protogen.Plugin, extensions extensions) (map[*protogen.File][]*rowType, problems) {
	rows := make(map[*protogen.File][]*rowType)
	var found problems
	for _, file := range plugin.Files {
		r := rowsReader{file: file, extensions: extensions.in(file)}
		if !r.extensions.row.known && !r.extensions.column.known {
			continue
		}
		for _, message := range file.Messages {
			r.message(message)
		}
		if len(r.rows) > 0 {
			rows[file] = r.rows
		}
		if file.Generate {
			found = append(found, r.problems...)
		}
	}
	return rows, found
}

// message reads a message, and those that are declared in it.
func (r *rowsReader) message(message *protogen.Message) {
	isRow, err := readRowOption(message.Desc.Options(), optionsv1.E_Row, r.extensions.row, &optionsv1.RowOptions{})
	if err != nil {
		r.problems.addf(r.file, rowOptionPath(message.Location), "message %s: option (%s): %v", message.Desc.FullName(), rowOptionName, err)
	}
	found := &rowType{message: message}
	for _, field := range message.Fields {
		options := &optionsv1.ColumnOptions{}
		isColumn, err := readRowOption(field.Desc.Options(), optionsv1.E_Column, r.extensions.column, options)
		switch {
		case err != nil:
			r.problems.addf(r.file, columnOptionPath(field.Location), "field %s: option (%s): %v", field.Desc.FullName(), columnOptionName, err)
		case isRow:
			if c := r.column(field, options); c != nil {
				found.columns = append(found.columns, c)
			}
		case isColumn:
			r.problems.addf(r.file, columnOptionPath(field.Location), "field %s: option (%s) has no effect, because message %s is no row; "+
				"give it option (%s), or leave this one out", field.Desc.FullName(), columnOptionName, message.Desc.Name(), rowOptionName)
		}
	}
	if isRow {
		r.checkRow(message, found.columns)
		r.rows = append(r.rows, found)
	}
	for _, inner := range message.Messages {
		r.message(inner)
	}
}

// checkRow checks what concerns a row as a whole.
func (r *rowsReader) checkRow(message *protogen.Message, columns []*column) {
	bad := func(format string, args ...any) {
		r.problems.addf(r.file, rowOptionPath(message.Location), "message %s: %s", message.Desc.FullName(), fmt.Sprintf(format, args...))
	}
	switch {
	case len(message.Fields) == 0:
		bad("a row without fields has no columns; add a field, or leave out option (%s)", rowOptionName)
	case len(message.Fields) > row.MaxColumns:
		bad("a row has at most %d columns, and this message has %d fields", row.MaxColumns, len(message.Fields))
	}
	if message.Desc.ExtensionRanges().Len() > 0 {
		bad("a row has no columns for extensions; remove the extension ranges")
	}
	var size uint64
	for _, c := range columns {
		if size += c.bytes(); size > row.MaxBytes {
			bad("a row has at most %d bytes; with field %s this one has more", uint64(row.MaxBytes), c.field.Desc.Name())
			break
		}
	}
}

// column checks a field of a row; nil if it can't be a column.
func (r *rowsReader) column(field *protogen.Field, options *optionsv1.ColumnOptions) *column {
	bad := func(where protoreflect.SourcePath, format string, args ...any) {
		r.problems.addf(r.file, where, "field %s: %s", field.Desc.FullName(), fmt.Sprintf(format, args...))
	}
	if reason := noColumn(field); reason != "" {
		bad(field.Location.Path, "%s", reason)
		return nil
	}
	if size := len(field.Desc.Name()); size > row.MaxName {
		bad(field.Location.Path, "a column's name has at most %d bytes, and this one has %d", row.MaxName, size)
	}
	c := &column{field: field, shape: options.GetShape(), count: 1}
	fit := fitting(fieldKind(field.Desc.Kind()))
	c.dtype = fit[0]
	if options.Dtype != nil {
		c.dtype = options.GetDtype()
		if !slices.Contains(fit, c.dtype) {
			names := make([]string, len(fit))
			for i, dtype := range fit {
				names[i] = dtype.String()
			}
			bad(columnOptionPath(field.Location, columnDTypeField), "dtype %v does not fit a field of type %s; possible are %s",
				c.dtype, field.Desc.Kind(), strings.Join(names, ", "))
			return nil
		}
	}
	many := field.Desc.IsList() || field.Desc.Kind() == protoreflect.BytesKind
	switch {
	case many && len(c.shape) == 0:
		bad(field.Location.Path, "how many elements it has in a row is unknown; give it a shape, as in [(%s).shape = 4]", columnOptionName)
		return nil
	case !many && len(c.shape) > 0:
		bad(columnOptionPath(field.Location, columnShapeField), "it is one value in each row, and has no shape; "+
			"leave `shape` out, or make the field repeated")
		return nil
	}
	if reason := c.measure(); reason != "" {
		bad(columnOptionPath(field.Location, columnShapeField), "shape %v: %s", c.shape, reason)
		return nil
	}
	if options.Initial != nil {
		var reason string
		c.initialText = strconv.FormatFloat(options.GetInitial(), 'g', -1, 64)
		if c.initial, reason = initialElement(options.GetInitial(), c.dtype); reason != "" {
			bad(columnOptionPath(field.Location, columnInitialField), "initial %s: %s", c.initialText, reason)
		}
	}
	return c
}

// noColumn is the reason why a field can't be a column whatever its options are, or "".
func noColumn(field *protogen.Field) string {
	desc := field.Desc
	switch {
	case desc.IsMap():
		return "a row has no columns for maps, whose size is not fixed"
	case desc.Kind() == protoreflect.StringKind:
		return "a row has no columns for strings, whose size is not fixed; use bytes with a shape, or a number that stands for the string"
	case desc.Message() != nil:
		return "a row has no columns for messages; make the fields of " + string(desc.Message().Name()) + " fields of the row"
	case desc.ContainingOneof() != nil && !desc.ContainingOneof().IsSynthetic():
		return "it is part of a oneof, and a row has a value in each of its columns; move the field out of the oneof"
	case !desc.HasPresence():
		return ""
	}
	const why = "it may be absent from a message, and a row has a value in each of its columns; "
	switch desc.ParentFile().Syntax() {
	case protoreflect.Proto2:
		return why + "proto2 can't express fields without presence: use proto3 or an edition"
	case protoreflect.Editions:
		return why + "set features.field_presence = IMPLICIT"
	default:
		return why + "leave `optional` out"
	}
}

// measure computes the column's number of elements, and returns what is wrong with its shape.
func (c *column) measure() string {
	if len(c.shape) > row.MaxDimensions {
		return fmt.Sprintf("there are at most %d dimensions", row.MaxDimensions)
	}
	for _, n := range c.shape {
		if n == 0 {
			return "each dimension is at least 1"
		}
		over, count := bits.Mul64(c.count, n)
		if over != 0 || count > row.MaxBytes/uint64(row.Size(c.dtype)) { //nolint:gosec // 1 to 8
			return fmt.Sprintf("a row has at most %d bytes", uint64(row.MaxBytes))
		}
		c.count = count
	}
	return ""
}

// initialElement is a number as it is stored in a column, or the reason why it can't be.
func initialElement(v float64, dtype tensorv1.DataType) (element, reason string) {
	little := binary.LittleEndian
	switch dtype {
	case tensorv1.DataType_DATA_TYPE_FLOAT64:
		return string(little.AppendUint64(nil, math.Float64bits(v))), ""
	case tensorv1.DataType_DATA_TYPE_FLOAT32:
		return checkedFloat(v, float64(float32(v)), dtype, little.AppendUint32(nil, math.Float32bits(float32(v))))
	case tensorv1.DataType_DATA_TYPE_FLOAT16:
		bits := row.Float16(v)
		return checkedFloat(v, row.FromFloat16[float64](bits), dtype, little.AppendUint16(nil, bits))
	case tensorv1.DataType_DATA_TYPE_BFLOAT16:
		bits := row.BFloat16(v)
		return checkedFloat(v, row.FromBFloat16[float64](bits), dtype, little.AppendUint16(nil, bits))
	default:
		return initialInteger(v, dtype)
	}
}

// checkedFloat is an encoded float, unless rounding made an infinity of it.
func checkedFloat(v, rounded float64, dtype tensorv1.DataType, encoded []byte) (element, reason string) {
	if math.IsInf(rounded, 0) && !math.IsInf(v, 0) {
		return "", "it is beyond the largest " + dtypeName(dtype)
	}
	return string(encoded), ""
}

func initialInteger(v float64, dtype tensorv1.DataType) (element, reason string) {
	// The option is a double, which has the integers up to 2^53 alone.
	const exact = 1 << 53
	size := row.Size(dtype)
	least, most := 0.0, math.Ldexp(1, 8*size)-1
	switch dtype {
	case tensorv1.DataType_DATA_TYPE_BOOL:
		most = 1
	case tensorv1.DataType_DATA_TYPE_INT8, tensorv1.DataType_DATA_TYPE_INT16, tensorv1.DataType_DATA_TYPE_INT32, tensorv1.DataType_DATA_TYPE_INT64:
		least, most = -math.Ldexp(1, 8*size-1), math.Ldexp(1, 8*size-1)-1
	default:
	}
	least, most = max(least, -exact), min(most, exact)
	if v != math.Trunc(v) || v < least || v > most || math.IsInf(v, 0) { // also if v is not a number
		return "", fmt.Sprintf("the initial value of a column of type %s is an integer from %.0f to %.0f", dtypeName(dtype), least, most)
	}
	return string(binary.LittleEndian.AppendUint64(nil, uint64(int64(v)))[:size]), "" //nolint:gosec // two's complement
}
