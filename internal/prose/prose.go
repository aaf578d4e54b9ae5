// Package prose checks the project's language: comments, documentation, messages and test names.
//
// A reader who knows Go and gRPC must be able to search for every term. [Rules] lists the words
// that the project does not use and the field's term for each; [File] applies them to one file.
// The test of this package, which `make lint` runs, applies them to the whole repository.
package prose

import (
	"cmp"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// MaxColumns is the longest line of a comment, where a tab counts as [tabColumns].
const MaxColumns = 100

const tabColumns = 4

// Finding is a place that breaks a rule.
type Finding struct {
	Name string // of the file, as given to [File]
	Line int    // from 1
	Text string // what was found
	Want string // what to write instead
}

func (f Finding) String() string {
	return fmt.Sprintf("%s:%d: %q: %s", f.Name, f.Line, f.Text, f.Want)
}

// File returns the findings in one file, in the order of its lines. The extension of name selects
// the syntax: Go, protobuf, Markdown, Python, TypeScript, shell and Makefile. Files of other types
// and generated Go files have none. It returns an error if a Go file can't be parsed.
func File(name string, content []byte) ([]Finding, error) {
	c := &checker{name: name}
	switch path.Ext(name) {
	case ".go":
		if err := c.golang(content); err != nil {
			return nil, err
		}
	case ".md":
		c.markdown(string(content))
	case ".proto", ".ts":
		c.lines(string(content), "//")
	case ".py", ".sh":
		c.lines(string(content), "#")
	default:
		if path.Base(name) == "Makefile" {
			c.lines(string(content), "#")
		}
	}
	slices.SortStableFunc(c.found, func(a, b Finding) int { return cmp.Compare(a.Line, b.Line) })
	return c.found, nil
}

type checker struct {
	name  string
	found []Finding
}

func (c *checker) add(line int, text, want string) {
	c.found = append(c.found, Finding{Name: c.name, Line: line, Text: text, Want: want})
}

// inlineCode is not prose: an identifier may be quoted under any name.
var inlineCode = regexp.MustCompile("`[^`]*`")

// prose applies the rules to a paragraph whose first line has the given number. Sentences may
// span lines.
func (c *checker) prose(line int, text string) {
	text = inlineCode.ReplaceAllStringFunc(text, func(code string) string {
		return strings.Map(func(r rune) rune {
			if r == '\n' {
				return r
			}
			return '`'
		}, code)
	})
	for _, rule := range rules {
		for _, at := range rule.pattern.FindAllStringIndex(text, -1) {
			found := text[at[0]:at[1]]
			if rule.except != nil && rule.except.MatchString(text[:at[1]]) {
				continue
			}
			c.add(line+strings.Count(text[:at[0]], "\n"), strings.Join(strings.Fields(found), " "), rule.Want)
		}
	}
}

// golang checks comments, string literals with several words, and the names of tests.
func (c *checker) golang(content []byte) error {
	files := token.NewFileSet()
	file, err := parser.ParseFile(files, c.name, content, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return fmt.Errorf("prose: parsing %s: %w", c.name, err)
	}
	if ast.IsGenerated(file) {
		return nil
	}
	lines := strings.Split(string(content), "\n")
	for _, group := range file.Comments {
		first := files.Position(group.Pos()).Line
		last := files.Position(group.End()).Line
		text := make([]string, 0, last-first+1)
		for i := first; i <= last; i++ {
			line := lines[i-1]
			if isComment(line) {
				c.width(i, line)
			}
			_, comment, _ := strings.Cut(line, "//")
			if strings.HasPrefix(comment, "\t") {
				comment = "" // a code block
			}
			text = append(text, comment)
		}
		c.prose(first, strings.Join(text, "\n"))
	}
	ast.Inspect(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncDecl:
			if strings.HasSuffix(c.name, "_test.go") && n.Recv == nil && isTestName(n.Name.Name) {
				c.prose(files.Position(n.Pos()).Line, words(n.Name.Name))
			}
		case *ast.ImportSpec:
			return false
		case *ast.BasicLit:
			if text, err := strconv.Unquote(n.Value); n.Kind == token.STRING && err == nil && isSentence(text) {
				c.prose(files.Position(n.Pos()).Line, text)
			}
		}
		return true
	})
	return nil
}

func isComment(line string) bool {
	line = strings.TrimLeft(line, " \t")
	// A directive can't be broken.
	return strings.HasPrefix(line, "// ") && !strings.Contains(line, "://")
}

func (c *checker) width(number int, line string) {
	if n := utf8.RuneCountInString(line) + (tabColumns-1)*strings.Count(line, "\t"); n > MaxColumns {
		c.add(number, fmt.Sprintf("%d columns", n), fmt.Sprintf("at most %d in a comment", MaxColumns))
	}
}

func isTestName(name string) bool {
	for _, prefix := range []string{"Test", "Benchmark", "Fuzz", "Example"} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

// isSentence tells text for people from keys, formats and source code.
func isSentence(text string) bool {
	return strings.Count(text, " ") >= 2 && !strings.ContainsAny(text, "{}\t")
}

// words splits an identifier at its capitals.
func words(identifier string) string {
	var b strings.Builder
	for i, r := range identifier {
		if i > 0 && unicode.IsUpper(r) {
			b.WriteByte(' ')
		}
		b.WriteRune(unicode.ToLower(r))
	}
	return strings.ReplaceAll(b.String(), "_", " ")
}

// markdown checks paragraphs, not fenced or indented code.
func (c *checker) markdown(content string) {
	fenced, first := false, 1
	var paragraph []string
	flush := func(next int) {
		c.prose(first, strings.Join(paragraph, "\n"))
		paragraph, first = paragraph[:0], next
	}
	for i, line := range strings.Split(content, "\n") {
		trimmed := strings.TrimLeft(line, " ")
		isFence := strings.HasPrefix(trimmed, "```")
		if isFence {
			fenced = !fenced
		}
		if fenced || isFence || trimmed == "" || strings.HasPrefix(line, "    ") {
			flush(i + 2)
			continue
		}
		paragraph = append(paragraph, line)
	}
	flush(0)
}

// lines checks whole-line comments that begin with the mark.
func (c *checker) lines(content, mark string) {
	var group []string
	first := 1
	flush := func(next int) {
		c.prose(first, strings.Join(group, "\n"))
		group, first = group[:0], next
	}
	for i, line := range strings.Split(content, "\n") {
		comment, ok := strings.CutPrefix(strings.TrimLeft(line, " \t"), mark)
		if !ok {
			flush(i + 2)
			continue
		}
		if !strings.Contains(line, "://") {
			c.width(i+1, line)
		}
		group = append(group, comment)
	}
	flush(0)
}
