package generator

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/compiler/protogen"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/gofeaturespb"

	tensorv1 "github.com/raylink/raylink/gen/raylink/tensor/v1"
)

// rowWriter writes what one row becomes.
type rowWriter struct {
	*writer
	*rowNames

	rowType *rowType
}

// row writes one row: its columns, their methods, then its schema.
func (w *writer) row(row *rowType) {
	r := &rowWriter{writer: w, rowType: row, rowNames: w.pkg.names.rows[row.message.Desc.FullName()]}
	r.columnsType()
	r.lenMethod()
	r.setMethod()
	r.getMethod()
	r.schema()
}

func (r *rowWriter) doc(what string, more ...string) doc {
	message := r.rowType.message
	return append(append(doc{what}, more...), deprecation(r.src, message.Desc, message.Comments))
}

func (r *rowWriter) fullName() string { return string(r.rowType.message.Desc.FullName()) }

func (r *rowWriter) columnsType() {
	message := r.rowType.message
	for _, detached := range message.Comments.LeadingDetached {
		r.line()
		r.comment("", comment(string(detached)))
	}
	r.document(r.doc(
		sentence("%s holds rows of the message %s by column: each slice has the elements of all rows back to back, and all have the same "+
			"number of rows. %s.View lets the slices share the memory of stored columns, and %s.New makes columns with memory of their own. "+
			"Different rows may be read and written concurrently.", r.columns, r.fullName(), r.rowNames.row, r.rowNames.row),
		schemaDoc(message.Comments)...,
	))
	r.line("type ", r.columns, " struct {")
	for _, c := range r.rowType.columns {
		d := append(schemaDoc(c.field.Comments), sentence("%s", c.describe()), deprecation(r.src, c.field.Desc, c.field.Comments))
		// Gofmt leaves the comments of fields alone: once is for the reader.
		r.comment("\t", formatDoc(d.String(), 1))
		r.line("\t", c.field.GoName, " []", elementType(c.dtype))
		r.annotate(c.field.Location, r.columns+"."+c.field.GoName)
	}
	r.line("}")
	r.annotate(message.Location, r.columns)
}

// describe is what the elements of the column are.
func (c *column) describe() string {
	var text strings.Builder
	text.WriteString("One element per row")
	if len(c.shape) > 0 {
		dimensions := make([]string, len(c.shape))
		for i, n := range c.shape {
			dimensions[i] = strconv.FormatUint(n, 10)
		}
		text.Reset()
		text.WriteString(strings.Join(dimensions, " x ") + " per row")
	}
	switch c.dtype {
	case tensorv1.DataType_DATA_TYPE_BOOL:
		text.WriteString(", each 0 or 1")
	case tensorv1.DataType_DATA_TYPE_FLOAT16, tensorv1.DataType_DATA_TYPE_BFLOAT16:
		text.WriteString(", each the bits of a " + dtypeName(c.dtype))
	default:
	}
	if c.initial != "" {
		text.WriteString(", initially " + c.initialText)
	}
	return text.String() + "."
}

// method begins a method of the columns.
func (r *rowWriter) method(name, signature string) {
	r.line("func (c *", r.columns, ") ", name, signature, " {")
	r.annotate(r.rowType.message.Location, r.columns+"."+name)
}

func (r *rowWriter) lenMethod() {
	r.document(doc{sentence("%s returns the number of rows.", r.length)})
	r.method(r.length, "() int")
	counted := r.rowType.columns[0]
	for _, c := range r.rowType.columns {
		if c.count < counted.count {
			counted = c
		}
	}
	r.line("\treturn len(c.", counted.field.GoName, ")", over(counted.count))
	r.line("}")
}

func over(count uint64) string {
	if count == 1 {
		return ""
	}
	return " / " + strconv.FormatUint(count, 10)
}

func (r *rowWriter) setMethod() {
	errors := "An error is a *" + r.rowIdent("LengthError")
	if slices.ContainsFunc(r.rowType.columns, (*column).narrows) {
		errors += " or a *" + r.rowIdent("RangeError")
	}
	r.document(doc{sentence("%s sets row i to the fields of m. %s, and leaves the row unchanged. Nothing of m is retained. "+
		"%s panics if there is no row i.", r.set, errors, r.set)})
	r.method(r.set, "(i int, m "+r.pointer(r.rowType.message)+") error")
	for _, c := range r.rowType.columns {
		r.check(c)
	}
	for _, c := range r.rowType.columns {
		r.setColumn(c)
	}
	r.line("\treturn nil")
	r.line("}")
}

