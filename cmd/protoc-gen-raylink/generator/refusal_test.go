package generator_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/descriptorpb"
)

// schema is a file x.proto, whose first line has everything up to the service.
func schema(service string) sources {
	return sources{"x.proto": `syntax = "proto3"; package x; import "raylink/options/v1/options.proto"; ` +
		`option go_package = "example.com/x"; message M { map<string, M> m = 1; message Inner {} }` + "\n" + service}
}

// options begins an options.proto of another version.
const options = `syntax = "proto3"; package raylink.options.v1; import "google/protobuf/descriptor.proto"; ` +
	`option go_package = "github.com/raylink/raylink/gen/raylink/options/v1;optionsv1";`

// TestRefusals has one case for everything that the plugin refuses: what the error says, and where.
func TestRefusals(t *testing.T) {
	for name, test := range map[string]struct {
		files     sources
		parameter string
		want      string
	}{
		"type with capitals": {
			files: schema("service S {\n  option (raylink.options.v1.node).type = \"Parrot\";\n}"),
			want: `x.proto:3:3: service S: type "Parrot": a type is lower-case letters, digits and hyphens, ` +
				`beginning with a letter`,
		},
		"empty type": {
			files: schema("service S {\n  option (raylink.options.v1.node).type = \"\";\n}"),
			want:  `x.proto:3:3: service S: type "": a type is lower-case letters, digits and hyphens, beginning with a letter`,
		},
		"type like a name": {
			files: schema("service S {\n  option (raylink.options.v1.node) = {\n    type: \"parrot-2\"\n  };\n}"),
			want: `x.proto:3:3: service S: type "parrot-2": a type may not end in a hyphen and digits, ` +
				`for a node's name is its type, a hyphen and its index`,
		},
		"type that ends in a hyphen": {
			files: schema("service S {\n  option (raylink.options.v1.node).type = \"parrot-\";\n}"),
			want: `x.proto:3:3: service S: type "parrot-": a type may not end in a hyphen and digits, ` +
				`for a node's name is its type, a hyphen and its index`,
		},
		"two services of one type": {
			files: schema("service Learner {}\nservice S {\n  option (raylink.options.v1.node).type = \"learner\";\n}"),
			want: `x.proto:4:3: service S: its type "learner" is also that of Learner in x.proto; types are unique in a binary: ` +
				`give one of the two another ` + "`type` in option (raylink.options.v1.node)",
		},
		"config that isn't there": {
			files: schema("service S {\n  option (raylink.options.v1.node).config = \"x.Config\";\n}"),
			want:  `x.proto:3:3: service S: config "x.Config": there is no such message in this file or those that it imports`,
		},
		"config without its package": {
			files: schema("service S {\n  option (raylink.options.v1.node).config = \"M.Inner\";\n}"),
			want:  `x.proto:3:3: service S: config "M.Inner": there is no such message; give its full name, "x.M.Inner"`,
		},
		"config with a dot before it": {
			files: schema("service S {\n  option (raylink.options.v1.node).config = \".x.M\";\n}"),
			want:  `x.proto:3:3: service S: config ".x.M": not the full name of a message, such as "x.Config"`,
		},
		"config is a service": {
			files: schema("service S {\n  option (raylink.options.v1.node).config = \"x.S\";\n}"),
			want:  `x.proto:3:3: service S: config "x.S": there is no such message in this file or those that it imports`,
		},
		"config is the entry of a map": {
			files: schema("service S {\n  option (raylink.options.v1.node).config = \"x.M.MEntry\";\n}"),
			want:  `x.proto:3:3: service S: config "x.M.MEntry": the entry of a map is not a message of its own in Go`,
		},
		"config out of reach": {
			files: sources{
				"x.proto": schema("import \"middle.proto\";\nservice S {\n" +
					"  option (raylink.options.v1.node).config = \"y.Y\";\n}")["x.proto"],
				"middle.proto": `syntax = "proto3"; import "y.proto"; option go_package = "example.com/x"; message Middle { y.Y y = 1; }`,
				"y.proto":      `syntax = "proto3"; package y; option go_package = "example.com/y"; message Y {}`,
			},
			want: `x.proto:4:3: service S: config "y.Y": the message is in y.proto, which this file doesn't import`,
		},
		"a bound of zero": {
			files: schema("service S {\n  option (raylink.options.v1.node) = {max_concurrency: 0};\n}"),
			want:  `x.proto:3:3: service S: max_concurrency must be at least 1; leave it out for the default`,
		},
		"a bound beyond an int": {
			files: schema("service S {\n  option (raylink.options.v1.node).max_pending = 2147483648;\n}"),
			want:  `x.proto:3:3: service S: max_pending is 2147483648, more than an int of 32 bits can hold`,
		},
		"resources without an amount": {
			files: schema("service S {\n  option (raylink.options.v1.node).resources = \"cpu=1,gpu\";\n}"),
			want:  `x.proto:3:3: service S: resources: "gpu": an entry has the form name=amount`,
		},
		"a part of a GPU": {
			files: schema("service S {\n  option (raylink.options.v1.node).resources = \"gpu=0.5\";\n}"),
			want:  `x.proto:3:3: service S: resources: "gpu=0.5": GPUs are whole: a part of one can't be allocated`,
		},
		"a stream that takes turns": {
			files: schema("service S {\n  rpc Do(M) returns (stream M) {\n" +
				"    option (raylink.options.v1.method).concurrent = false;\n  }\n}"),
			want: "x.proto:4:5: method x.S.Do: a stream can't take turns; leave `concurrent` out, and take turns inside the method " +
				"with Node.Do",
		},
		"two services of one Go name": {
			files: schema("service FooBar {}\nservice foo_bar { option (raylink.options.v1.node).type = \"other\"; }"),
			want: `x.proto:3:1: service foo_bar: its name in Go is FooBar, which is also that of service FooBar in x.proto; ` +
				`rename one of the two`,
		},
		"two methods of one Go name": {
			files: schema("service S {\n  rpc GetIt(M) returns (M);\n  rpc get_it(M) returns (M);\n}"),
			want:  `x.proto:4:3: method x.S.get_it: its name in Go is GetIt, which is also that of method GetIt; rename one of the two`,
		},
		"relative go_package": {
			files: sources{"x.proto": "syntax = \"proto3\";\noption go_package = \"./pb\";\nservice S {}"},
			want: `x.proto:2:1: the Go import path "./pb" is relative, so that code in another package can't import the messages; ` +
				`write the whole path in go_package, or pass Mx.proto=<import path>`,
		},
		"absolute go_package": {
			files: sources{"x.proto": "syntax = \"proto3\";\noption go_package = \"/pb\";\nservice S {}"},
			want:  `x.proto:2:1: the Go import path "/pb" is absolute, so that code in another package can't import the messages`,
		},
		"go_package that is no import path": {
			files: sources{"x.proto": "syntax = \"proto3\";\noption go_package = \"example.com/a b;ab\";\nservice S {}"},
			want:  `x.proto:2:1: "example.com/a b" is not a valid Go import path: invalid char ' '`,
		},
		"a program's package": {
			files: sources{"x.proto": "syntax = \"proto3\";\noption go_package = \"example.com/x;main\";\nservice S {}"},
			want:  `x.proto:2:1: the Go package is named main, and no other package can import it`,
		},
		"a package name that is none": {
			files: sources{"x.proto": "syntax = \"proto3\";\noption go_package = \"example.com/x;my-pb\";\nservice S {}"},
			want:  `x.proto:2:1: "my-pb" is not a valid Go package name`,
		},
		"messages that can't be imported": {
			files: sources{
				"x.proto": schema("import \"y.proto\";\nservice S {\n  rpc Do(y.Y) returns (M);\n}")["x.proto"],
				"y.proto": "syntax = \"proto3\"; package y; option go_package = \"example.com/y;main\"; message Y {}",
			},
			want: `x.proto:4:3: y.Y can't be used, for in y.proto the Go package is named main, and no other package can import it`,
		},
		"messages where the nodes would go": {
			files: sources{
				"x.proto": schema("import \"y.proto\";\nservice S {\n  rpc Do(y.Y) returns (M);\n}")["x.proto"],
				"y.proto": "syntax = \"proto3\"; package y; option go_package = \"example.com/x/xraylink\"; message Y {}",
			},
			want: `x.proto:1:74: its nodes would go into the Go package "example.com/x/xraylink", which is that of the messages ` +
				`of y.proto; give one of the two another go_package`,
		},
		"two files of one name": {
			files: sources{
				"x.proto":   "syntax = \"proto3\"; option go_package = \"example.com/x\"; service S {}",
				"y/x.proto": "syntax = \"proto3\"; option go_package = \"example.com/x\"; service T {}",
			},
			want: `y/x.proto:1:1: its generated file would be example.com/x/xraylink/x.raylink.go, which is also that of x.proto; ` +
				`rename one of the two`,
		},
		"an option file of another number": {
			files: sources{
				"x.proto":                          schema("service S {\n  option (raylink.options.v1.node) = {};\n}")["x.proto"],
				"raylink/options/v1/options.proto": options + ` message N {} extend google.protobuf.ServiceOptions { N node = 50000; }`,
			},
			want: `x.proto:3:3: service S: option (raylink.options.v1.node): raylink/options/v1/options.proto gives it the number 50000, ` +
				`and this plugin knows it as 236689204; write that file anew with protoc-gen-raylink --export`,
		},
		"an option of the future": {
			files: sources{
				"x.proto": schema("service S {\n  option (raylink.options.v1.node) = {durable: true};\n}")["x.proto"],
				"raylink/options/v1/options.proto": options + ` message N { bool durable = 99; } ` +
					`extend google.protobuf.ServiceOptions { N node = 236689204; }`,
			},
			want: `x.proto:3:3: service S: option (raylink.options.v1.node): field 99 is not known to this version of the plugin; ` +
				`run: go install github.com/raylink/raylink/cmd/protoc-gen-raylink@latest`,
		},
		"a type of too many bytes": {
			files: schema("service " + strings.Repeat("Long", 28) + " {}"),
			want: "x.proto:2:1: service " + strings.Repeat("Long", 28) + `: type "` + strings.Repeat("-long", 28)[1:] +
				`": it has 139 bytes; the limit is 128`,
		},
		"a type of the form of a nid": {
			files: schema("service Deadbeef_dead_beef_cafe {}"),
			want: `x.proto:2:1: service Deadbeef_dead_beef_cafe: type "deadbeef-dead-beef-cafe": ` +
				`with an index it would have the form of a nid, a UUID`,
		},
		"a full name of too many bytes": {
			files: sources{"x.proto": "syntax = \"proto3\";\npackage " + strings.Repeat("long.", 90) + "x;\n" +
				"option go_package = \"example.com/x\";\nservice " + strings.Repeat("Long", 16) + " {}"},
			want: "x.proto:4:1: service " + strings.Repeat("Long", 16) + ": its full name can't be a node's: it has 516 bytes; the limit is 512",
		},
		"own schemas in another Go package": {
			files:     schema("service S {}"),
			parameter: "Mraylink/options/v1/options.proto=example.com/gen/options",
			want: `raylink/options/v1/options.proto:11:1: its Go package is "example.com/gen/options", and RayLink's own code of it is in ` +
				`"github.com/raylink/raylink/gen/raylink/options/v1"; leave its go_package alone: with buf's managed mode by ` +
				"`disable: [{file_option: go_package, path: raylink}]`, " +
				`else drop the M parameter or write the file anew with protoc-gen-raylink --export`,
		},
		"a procedure of too many bytes": {
			files: schema("service S {\n  rpc " + strings.Repeat("Long", 256) + "(M) returns (M);\n}"),
			want: "x.proto:3:3: method " + strings.Repeat("Long", 16) + ": the procedure /x.S/" + strings.Repeat("Long", 7)[:27] +
				"... has 1029 bytes; the limit is 1024",
		},
		"a package that Go skips": {
			files: sources{"x.proto": "syntax = \"proto3\";\noption go_package = \"example.com/documentation\";\nservice S {}"},
			want: `x.proto:2:1: the Go package is named documentation, and Go skips the files of packages of that name; ` +
				`give go_package another name`,
		},
		"an import path with letters beyond ASCII": {
			files: sources{"x.proto": "syntax = \"proto3\";\noption go_package = \"example.com/läufer;l\";\nservice S {}"},
			want:  `x.proto:2:1: "example.com/läufer" is not a valid Go import path: invalid char 'ä'`,
		},
		"an import path that Windows reserves": {
			files: sources{"x.proto": "syntax = \"proto3\";\noption go_package = \"example.com/con/x\";\nservice S {}"},
			want: `x.proto:2:1: "example.com/con/x" is not a valid Go import path: "con" disallowed as path element component ` +
				`on Windows`,
		},
		"an import path below vendor": {
			files: sources{"x.proto": "syntax = \"proto3\";\noption go_package = \"example.com/vendor/x\";\nservice S {}"},
			want: `x.proto:2:1: "example.com/vendor/x" is not a valid Go import path: only the go command puts packages below ` +
				`"vendor"`,
		},
		"a directory that the go command refuses": {
			files: sources{"x.proto": "syntax = \"proto3\";\noption go_package = \"example.com/-x;x\";\nservice S {}"},
			want: `x.proto:2:1: "example.com/-x" is not a valid Go import path: the go command refuses directories whose names begin ` +
				`with "-"`,
		},
		"two files that differ in case": {
			files: sources{
				"x.proto":   "syntax = \"proto3\"; option go_package = \"example.com/x\"; service S {}",
				"y/X.proto": "syntax = \"proto3\"; option go_package = \"example.com/x\"; message M {}",
			},
			want: `y/X.proto:1:1: its generated file X.pb.go differs in case alone from that of x.proto, and Go builds no package ` +
				`with both; rename one of the two`,
		},
		"two packages that differ in case": {
			files: sources{
				"x.proto":   "syntax = \"proto3\"; option go_package = \"example.com/x\"; service S {}",
				"y/X.proto": "syntax = \"proto3\"; option go_package = \"example.com/X\"; message M {}",
			},
			want: `x.proto:1:20: the Go packages "example.com/X" (of y/X.proto) and "example.com/x" (of x.proto) differ in case alone, ` +
				`and Go builds no program with both; give one of the two another go_package`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			names := slices.DeleteFunc(test.files.names(), func(name string) bool {
				return name != "x.proto" && name != "y/x.proto" && name != "y/X.proto"
			})
			assert.Equal(t, test.want, generate(t, request(t, test.files, test.parameter, names...)).GetError())
		})
	}
}

