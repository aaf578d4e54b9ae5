package generator_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// rowSchema is a file x.proto with a row whose field stands alone in line 4.
func rowSchema(field string) sources {
	return schema("message R {\n  option (raylink.options.v1.row) = {};\n  " + field + "\n}\nenum E { E_ZERO = 0; }\nmessage Outer {}")
}

const columnOption = "raylink.options.v1.column"

// TestRowRefusals has one case for everything that the plugin refuses in a row: what the error
// says, and where.
func TestRowRefusals(t *testing.T) {
	const fit32 = "DATA_TYPE_INT32, DATA_TYPE_INT16, DATA_TYPE_INT8, DATA_TYPE_UINT16, DATA_TYPE_UINT8"
	withOption := func(field, option string) string {
		return field + " [\n    (" + columnOption + ") = {" + option + "}\n  ];"
	}
	for name, test := range map[string]struct{ field, want string }{
		"string": {
			"string s = 1;",
			"4:3: field x.R.s: a row has no columns for strings, whose size is not fixed; " +
				"use bytes with a shape, or a number that stands for the string",
		},
		"string with a shape": {
			"repeated string s = 1 [(raylink.options.v1.column).shape = 3];",
			"4:3: field x.R.s: a row has no columns for strings, whose size is not fixed; " +
				"use bytes with a shape, or a number that stands for the string",
		},
		"map": {
			"map<int32, int32> s = 1;", "4:3: field x.R.s: a row has no columns for maps, whose size is not fixed",
		},
		"message": {
			"Outer o = 1;", "4:3: field x.R.o: a row has no columns for messages; make the fields of Outer fields of the row",
		},
		"oneof": {
			"oneof o { int32 i = 1; }",
			"4:13: field x.R.i: it is part of a oneof, and a row has a value in each of its columns; move the field out of the oneof",
		},
		"optional": {
			"optional int32 i = 1;",
			"4:3: field x.R.i: it may be absent from a message, and a row has a value in each of its columns; leave `optional` out",
		},
		"repeated without a shape": {
			"repeated int32 i = 1;",
			"4:3: field x.R.i: how many elements it has in a row is unknown; give it a shape, as in [(" + columnOption + ").shape = 4]",
		},
		"bytes without a shape": {
			"bytes b = 1;",
			"4:3: field x.R.b: how many elements it has in a row is unknown; give it a shape, as in [(" + columnOption + ").shape = 4]",
		},
		"scalar with a shape": {
			withOption("int32 i = 1", "shape: 1"),
			"5:5: field x.R.i: it is one value in each row, and has no shape; leave `shape` out, or make the field repeated",
		},
		"a dimension of 0": {
			withOption("bytes b = 1", "shape: [4, 0]"), "5:5: field x.R.b: shape [4 0]: each dimension is at least 1",
		},
		"too many dimensions": {
			withOption("bytes b = 1", "shape: [1, 1, 1, 1, 1, 1, 1, 1, 1]"),
			"5:5: field x.R.b: shape [1 1 1 1 1 1 1 1 1]: there are at most 8 dimensions",
		},
		"too large": {
			withOption("repeated float f = 1", "shape: [1073741824, 2]"),
			"5:5: field x.R.f: shape [1073741824 2]: a row has at most 4294967296 bytes",
		},
		"larger than a number": {
			withOption("repeated float f = 1", "shape: [16, 1152921504606846976]"),
			"5:5: field x.R.f: shape [16 1152921504606846976]: a row has at most 4294967296 bytes",
		},
		"two that are too large together": {
			"bytes b = 1 [(" + columnOption + ").shape = 4294967296]; bool c = 2;",
			"3:3: message x.R: a row has at most 4294967296 bytes; with field c this one has more",
		},
		"long name": {
			"int32 " + strings.Repeat("i", 129) + " = 1;",
			"4:3: field x.R." + strings.Repeat("i", 129) + ": a column's name has at most 128 bytes, and this one has 129",
		},
		"floats of integers": {
			withOption("int32 i = 1", "dtype: DATA_TYPE_FLOAT32"),
			"5:5: field x.R.i: dtype DATA_TYPE_FLOAT32 does not fit a field of type int32; possible are " + fit32,
		},
		"unspecified": {
			withOption("E e = 1", "dtype: DATA_TYPE_UNSPECIFIED"),
			"5:5: field x.R.e: dtype DATA_TYPE_UNSPECIFIED does not fit a field of type enum; possible are " + fit32,
		},
		"wider": {
			withOption("fixed32 i = 1", "dtype: DATA_TYPE_UINT64"),
			"5:5: field x.R.i: dtype DATA_TYPE_UINT64 does not fit a field of type fixed32; " +
				"possible are DATA_TYPE_UINT32, DATA_TYPE_UINT16, DATA_TYPE_UINT8",
		},
		"signed for unsigned": {
			withOption("uint64 i = 1", "dtype: DATA_TYPE_INT8"),
			"5:5: field x.R.i: dtype DATA_TYPE_INT8 does not fit a field of type uint64; " +
				"possible are DATA_TYPE_UINT64, DATA_TYPE_UINT32, DATA_TYPE_UINT16, DATA_TYPE_UINT8",
		},
		"a bool that is none": {
			withOption("bool b = 1", "dtype: DATA_TYPE_UINT8"),
			"5:5: field x.R.b: dtype DATA_TYPE_UINT8 does not fit a field of type bool; possible are DATA_TYPE_BOOL",
		},
		"a double in a float": {
			withOption("float f = 1", "dtype: DATA_TYPE_FLOAT64"),
			"5:5: field x.R.f: dtype DATA_TYPE_FLOAT64 does not fit a field of type float; " +
				"possible are DATA_TYPE_FLOAT32, DATA_TYPE_FLOAT16, DATA_TYPE_BFLOAT16",
		},
		"bytes that may be no bools": {
			withOption("bytes b = 1", "dtype: DATA_TYPE_BOOL shape: 2"),
			"5:5: field x.R.b: dtype DATA_TYPE_BOOL does not fit a field of type bytes; possible are DATA_TYPE_UINT8, DATA_TYPE_INT8, " +
				"DATA_TYPE_INT16, DATA_TYPE_UINT16, DATA_TYPE_INT32, DATA_TYPE_UINT32, DATA_TYPE_INT64, DATA_TYPE_UINT64, " +
				"DATA_TYPE_FLOAT16, DATA_TYPE_BFLOAT16, DATA_TYPE_FLOAT32, DATA_TYPE_FLOAT64",
		},
		"initial fraction": {
			withOption("int32 i = 1", "initial: 0.5"),
			"5:5: field x.R.i: initial 0.5: the initial value of a column of type int32 is an integer from -2147483648 to 2147483647",
		},
		"initial nan": {
			withOption("uint32 i = 1", "initial: nan"),
			"5:5: field x.R.i: initial NaN: the initial value of a column of type uint32 is an integer from 0 to 4294967295",
		},
		"initial infinity": {
			withOption("uint64 i = 1", "initial: inf"),
			"5:5: field x.R.i: initial +Inf: the initial value of a column of type uint64 is an integer from 0 to 9007199254740992",
		},
		"initial out of range": {
			withOption("uint32 i = 1", "dtype: DATA_TYPE_UINT8 initial: 256"),
			"5:5: field x.R.i: initial 256: the initial value of a column of type uint8 is an integer from 0 to 255",
		},
		"initial below the range": {
			withOption("bytes b = 1", "dtype: DATA_TYPE_INT8 shape: 2 initial: -129"),
			"5:5: field x.R.b: initial -129: the initial value of a column of type int8 is an integer from -128 to 127",
		},
		"initial that a double does not have": {
			withOption("int64 i = 1", "initial: -9007199254740994"),
			"5:5: field x.R.i: initial -9.007199254740994e+15: the initial value of a column of type int64 " +
				"is an integer from -9007199254740992 to 9007199254740992",
		},
		"initial bool": {
			withOption("bool b = 1", "initial: 2"),
			"5:5: field x.R.b: initial 2: the initial value of a column of type bool is an integer from 0 to 1",
		},
		"initial beyond a float": {
			withOption("float f = 1", "initial: 1e39"), "5:5: field x.R.f: initial 1e+39: it is beyond the largest float32",
		},
		"initial beyond a float16": {
			withOption("float f = 1", "dtype: DATA_TYPE_FLOAT16 initial: -65520"),
			"5:5: field x.R.f: initial -65520: it is beyond the largest float16",
		},
		"initial beyond a bfloat16": {
			withOption("double f = 1", "dtype: DATA_TYPE_BFLOAT16 initial: 1e39"),
			"5:5: field x.R.f: initial 1e+39: it is beyond the largest bfloat16",
		},
		"no fields": {
			"", "3:3: message x.R: a row without fields has no columns; add a field, or leave out option (raylink.options.v1.row)",
		},
	} {
		t.Run(name, func(t *testing.T) {
			assert.Equal(t, "x.proto:"+test.want, generate(t, request(t, rowSchema(test.field), "", "x.proto")).GetError())
		})
	}
}

