package generator

import (
	"go/token"
	"go/types"
	"maps"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/compiler/protogen"
)

// Packages that generated code imports beside those of messages.
const (
	contextPackage = "context"
	connectPackage = "connectrpc.com/connect/v2"
	protoPackage   = "google.golang.org/protobuf/proto"
	runtimePackage = "github.com/raylink/raylink/runtime"
	nodePackage    = "github.com/raylink/raylink/gen/raylink/node/v1"
	rowPackage     = "github.com/raylink/raylink/runtime/row"
	tensorPackage  = "github.com/raylink/raylink/gen/raylink/tensor/v1"
)

// localNames are the parameters and variables of generated functions, which an import's name must
// not meet.
func localNames() []string {
	return []string{
		"c", "cfg", "client", "columns", "config", "ctx", "err", "found", "from", "h", "handles", "i", "m", "n", "node", "opts", "parent",
		"ref", "refs", "req", "res", "server", "setup", "stream", "untyped", "v", "where",
	}
}

// runtimeModule is the prefix of the import paths of RayLink's own packages.
const runtimeModule = "github.com/raylink/raylink/"

// importGroups returns import paths as goimports arranges them: the standard library, third
// parties, then RayLink's own packages and those of the schemas' owner, each group sorted. own is
// the package of the file's messages; the owner's packages begin with the same two path elements.
func importGroups(importPaths []string, own protogen.GoImportPath) [][]string {
	elements := strings.SplitN(string(own), "/", 3)
	owner := strings.Join(elements[:min(2, len(elements))], "/") + "/"
	groups := make([][]string, 3)
	for _, importPath := range slices.Sorted(slices.Values(importPaths)) {
		host, _, _ := strings.Cut(importPath, "/")
		group := 1
		switch {
		case strings.HasPrefix(importPath+"/", runtimeModule), strings.HasPrefix(importPath+"/", owner):
			group = 2
		case !strings.Contains(host, "."):
			group = 0
		}
		groups[group] = append(groups[group], importPath)
	}
	return slices.DeleteFunc(groups, func(group []string) bool { return len(group) == 0 })
}

// importNames gives every package that a file imports its name in that file, clear of what else is
// declared in the generated package. Every file with a service uses all of its packages, and every
// file with a row all of a row's.
func importNames(taken map[string]bool, services, rows bool, messages map[protogen.GoImportPath]protogen.GoPackageName) map[string]string {
	named := make(map[string]string)
	used := make(map[string]bool)
	for _, name := range slices.Concat(localNames(), types.Universe.Names()) {
		used[name] = true
	}
	name := func(importPath, want string) {
		if _, done := named[importPath]; done {
			return
		}
		free := want
		for i := 1; taken[free] || used[free] || !token.IsIdentifier(free); i++ {
			free = want + strconv.Itoa(i)
		}
		used[free] = true
		named[importPath] = free
	}
	// First those of the plugin, so that they read the same everywhere, then the others by path.
	if services {
		name(contextPackage, "context")
		name(connectPackage, "connect")
		name(protoPackage, "proto")
		name(runtimePackage, "runtime")
		name(nodePackage, "nodev1")
	}
	if rows {
		name(rowPackage, "row")
		name(tensorPackage, "tensorv1")
	}
	for _, importPath := range slices.Sorted(maps.Keys(messages)) {
		name(string(importPath), string(messages[importPath]))
	}
	return named
}