func TestAllFaultsAreListedInOrder(t *testing.T) {
	files := schema("service B {\n  option (raylink.options.v1.node) = {max_pending: 0 type: \"B\"};\n}\n" +
		"service A {\n  option (raylink.options.v1.node).max_streams = 0;\n}")
	assert.Equal(t, `x.proto:3:3: service B: max_pending must be at least 1; leave it out for the default
x.proto:3:3: service B: type "B": a type is lower-case letters, digits and hyphens, beginning with a letter
x.proto:6:3: service A: max_streams must be at least 1; leave it out for the default`,
		generate(t, request(t, files, "", "x.proto")).GetError())
}

// TestFaultsOfImportedFilesAreTheirOwn does not blame a file for the faults of its imports.
func TestFaultsOfImportedFilesAreTheirOwn(t *testing.T) {
	files := schema("service S { option (raylink.options.v1.node).max_pending = 0; }")
	files["z.proto"] = "syntax = \"proto3\"; import \"x.proto\"; option go_package = \"example.com/z\"; " +
		"service Z { rpc Do(x.M) returns (x.M); }"
	assert.Empty(t, generate(t, request(t, files, "", "z.proto")).GetError())
}

func TestFaultsWithoutSourceInfoNameTheFile(t *testing.T) {
	req := request(t, schema("service S { option (raylink.options.v1.node).max_pending = 0; }"), "", "x.proto")
	for _, file := range req.GetProtoFile() {
		file.SourceCodeInfo = nil
	}
	assert.Equal(t, "x.proto: service S: max_pending must be at least 1; leave it out for the default", generate(t, req).GetError())
}

func TestSupportedFeaturesAreDeclaredEvenOnFailure(t *testing.T) {
	res := generate(t, request(t, schema("service S { option (raylink.options.v1.node).max_pending = 0; }"), "", "x.proto"))
	require.NotEmpty(t, res.GetError())
	assert.Equal(t, uint64(3), res.GetSupportedFeatures())
	assert.Equal(t, int32(descriptorpb.Edition_EDITION_PROTO2), res.GetMinimumEdition())
	assert.Equal(t, int32(descriptorpb.Edition_EDITION_2024), res.GetMaximumEdition())
}
