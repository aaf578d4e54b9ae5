package generator_test

import (
	"flag"
	"go/build/constraint"
	"go/format"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"google.golang.org/protobuf/types/pluginpb"
)

var update = flag.Bool("update", false, "rewrite the generated code in testdata")

const module = "github.com/raylink/raylink/cmd/protoc-gen-raylink/generator/testdata"

// folders are the hazards: each folder of testdata has the schemas of one, and the code made of
// them, messages included.
func folders(t *testing.T) []string {
	t.Helper()
	entries, err := os.ReadDir("testdata")
	require.NoError(t, err)
	var names []string
	for _, entry := range entries {
		if entry.Name() != "fuzz" { // what go test -fuzz has found
			names = append(names, entry.Name())
		}
	}
	return names
}

// TestGeneratedCodeIsFresh compares the generated code in testdata with what the schemas give now.
// After a change run it with -update and read the difference.
func TestGeneratedCodeIsFresh(t *testing.T) {
	for _, folder := range folders(t) {
		t.Run(folder, func(t *testing.T) {
			files := testdata(t, folder)
			req := request(t, files, "module="+module, slices.Sorted(slices.Values(files.names()))...)
			want := outputs(t, generateMessages(t, req))
			maps.Copy(want, outputs(t, generate(t, req)))
			if *update {
				rewrite(t, folder, want)
			}
			assert.Equal(t, want, readGo(t, folder))
		})
	}
}

func readGo(t *testing.T, folder string) map[string]string {
	t.Helper()
	found := map[string]string{}
	require.NoError(t, filepath.WalkDir(filepath.Join("testdata", folder), func(name string, _ fs.DirEntry, err error) error {
		if err != nil || path.Ext(name) != ".go" {
			return err
		}
		content, err := os.ReadFile(name)
		found[strings.TrimPrefix(filepath.ToSlash(name), "testdata/")] = string(content)
		return err
	}))
	return found
}

func rewrite(t *testing.T, folder string, files map[string]string) {
	t.Helper()
	for name := range readGo(t, folder) {
		require.NoError(t, os.Remove(filepath.Join("testdata", name)))
	}
	for name, content := range files {
		target := filepath.Join("testdata", name)
		require.NoError(t, os.MkdirAll(filepath.Dir(target), 0o755))
		require.NoError(t, os.WriteFile(target, []byte(content), 0o644))
	}
}

func TestGeneratedCodeIsAsGofmtWritesIt(t *testing.T) {
	for _, folder := range folders(t) {
		for name, content := range readGo(t, folder) {
			if strings.HasSuffix(name, ".raylink.go") {
				formatted, err := format.Source([]byte(content))
				require.NoError(t, err, name)
				assert.Equal(t, string(formatted), content, name)
			}
		}
	}
}

// TestGeneratedCodeCompilesAndVets builds what stands in testdata, which `./...` leaves out.
func TestGeneratedCodeCompilesAndVets(t *testing.T) {
	packages := map[string]bool{}
	for _, folder := range folders(t) {
		for name := range readGo(t, folder) {
			packages[path.Join(module, path.Dir(name))] = true
		}
	}
	args := append([]string{"vet"}, slices.Sorted(maps.Keys(packages))...)
	out, err := exec.CommandContext(t.Context(), "go", args...).CombinedOutput()
	require.NoError(t, err, "%s", out)
}

func TestOutputDoesNotDependOnOrder(t *testing.T) {
	for _, folder := range folders(t) {
		files := testdata(t, folder)
		req := request(t, files, "module="+module, files.names()...)
		want := outputs(t, generate(t, req))
		for range 5 {
			shuffle(req)
			assert.Equal(t, want, outputs(t, generate(t, req)), folder)
		}
	}
}

// shuffle puts the files to generate in another order, and those that don't import each other too.
func shuffle(req *pluginpb.CodeGeneratorRequest) {
	names := req.GetFileToGenerate()
	rand.Shuffle(len(names), func(i, j int) {
		names[i], names[j] = names[j], names[i]
	})
	left := slices.Clone(req.GetProtoFile())
	rand.Shuffle(len(left), func(i, j int) { left[i], left[j] = left[j], left[i] })
	req.ProtoFile = nil
	done := map[string]bool{}
	for len(left) > 0 {
		for i, file := range left {
			if !slices.ContainsFunc(file.GetDependency(), func(name string) bool { return !done[name] }) {
				done[file.GetName()] = true
				req.ProtoFile = append(req.ProtoFile, file)
				left = slices.Delete(left, i, i+1)
				break
			}
		}
	}
}

// A package whose files are generated one by one, as some build systems do, must come out the same
// where the files know each other.
func TestNamesYieldToFilesThatAreOnlyImported(t *testing.T) {
	files := testdata(t, "files")
	together := outputs(t, generate(t, request(t, files, "module="+module, files.names()...)))
	alone := outputs(t, generate(t, request(t, files, "module="+module, "files/b.proto")))
	require.Len(t, alone, 1)
	for name, content := range alone {
		// d.proto is not imported by b.proto, and its FirstNodeNode takes b.proto's name for a node
		// interface.
		assert.Equal(t, strings.ReplaceAll(together[name], "FirstNodeNode_", "FirstNodeNode"), content)
	}
}

func TestFilesWithoutServicesGiveNoOutput(t *testing.T) {
	files := testdata(t, "files")
	assert.Empty(t, outputs(t, generate(t, request(t, files, "", "files/c.proto"))))
}

func TestDeclarationOrderChangesNoName(t *testing.T) {
	parts := []string{
		"service Learner { rpc Foo(M) returns (M); rpc FooAsync(M) returns (M); rpc Name(M) returns (stream M); }",
		"service LearnerN {}",
		"service LearnerNa { rpc Me(M) returns (stream M); }",
		"service LearnerNode { rpc Do(M) returns (M); }",
		"service UnimplementedLearner {}",
	}
	symbols := func(schema sources) []string {
		content := outputs(t, generate(t, request(t, schema, "paths=source_relative", "x.proto")))["xraylink/x.raylink.go"]
		require.NotEmpty(t, content)
		return slices.Sorted(slices.Values(strings.Split(content, "\n")))
	}
	want := symbols(schema(strings.Join(parts, "\n")))
	for range 5 {
		rand.Shuffle(len(parts), func(i, j int) { parts[i], parts[j] = parts[j], parts[i] })
		assert.Equal(t, want, symbols(schema(strings.Join(parts, "\n"))))
	}
}

// protoc-gen-go lets such comments exclude its messages from the build.
func TestCommentsOfSchemaAreNoBuildConstraints(t *testing.T) {
	schema := sources{"x.proto": `//go:build never
// +build never

// +build never
syntax = "proto3";
//go:build never
package x;
option go_package = "example.com/x";
message M {}
//+build never
service S {
  // +build never

  // +build never
  rpc Do(M) returns (M);
}`}
	content := outputs(t, generate(t, request(t, schema, "paths=source_relative", "x.proto")))["xraylink/x.raylink.go"]
	assert.Contains(t, content, "never")
	for line := range strings.Lines(content) {
		assert.False(t, constraint.IsGoBuild(line) || constraint.IsPlusBuild(line), line)
	}
}
