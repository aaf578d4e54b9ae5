package generator_test

import (
	"errors"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"github.com/bufbuild/protocompile"
	"github.com/bufbuild/protocompile/protoutil"
	"github.com/stretchr/testify/require"
	gengo "google.golang.org/protobuf/cmd/protoc-gen-go/internal_gengo"
	"google.golang.org/protobuf/compiler/protogen"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/pluginpb"

	"github.com/raylink/raylink/cmd/protoc-gen-raylink/generator"
	schemas "github.com/raylink/raylink/proto"
)

// sources are .proto files by path.
type sources map[string]string

// testdata reads one folder of testdata.
func testdata(t *testing.T, folder string) sources {
	t.Helper()
	files := sources{}
	require.NoError(t, filepath.WalkDir(filepath.Join("testdata", folder), func(name string, _ fs.DirEntry, err error) error {
		if err != nil || path.Ext(name) != ".proto" {
			return err
		}
		content, err := os.ReadFile(name)
		files[strings.TrimPrefix(filepath.ToSlash(name), "testdata/")] = string(content)
		return err
	}))
	require.NotEmpty(t, files)
	return files
}

// request compiles files, and the schemas that the plugin exports, into what a plugin gets when it
// is to generate the code of names.
func request(t *testing.T, files sources, parameter string, names ...string) *pluginpb.CodeGeneratorRequest {
	t.Helper()
	if req := stored(t, names[0]); req != nil {
		req.Parameter = new(parameter)
		return req
	}
	all := map[string]string{}
	require.NoError(t, fs.WalkDir(schemas.Schemas, ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		content, err := fs.ReadFile(schemas.Schemas, name)
		all[name] = string(content)
		return err
	}))
	maps.Copy(all, files)
	compiler := protocompile.Compiler{
		Resolver:       protocompile.WithStandardImports(&protocompile.SourceResolver{Accessor: protocompile.SourceAccessorFromMap(all)}),
		SourceInfoMode: protocompile.SourceInfoStandard,
	}
	linked, err := compiler.Compile(t.Context(), names...)
	require.NoError(t, err)

	req := &pluginpb.CodeGeneratorRequest{FileToGenerate: names, Parameter: new(parameter)}
	seen := map[string]bool{}
	var add func(protoreflect.FileDescriptor)
	add = func(file protoreflect.FileDescriptor) {
		if seen[file.Path()] {
			return
		}
		seen[file.Path()] = true
		for i := range file.Imports().Len() {
			add(file.Imports().Get(i))
		}
		req.ProtoFile = append(req.ProtoFile, protoutil.ProtoFromFileDescriptor(file))
	}
	for _, file := range linked {
		add(file)
	}
	return overTheWire(t, req)
}

// stored is the request that stands beside a schema which protocompile doesn't understand yet, as
// buf sends it to a plugin; nil for others.
func stored(t *testing.T, name string) *pluginpb.CodeGeneratorRequest {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("testdata", filepath.FromSlash(path.Dir(name)), "request.binpb"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	require.NoError(t, err)
	req := &pluginpb.CodeGeneratorRequest{}
	require.NoError(t, proto.Unmarshal(raw, req))
	req.CompilerVersion, req.SourceFileDescriptors = nil, nil
	return req
}

// overTheWire is the request as the plugin's process gets it: with its options as bytes.
func overTheWire(t require.TestingT, req *pluginpb.CodeGeneratorRequest) *pluginpb.CodeGeneratorRequest {
	raw, err := proto.Marshal(req)
	require.NoError(t, err)
	decoded := &pluginpb.CodeGeneratorRequest{}
	require.NoError(t, proto.Unmarshal(raw, decoded))
	return decoded
}

// generate runs the plugin.
func generate(t *testing.T, req *pluginpb.CodeGeneratorRequest) *pluginpb.CodeGeneratorResponse {
	t.Helper()
	return runPlugin(t, req)
}

// runPlugin is [generate] for any kind of test.
func runPlugin(t require.TestingT, req *pluginpb.CodeGeneratorRequest) *pluginpb.CodeGeneratorResponse {
	plugin, err := generator.Options().New(overTheWire(t, req))
	require.NoError(t, err)
	return generator.Respond(plugin)
}

// generateMessages runs protoc-gen-go.
func generateMessages(t *testing.T, req *pluginpb.CodeGeneratorRequest) *pluginpb.CodeGeneratorResponse {
	t.Helper()
	plugin, err := protogen.Options{}.New(overTheWire(t, req))
	require.NoError(t, err)
	for _, file := range plugin.Files {
		if file.Generate {
			gengo.GenerateFile(plugin, file)
		}
	}
	plugin.SupportedFeatures = gengo.SupportedFeatures
	plugin.SupportedEditionsMinimum = gengo.SupportedEditionsMinimum
	plugin.SupportedEditionsMaximum = gengo.SupportedEditionsMaximum
	return plugin.Response()
}

// outputs are the files of a response that must not be an error.
func outputs(t *testing.T, res *pluginpb.CodeGeneratorResponse) map[string]string {
	t.Helper()
	require.Empty(t, res.GetError())
	files := map[string]string{}
	for _, file := range res.GetFile() {
		require.NotContains(t, files, file.GetName(), "two files of one name")
		files[file.GetName()] = file.GetContent()
	}
	return files
}

// names are the paths of files, in an order that the test doesn't depend on.
func (s sources) names() []string {
	names := make([]string, 0, len(s))
	for name := range s {
		names = append(names, name)
	}
	return names
}
