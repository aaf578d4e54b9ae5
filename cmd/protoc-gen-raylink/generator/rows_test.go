package generator_test

import (
	"encoding/binary"
	"errors"
	"math"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"unsafe" //nolint:depguard // makes columns of aligned words

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"pgregory.net/rapid"

	rowsv1 "github.com/raylink/raylink/cmd/protoc-gen-raylink/generator/testdata/rows"
	kinds "github.com/raylink/raylink/cmd/protoc-gen-raylink/generator/testdata/rows/m"
	"github.com/raylink/raylink/cmd/protoc-gen-raylink/generator/testdata/rows/rowsv1raylink"
	"github.com/raylink/raylink/cmd/protoc-gen-raylink/generator/testdata/rowsopaque"
	"github.com/raylink/raylink/cmd/protoc-gen-raylink/generator/testdata/rowsopaque/rowsopaqueraylink"
	tensorv1 "github.com/raylink/raylink/gen/raylink/tensor/v1"
	"github.com/raylink/raylink/runtime/row"
)

// columnsOf are the methods of generated columns.
type columnsOf[M any] interface {
	Len() int
	Set(i int, m M) error
	Get(i int, m M)
}

// storedRows makes memory for the columns of n rows, and a view of it.
func storedRows[C any](t rapid.TB, typ row.Type[C], n int) (bytes [][]byte, view *C) {
	t.Helper()
	for _, c := range typ.Columns() {
		size := uint64(row.Size(c.GetDtype()))
		for _, d := range c.GetShape() {
			size *= d
		}
		words := make([]uint64, (uint64(n)*size+7)/8)
		bytes = append(bytes, unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(words))), len(words)*8)[:uint64(n)*size])
	}
	view = new(C)
	require.NoError(t, typ.View(view, n, bytes))
	return bytes, view
}

// drawElement draws an element of a type, as its bits, and decodes it as its field's value.
func drawElement(t *rapid.T, dtype tensorv1.DataType, field protoreflect.FieldDescriptor) protoreflect.Value {
	bits := rapid.Uint64().Draw(t, "bits")
	if dtype == tensorv1.DataType_DATA_TYPE_BOOL {
		bits &= 1
	}
	raw := binary.LittleEndian.AppendUint64(nil, bits)
	return decodeElement(raw, dtype, field)
}

// decodeElement reads an element as another program would, from its bytes alone.
func decodeElement(raw []byte, dtype tensorv1.DataType, field protoreflect.FieldDescriptor) protoreflect.Value {
	little := binary.LittleEndian
	integer := func(signed int64, unsigned uint64) protoreflect.Value {
		switch field.Kind() {
		case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind:
			return protoreflect.ValueOfInt32(int32(signed))
		case protoreflect.Int64Kind, protoreflect.Sint64Kind, protoreflect.Sfixed64Kind:
			return protoreflect.ValueOfInt64(signed)
		case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
			return protoreflect.ValueOfUint32(uint32(unsigned))
		case protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
			return protoreflect.ValueOfUint64(unsigned)
		default:
			return protoreflect.ValueOfEnum(protoreflect.EnumNumber(signed))
		}
	}
	float := func(v float64) protoreflect.Value {
		if field.Kind() == protoreflect.FloatKind {
			return protoreflect.ValueOfFloat32(float32(v))
		}
		return protoreflect.ValueOfFloat64(v)
	}
	switch dtype {
	case tensorv1.DataType_DATA_TYPE_BOOL:
		return protoreflect.ValueOfBool(raw[0] == 1)
	case tensorv1.DataType_DATA_TYPE_UINT8:
		return integer(int64(raw[0]), uint64(raw[0]))
	case tensorv1.DataType_DATA_TYPE_INT8:
		return integer(int64(int8(raw[0])), 0)
	case tensorv1.DataType_DATA_TYPE_UINT16:
		return integer(int64(little.Uint16(raw)), uint64(little.Uint16(raw)))
	case tensorv1.DataType_DATA_TYPE_INT16:
		return integer(int64(int16(little.Uint16(raw))), 0)
	case tensorv1.DataType_DATA_TYPE_UINT32:
		return integer(int64(little.Uint32(raw)), uint64(little.Uint32(raw)))
	case tensorv1.DataType_DATA_TYPE_INT32:
		return integer(int64(int32(little.Uint32(raw))), 0)
	case tensorv1.DataType_DATA_TYPE_UINT64:
		return integer(0, little.Uint64(raw))
	case tensorv1.DataType_DATA_TYPE_INT64:
		return integer(int64(little.Uint64(raw)), 0)
	case tensorv1.DataType_DATA_TYPE_FLOAT16:
		return float(row.FromFloat16[float64](little.Uint16(raw)))
	case tensorv1.DataType_DATA_TYPE_BFLOAT16:
		// The upper half of a float32.
		return float(float64(math.Float32frombits(uint32(little.Uint16(raw)) << 16)))
	case tensorv1.DataType_DATA_TYPE_FLOAT32:
		return float(float64(math.Float32frombits(little.Uint32(raw))))
	default:
		return float(math.Float64frombits(little.Uint64(raw)))
	}
}

