package generator

import (
	"go/ast"
	"go/build/constraint"
	"go/format"
	"go/parser"
	"go/token"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink/runtime"
)

// FuzzComment checks that a comment of a schema stays a comment, whatever stands in it.
func FuzzComment(f *testing.F) {
	for _, seed := range []string{
		"", " words\n", "go:embed *\n", "*/ func main() {} /*",
		"\r\nline x.go:1\n", "\x00\uFEFF\xff", " - a\n   - b\n\n\t code", "# H\n#H",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		source := "package x\n\n" + comment(text) + "\nvar V int\n"
		file, err := parser.ParseFile(token.NewFileSet(), "", source, parser.ParseComments)
		require.NoError(t, err, source)
		require.Len(t, file.Decls, 1)
		for _, group := range file.Comments {
			for _, c := range group.List {
				_, directive := ast.ParseDirective(c.Pos(), c.Text)
				assert.False(t, directive, c.Text)
			}
		}
		formatted, err := formatGo("x.go", []byte(source))
		require.NoError(t, err)
		again, err := format.Source(formatted)
		require.NoError(t, err)
		assert.Equal(t, string(formatted), string(again), "protogen formats once more")
		for line := range strings.Lines(header(text)) {
			assert.False(t, constraint.IsGoBuild(line) || constraint.IsPlusBuild(line), line)
		}
	})
}

func TestCodeThatDoesNotParseIsShownWithLineNumbers(t *testing.T) {
	_, err := formatGo("x.raylink.go", []byte("package x\n\nfunc {\n}\n"))
	require.Error(t, err)
	require.ErrorContains(t, err, "x.raylink.go: the generated code is not valid Go, which is a fault of protoc-gen-raylink: 3:6: ")
	assert.Contains(t, err.Error(), "\n    3\tfunc {\n    4\t}\n")
}

func TestGeneratedCodeIsForThisRuntime(t *testing.T) {
	assert.Equal(t, runtime.MaxGenerated, contractVersion)
}