// TestRefusalsOfRowsAsAWhole has the refusals that need other files than [rowSchema].
func TestRefusalsOfRowsAsAWhole(t *testing.T) {
	var many strings.Builder
	for i := range 257 {
		fmt.Fprintf(&many, " int32 f%d = %d;", i, i+1)
	}
	const header = `syntax = "proto2"; package x; import "raylink/options/v1/options.proto"; option go_package = "example.com/x";`
	for name, test := range map[string]struct {
		files sources
		want  string
	}{
		"too many fields": {
			rowSchema(many.String()[1:]), "x.proto:3:3: message x.R: a row has at most 256 columns, and this message has 257 fields",
		},
		"column without a row": {
			schema("message R {\n  int32 i = 1 [(" + columnOption + ").initial = 1];\n}"),
			"x.proto:3:15: field x.R.i: option (" + columnOption + ") has no effect, because message R is no row; " +
				"give it option (raylink.options.v1.row), or leave this one out",
		},
		"nested": {
			schema("message R {\n message N {\n  option (raylink.options.v1.row) = {};\n  string s = 1;\n }\n}"),
			"x.proto:5:3: field x.R.N.s: a row has no columns for strings, whose size is not fixed; " +
				"use bytes with a shape, or a number that stands for the string",
		},
		"proto2": {
			sources{"x.proto": header + "\nmessage R {\n  option (raylink.options.v1.row) = {};\n  optional int32 i = 1;\n}"},
			"x.proto:4:3: field x.R.i: it may be absent from a message, and a row has a value in each of its columns; " +
				"proto2 can't express fields without presence: use proto3 or an edition",
		},
		"group": {
			sources{"x.proto": header + "\nmessage R {\n  option (raylink.options.v1.row) = {};\n  repeated group G = 1 { optional int32 i = 1; }\n}"},
			"x.proto:4:3: field x.R.g: a row has no columns for messages; make the fields of G fields of the row",
		},
		"extensions": {
			sources{"x.proto": header + "\nmessage R {\n  option (raylink.options.v1.row) = {};\n  repeated int32 i = 1 [(" + columnOption +
				").shape = 1];\n  extensions 10 to 20;\n}"},
			"x.proto:3:3: message x.R: a row has no columns for extensions; remove the extension ranges",
		},
		"edition": {
			sources{"x.proto": strings.Replace(header, `syntax = "proto2"`, `edition = "2023"`, 1) +
				"\nmessage R {\n  option (raylink.options.v1.row) = {};\n  int32 i = 1;\n}"},
			"x.proto:4:3: field x.R.i: it may be absent from a message, and a row has a value in each of its columns; " +
				"set features.field_presence = IMPLICIT",
		},
		"an enum that can't be imported": {
			sources{
				"x.proto": schema("import \"y.proto\";\nmessage R {\n  option (raylink.options.v1.row) = {};\n  y.E e = 1;\n}")["x.proto"],
				"y.proto": "syntax = \"proto3\"; package y; option go_package = \"example.com/y;main\"; enum E { E_ZERO = 0; }",
			},
			"x.proto:5:3: y.E can't be used, for in y.proto the Go package is named main, and no other package can import it",
		},
		"rows where messages are": {
			sources{
				"x.proto": schema("import \"y.proto\";\nmessage R {\n  option (raylink.options.v1.row) = {};\n  y.E e = 1;\n}")["x.proto"],
				"y.proto": "syntax = \"proto3\"; package y; option go_package = \"example.com/x/xraylink\"; enum E { E_ZERO = 0; }",
			},
			`x.proto:1:74: its rows would go into the Go package "example.com/x/xraylink", which is that of the messages ` +
				`of y.proto; give one of the two another go_package`,
		},
		"rows of a program": {
			sources{"x.proto": "syntax = \"proto3\";\nimport \"raylink/options/v1/options.proto\";\noption go_package = \"example.com/x;main\";\n" +
				"message R {\n  option (raylink.options.v1.row) = {};\n  int32 i = 1;\n}"},
			`x.proto:3:1: the Go package is named main, and no other package can import it`,
		},
		"an option file of another number": {
			sources{
				"x.proto": rowSchema("int32 i = 1 [(" + columnOption + ") = {}];")["x.proto"],
				"raylink/options/v1/options.proto": options + ` message N {} extend google.protobuf.MessageOptions { N row = 50000; } ` +
					`extend google.protobuf.FieldOptions { N column = 236689204; }`,
			},
			`x.proto:3:3: message x.R: option (raylink.options.v1.row): raylink/options/v1/options.proto gives it the number 50000, ` +
				`and this plugin knows it as 236689204; write that file anew with protoc-gen-raylink --export`,
		},
		"options of the future": {
			sources{
				"x.proto": rowSchema("int32 i = 1 [\n    (" + columnOption + ").codec = 3\n  ];")["x.proto"],
				"raylink/options/v1/options.proto": options + ` message N { uint32 codec = 99; } ` +
					`extend google.protobuf.MessageOptions { N row = 236689204; } extend google.protobuf.FieldOptions { N column = 236689204; }`,
			},
			"x.proto:4:15: field x.R.i: option (" + columnOption + "): field 99 is not known to this version of the plugin; " +
				"run: go install github.com/raylink/raylink/cmd/protoc-gen-raylink@latest",
		},
	} {
		t.Run(name, func(t *testing.T) {
			assert.Equal(t, test.want, generate(t, request(t, test.files, "", "x.proto")).GetError())
		})
	}
}