// drawMessage draws a message whose fields fit their columns.
func drawMessage(t *rapid.T, message protoreflect.Message, columns []*tensorv1.Column) {
	for i, c := range columns {
		field := message.Descriptor().Fields().Get(i)
		n := 1
		for _, d := range c.GetShape() {
			n *= int(d)
		}
		switch {
		case field.Kind() == protoreflect.BytesKind:
			n *= row.Size(c.GetDtype())
			message.Set(field, protoreflect.ValueOfBytes(rapid.SliceOfN(rapid.Byte(), n, n).Draw(t, "bytes")))
		case field.IsList():
			list := message.NewField(field).List()
			for range n {
				list.Append(drawElement(t, c.GetDtype(), field))
			}
			message.Set(field, protoreflect.ValueOfList(list))
		default:
			message.Set(field, drawElement(t, c.GetDtype(), field))
		}
	}
}

// decodeRow reads a row as another program would.
func decodeRow(message protoreflect.Message, columns []*tensorv1.Column, bytes [][]byte, i, rows int) {
	for at, c := range columns {
		field, size := message.Descriptor().Fields().Get(at), row.Size(c.GetDtype())
		part := bytes[at][len(bytes[at])/rows*i : len(bytes[at])/rows*(i+1)]
		switch {
		case field.Kind() == protoreflect.BytesKind:
			message.Set(field, protoreflect.ValueOfBytes(slices.Clone(part)))
		case field.IsList():
			list := message.NewField(field).List()
			for element := range slices.Chunk(part, size) {
				list.Append(decodeElement(element, c.GetDtype(), field))
			}
			message.Set(field, protoreflect.ValueOfList(list))
		default:
			message.Set(field, decodeElement(part, c.GetDtype(), field))
		}
	}
}

// testRows sets rows in any order, some of them twice, and gets back what was set last: by the
// columns, and by a decoder that knows the schema and the bytes.
func testRows[C any, M proto.Message](t *testing.T, typ row.Type[C], methods func(*C) columnsOf[M], newMessage func() M) {
	t.Helper()
	rapid.Check(t, func(t *rapid.T) {
		rows := rapid.IntRange(1, 5).Draw(t, "rows")
		bytes, view := storedRows(t, typ, rows)
		columns := methods(view)
		require.Equal(t, rows, columns.Len())
		want := make([]M, rows)
		for i := range want {
			want[i] = newMessage()
			// An unset row is zero.
			decodeRow(want[i].ProtoReflect(), typ.Columns(), bytes, i, rows)
		}
		for _, i := range rapid.SliceOfN(rapid.IntRange(0, rows-1), 0, 2*rows).Draw(t, "order") {
			want[i] = newMessage()
			drawMessage(t, want[i].ProtoReflect(), typ.Columns())
			require.NoError(t, columns.Set(i, want[i]))
		}
		reused := newMessage()
		for i := range want {
			fresh, decoded := newMessage(), newMessage()
			columns.Get(i, fresh)
			columns.Get(i, reused)
			decodeRow(decoded.ProtoReflect(), typ.Columns(), bytes, i, rows)
			for what, got := range map[string]M{"a fresh message": fresh, "a reused message": reused, "the bytes": decoded} {
				require.True(t, proto.Equal(want[i], got), "%s: %v, and not %v", what, got, want[i])
			}
		}
	})
}

