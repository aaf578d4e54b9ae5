package safetensors_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/raylink/raylink/services/ps/safetensors"
)

// bits has the size of each data type's elements.
var bits = map[string]int{
	"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "BOOL": 8, "I8": 8, "U8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
	"F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
	"I64": 64, "U64": 64, "F64": 64, "C64": 64,
}

// content puts a header's JSON before data.
func content(header string, data int) []byte {
	b := binary.LittleEndian.AppendUint64(nil, uint64(len(header)))
	b = append(b, header...)
	for i := range data {
		b = append(b, byte(i))
	}
	return b
}

// one is the header of one tensor of four bytes, whose description has a part replaced.
func one(old, replacement string) string {
	const header = `{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}`
	if !strings.Contains(header, old) {
		panic(old)
	}
	return strings.Replace(header, old, replacement, 1)
}

func TestParsedTensorsAreViewsOfTheContent(t *testing.T) {
	b := content(` {"b":{"shape":[2,1],"dtype":"I16","data_offsets":[4,8]} , "__metadata__":{"k":"v\n\u00e9\ud83d\ude00"},
		"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}, "none":{"dtype":"F64","shape":[3,0],"data_offsets":[8,8]} }   `[1:], 8)
	file, err := safetensors.Parse(b)
	require.NoError(t, err)
	data := b[len(b)-8:]
	assert.Equal(t, []safetensors.Tensor{
		{Name: "a", DType: "F32", Shape: []int{}, Data: data[:4]},
		{Name: "b", DType: "I16", Shape: []int{2, 1}, Data: data[4:]},
		{Name: "none", DType: "F64", Shape: []int{3, 0}, Data: []byte{}},
	}, file.Tensors())
	assert.Equal(t, []string{"a", "b", "none"}, file.Names(), "in the order of the data")
	assert.Equal(t, map[string]string{"k": "v\né😀"}, file.Metadata())

	a, err := file.Tensor("a")
	require.NoError(t, err)
	assert.Same(t, &data[0], &a.Data[0], "the data are not copied")
	assert.Equal(t, 4, cap(a.Data), "appending to a tensor's data must not write into the next tensor")

	// Content may be unmapped while an error text or a list of names still exists.
	clear(b)
	assert.Equal(t, []string{"a", "b", "none"}, file.Names())
	assert.Equal(t, "v\né😀", file.Metadata()["k"])
	assert.Equal(t, "F32", a.DType)
}

func TestCallersCannotModifyTheFile(t *testing.T) {
	file, err := safetensors.Parse(content(one("a", "a"), 4))
	require.NoError(t, err)
	a, err := file.Tensor("a")
	require.NoError(t, err)
	a.Shape[0] = 7
	file.Tensors()[0].Shape[0] = 8
	file.Names()[0] = "x"
	file.Metadata()["k"] = "v"
	a, err = file.Tensor("a")
	require.NoError(t, err)
	assert.Equal(t, []int{1}, a.Shape)
	assert.Equal(t, []string{"a"}, file.Names())
	assert.Empty(t, file.Metadata())
}

func TestUnknownTensorsErrorListsWhatExists(t *testing.T) {
	file, err := safetensors.Parse(content(one("a", "layer0.weight"), 4))
	require.NoError(t, err)
	_, err = file.Tensor("layer1.weight")
	require.ErrorIs(t, err, safetensors.ErrNoTensor)
	require.EqualError(t, err, `no such tensor: "layer1.weight"; there are "layer0.weight"`)
	file, err = safetensors.Parse(content(`{}`, 0))
	require.NoError(t, err)
	_, err = file.Tensor("x")
	require.EqualError(t, err, `no such tensor: "x"; there are none`)

	var many []safetensors.Tensor
	for i := range 1000 {
		many = append(many, safetensors.Tensor{Name: fmt.Sprintf("t%03d", i), DType: "U8", Shape: []int{0}})
	}
	b, err := safetensors.Marshal(many, nil)
	require.NoError(t, err)
	file, err = safetensors.Parse(b)
	require.NoError(t, err)
	_, err = file.Tensor("x")
	assert.ErrorContains(t, err, `"t019" and 980 more`)
}

