package generator

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestImportsAreGroupedAsByGoimports(t *testing.T) {
	assert.Equal(t, [][]string{
		{"context"},
		{"connectrpc.com/connect/v2", "example.org/acme/other/v1", "google.golang.org/protobuf/proto"},
		{"example.com/acme/nodes/v1", "example.com/acme/types", "github.com/raylink/raylink/runtime"},
	}, importGroups([]string{
		"example.com/acme/types", "google.golang.org/protobuf/proto", "github.com/raylink/raylink/runtime", "context",
		"example.org/acme/other/v1", "connectrpc.com/connect/v2", "example.com/acme/nodes/v1",
	}, "example.com/acme/nodes/v1"))
	// A module without a dot in its name is not the standard library, nor is a path of one element.
	assert.Equal(t, [][]string{{"context"}, {"robot/gen/v1"}}, importGroups([]string{"robot/gen/v1", "context"}, "robot/gen/v1"))
	assert.Equal(t, [][]string{{"context"}, {"robot"}}, importGroups([]string{"robot", "context"}, "robot"))
}

// TestImportsOfGeneratedFilesAreSorted reads the import declarations of testdata as written.
func TestImportsOfGeneratedFilesAreSorted(t *testing.T) {
	require.NoError(t, filepath.WalkDir("testdata", func(name string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(name, ".raylink.go") {
			return err
		}
		files := token.NewFileSet()
		file, err := parser.ParseFile(files, name, nil, parser.ImportsOnly)
		require.NoError(t, err)
		var groups [][]string
		last := 0
		for _, spec := range file.Imports {
			line := files.Position(spec.Pos()).Line
			if line != last+1 {
				groups = append(groups, nil)
			}
			last = line
			importPath, err := strconv.Unquote(spec.Path.Value)
			require.NoError(t, err)
			groups[len(groups)-1] = append(groups[len(groups)-1], importPath)
		}
		if !slices.ContainsFunc(file.Imports, func(spec *ast.ImportSpec) bool { return spec.Path.Value == strconv.Quote(contextPackage) }) {
			assert.Len(t, groups, 1, "%s: a file of rows imports nothing of the standard library", name)
			assert.True(t, slices.IsSorted(groups[0]), "%s: %q", name, groups[0])
			return nil
		}
		assert.Len(t, groups, 3, name)
		for i, group := range groups {
			assert.True(t, slices.IsSorted(group), "%s: %q", name, group)
			assert.Equal(t, i == 0, slices.Contains(group, "context"), name)
			assert.Equal(t, i == 1, slices.Contains(group, connectPackage), name)
			assert.Equal(t, i == 2, slices.Contains(group, runtimePackage), name)
		}
		return nil
	}))
}
