package generator_test

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/pluginpb"

	"github.com/raylink/raylink/cmd/protoc-gen-raylink/generator/testdata/edition2024"
	"github.com/raylink/raylink/cmd/protoc-gen-raylink/generator/testdata/edition2024/edition2024raylink"
	optionsv1 "github.com/raylink/raylink/gen/raylink/options/v1"
)

type talker struct {
	edition2024raylink.UnimplementedParrotNode
}

func (talker) Call(_ context.Context, req *edition2024.Request) (*edition2024.Request, error) {
	res := &edition2024.Request{}
	res.SetName(req.GetName() + "!")
	res.SetChild(req)
	return res, nil
}

// TestOpaqueMessagesAreCalledWith calls a node of edition 2024, whose messages have no fields that
// Go code could see.
func TestOpaqueMessagesAreCalledWith(t *testing.T) {
	req := &edition2024.Request{}
	req.SetName("polly")
	res, err := edition2024raylink.NewLocalParrot(talker{}).Call(t.Context(), req)
	require.NoError(t, err)
	assert.Equal(t, "polly!", res.GetName())
	assert.Equal(t, "polly", res.GetChild().GetName())
	_, err = edition2024raylink.NewLocalParrot(talker{}).Call(t.Context(), nil)
	require.NoError(t, err)
}

// optionsAside is a request of edition 2024 whose file x.proto says `import option` of what it
// imports: buf leaves such files out.
func optionsAside(t *testing.T, files sources, aside string) *pluginpb.CodeGeneratorRequest {
	t.Helper()
	req := request(t, files, "", "x.proto")
	for _, file := range req.GetProtoFile() {
		if file.GetName() == "x.proto" {
			require.Contains(t, file.GetDependency(), aside)
			file.Syntax, file.Edition = new("editions"), descriptorpb.Edition_EDITION_2024.Enum()
			file.Dependency = slices.DeleteFunc(file.GetDependency(), func(name string) bool { return name == aside })
			file.OptionDependency = []string{aside}
		}
	}
	req.ProtoFile = slices.DeleteFunc(req.GetProtoFile(), func(file *descriptorpb.FileDescriptorProto) bool { return file.GetName() == aside })
	return req
}

// TestOptionsOfAnOptionImportCount finds faults in options whose schema is not part of the request.
func TestOptionsOfAnOptionImportCount(t *testing.T) {
	const exported = "raylink/options/v1/options.proto"
	faulty := schema("service S {\n  option (raylink.options.v1.node).max_pending = 0;\n" +
		"  rpc Do(M) returns (stream M) {\n    option (raylink.options.v1.method).concurrent = false;\n  }\n}")
	const want = "x.proto:3:3: service S: max_pending must be at least 1; leave it out for the default"
	got := generate(t, optionsAside(t, faulty, exported)).GetError()
	assert.Contains(t, got, want)
	assert.Contains(t, got, "x.proto:5:5: method x.S.Do: a stream can't take turns")
}

// TestForeignOptionImportIsIgnored has an option with RayLink's number that means something else.
func TestForeignOptionImportIsIgnored(t *testing.T) {
	files := sources{
		"other/options.proto": `syntax = "proto3"; package other; import "google/protobuf/descriptor.proto"; option go_package = "example.com/other"; ` +
			`message O { uint32 size = 4; } extend google.protobuf.ServiceOptions { O o = 236689204; }`,
		"x.proto": `syntax = "proto3"; package x; import "other/options.proto"; option go_package = "example.com/x"; message M {}` +
			"\nservice S { option (other.o).size = 0; rpc Do(M) returns (M); }",
	}
	out := outputs(t, generate(t, optionsAside(t, files, "other/options.proto")))
	require.Len(t, out, 1)
	for _, content := range out {
		assert.NotContains(t, content, "MaxPending")
	}
}

// TestOptionsOfTheOldNumberAreNotIgnored has a schema that was compiled with an options.proto of an
// early version.
func TestOptionsOfTheOldNumberAreNotIgnored(t *testing.T) {
	const exported = "raylink/options/v1/options.proto"
	files := schema("service S {\n  option (raylink.options.v1.node) = { max_pending: 7 };\n}")
	files[exported] = options + ` message N { uint32 max_pending = 4; } extend google.protobuf.ServiceOptions { N node = 61410; }`
	assert.Equal(t, "x.proto:3:3: service S: option (raylink.options.v1.node): it was compiled with the number 61410, which it had in "+
		"early versions of raylink/options/v1/options.proto; write that file anew with protoc-gen-raylink --export",
		generate(t, optionsAside(t, files, exported)).GetError())
	assert.Equal(t, "x.proto:3:3: service S: option (raylink.options.v1.node): raylink/options/v1/options.proto gives it the number 61410, "+
		"and this plugin knows it as 236689204; write that file anew with protoc-gen-raylink --export",
		generate(t, request(t, files, "", "x.proto")).GetError())
}

// TestOptionNumbersAreOursAlone derives the options' number as options.proto says that it was.
func TestOptionNumbersAreOursAlone(t *testing.T) {
	sum := sha256.Sum256([]byte("raylink.options.v1"))
	want := 100_000_000 + binary.BigEndian.Uint64(sum[:8])%400_000_000
	assert.Equal(t, want, uint64(optionsv1.E_Node.TypeDescriptor().Number()))
	assert.Equal(t, want, uint64(optionsv1.E_Method.TypeDescriptor().Number()))
	assert.Equal(t, want, uint64(optionsv1.E_Row.TypeDescriptor().Number()))
	assert.Equal(t, want, uint64(optionsv1.E_Column.TypeDescriptor().Number()))
}