// hostile has content that must be refused, by what the error says.
var hostile = []struct {
	name, says string
	content    []byte
}{
	{"nothing", "0 bytes are too few", nil},
	{"seven bytes", "7 bytes are too few", make([]byte, 7)},
	{"an empty header", "does not begin with {", content("", 0)},
	{"a header longer than the content", "should have 1008 bytes, but the content ends after 58", func() []byte {
		b := content(one("a", "a"), 0)[:58]
		binary.LittleEndian.PutUint64(b, 1000)
		return b
	}()},
	{"a header over 100 MB", "at most 100000000", binary.LittleEndian.AppendUint64(nil, 100_000_001)},
	{"a header whose size overflows", "at most 100000000", binary.LittleEndian.AppendUint64(nil, math.MaxUint64)},
	{"a header whose size is negative", "at most 100000000", binary.LittleEndian.AppendUint64(nil, math.MaxInt64+1)},

	{"two tensors of one name", `"a" occurs twice`, content(`{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}`, 2)},
	{"a name twice, once escaped", `"a" occurs twice`, content(`{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"\u0061":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}`, 2)},
	{"metadata twice", "occurs twice", content(`{"__metadata__":{},"__metadata__":{}}`, 0)},
	{"a key of the metadata twice", "occurs twice", content(`{"__metadata__":{"a":"b","a":"c"}}`, 0)},
	{"a field twice", "occurs twice", content(one(`"dtype":"F32"`, `"dtype":"F32","dtype":"F32"`), 4)},
	{"an unknown field", `unknown field "strides"`, content(one(`]}`, `],"strides":[1]}`), 4)},
	{"a field in the wrong case", `unknown field "DType"`, content(one("dtype", "DType"), 4)},
	{"no type", "lacks one of", content(one(`"dtype":"F32",`, ""), 4)},
	{"no shape", "lacks one of", content(one(`"shape":[1],`, ""), 4)},
	{"no offsets", "lacks one of", content(one(`,"data_offsets":[0,4]`, ""), 4)},
	{"nothing of a tensor", "lacks one of", content(`{"a":{}}`, 0)},

	{"a hole at the beginning", "after a hole", content(one("[0,4]", "[1,5]"), 5)},
	{"a hole between tensors", "after a hole", content(`{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}}`, 3)},
	{"a hole at the end", "1 bytes of data belong to no tensor", content(one("a", "a"), 5)},
	{"data without tensors", "1 bytes of data belong to no tensor", content("{}", 1)},
	{"an overlap", "overlap", content(`{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}`, 3)},
	{"two tensors in one place", "overlap", content(`{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}`, 2)},
	{"an empty tensor within another", "overlap", content(`{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[0],"data_offsets":[1,1]}}`, 2)},
	{"data over the end", "there are only 3 bytes", content(one("a", "a"), 3)},
	{"data far over the end", "there are only 4 bytes", content(one("[0,4]", "[0,18446744073709551615]"), 4)},
	{"data that end before they begin", "before they begin", content(one("[0,4]", "[4,0]"), 4)},
	{"one offset", "fewer than two", content(one("[0,4]", "[4]"), 4)},
	{"three offsets", "more than two", content(one("[0,4]", "[0,4,4]"), 4)},
	{"a size that is not the shape's", "has 8 bytes, not 4", content(one("[1]", "[2]"), 4)},
	{"a size that is not the type's", "has 8 bytes, not 4", content(one("F32", "F64"), 4)},
	{"an unknown type", `unknown data type "F33"`, content(one("F32", "F33"), 4)},
	{"a type in the wrong case", "unknown data type", content(one("F32", "f32"), 4)},
	{"elements that end within a byte", "within a byte", content(one("F32", "F4"), 4)},

	{"a negative size", "without sign", content(one("[1]", "[-1]"), 4)},
	{"two negative sizes", "without sign", content(one("[1]", "[-1,-1]"), 4)},
	{"a negative offset", "without sign", content(one("[0,4]", "[-4,0]"), 4)},
	{"a size over int64", "a dimension of", content(one("[1]", "[9223372036854775808]"), 4)},
	{"a size over uint64", "invalid number", content(one("[1]", "[18446744073709551617]"), 4)},
	{"a size of many digits", "invalid number", content(one("[1]", "["+strings.Repeat("1", 1000)+"]"), 4)},
	{"elements that overflow to the right number", "too many elements", content(one("[1]", "[4294967296,4294967296,1]"), 4)},
	{"an overflow before a zero", "too many elements", content(`{"a":{"dtype":"U8","shape":[4611686018427387904,4611686018427387904,0],"data_offsets":[0,0]}}`, 0)},
	{"bits that overflow to the right number", "too many elements", content(one("[1]", "[576460752303423489]"), 4)},
	{"a leading zero", "invalid number", content(one("[1]", "[01]"), 4)},
	{"a fraction", "not written as an integer", content(one("[1]", "[1.0]"), 4)},
	{"an exponent", "not written as an integer", content(one("[1]", "[1e0]"), 4)},
	{"a string as size", "without sign", content(one("[1]", `["1"]`), 4)},
	{"too many dimensions", "more than 64 dimensions", content(one("[1]", "["+strings.Repeat("1,", 64)+"1]"), 4)},

	{"deep arrays", "without sign", content(`{"a":{"shape":`+strings.Repeat("[", 4<<20), 0)},
	{"deep objects", `'{'`, content(`{"a":`+strings.Repeat(`{"shape":`, 1<<20), 0)},
	{"deep metadata", `'{'`, content(`{"__metadata__":`+strings.Repeat(`{"a":`, 1<<20), 0)},
	{"metadata that are no strings", `'1'`, content(`{"__metadata__":{"a":1}}`, 0)},
	{"metadata that are null", `'n'`, content(`{"__metadata__":null}`, 0)},
	{"an array", "does not begin with {", content(`[]`, 0)},
	{"white space first", "does not begin with {", content(` {}`, 0)},
	{"a byte order mark", "does not begin with {", content("\ufeff{}", 0)},
	{"two objects", "something follows", content(`{}{}`, 0)},
	{"zeros as padding", "something follows", content("{}\x00\x00", 0)},
	{"a zero within", "'\\x01'", content("{\x00}", 0)},
	{"a comma too many", `'}'`, content(`{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],}}`, 4)},
	{"a missing comma", `'"'`, content(one(",", ""), 4)},
	{"a missing colon", `'{'`, content(one(":", ""), 4)},
	{"a header that ends early", "it ends", content(one("}}", "}"), 4)},
	{"a header that ends within a string", "ends within a string", content(`{"a`, 0)},
	{"a header that ends within an escape", "ends within a string", content(`{"a\`, 0)},
	{"a header that ends within an escaped character", "ends within a string", content(`{"a\u00`, 0)},
	{"invalid UTF-8", "not UTF-8", content(one("a", "\xff"), 4)},
	{"a control character", "control character", content(one("a", "\n"), 4)},
	{"a control character after an escape", "control character", content(one("a", `\n`+"\n"), 4)},
	{"an invalid escape", `invalid escape \x`, content(one("a", `\x`), 4)},
	{"an invalid escaped character", `invalid escape \u`, content(one("a", `\u00zz`), 4)},
	{"half a character", "half a character", content(one("a", `\ud83d`), 4)},
	{"the second half of a character", "half a character", content(one("a", `\ude00\ud83d`), 4)},
	{"twice the first half of a character", "half a character", content(one("a", `\ud83d\ud83d`), 4)},
}

func TestHostileContentIsRefused(t *testing.T) {
	for _, test := range hostile {
		t.Run(test.name, func(t *testing.T) {
			file, err := safetensors.Parse(test.content)
			require.ErrorIs(t, err, safetensors.ErrFormat)
			assert.Nil(t, file)
			require.ErrorContains(t, err, test.says)
			assert.Less(t, len(err.Error()), 1000, "an error text must not grow with hostile content")
		})
	}
}

// A header of many dimensions must not need many times its size in memory: it has two bytes for
// each of them, and a slice eight.
func TestMemoryOfParseIsBoundedByTheHeader(t *testing.T) {
	wide := content(`{"a":{"shape":[`+strings.Repeat("0,", 8<<20), 0)
	result := testing.Benchmark(func(b *testing.B) { //nolint:thelper // a benchmark
		b.ReportAllocs()
		for b.Loop() {
			_, err := safetensors.Parse(wide)
			assert.ErrorIs(b, err, safetensors.ErrFormat)
		}
	})
	assert.Less(t, result.AllocedBytesPerOp(), int64(1<<20))
	b := binary.LittleEndian.AppendUint64(nil, safetensors.MaxHeader)
	assert.Less(t, testing.AllocsPerRun(10, func() { _, _ = safetensors.Parse(b) }), 10.0)
}

func TestHeaderSizeIncludesItsPrefix(t *testing.T) {
	size, err := safetensors.HeaderSize([]byte{1, 2, 0, 0, 0, 0, 0, 0, 99})
	require.NoError(t, err)
	assert.Equal(t, uint64(8+0x201), size)
}

func TestInvalidTensorsAreRefused(t *testing.T) {
	ok := safetensors.Tensor{Name: "a", DType: "F32", Shape: []int{2}, Data: make([]byte, 8)}
	for name, test := range map[string]struct {
		change   func(*safetensors.Tensor)
		metadata map[string]string
		says     string
	}{
		"unknown type":      {func(x *safetensors.Tensor) { x.DType = "float32" }, nil, "unknown data type"},
		"wrong size":        {func(x *safetensors.Tensor) { x.Data = x.Data[1:] }, nil, "has 8 bytes, not 7"},
		"wrong shape":       {func(x *safetensors.Tensor) { x.Shape = []int{2, 2} }, nil, "has 16 bytes, not 8"},
		"negative shape":    {func(x *safetensors.Tensor) { x.Shape = []int{-2, -1} }, nil, "negative"},
		"overflowing shape": {func(x *safetensors.Tensor) { x.Shape = []int{1 << 32, 1 << 32} }, nil, "too many elements"},
		"rank":              {func(x *safetensors.Tensor) { x.Shape = slices.Repeat([]int{1}, 65) }, nil, "65 dimensions"},
		"part of a byte":    {func(x *safetensors.Tensor) { x.DType, x.Shape = "F4", []int{3} }, nil, "within a byte"},
		"reserved name":     {func(x *safetensors.Tensor) { x.Name = "__metadata__" }, nil, "reserved"},
		"invalid name":      {func(x *safetensors.Tensor) { x.Name = "\xff" }, nil, "not UTF-8"},
		"used name":         {func(x *safetensors.Tensor) { x.Name = "b" }, nil, `the name "b"`},
		"invalid key":       {func(*safetensors.Tensor) {}, map[string]string{"\xff": ""}, "not UTF-8"},
		"invalid value":     {func(*safetensors.Tensor) {}, map[string]string{"k": "\xff"}, "not UTF-8"},
		"long header":       {func(*safetensors.Tensor) {}, map[string]string{"k": strings.Repeat("x", safetensors.MaxHeader)}, "at most 100000000"},
	} {
		t.Run(name, func(t *testing.T) {
			bad := ok
			test.change(&bad)
			other := ok
			other.Name = "b"
			_, err := safetensors.Marshal([]safetensors.Tensor{other, bad}, test.metadata)
			require.ErrorIs(t, err, safetensors.ErrTensor)
			require.ErrorContains(t, err, test.says)
		})
	}
}

func TestCollectedTensorsAreAFile(t *testing.T) {
	b := safetensors.Tensor{Name: "b", DType: "U8", Shape: []int{2}, Data: []byte{1, 2}}
	a := safetensors.Tensor{Name: "a", DType: "F32", Shape: []int{}, Data: []byte{0, 0, 128, 63}}
	file, err := safetensors.Collect([]safetensors.Tensor{b, a}, map[string]string{"k": "v"})
	require.NoError(t, err)
	assert.Equal(t, []safetensors.Tensor{b, a}, file.Tensors())
	assert.Equal(t, map[string]string{"k": "v"}, file.Metadata())
	got, err := file.Tensor("b")
	require.NoError(t, err)
	assert.Same(t, &b.Data[0], &got.Data[0])
	_, err = safetensors.Collect([]safetensors.Tensor{a, a}, nil)
	require.ErrorIs(t, err, safetensors.ErrTensor)
	a.Data = a.Data[1:]
	_, err = safetensors.Collect([]safetensors.Tensor{a}, nil)
	require.ErrorIs(t, err, safetensors.ErrTensor)
}

// drawTensors draws tensors of any type, with names that need every kind of escape.
func drawTensors(t *rapid.T) []safetensors.Tensor {
	dtypes := slices.Sorted(maps.Keys(bits))
	name := rapid.OneOf(rapid.String(), rapid.StringMatching(`[a-c](\.weight|\.bias|["\\/\x00-\x1f<>&])?`))
	names := rapid.SliceOfNDistinct(name.Filter(func(s string) bool { return s != "__metadata__" }), 0, 8, rapid.ID).Draw(t, "names")
	tensors := make([]safetensors.Tensor, len(names))
	for i, name := range names {
		dtype := rapid.SampledFrom(dtypes).Draw(t, "dtype")
		shape := rapid.SliceOfN(rapid.IntRange(0, 4), 0, 4).Draw(t, "shape")
		elements := 1
		for _, n := range shape {
			elements *= n
		}
		if elements*bits[dtype]%8 != 0 {
			shape = append(shape, 8)
			elements *= 8
		}
		data := make([]byte, elements*bits[dtype]/8)
		for j := range data {
			data[j] = byte(31*i + j)
		}
		tensors[i] = safetensors.Tensor{Name: name, DType: dtype, Shape: shape, Data: data}
	}
	return tensors
}

func TestContentRoundTrips(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tensors := drawTensors(t)
		metadata := rapid.MapOfN(rapid.String(), rapid.String(), 0, 4).Draw(t, "metadata")
		header, ordered, size, err := safetensors.Layout(tensors, metadata)
		require.NoError(t, err)
		b, err := safetensors.Marshal(tensors, metadata)
		require.NoError(t, err)
		require.Len(t, b, int(size))
		require.Equal(t, header, b[:len(header)])
		require.Zero(t, len(header)%64, "the data are aligned to cache lines")
		require.True(t, json.Valid(header[8:]))

		file, err := safetensors.Parse(b)
		require.NoError(t, err)
		require.Equal(t, metadata, file.Metadata())
		require.Len(t, file.Tensors(), len(tensors))
		offset := len(header)
		for i, got := range file.Tensors() {
			require.Equal(t, ordered[i].Name, got.Name)
			require.Zero(t, offset%max(1, bits[got.DType]/8), "each tensor is aligned to its elements")
			offset += len(got.Data)
		}
		for _, want := range tensors {
			got, err := file.Tensor(want.Name)
			require.NoError(t, err)
			require.Equal(t, want.DType, got.DType)
			require.Equal(t, append([]int{}, want.Shape...), got.Shape)
			require.True(t, bytes.Equal(want.Data, got.Data))
		}

		// The order of the arguments does not matter.
		slices.Reverse(tensors)
		again, err := safetensors.Marshal(tensors, metadata)
		require.NoError(t, err)
		require.Equal(t, b, again)
	})
}

// FuzzParse checks that what is accepted is what the format requires, by encoding/json, and that it
// can be written and parsed again.
func FuzzParse(f *testing.F) {
	for _, test := range hostile {
		if len(test.content) < 1000 {
			f.Add(test.content)
		}
	}
	f.Add(content(one("a", "a"), 4))
	f.Add(content(one("a", `\u00e9\ud83d\ude00\/\\\"\b\f\n\r\t`), 4))
	f.Add(content(`{"__metadata__":{"format":"pt"},"a":{"dtype":"BF16","shape":[0,3],"data_offsets":[0,0]}}  `, 0))
	f.Fuzz(func(t *testing.T, b []byte) {
		file, err := safetensors.Parse(b)
		size, noSize := safetensors.HeaderSize(b)
		header := b[:min(size, uint64(len(b)))]
		if noSize != nil {
			header = b
		}
		described, herr := safetensors.ParseHeader(header, uint64(len(b)))
		require.Equal(t, err, herr, "the header alone decides")
		if err != nil {
			require.ErrorIs(t, err, safetensors.ErrFormat)
			return
		}
		require.NoError(t, noSize)
		require.Equal(t, file.Metadata(), described.Metadata())
		for i, tensor := range file.Tensors() {
			bytes, err := tensor.Size()
			require.NoError(t, err)
			require.Len(t, tensor.Data, int(bytes))
			tensor.Data = nil
			require.Equal(t, tensor, described.Tensors()[i])
		}
		var fields map[string]json.RawMessage
		require.NoError(t, json.Unmarshal(b[8:size], &fields))
		var metadata map[string]string
		if raw, ok := fields["__metadata__"]; ok {
			require.NoError(t, json.Unmarshal(raw, &metadata))
			delete(fields, "__metadata__")
		}
		require.Len(t, file.Metadata(), len(metadata))
		for key, value := range metadata {
			require.Equal(t, value, file.Metadata()[key])
		}
		require.Len(t, fields, len(file.Names()))
		total := 0
		for _, tensor := range file.Tensors() {
			var want struct {
				DType   string `json:"dtype"`
				Shape   []int  `json:"shape"`
				Offsets []int  `json:"data_offsets"`
			}
			require.NoError(t, json.Unmarshal(fields[tensor.Name], &want))
			require.Equal(t, want.DType, tensor.DType)
			require.Equal(t, want.Shape, tensor.Shape)
			require.Equal(t, []int{total, total + len(tensor.Data)}, want.Offsets)
			elements := 1
			for _, n := range tensor.Shape {
				elements *= n
			}
			require.Equal(t, elements*bits[tensor.DType], 8*len(tensor.Data))
			require.Equal(t, b[int(size)+total:int(size)+total+len(tensor.Data)], append([]byte{}, tensor.Data...))
			total += len(tensor.Data)
		}
		require.Equal(t, len(b), int(size)+total)

		again, err := safetensors.Marshal(file.Tensors(), file.Metadata())
		require.NoError(t, err)
		second, err := safetensors.Parse(again)
		require.NoError(t, err)
		require.Equal(t, file.Metadata(), second.Metadata())
		for _, tensor := range file.Tensors() {
			got, err := second.Tensor(tensor.Name)
			require.NoError(t, err)
			require.Equal(t, tensor, got)
		}
	})
}

func BenchmarkParse(b *testing.B) {
	var tensors []safetensors.Tensor
	for i := range 1000 {
		tensors = append(tensors, safetensors.Tensor{
			Name: fmt.Sprintf("model.layers.%d.self_attn.q_proj.weight", i), DType: "BF16", Shape: []int{16, 16}, Data: make([]byte, 512),
		})
	}
	content, err := safetensors.Marshal(tensors, map[string]string{"format": "pt"})
	require.NoError(b, err)
	b.ReportAllocs()
	for b.Loop() {
		_, err := safetensors.Parse(content)
		require.NoError(b, err)
	}
}