func TestRowsAreGotAsTheyWereSet(t *testing.T) {
	t.Run("initial", func(t *testing.T) {
		testRows(t, rowsv1raylink.InitialRow, func(c *rowsv1raylink.InitialColumns) columnsOf[*rowsv1.Initial] { return c }, func() *rowsv1.Initial { return &rowsv1.Initial{} })
	})
	t.Run("defaults", func(t *testing.T) {
		testRows(t, rowsv1raylink.DefaultsRow, func(c *rowsv1raylink.DefaultsColumns) columnsOf[*rowsv1.Defaults] { return c },
			func() *rowsv1.Defaults { return &rowsv1.Defaults{} })
	})
	t.Run("narrow", func(t *testing.T) {
		testRows(t, rowsv1raylink.NarrowRow, func(c *rowsv1raylink.NarrowColumns) columnsOf[*rowsv1.Narrow] { return c },
			func() *rowsv1.Narrow { return &rowsv1.Narrow{} })
	})
	t.Run("nested", func(t *testing.T) {
		testRows(t, rowsv1raylink.Initial_InnerRow, func(c *rowsv1raylink.Initial_InnerColumns) columnsOf[*rowsv1.Initial_Inner] { return c },
			func() *rowsv1.Initial_Inner { return &rowsv1.Initial_Inner{} })
	})
	t.Run("opaque", func(t *testing.T) {
		testRows(t, rowsopaqueraylink.OpaqueRow, func(c *rowsopaqueraylink.OpaqueColumns) columnsOf[*rowsopaque.Opaque] { return c },
			func() *rowsopaque.Opaque { return &rowsopaque.Opaque{} })
	})
	t.Run("hybrid", func(t *testing.T) {
		testRows(t, rowsopaqueraylink.HybridRow, func(c *rowsopaqueraylink.HybridColumns) columnsOf[*rowsopaque.Hybrid] { return c },
			func() *rowsopaque.Hybrid { return &rowsopaque.Hybrid{} })
	})
}

func step() *rowsv1.Step {
	m := &rowsv1.Step{Frame: make([]byte, 84*84), State: make([]float32, 17), Action: 3, Reward: -0.5, Last: true}
	for i := range m.GetFrame() {
		m.Frame[i] = byte(i)
	}
	for i := range m.GetState() {
		m.State[i] = float32(i) / 3
	}
	return m
}

func TestRowOfWrongLengthIsRefusedAndChangesNothing(t *testing.T) {
	columns := rowsv1raylink.StepRow.New(2)
	require.NoError(t, columns.Set(1, step()))
	for name, wrong := range map[string]struct {
		m         *rowsv1.Step
		field     string
		got, want int
	}{
		"frame": {&rowsv1.Step{Frame: make([]byte, 100), State: make([]float32, 17)}, "frame", 100, 7056},
		"long":  {&rowsv1.Step{Frame: make([]byte, 7057), State: make([]float32, 17)}, "frame", 7057, 7056},
		"state": {&rowsv1.Step{Frame: make([]byte, 7056)}, "state", 0, 17},
		"nil":   {nil, "frame", 0, 7056},
	} {
		t.Run(name, func(t *testing.T) {
			err := columns.Set(1, wrong.m)
			var length *row.LengthError
			require.ErrorAs(t, err, &length)
			assert.Equal(t, row.LengthError{Message: "rows.v1.Step", Field: wrong.field, Row: 1, Got: wrong.got, Want: wrong.want}, *length)
			got := &rowsv1.Step{}
			columns.Get(1, got)
			assert.True(t, proto.Equal(step(), got))
		})
	}
	err := columns.Set(1, &rowsv1.Step{Frame: make([]byte, 100)})
	require.EqualError(t, err, "set row 1 of rows.v1.Step: field frame has length 100, and its column takes 7056")
	// The length of bytes is in bytes, whatever the elements are.
	err = rowsv1raylink.InitialRow.New(1).Set(0, &rowsv1.Initial{Mask: []byte{1, 2}})
	require.EqualError(t, err, "set row 0 of rows.v1.Initial: field mask has length 2, and its column takes 4")
}