// getter is the call that returns a field of a message.
func (c *column) getter() string {
	name, _ := c.field.MethodName("Get")
	return "m." + name + "()"
}

// elements is the part of the column that row i has.
func (c *column) elements() string {
	if len(c.shape) == 0 {
		return "c." + c.field.GoName + "[i]"
	}
	n := strconv.FormatUint(c.count, 10)
	return "c." + c.field.GoName + "[i*" + n + ":(i+1)*" + n + "]"
}

// narrows reports whether the field may have integers that the column can't hold.
func (c *column) narrows() bool {
	switch kind := fieldKind(c.field.Desc.Kind()); kind {
	case int32Field, uint32Field, int64Field, uint64Field, enumField:
		return c.dtype != fitting(kind)[0]
	default:
		return false
	}
}

// valueType is the Go type of one value of a field.
func (w *writer) valueType(field *protogen.Field) string {
	switch kind := fieldKind(field.Desc.Kind()); kind {
	case enumField:
		return w.qual(field.Enum.GoIdent)
	case bytesField:
		return "uint8"
	default:
		return kind
	}
}

// rowError is the beginning of a literal of an error of Set.
func (r *rowWriter) rowError(name string, c *column) string {
	return "&" + r.rowIdent(name) + "{Message: " + strconv.Quote(r.fullName()) + ", Field: " + strconv.Quote(string(c.field.Desc.Name())) + ", Row: i"
}

// check writes what must hold of a field before a row is set to it.
func (r *rowWriter) check(c *column) {
	if len(c.shape) > 0 {
		length := strconv.FormatUint(c.length(), 10)
		unless := ""
		if c.initial != "" {
			unless = "n != 0 && "
		}
		r.line("\tif n := len(", c.getter(), "); ", unless, "n != ", length, " {")
		r.line("\t\treturn ", r.rowError("LengthError", c), ", Got: n, Want: ", length, "}")
		r.line("\t}")
	}
	if !c.narrows() {
		return
	}
	element, dtype := elementType(c.dtype), ", DType: "+r.dtype(c.dtype)+"}"
	if len(c.shape) > 0 {
		r.line("\tif n := ", r.rowIdent("GeneratedMisfit"), "[", element, "](", c.getter(), "); n >= 0 {")
		r.line("\t\treturn ", r.rowError("RangeError", c), ", Element: n, Value: ", c.getter(), "[n]", dtype)
	} else {
		r.line("\tif v := ", c.getter(), "; ", r.valueType(c.field), "(", element, "(v)) != v {")
		r.line("\t\treturn ", r.rowError("RangeError", c), ", Value: v", dtype)
	}
	r.line("\t}")
}

// dtype is the constant of an element type.
func (w *writer) dtype(dtype tensorv1.DataType) string {
	return w.imports[tensorPackage] + ".DataType_" + dtype.String()
}

// conversions are the functions that convert a value to an element and back; empty where Go's own
// conversion does it.
func (r *rowWriter) conversions(c *column) (to, from string) {
	value := "[" + r.valueType(c.field) + "]"
	switch kind := fieldKind(c.field.Desc.Kind()); {
	case kind == bytesField:
		return "", ""
	case kind == boolField:
		return r.rowIdent("GeneratedBool"), r.rowIdent("GeneratedIsTrue")
	case c.dtype == tensorv1.DataType_DATA_TYPE_FLOAT16:
		return r.rowIdent("Float16") + value, r.rowIdent("FromFloat16") + value
	case c.dtype == tensorv1.DataType_DATA_TYPE_BFLOAT16:
		return r.rowIdent("BFloat16") + value, r.rowIdent("FromBFloat16") + value
	default:
		return "", ""
	}
}

// setColumn writes a field into its column.
func (r *rowWriter) setColumn(c *column) {
	to, _ := r.conversions(c)
	element, value, elements := elementType(c.dtype), r.valueType(c.field), c.elements()
	indent := "\t"
	if c.initial != "" && len(c.shape) > 0 {
		r.line("\tif len(", c.getter(), ") == 0 {")
		r.line("\t\t", r.rowIdent("GeneratedFill"), "(", elements, ", ", quoteBytes(c.initial), ")")
		r.line("\t} else {")
		indent = "\t\t"
	}
	switch {
	case len(c.shape) == 0 && to != "":
		r.line("\t", elements, " = ", to, "(", c.getter(), ")")
	case len(c.shape) == 0 && element != value:
		r.line("\t", elements, " = ", element, "(", c.getter(), ")")
	case len(c.shape) == 0:
		r.line("\t", elements, " = ", c.getter())
	case to != "":
		r.line(indent, r.rowIdent("GeneratedConvertBy"), "(", elements, ", ", c.getter(), ", ", to, ")")
	case element == value:
		r.line(indent, "copy(", elements, ", ", c.getter(), ")")
	case c.field.Desc.Kind() == protoreflect.BytesKind:
		r.line(indent, "copy(", r.rowIdent("GeneratedBytes"), "(", elements, "), ", c.getter(), ")")
	default:
		r.line(indent, r.rowIdent("GeneratedConvert"), "(", elements, ", ", c.getter(), ")")
	}
	if indent != "\t" {
		r.line("\t}")
	}
}