func TestAllFaultsOfRowsAreListedWithThoseOfServices(t *testing.T) {
	files := schema("message A {\n  option (raylink.options.v1.row) = {};\n  string s = 1;\n  optional int32 i = 2;\n" +
		"  int32 j = 3 [(" + columnOption + ") = {dtype: DATA_TYPE_UINT8 initial: 256}];\n}\n" +
		"service B {\n  option (raylink.options.v1.node).max_pending = 0;\n}\nmessage C {\n  option (raylink.options.v1.row) = {};\n}")
	got := generate(t, request(t, files, "", "x.proto")).GetError()
	for i, line := range strings.Split(got, "\n") {
		assert.Contains(t, line, []string{"x.A.s", "x.A.i", "x.A.j", "service B", "message x.C"}[i])
	}
	assert.Equal(t, 4, strings.Count(got, "\n"))
}

// TestFaultsOfImportedRowsAreTheirOwn does not blame a file for the faults of its imports.
func TestFaultsOfImportedRowsAreTheirOwn(t *testing.T) {
	files := rowSchema("string s = 1;")
	files["z.proto"] = "syntax = \"proto3\"; import \"x.proto\"; option go_package = \"example.com/z\"; " +
		"service Z { rpc Do(x.M) returns (x.M); }"
	assert.Empty(t, generate(t, request(t, files, "", "z.proto")).GetError())
}