func TestIntegersThatDoNotFitAreRefusedAndChangeNothing(t *testing.T) {
	valid := func(change func(m *rowsv1.Narrow)) *rowsv1.Narrow {
		m := &rowsv1.Narrow{
			I8S: make([]int64, 3), U16S: make([]uint64, 3), Kinds: make([]kinds.Kind, 3), F16S: make([]float32, 3),
			Bf16S: make([]float64, 3), F32S: make([]float64, 3), Halves: make([]byte, 8),
		}
		change(m)
		return m
	}
	columns := rowsv1raylink.NarrowRow.New(1)
	before := valid(func(m *rowsv1.Narrow) {
		m.I8, m.U8, m.U16, m.U32, m.Kind = -128, 255, 65535, math.MaxUint32, kinds.Kind_KIND_LAST
	})
	require.NoError(t, columns.Set(0, before))
	for want, change := range map[string]func(m *rowsv1.Narrow){
		"element 0 of field i8 is 128, which its column of int8 can't hold":                 func(m *rowsv1.Narrow) { m.I8 = 128 },
		"element 0 of field i16 is -32769, which its column of int16 can't hold":            func(m *rowsv1.Narrow) { m.I16 = -32769 },
		"element 0 of field i32 is 2147483648, which its column of int32 can't hold":        func(m *rowsv1.Narrow) { m.I32 = 1 << 31 },
		"element 0 of field u8 is -1, which its column of uint8 can't hold":                 func(m *rowsv1.Narrow) { m.U8 = -1 },
		"element 0 of field u16 is 65536, which its column of uint16 can't hold":            func(m *rowsv1.Narrow) { m.U16 = 65536 },
		"element 0 of field u32 is -1, which its column of uint32 can't hold":               func(m *rowsv1.Narrow) { m.U32 = -1 },
		"element 0 of field kind is 256, which its column of uint8 can't hold":              func(m *rowsv1.Narrow) { m.Kind = 256 },
		"element 2 of field i8s is 4294967295, which its column of int8 can't hold":         func(m *rowsv1.Narrow) { m.I8S[2] = math.MaxUint32 },
		"element 1 of field u16s is 18446744073709551615, which its column of uint16 can't": func(m *rowsv1.Narrow) { m.U16S[1] = math.MaxUint64 },
		"element 1 of field kinds is 128, which its column of int8 can't hold":              func(m *rowsv1.Narrow) { m.Kinds[1] = 128 },
	} {
		err := columns.Set(0, valid(change))
		require.ErrorContains(t, err, "set row 0 of rows.v1.Narrow: "+want)
		var value *row.RangeError
		require.ErrorAs(t, err, &value)
		got := &rowsv1.Narrow{}
		columns.Get(0, got)
		assert.True(t, proto.Equal(before, got))
	}
}

func TestFloatsAreRoundedToTheNearest(t *testing.T) {
	columns := rowsv1raylink.NarrowRow.New(1)
	m := &rowsv1.Narrow{
		F16: 1.0001, Bf16: 1.0001, F32: math.Pi, I8S: make([]int64, 3), U16S: make([]uint64, 3), Kinds: make([]kinds.Kind, 3),
		F16S: []float32{65519, 65520, -1e-9}, Bf16S: []float64{1e39, 1e-50, math.Inf(-1)}, F32S: make([]float64, 3), Halves: make([]byte, 8),
	}
	require.NoError(t, columns.Set(0, m))
	columns.Get(0, m)
	assert.Equal(t, []float64{1, 1, float64(float32(math.Pi))}, []float64{float64(m.GetF16()), m.GetBf16(), m.GetF32()})
	assert.Equal(t, []float32{65504, float32(math.Inf(1)), float32(math.Copysign(0, -1))}, m.GetF16S())
	assert.Equal(t, []float64{math.Inf(1), 0, math.Inf(-1)}, m.GetBf16S())
}

