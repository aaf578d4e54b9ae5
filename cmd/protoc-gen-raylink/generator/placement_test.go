package generator_test

import (
	"maps"
	"regexp"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink/cmd/protoc-gen-raylink/generator"
)

// TestPlacement walks through the forms that go_package and the plugin's parameters take: where the
// file goes, what its package is called, and how it imports the messages.
func TestPlacement(t *testing.T) {
	for name, test := range map[string]struct {
		goPackage, parameter string
		wantFile             string
		wantPackage          string
		wantImport           string
	}{
		"import path": {
			goPackage:   `option go_package = "example.com/some/demo";`,
			wantFile:    "example.com/some/demo/demoraylink/x.raylink.go",
			wantPackage: "demoraylink",
			wantImport:  `"example.com/some/demo"`,
		},
		"import path and name": {
			goPackage:   `option go_package = "example.com/demo/v1;demov1";`,
			wantFile:    "example.com/demo/v1/demov1raylink/x.raylink.go",
			wantPackage: "demov1raylink",
			wantImport:  `demov1 "example.com/demo/v1"`,
		},
		"slash at the end": {
			goPackage:   `option go_package = "example.com/demo/";`,
			wantFile:    "example.com/demo/demoraylink/x.raylink.go",
			wantPackage: "demoraylink",
			wantImport:  `"example.com/demo"`,
		},
		"last part is not a name": {
			goPackage:   `option go_package = "example.com/my-demo.v1";`,
			wantFile:    "example.com/my-demo.v1/my_demo_v1raylink/x.raylink.go",
			wantPackage: "my_demo_v1raylink",
			wantImport:  `my_demo_v1 "example.com/my-demo.v1"`,
		},
		"last part is a keyword": {
			goPackage:   `option go_package = "example.com/type";`,
			wantFile:    "example.com/type/_typeraylink/x.raylink.go",
			wantPackage: "_typeraylink",
			wantImport:  `_type "example.com/type"`,
		},
		"last part is a major version": {
			goPackage:   `option go_package = "example.com/demo/v2";`,
			wantFile:    "example.com/demo/v2/v2raylink/x.raylink.go",
			wantPackage: "v2raylink",
			wantImport:  `"example.com/demo/v2"`,
		},
		"name is predeclared": {
			goPackage:   `option go_package = "example.com/string";`,
			wantFile:    "example.com/string/stringraylink/x.raylink.go",
			wantPackage: "stringraylink",
			wantImport:  `string1 "example.com/string"`,
		},
		"source_relative": {
			goPackage: `option go_package = "example.com/demo;demov1";`, parameter: "paths=source_relative",
			wantFile:    "dir/demov1raylink/x.raylink.go",
			wantPackage: "demov1raylink",
			wantImport:  `demov1 "example.com/demo"`,
		},
		"module": {
			goPackage: `option go_package = "example.com/some/demo";`, parameter: "module=example.com/some",
			wantFile:    "demo/demoraylink/x.raylink.go",
			wantPackage: "demoraylink",
			wantImport:  `"example.com/some/demo"`,
		},
		"module of the package itself": {
			goPackage: `option go_package = "example.com/demo";`, parameter: "paths=import,module=example.com/demo",
			wantFile:    "demoraylink/x.raylink.go",
			wantPackage: "demoraylink",
			wantImport:  `"example.com/demo"`,
		},
		"M without go_package": {
			parameter:   "Mdir/x.proto=example.com/demo",
			wantFile:    "example.com/demo/demoraylink/x.raylink.go",
			wantPackage: "demoraylink",
			wantImport:  `"example.com/demo"`,
		},
		"M with a name": {
			parameter:   "Mdir/x.proto=example.com/demo;other",
			wantFile:    "example.com/demo/otherraylink/x.raylink.go",
			wantPackage: "otherraylink",
			wantImport:  `other "example.com/demo"`,
		},
		"M over go_package": {
			goPackage: `option go_package = "./x;named";`, parameter: "Mdir/x.proto=example.com/demo,paths=source_relative",
			wantFile:    "dir/namedraylink/x.raylink.go",
			wantPackage: "namedraylink",
			wantImport:  `named "example.com/demo"`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			files := sources{"dir/x.proto": `syntax = "proto3"; message M {} service S { rpc Do(M) returns (M); } ` + test.goPackage}
			req := request(t, files, test.parameter, "dir/x.proto")
			got := outputs(t, generate(t, req))
			require.Equal(t, []string{test.wantFile}, slices.Collect(maps.Keys(got)))
			assert.Regexp(t, `(?m)^package `+test.wantPackage+`$`, got[test.wantFile])
			assert.Regexp(t, `(?m)^\t`+regexp.QuoteMeta(test.wantImport)+`$`, got[test.wantFile])
		})
	}
}

func TestModuleThatDoesNotFit(t *testing.T) {
	files := sources{"x.proto": `syntax = "proto3"; option go_package = "example.com/x"; service S {}`}
	assert.Contains(t, generate(t, request(t, files, "module=example.org", "x.proto")).GetError(), "does not match prefix")
}

func TestUnknownParametersAreRefused(t *testing.T) {
	files := sources{"x.proto": `syntax = "proto3"; option go_package = "example.com/x"; service S {}`}
	_, err := generator.Options().New(request(t, files, "paths=source_relative,pathes=import", "x.proto"))
	assert.EqualError(t, err, `unknown parameter "pathes"; see protoc-gen-raylink --help`)
}

func TestFileWithoutAnyGoPackage(t *testing.T) {
	_, err := generator.Options().New(request(t, sources{"x.proto": `syntax = "proto3"; service S {}`}, "", "x.proto"))
	assert.ErrorContains(t, err, "x.proto")
}