// TestOptionsOfOthersAreNoRows has options of another project that have RayLink's number.
func TestOptionsOfOthersAreNoRows(t *testing.T) {
	files := sources{
		"other/options.proto": `syntax = "proto3"; package other; import "google/protobuf/descriptor.proto"; option go_package = "example.com/other"; ` +
			`message O { uint32 size = 4; } extend google.protobuf.MessageOptions { O o = 236689204; } ` +
			`extend google.protobuf.FieldOptions { O f = 236689204; }`,
		"x.proto": `syntax = "proto3"; package x; import "other/options.proto"; option go_package = "example.com/x"; ` +
			"message M { option (other.o).size = 7; string s = 1 [(other.f).size = 3]; }",
	}
	assert.Empty(t, outputs(t, generate(t, request(t, files, "", "x.proto"))))
	assert.Empty(t, outputs(t, generate(t, optionsAside(t, files, "other/options.proto"))))
}

// TestRowsOfAnOptionImportCount finds a row in a file whose options are not part of the request.
func TestRowsOfAnOptionImportCount(t *testing.T) {
	const exported = "raylink/options/v1/options.proto"
	faulty := rowSchema("repeated int32 i = 1 [(" + columnOption + ").shape = 0];")
	assert.Contains(t, generate(t, optionsAside(t, faulty, exported)).GetError(), "x.R.i: shape [0]: each dimension is at least 1")
	// A message option with the number that others may use, and that RayLink's service options had.
	files := rowSchema("int32 i = 1;")
	files[exported] = options + ` message N {} extend google.protobuf.MessageOptions { N row = 61410; }`
	require.Empty(t, generate(t, optionsAside(t, files, exported)).GetError())
}
