package prose_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// documents are the pages that explain the code. What they quote must exist.
var documents = []string{
	"docs/architecture.md", "docs/glossary.md", "docs/speed.md", "docs/tunnel.md", "docs/turns.md",
}

// foreign are the names, or the packages of names, that documents quote and that other projects,
// users or the wire define.
var foreign = map[string]bool{
	// packages, variables of examples, and namespaces
	"connect": true, "context": true, "ctx": true, "grpc": true, "http": true, "net": true, "node": true, "os": true, "proto": true,
	// of Go and connect
	"runtime.Goexit": true, "runtime.Gosched": true, "CallInfo": true, "FailedPrecondition": true, "IsRemote": true, "ResourceExhausted": true,
	// of generated code
	"CreateTunnel": true, "LearnerFrom": true, "NewFooTunnel": true,
}

var (
	fence      = regexp.MustCompile("(?ms)^\\s*```.*?^\\s*```")
	quoted     = regexp.MustCompile("`([^`\n]+)`")
	aPath      = regexp.MustCompile(`^[\w.-]+(/[\w.-]+)+/?$|^[\w-]+\.go$`)
	anEntity   = regexp.MustCompile(`^\(?\*?([A-Za-z_]\w*)\)?((?:\.[A-Za-z_]\w*)*)(?:\(\))?$`)
	aCamelCase = regexp.MustCompile(`^[A-Za-z]*[a-z]+[A-Z]+[a-z]\w*$`)
)

// names are the names that the repository declares.
type names struct {
	// files has each file and folder by its path, and each file by its base name.
	files map[string]bool
	// declared has `Name`, `package.Name`, and `Type.Member` for methods and fields.
	declared map[string]bool
	// owners are the packages and types, of which all members are known.
	owners map[string]bool
}

// TestDocumentsQuoteWhatExists checks the paths and Go identifiers in backticks, so that a rename or
// move can't leave a stale page behind.
func TestDocumentsQuoteWhatExists(t *testing.T) {
	t.Parallel()
	root, err := filepath.Abs("../..")
	require.NoError(t, err)
	all := declarations(t, root)
	for _, document := range documents {
		content, err := os.ReadFile(filepath.Join(root, document))
		require.NoError(t, err)
		for _, stale := range all.stale(string(content)) {
			t.Errorf("%s quotes `%s`, which does not exist: correct it, or add what other projects define to foreign", document, stale)
		}
	}
}

// TestStaleNamesAreFound shows which spans are checked.
func TestStaleNamesAreFound(t *testing.T) {
	t.Parallel()
	all := &names{
		files:    map[string]bool{"runtime": true, "runtime/call.go": true, "call.go": true},
		declared: map[string]bool{"Call": true, "runtime.Call": true, "Call.Start": true, "newCall": true},
		owners:   map[string]bool{"runtime": true, "Call": true},
	}
	for text, want := range map[string][]string{
		"`runtime/call.go`, `call.go`, `Call.Start`, `(*Call).Start`, `runtime.Call`, `newCall`, `newCall()`": nil,
		"`runtime/gone.go`": {"runtime/gone.go"}, "`gone.go`": {"gone.go"}, "`runtime/gone`": {"runtime/gone"},
		"`Call.Gone`": {"Call.Gone"}, "`(*Call).Gone`": {"(*Call).Gone"}, "`runtime.Gone`": {"runtime.Gone"},
		"`oldCall`": {"oldCall"}, "`Gone.Start`": {"Gone.Start"},
		"`text/plain`, `manager-0/learner-0`, `http.Client`, `word`, `--flag`, `a b`": nil,
		"```go\n`oldCall`\n```": nil,
	} {
		assert.Equal(t, want, all.stale(text), text)
	}
}

// stale returns the quoted paths and identifiers that do not exist.
func (n *names) stale(content string) []string {
	var missing []string
	for _, match := range quoted.FindAllStringSubmatch(fence.ReplaceAllString(content, ""), -1) {
		if span := match[1]; !n.exists(span) {
			missing = append(missing, span)
		}
	}
	return missing
}

func (n *names) exists(span string) bool {
	if foreign[span] {
		return true
	}
	if aPath.MatchString(span) {
		first, _, isNested := strings.Cut(span, "/")
		return n.files[strings.TrimSuffix(span, "/")] || isNested && !n.files[first]
	}
	match := anEntity.FindStringSubmatch(span)
	if match == nil || foreign[match[1]] {
		return true
	}
	owner, members := match[1], match[2]
	if members == "" {
		return !aCamelCase.MatchString(owner) || n.declared[owner]
	}
	if n.owners[owner] {
		return n.declared[owner+members]
	}
	return false
}

// declarations reads the names of all files that the repository keeps.
func declarations(t *testing.T, root string) *names {
	t.Helper()
	n := &names{files: make(map[string]bool), declared: make(map[string]bool), owners: make(map[string]bool)}
	for _, name := range repositoryFiles(t, root) {
		n.files[path.Base(name)] = true
		for p := name; p != "."; p = path.Dir(p) {
			n.files[p] = true
		}
		if path.Ext(name) != ".go" {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(root, name), nil, parser.SkipObjectResolution)
		if os.IsNotExist(err) { // removed, but not yet committed
			continue
		}
		require.NoError(t, err)
		n.add(file)
	}
	return n
}

func (n *names) add(file *ast.File) {
	declare := func(owner, name string) {
		n.owners[owner] = true
		n.declared[name] = true
		n.declared[owner+"."+name] = true
	}
	pkg := file.Name.Name
	for _, decl := range file.Decls {
		switch d := decl.(type) {
		case *ast.FuncDecl:
			if d.Recv == nil {
				declare(pkg, d.Name.Name)
			} else {
				owner := receiver(d.Recv.List[0].Type)
				declare(owner, d.Name.Name)
				n.declared[pkg+"."+owner+"."+d.Name.Name] = true
			}
		case *ast.GenDecl:
			for _, spec := range d.Specs {
				switch s := spec.(type) {
				case *ast.TypeSpec:
					declare(pkg, s.Name.Name)
					n.owners[s.Name.Name] = true
					for _, member := range members(s.Type) {
						declare(s.Name.Name, member)
						n.declared[pkg+"."+s.Name.Name+"."+member] = true
					}
				case *ast.ValueSpec:
					for _, name := range s.Names {
						declare(pkg, name.Name)
					}
				}
			}
		}
	}
}

// members returns the names of a type's fields or of an interface's methods.
func members(expr ast.Expr) []string {
	var list *ast.FieldList
	switch t := expr.(type) {
	case *ast.StructType:
		list = t.Fields
	case *ast.InterfaceType:
		list = t.Methods
	default:
		return nil
	}
	var all []string
	for _, field := range list.List {
		for _, name := range field.Names {
			all = append(all, name.Name)
		}
	}
	return all
}

// receiver returns the name of a method's receiver type.
func receiver(expr ast.Expr) string {
	switch t := expr.(type) {
	case *ast.StarExpr:
		return receiver(t.X)
	case *ast.IndexExpr:
		return receiver(t.X)
	case *ast.IndexListExpr:
		return receiver(t.X)
	case *ast.Ident:
		return t.Name
	}
	return ""
}
