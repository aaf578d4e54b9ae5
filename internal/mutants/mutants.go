// Package mutants shows that tests detect the faults they are written for, by mutation testing: a
// [Mutant] replaces an expression or statement of the product by a faulty one, and the test that
// checks the invariant must fail. [All] is the table of mutants.
//
// The product has no switches for this. Mutants are applied by an overlay (go help build), in a
// test binary that is built for one of them or for several (see [Together]); the files of the
// source tree stay as they are. The processes that a test starts from its own binary have the
// mutant too.
//
// The package's ordinary test verifies that each mutant can be applied to the source as it is now.
// make test-mutants builds all of them and runs their tests; see docs/testing.md.
package mutants

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Errors of a mutant that does not show what it should. They are returned wrapped.
var (
	// ErrNotFound means that the original text does not occur, or more than once.
	ErrNotFound = errors.New("the original text must occur exactly once")
	// ErrBuild means that the mutant is not a valid program.
	ErrBuild = errors.New("the mutant cannot be built")
	// ErrNotRun means that the test does not exist, or skips itself.
	ErrNotRun = errors.New("the test was not run")
	// ErrSurvived means that the test passes with the mutant.
	ErrSurvived = errors.New("the mutant survived: the test passes")
	// ErrReason means that the test fails, but does not print what it should.
	ErrReason = errors.New("the test fails for another reason")
)

// Edit is one replacement in a file.
type Edit struct {
	// File is relative to the module's root.
	File string
	// Func limits the search to one function or method, such as "Release" or "Turn.Release".
	// The default is the whole file.
	Func string
	// Original is the Go source to be replaced, and must occur exactly once. White space, line
	// breaks and comments do not matter.
	Original string
	// Mutated replaces it.
	Mutated string
}

// Mutant is a faulty version of the product, and the test that must detect it.
type Mutant struct {
	Edit

	// Name is the package and the fault, such as "tunnel/requests-overtake".
	Name string
	// Also are further replacements, for a fault that takes more than one.
	Also []Edit
	// Test is the name of the test that must fail. Subtests follow a slash, as for -run.
	Test string
	// Package is the directory of the test. The default is that of File.
	Package string
	// Prints is a regular expression for what the test prints when it detects the fault. The
	// default is the line that says that Test has failed.
	Prints string
	// Tags are build tags, and Args arguments of the test binary.
	Tags string
	Args []string
	// Timeout bounds the test; the default is a minute.
	Timeout time.Duration
	// Alone means that no other mutant is built into the same binary.
	Alone bool
}

// Apply returns the mutated files by name. root is the module's root directory.
func (m *Mutant) Apply(root string) (map[string][]byte, error) {
	files := make(map[string][]byte)
	for _, e := range append([]Edit{m.Edit}, m.Also...) {
		source, ok := files[e.File]
		if !ok {
			var err error
			if source, err = os.ReadFile(filepath.Join(root, e.File)); err != nil {
				return nil, fmt.Errorf("%w: %w", ErrNotFound, err)
			}
		}
		source, err := e.apply(source)
		if err != nil {
			return nil, err
		}
		files[e.File] = source
	}
	return files, nil
}

// apply returns the mutated source, which is known to be a valid file.
func (e *Edit) apply(source []byte) ([]byte, error) {
	from, to := 0, len(source)
	if e.Func != "" {
		var err error
		if from, to, err = function(e.File, source, e.Func); err != nil {
			return nil, err
		}
	}
	places := occurrences(source[from:to], []byte(e.Original))
	if len(places) != 1 {
		return nil, fmt.Errorf("%w: it was found %d times in %s of %s:\n%s",
			ErrNotFound, len(places), cmp.Or(e.Func, "the whole"), e.File, e.Original)
	}
	mutated := slices.Concat(source[:from+places[0].from], []byte(e.Mutated), source[from+places[0].to:])
	if _, err := parser.ParseFile(token.NewFileSet(), e.File, mutated, parser.SkipObjectResolution); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBuild, err)
	}
	return mutated, nil
}

// function returns where in the source a function or method stands.
func function(file string, source []byte, name string) (from, to int, err error) {
	set := token.NewFileSet()
	parsed, err := parser.ParseFile(set, file, source, parser.SkipObjectResolution)
	if err != nil {
		return 0, 0, fmt.Errorf("%w: %w", ErrNotFound, err)
	}
	for _, d := range parsed.Decls {
		if f, ok := d.(*ast.FuncDecl); ok && functionName(f) == name {
			return set.Position(f.Pos()).Offset, set.Position(f.End()).Offset, nil
		}
	}
	return 0, 0, fmt.Errorf("%w: %s has no function %s", ErrNotFound, file, name)
}

// functionName returns the name of a function, or the receiver's type and the name of a method.
func functionName(f *ast.FuncDecl) string {
	if f.Recv == nil {
		return f.Name.Name
	}
	receiver := f.Recv.List[0].Type
	for {
		switch t := receiver.(type) {
		case *ast.StarExpr:
			receiver = t.X
		case *ast.IndexExpr:
			receiver = t.X
		case *ast.Ident:
			return t.Name + "." + f.Name.Name
		default:
			return f.Name.Name
		}
	}
}