func TestInitialValuesStandWhereARowDoesNotSetThem(t *testing.T) {
	columns := rowsv1raylink.InitialRow.New(2)
	m := &rowsv1.Initial{}
	columns.Get(1, m)
	check := func(count int32, half float32) {
		t.Helper()
		assert.Equal(t, count, m.GetCount())
		require.Len(t, m.GetState(), 3)
		for _, v := range m.GetState() {
			assert.True(t, math.IsNaN(float64(v)), "%v", v)
		}
		assert.Equal(t, []byte{0xfe, 0xff, 0xfe, 0xff}, m.GetMask())
		assert.Equal(t, []bool{true, true}, m.GetYes())
		assert.Equal(t, []uint64{0, 0}, m.GetZero())
		assert.InDelta(t, half, m.GetHalf(), 0)
		assert.Zero(t, m.GetPlain())
	}
	check(-1, 0.5)
	// A message sets its scalars, and those of its other fields that are not empty.
	full := &rowsv1.Initial{State: []float32{1, 2, 3}, Mask: []byte{1, 0, 1, 0}, Yes: make([]bool, 2), Zero: []uint64{7, 7}}
	require.NoError(t, columns.Set(1, full))
	columns.Get(1, m)
	assert.True(t, proto.Equal(full, m))
	require.NoError(t, columns.Set(1, &rowsv1.Initial{}))
	columns.Get(1, m)
	check(0, 0)

	bytes, view := storedRows(t, rowsv1raylink.InitialRow, 2)
	view.Plain[1], view.Zero[3] = 7, 7
	rowsv1raylink.InitialRow.Initialize(bytes)
	view.Get(1, m)
	assert.InDelta(t, 7, m.GetPlain(), 0, "a column without an initial value keeps what it has")
	m.Plain = 0
	check(-1, 0.5)
}

func TestSchemaOfARow(t *testing.T) {
	assert.Equal(t, "rows.v1.Step", rowsv1raylink.StepRow.Message())
	equal := func(got []*tensorv1.Column, want ...*tensorv1.Column) {
		t.Helper()
		require.Len(t, got, len(want))
		for i := range want {
			assert.True(t, proto.Equal(want[i], got[i]), "%v", got[i])
		}
	}
	want := []*tensorv1.Column{
		{Name: "frame", Dtype: tensorv1.DataType_DATA_TYPE_UINT8, Shape: []uint64{84, 84}},
		{Name: "state", Dtype: tensorv1.DataType_DATA_TYPE_FLOAT32, Shape: []uint64{17}},
		{Name: "action", Dtype: tensorv1.DataType_DATA_TYPE_INT32},
		{Name: "reward", Dtype: tensorv1.DataType_DATA_TYPE_FLOAT32},
		{Name: "last", Dtype: tensorv1.DataType_DATA_TYPE_BOOL},
	}
	got := rowsv1raylink.StepRow.Columns()
	equal(got, want...)
	got[0].Shape[0] = 1
	equal(rowsv1raylink.StepRow.Columns(), want...)
	assert.Equal(t, []byte{0xfe, 0xff}, rowsv1raylink.InitialRow.Columns()[2].GetInitial())
}