func (r *rowWriter) getMethod() {
	reuse := ""
	if slices.ContainsFunc(r.rowType.columns, func(c *column) bool { return len(c.shape) > 0 }) {
		reuse = " It reuses the memory of the slices that m has."
	}
	r.document(doc{sentence("%s sets the fields of m to row i.%s %s panics if there is no row i.", r.get, reuse, r.get)})
	r.method(r.get, "(i int, m "+r.pointer(r.rowType.message)+")")
	for _, c := range r.rowType.columns {
		r.getColumn(c)
	}
	r.line("}")
}

// getColumn writes a column into its field.
func (r *rowWriter) getColumn(c *column) {
	_, from := r.conversions(c)
	element, value, elements := elementType(c.dtype), r.valueType(c.field), c.elements()
	old := "m." + c.field.GoName
	assign := old + " = %s"
	if c.field.Parent.APILevel == gofeaturespb.GoFeatures_API_OPAQUE {
		name, _ := c.field.MethodName("Set")
		old, assign = c.getter(), "m."+name+"(%s)"
	}
	var got string
	switch {
	case len(c.shape) == 0 && from != "":
		got = from + "(" + elements + ")"
	case len(c.shape) == 0 && element != value:
		got = value + "(" + elements + ")"
	case len(c.shape) == 0:
		got = elements
	case from != "":
		got = r.rowIdent("GeneratedAppendBy") + "(" + old + "[:0], " + elements + ", " + from + ")"
	case element == value:
		got = "append(" + old + "[:0], " + elements + "...)"
	case c.field.Desc.Kind() == protoreflect.BytesKind:
		got = "append(" + old + "[:0], " + r.rowIdent("GeneratedBytes") + "(" + elements + ")...)"
	default:
		got = r.rowIdent("GeneratedAppend") + "(" + old + "[:0], " + elements + ")"
	}
	r.line("\t", fmt.Sprintf(assign, got))
}

// schema writes the description of the row.
func (r *rowWriter) schema() {
	r.document(r.doc(sentence("%s is the schema of a row of %s, and views the bytes of its columns as %s.",
		r.rowNames.row, r.fullName(), r.columns)))
	// A literal, and not the result of a function: the linker can drop it.
	r.line("var ", r.rowNames.row, " = ", r.rowIdent("Type"), "[", r.columns, "]{Generated: &", r.rowIdent("GeneratedRow"), "[", r.columns, "]{")
	r.line("\tMessage: ", strconv.Quote(r.fullName()), ",")
	r.line("\tColumns: []", r.rowIdent("GeneratedColumn"), "{")
	for _, c := range r.rowType.columns {
		literal := "Name: " + strconv.Quote(string(c.field.Desc.Name())) + ", DType: " + r.dtype(c.dtype)
		if len(c.shape) > 0 {
			dimensions := make([]string, len(c.shape))
			for i, n := range c.shape {
				dimensions[i] = strconv.FormatUint(n, 10)
			}
			literal += ", Shape: []uint64{" + strings.Join(dimensions, ", ") + "}"
		}
		literal += ", Bytes: " + strconv.FormatUint(c.bytes(), 10)
		if c.initial != "" {
			literal += ", Initial: " + quoteBytes(c.initial)
		}
		r.line("\t\t{", literal, "},")
	}
	r.line("\t},")
	r.line("\tView: func(c *", r.columns, ", columns [][]byte) {")
	for i, c := range r.rowType.columns {
		r.line("\t\tc.", c.field.GoName, " = ", r.rowIdent("GeneratedView"), "[", elementType(c.dtype), "](columns[", strconv.Itoa(i), "])")
	}
	r.line("\t},")
	r.line("}}")
	r.annotate(r.rowType.message.Location, r.rowNames.row)
}

// quoteBytes is a string literal of arbitrary bytes.
func quoteBytes(s string) string {
	var quoted strings.Builder
	quoted.WriteByte('"')
	for i := range len(s) {
		fmt.Fprintf(&quoted, `\x%02x`, s[i])
	}
	quoted.WriteByte('"')
	return quoted.String()
}
