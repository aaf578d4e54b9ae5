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
	"github.com/raylink/raylink/runtime/row"
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
		for line := range strings.Lines(comment(text)) {
			assert.False(t, constraint.IsGoBuild(line) || constraint.IsPlusBuild(line), line)
		}
	})
}

// FuzzCommentsAreAsGofmtWritesThem compares comments in all places of a generated file with what
// gofmt makes of them.
func FuzzCommentsAreAsGofmtWritesThem(f *testing.F) {
	for _, seed := range []string{
		"", " words\n", " - a\n   - b\n\n\t code", "# H\n#H", " Words.\n\n A heading\n\n More ``words''.\n", "[a]: http://b\n", "1. x\n\n\n2. y",
		"+build never", "\u00a0", " x\u0085\n\v\f", "  indented\n plain\n  indented",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		w := &writer{}
		w.line("package x")
		w.document(doc{text})
		w.line("var V int")
		w.line()
		w.comment("", comment(text))
		w.line()
		w.line("type I interface {")
		w.comment("\t", formatDoc(doc{text}.String(), 1))
		w.line("\tM()")
		w.line("}")
		formatted, err := format.Source(w.text.Bytes())
		require.NoError(t, err)
		assert.Equal(t, string(formatted), w.text.String())
	})
}

func TestGeneratedCodeIsForThisRuntime(t *testing.T) {
	assert.Equal(t, runtime.MaxGenerated, contractVersion)
	assert.Equal(t, row.MaxGenerated, rowVersion)
}