func TestSetAndGetAllocateNothing(t *testing.T) {
	bytes, columns := storedRows(t, rowsv1raylink.StepRow, 3)
	m, got := step(), &rowsv1.Step{}
	columns.Get(0, got)
	assert.Zero(t, testing.AllocsPerRun(100, func() {
		if rowsv1raylink.StepRow.View(columns, 3, bytes) != nil || columns.Set(1, m) != nil {
			panic("refused")
		}
		columns.Get(1, got)
	}))
	narrow := rowsv1raylink.NarrowRow.New(1)
	all := &rowsv1.Narrow{}
	narrow.Get(0, all)
	assert.Zero(t, testing.AllocsPerRun(100, func() {
		if narrow.Set(0, all) != nil {
			panic("refused")
		}
		narrow.Get(0, all)
	}))
}

// TestAnyByteOfAnotherProcessIsABool reads bytes that Go's bool does not have.
func TestAnyByteOfAnotherProcessIsABool(t *testing.T) {
	columns, m := rowsv1raylink.DefaultsRow.New(1), &rowsv1.Defaults{}
	columns.Yes[0], columns.Yess[1] = 2, 0xff
	columns.Get(0, m)
	assert.True(t, m.GetYes())
	assert.Equal(t, []bool{false, true}, m.GetYess())
}

func TestRowThatIsNotThereIsAPanic(t *testing.T) {
	columns := rowsv1raylink.StepRow.New(2)
	for _, i := range []int{-1, 2} {
		assert.Panics(t, func() { _ = columns.Set(i, step()) })
		assert.Panics(t, func() { columns.Get(i, &rowsv1.Step{}) })
	}
	assert.Zero(t, rowsv1raylink.StepRow.New(0).Len())
	assert.Zero(t, new(rowsv1raylink.StepColumns).Len())
}

// TestRowCodeKnowsNoService lists what generated code of rows alone depends on.
func TestRowCodeKnowsNoService(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", module+"/rowsopaque/rowsopaqueraylink").Output()
	if exit := new(exec.ExitError); errors.As(err, &exit) {
		t.Fatalf("%s", exit.Stderr)
	}
	require.NoError(t, err)
	for dependency := range strings.FieldsSeq(string(out)) {
		known := strings.HasPrefix(dependency, module) || dependency == "github.com/raylink/raylink/runtime/row" ||
			slices.Contains([]string{"tensor", "options"}, strings.TrimSuffix(strings.TrimPrefix(dependency, "github.com/raylink/raylink/gen/raylink/"), "/v1"))
		if strings.Contains(dependency, ".") && !known {
			assert.True(t, strings.HasPrefix(dependency, "google.golang.org/protobuf/"), dependency)
		}
	}
}

func BenchmarkRow(b *testing.B) {
	const rows = 64
	columns, m := rowsv1raylink.StepRow.New(rows), step()
	size := int64(84*84 + 17*4 + 4 + 4 + 1)
	b.Run("Set", func(b *testing.B) {
		b.SetBytes(size)
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			_ = columns.Set(i%rows, m)
		}
	})
	b.Run("Get", func(b *testing.B) {
		b.SetBytes(size)
		b.ReportAllocs()
		got := &rowsv1.Step{}
		for i := 0; b.Loop(); i++ {
			columns.Get(i%rows, got)
		}
	})
	// The same bytes, copied without any schema.
	b.Run("copy", func(b *testing.B) {
		b.SetBytes(size)
		for n := 0; b.Loop(); n++ {
			i := n % rows
			copy(columns.Frame[i*7056:(i+1)*7056], m.GetFrame())
			copy(columns.State[i*17:(i+1)*17], m.GetState())
			columns.Action[i], columns.Reward[i], columns.Last[i] = m.GetAction(), m.GetReward(), 1
		}
	})
	b.Run("View", func(b *testing.B) {
		bytes, view := storedRows(b, rowsv1raylink.StepRow, rows)
		b.ReportAllocs()
		for b.Loop() {
			_ = rowsv1raylink.StepRow.View(view, rows, bytes)
		}
	})
	b.Run("Marshal", func(b *testing.B) {
		var encoded []byte
		b.SetBytes(size)
		for b.Loop() {
			encoded, _ = proto.MarshalOptions{}.MarshalAppend(encoded[:0], m)
		}
	})
}
