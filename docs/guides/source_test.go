package guides_test

import (
	"go/ast"
	"go/build"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestEveryVariableIsDocumented compares the variables that the code reads with those in the tables
// of environment.md. A variable is a string in the code that is nothing but its name.
func TestEveryVariableIsDocumented(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("environment.md")
	require.NoError(t, err)
	documented := map[string]bool{}
	for _, row := range regexp.MustCompile("(?m)^\\| (`[A-Z_]+`(?:, `[A-Z_]+`)*) \\|").FindAllStringSubmatch(string(page), -1) {
		for name := range strings.SplitSeq(row[1], ", ") {
			documented[strings.Trim(name, "`")] = true
		}
	}
	name := regexp.MustCompile(`^(RAYLINK|XDG)_[A-Z_]+$|^GO(GC|MEMLIMIT)$`)
	inCode := map[string]bool{}
	for _, text := range source(t) {
		if name.MatchString(text) {
			inCode[text] = true
		}
	}
	assert.Equal(t, slices.Sorted(maps.Keys(inCode)), slices.Sorted(maps.Keys(documented)),
		"the variables in the code and those in the tables of docs/guides/environment.md differ")
}

// TestEverySymptomIsReal looks for the texts of trouble.md's headings in the strings of the code:
// what stands between `...` must be in one of them, between its verbs.
func TestEverySymptomIsReal(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("trouble.md")
	require.NoError(t, err)
	verb := regexp.MustCompile(`%[-+# 0]*[0-9.*]*[a-zA-Z]`)
	var pieces []string
	for _, text := range source(t) {
		pieces = append(pieces, verb.Split(text, -1)...)
	}
	var symptoms []string
	for _, heading := range regexp.MustCompile("(?m)^### (`.*)$").FindAllStringSubmatch(string(page), -1) {
		for _, quoted := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(heading[1], -1) {
			symptoms = append(symptoms, quoted[1])
		}
	}
	require.Greater(t, len(symptoms), 20, "symptoms that quote a text")
	for _, symptom := range symptoms {
		longest := 0
		for fragment := range strings.SplitSeq(symptom, "...") {
			longest = max(longest, len(fragment))
			assert.True(t, slices.ContainsFunc(pieces, func(piece string) bool { return strings.Contains(piece, fragment) }),
				"no string of the code has %q, of the symptom %q in docs/guides/trouble.md: quote the text as it is today", fragment, symptom)
		}
		assert.Greater(t, longest, 7, "the symptom %q quotes too little to be found", symptom)
	}
}

// source returns the strings of the module's code as built for Linux, without tests, generated
// code and code behind build tags. Concatenated strings are one.
func source(t *testing.T) []string {
	t.Helper()
	linux := build.Default
	linux.GOOS = "linux"
	var texts []string
	require.NoError(t, filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir():
			// nettest and slurmtest are parts of tests.
			if path != root && (strings.HasPrefix(entry.Name(), ".") || entry.Name() == "gen" || entry.Name() == "nettest" || entry.Name() == "slurmtest" || isModule(path)) {
				return fs.SkipDir
			}
			return nil
		case !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go"):
			return nil
		}
		if built, err := linux.MatchFile(filepath.Dir(path), entry.Name()); err != nil || !built {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		ast.Inspect(file, func(n ast.Node) bool {
			expr, ok := n.(ast.Expr)
			if !ok {
				return true
			}
			text, ok := constant(expr)
			if ok {
				texts = append(texts, text)
			}
			return !ok
		})
		return nil
	}))
	return texts
}

// constant is the value of a string literal, or of literals that are added up.
func constant(e ast.Expr) (string, bool) {
	switch e := e.(type) {
	case *ast.BasicLit:
		if e.Kind != token.STRING {
			return "", false
		}
		text, err := strconv.Unquote(e.Value)
		return text, err == nil
	case *ast.BinaryExpr:
		left, ok := constant(e.X)
		if !ok || e.Op != token.ADD {
			return "", false
		}
		right, ok := constant(e.Y)
		return left + right, ok
	}
	return "", false
}

// isModule reports whether a directory is a module of its own.
func isModule(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, "go.mod"))
	return err == nil
}
