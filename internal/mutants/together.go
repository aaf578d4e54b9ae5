package mutants

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
)

// Linking a test binary takes longer than most tests take to fail. So the mutants whose tests are
// in one package are built together, where they change nothing but bodies of functions: each such
// function begins with a switch, which runs the body of the mutant in use in its place.
//
//	func Clamp(n int) int {
//		switch mutantInUse {
//		case 7:
//			return func() int { ... }() // the body with the seventh mutant
//		}
//		...                            // the body as it is
//	}
//
// An environment variable has the number of the mutant in use. Processes that a test starts inherit
// it. A mutant whose test does not let them is to be built alone: see [Mutant.Alone].

// inUse is the environment variable that has the number of the mutant in use.
const inUse = "MUTANT_IN_USE"

// Together is a test binary with several mutants. It is safe for concurrent use.
type Together struct {
	root, temp string
	mutants    []*Mutant

	once   sync.Once
	binary string
	err    error
}

// GroupMutants returns the binary that has each mutant, nil for those that are built alone. The
// binaries are built on first use, in directories below temp.
func GroupMutants(all []Mutant, root, temp string) []*Together {
	type place struct{ directory, tags string }
	groups := make(map[place]*Together)
	in := make([]*Together, len(all))
	for i := range all {
		m := &all[i]
		if m.Alone {
			continue
		}
		if _, err := m.bodies(root); err != nil {
			continue // building it alone says what is wrong
		}
		at := place{m.directory(), m.Tags}
		if groups[at] == nil {
			groups[at] = &Together{root: root, temp: filepath.Join(temp, fmt.Sprintf("together%d", len(groups)))}
		}
		groups[at].mutants = append(groups[at].mutants, m)
		in[i] = groups[at]
	}
	for i, t := range in {
		if t != nil && len(t.mutants) == 1 {
			in[i] = nil
		}
	}
	return in
}

// Run runs a mutant's test as [Mutant.Run] does. If the mutants can't be built together, it builds
// this one alone, in temp.
func (t *Together) Run(ctx context.Context, m *Mutant, temp string) (string, error) {
	t.once.Do(func() { t.binary, t.err = t.build() })
	if t.err != nil {
		out, err := m.Run(ctx, t.root, temp)
		return fmt.Sprintf("not built together: %v\n%s", t.err, out), err
	}
	number := fmt.Sprintf("%s=%d", inUse, 1+slices.Index(t.mutants, m))
	return m.run(ctx, t.root, t.binary, filepath.Join(t.temp, overlayName), number)
}

// errNoBody means that a mutant changes more than bodies of functions.
var errNoBody = errors.New("it changes more than bodies of functions")

// body is what a mutant makes of a function's body.
type body struct {
	file string
	// function is the index of the function among those of the file.
	function int
	text     []byte
}

// bodies returns the bodies that a mutant changes.
func (m *Mutant) bodies(root string) ([]body, error) {
	files, err := m.Apply(root)
	if err != nil {
		return nil, err
	}
	var changed []body
	for name, mutated := range files {
		if strings.HasSuffix(name, "_test.go") {
			return nil, errNoBody // its package may be another one than that of the other files
		}
		original, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrNotFound, err)
		}
		before, after, err := parseBoth(name, original, mutated)
		if err != nil {
			return nil, err
		}
		if len(before.functions) != len(after.functions) || !bytes.Equal(before.rest(), after.rest()) {
			return nil, errNoBody
		}
		for i := range before.functions {
			if text := after.body(i); !bytes.Equal(before.body(i), text) {
				changed = append(changed, body{file: name, function: i, text: text})
			}
		}
	}
	return changed, nil
}

// source is a file and its functions that have a body, in their order.
type source struct {
	text      []byte
	name      string
	functions []*ast.FuncDecl
}

func parseBoth(name string, original, mutated []byte) (before, after *source, err error) {
	if before, err = parse(name, original); err != nil {
		return nil, nil, err
	}
	after, err = parse(name, mutated)
	return before, after, err
}

// parse parses a file. Positions of its nodes are offsets plus 1.
func parse(name string, text []byte) (*source, error) {
	parsed, err := parser.ParseFile(token.NewFileSet(), name, text, parser.SkipObjectResolution)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBuild, err)
	}
	s := &source{text: text, name: parsed.Name.Name}
	for _, d := range parsed.Decls {
		if f, ok := d.(*ast.FuncDecl); ok && f.Body != nil {
			s.functions = append(s.functions, f)
		}
	}
	return s, nil
}

func (s *source) between(from, to token.Pos) []byte { return s.text[from-1 : to-1] }

// body returns the text of a body with its braces.
func (s *source) body(i int) []byte {
	return s.between(s.functions[i].Body.Pos(), s.functions[i].Body.End())
}

// rest returns the text without the bodies.
func (s *source) rest() []byte {
	var rest []byte
	from := token.Pos(1)
	for _, f := range s.functions {
		rest = append(rest, s.between(from, f.Body.Pos())...)
		from = f.Body.End()
	}
	return append(rest, s.text[from-1:]...)
}

// variant is the body of a function with the mutant of a number.
type variant struct {
	number int
	text   []byte
}

// with returns the source with other bodies, which variants has by the index of their function.
func (s *source) with(variants map[int][]variant) []byte {
	var out []byte
	from := token.Pos(1)
	for i, f := range s.functions {
		if len(variants[i]) == 0 {
			continue
		}
		out = append(out, s.between(from, f.Body.Pos()+1)...)
		out = append(out, "\nswitch mutantInUse {\n"...)
		for _, v := range variants[i] {
			results, before, after := "", "", "()\nreturn"
			if f.Type.Results != nil {
				results, before, after = string(s.between(f.Type.Results.Pos(), f.Type.Results.End())), "return ", "()"
			}
			out = fmt.Appendf(out, "case %d:\n%sfunc() %s %s%s\n", v.number, before, results, v.text, after)
		}
		out = append(out, "}\n"...)
		from = f.Body.Pos() + 1
	}
	return append(out, s.text[from-1:]...)
}

// build builds the binary. It takes no context, since others wait for it too.
func (t *Together) build() (string, error) {
	if err := os.Mkdir(t.temp, 0o700); err != nil {
		return "", fmt.Errorf("build mutants together: %w", err)
	}
	variants := make(map[string]map[int][]variant)
	for i, m := range t.mutants {
		changed, err := m.bodies(t.root)
		if err != nil {
			return "", err
		}
		for _, b := range changed {
			if variants[b.file] == nil {
				variants[b.file] = make(map[int][]variant)
			}
			variants[b.file][b.function] = append(variants[b.file][b.function], variant{number: i + 1, text: b.text})
		}
	}
	files := make(map[string][]byte)
	for name, of := range variants {
		text, err := os.ReadFile(filepath.Join(t.root, name))
		if err != nil {
			return "", fmt.Errorf("%w: %w", ErrNotFound, err)
		}
		s, err := parse(name, text)
		if err != nil {
			return "", err
		}
		files[name] = s.with(of)
		files[filepath.Join(filepath.Dir(name), "mutant_in_use.go")] = fmt.Appendf(nil, `package %s

import (
	"os"
	"strconv"
)

var mutantInUse, _ = strconv.Atoi(os.Getenv(%q))
`, s.name, inUse)
	}
	first := t.mutants[0]
	return build(context.Background(), files, t.root, t.temp, first.directory(), first.Tags)
}
