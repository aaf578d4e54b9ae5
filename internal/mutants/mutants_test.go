package mutants

import (
	"flag"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

var runAll = flag.Bool("mutants", false, "build the mutants of the table, and run their tests")

func root(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../..")
	require.NoError(t, err)
	return dir
}

// TestMutants runs the tests of all mutants: each must detect its fault.
func TestMutants(t *testing.T) {
	t.Parallel()
	if !*runAll {
		t.Skip("this takes minutes, and make test-mutants does it")
	}
	all := All()
	together := GroupMutants(all, root(t), t.TempDir())
	var failures failures
	t.Cleanup(func() { failures.report(t) })
	for i := range all {
		t.Run(all[i].Name, func(t *testing.T) {
			t.Parallel()
			m, begin := &all[i], time.Now()
			run := func() (string, error) { return m.Run(t.Context(), root(t), t.TempDir()) }
			if together[i] != nil {
				run = func() (string, error) { return together[i].Run(t.Context(), m, t.TempDir()) }
			}
			out, err := run()
			if err != nil {
				failures.add("FAIL " + m.Name + ": " + err.Error() + "\n" + tail(out))
				t.FailNow()
			}
			prints, err := m.prints()
			require.NoError(t, err)
			t.Logf("detected by %s in %.1f s: %s", m.Test, time.Since(begin).Seconds(), strings.TrimSpace(prints.FindString(out)))
		})
	}
}

// failures are what is said of mutants that were not detected as their rows say. They are printed
// together, after those of all others, for .ci/failures.awk to find and to repeat at the end.
type failures struct {
	mu   sync.Mutex
	text []string
}

func (f *failures) add(text string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.text = append(f.text, text)
}

func (f *failures) report(t *testing.T) {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, text := range f.text {
		t.Log(text)
	}
}

// tail returns the last lines of an output.
func tail(out string) string {
	lines := strings.Split(out, "\n")
	return strings.Join(lines[max(0, len(lines)-60):], "\n")
}

// TestMutantsApply checks the table against the source: each original text is there once, and each
// test exists.
func TestMutantsApply(t *testing.T) {
	names := make(map[string]bool)
	for _, m := range All() {
		t.Run(m.Name, func(t *testing.T) {
			require.False(t, names[m.Name], "two mutants have this name")
			names[m.Name] = true
			_, err := m.Apply(root(t))
			require.NoError(t, err)
			_, err = m.prints()
			require.NoError(t, err)
			test, _, _ := strings.Cut(m.Test, "/")
			require.True(t, slices.Contains(testsOf(t, filepath.Join(root(t), m.directory())), test), "./%s has no %s", m.directory(), test)
		})
	}
}

func testsOf(t *testing.T, dir string) (tests []string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	require.NoError(t, err)
	for _, file := range files {
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
		require.NoError(t, err)
		for _, d := range parsed.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil {
				tests = append(tests, f.Name.Name)
			}
		}
	}
	return tests
}

const clamp = "internal/mutants/testdata/clamp/clamp.go"

// TestRunner has a mutant for each way in which one can fail to show what it should.
func TestRunner(t *testing.T) {
	low := Edit{File: clamp, Func: "Clamp", Original: "if n < low { return low }", Mutated: "_ = low"}
	for _, c := range []struct {
		name   string
		mutant Mutant
		err    error
		says   string
	}{
		{name: "detected", mutant: Mutant{Edit: low, Test: "TestClamp"}},
		{name: "detected for this reason", mutant: Mutant{Edit: low, Test: "TestClamp", Prints: `clamp 0: \d`}},
		{name: "two edits", mutant: Mutant{Edit: low, Also: []Edit{{File: clamp, Original: "return 2", Mutated: "return 3"}}, Test: "TestClamp"}},
		{
			name: "not found", mutant: Mutant{Edit: Edit{File: clamp, Original: "n <= low", Mutated: "n < low"}, Test: "TestClamp"},
			err: ErrNotFound, says: "found 0 times",
		},
		{
			name: "found twice", mutant: Mutant{Edit: Edit{File: clamp, Original: "if n", Mutated: "if 1+n"}, Test: "TestClamp"},
			err: ErrNotFound, says: "found 2 times",
		},
		{
			name: "not in the function", mutant: Mutant{Edit: Edit{File: clamp, Func: "T.Two", Original: "n < low", Mutated: "false"}, Test: "TestClamp"},
			err: ErrNotFound, says: "found 0 times in T.Two",
		},
		{
			name: "no such function", mutant: Mutant{Edit: Edit{File: clamp, Func: "Two", Original: "2", Mutated: "3"}, Test: "TestClamp"},
			err: ErrNotFound, says: "no function Two",
		},
		{
			name: "no such file", mutant: Mutant{Edit: Edit{File: "none.go", Original: "2", Mutated: "3"}, Test: "TestClamp"},
			err: ErrNotFound, says: "none.go",
		},
		{
			name: "syntax", mutant: Mutant{Edit: Edit{File: clamp, Original: "n < low", Mutated: "n <"}, Test: "TestClamp"},
			err: ErrBuild, says: "expected operand",
		},
		{
			name: "types", mutant: Mutant{Edit: Edit{File: clamp, Original: "n < low", Mutated: `n < "low"`}, Test: "TestClamp"},
			err: ErrBuild, says: "mismatched types",
		},
		{
			name: "survivor", mutant: Mutant{Edit: Edit{File: clamp, Original: "n > high", Mutated: "false"}, Test: "TestClamp"},
			err: ErrSurvived,
		},
		{
			name: "another reason", mutant: Mutant{Edit: low, Test: "TestClamp", Prints: `clamp 2: \d`},
			err: ErrReason,
		},
		{name: "skipped", mutant: Mutant{Edit: low, Test: "TestSkipped"}, err: ErrNotRun},
		{name: "no such test", mutant: Mutant{Edit: low, Test: "TestClam"}, err: ErrNotRun},
	} {
		t.Run(c.name, func(t *testing.T) {
			before, err := os.ReadFile(filepath.Join(root(t), clamp))
			require.NoError(t, err)
			out, err := c.mutant.Run(t.Context(), root(t), t.TempDir())
			require.ErrorIs(t, err, c.err, "%s", out)
			if c.says != "" {
				require.ErrorContains(t, err, c.says)
			}
			after, err := os.ReadFile(filepath.Join(root(t), clamp))
			require.NoError(t, err)
			require.True(t, slices.Equal(before, after), "the source was changed")
		})
	}
}