// directory returns the directory of the test, relative to the module's root.
func (m *Mutant) directory() string { return cmp.Or(m.Package, filepath.Dir(m.File)) }

// prints returns what the test must print.
func (m *Mutant) prints() (*regexp.Regexp, error) {
	return regexp.Compile(cmp.Or(m.Prints, "(?m)^ *--- FAIL: "+regexp.QuoteMeta(m.Test)+`\b`))
}

// Build builds the package's tests with the mutant, and returns the path of the binary. All files
// that it writes are in temp.
func (m *Mutant) Build(ctx context.Context, root, temp string) (string, error) {
	files, err := m.Apply(root)
	if err != nil {
		return "", err
	}
	return build(ctx, files, root, temp, m.directory(), m.Tags)
}

// build builds the tests of a directory with an overlay of files, which have the text given for
// each name.
func build(ctx context.Context, files map[string][]byte, root, temp, directory, tags string) (string, error) {
	var overlay struct {
		Replace map[string]string `json:"Replace"` //nolint:tagliatelle // the name is the go command's
	}
	overlay.Replace = make(map[string]string)
	for name, source := range files {
		path := filepath.Join(temp, strconv.Itoa(len(overlay.Replace))+"_"+filepath.Base(name))
		if err := os.WriteFile(path, source, 0o600); err != nil {
			return "", fmt.Errorf("write a mutated file: %w", err)
		}
		overlay.Replace[filepath.Join(root, name)] = path
	}
	text, err := json.Marshal(overlay)
	if err != nil {
		return "", fmt.Errorf("write the overlay: %w", err)
	}
	list, binary := filepath.Join(temp, overlayName), filepath.Join(temp, "mutant.test")
	if err := os.WriteFile(list, text, 0o600); err != nil {
		return "", fmt.Errorf("write the overlay: %w", err)
	}
	// Half of the linker's time goes into symbols for debuggers.
	build := exec.CommandContext(ctx, "go", "test", "-c", "-vet=off", "-ldflags=-s -w", "-overlay="+list, "-tags="+tags, "-o="+binary, "./"+directory)
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %w\n%s", ErrBuild, err, out)
	}
	return binary, nil
}

// noFailFile keeps rapid from writing what it found into the source tree. The next run would try
// that first, and not show that the test finds it.
const noFailFile = "RAPID_NOFAILFILE=true"

// overlayName is the name of the overlay's file.
const overlayName = "overlay.json"

// Run runs the test with the mutant, and returns what the test printed. The error is nil if the
// test has detected the fault.
func (m *Mutant) Run(ctx context.Context, root, temp string) (string, error) {
	binary, err := m.Build(ctx, root, temp)
	if err != nil {
		return "", err
	}
	return m.run(ctx, root, binary, filepath.Join(temp, overlayName))
}

// run runs the test of a binary. Programs that the test builds have the same overlay.
func (m *Mutant) run(ctx context.Context, root, binary, overlay string, env ...string) (string, error) {
	prints, err := m.prints()
	if err != nil {
		return "", fmt.Errorf("%s: %w", m.Name, err)
	}
	timeout := cmp.Or(m.Timeout, time.Minute)
	ctx, cancel := context.WithTimeout(ctx, timeout+time.Minute)
	defer cancel()
	var pattern []string // each part of the name for itself, as -test.run has it
	for part := range strings.SplitSeq(m.Test, "/") {
		pattern = append(pattern, "^"+regexp.QuoteMeta(part)+"$")
	}
	args := []string{"-test.v", "-test.count=1", "-test.timeout=" + timeout.String(), "-test.run=" + strings.Join(pattern, "/")}
	if m.Prints == "" {
		args = append(args, failFast) // any failure shows it
	}
	args = append(args, m.Args...)
	test := exec.CommandContext(ctx, binary, args...)
	test.Dir = filepath.Join(root, m.directory())
	// Programs that the test builds have the fault too.
	test.Env = slices.Concat(os.Environ(), []string{"GOFLAGS=" + os.Getenv("GOFLAGS") + " -overlay=" + overlay, noFailFile}, env)
	test.WaitDelay = time.Second // processes of the test may have its output open
	// The test's processes end with it: under a mutant they may spin for ever.
	test.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	killAll := func() error { return syscall.Kill(-test.Process.Pid, syscall.SIGKILL) }
	test.Cancel = killAll
	var out bytes.Buffer
	test.Stdout, test.Stderr = &out, &out
	err = test.Run()
	if test.Process != nil {
		_ = killAll() // most often nothing is left
	}
	text := out.String()
	switch {
	case !strings.Contains(text, "=== RUN   "+m.Test) || strings.Contains(text, "--- SKIP: "+m.Test+" "):
		return text, fmt.Errorf("%w: %s of ./%s", ErrNotRun, m.Test, m.directory())
	case err == nil:
		return text, fmt.Errorf("%w: %s of ./%s", ErrSurvived, m.Test, m.directory())
	case !prints.MatchString(text):
		return text, fmt.Errorf("%w: %q is not printed by %s of ./%s", ErrReason, prints, m.Test, m.directory())
	}
	return text, nil
}
