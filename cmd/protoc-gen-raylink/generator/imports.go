package generator

import (
	"go/token"
	"go/types"
	"maps"
	"path"
	"slices"
	"strconv"

	"github.com/dave/jennifer/jen"
	"google.golang.org/protobuf/compiler/protogen"
)

// Packages that generated code imports beside those of messages.
const (
	contextPackage = "context"
	connectPackage = "connectrpc.com/connect/v2"
	protoPackage   = "google.golang.org/protobuf/proto"
	runtimePackage = "github.com/raylink/raylink/runtime"
	nodePackage    = "github.com/raylink/raylink/gen/raylink/node/v1"
)

// localNames are the parameters and variables of generated functions, which an import's name must not meet.
func localNames() []string {
	return []string{
		"cfg", "client", "config", "ctx", "err", "found", "from", "h", "handles", "i", "n", "node", "opts", "parent", "ref", "refs",
		"req", "res", "server", "setup", "stream", "where",
	}
}

// importNames gives every package that a file imports its name in that file. It decides all of them, and jennifer is told: jennifer's
// own guess for connect/v2 would be v2, and it doesn't know what else is declared in the generated package.
func importNames(taken map[string]bool, messages map[protogen.GoImportPath]protogen.GoPackageName) map[string]string {
	named := make(map[string]string)
	used := make(map[string]bool)
	maps.Copy(used, taken)
	for _, name := range slices.Concat(localNames(), types.Universe.Names()) {
		used[name] = true
	}
	name := func(importPath, want string) {
		if _, done := named[importPath]; done {
			return
		}
		free := want
		for i := 1; used[free] || jen.IsReservedWord(free) || !token.IsIdentifier(free); i++ {
			free = want + strconv.Itoa(i)
		}
		used[free] = true
		named[importPath] = free
	}
	// First those of the plugin, so that they read the same everywhere, then the others by path.
	name(contextPackage, "context")
	name(connectPackage, "connect")
	name(protoPackage, "proto")
	name(runtimePackage, "runtime")
	name(nodePackage, "nodev1")
	for _, importPath := range slices.Sorted(maps.Keys(messages)) {
		name(string(importPath), string(messages[importPath]))
	}
	return named
}

// tellImports tells jennifer the names, and which of them to write out: those that the path doesn't end in.
func tellImports(file *jen.File, named map[string]string, messages map[protogen.GoImportPath]protogen.GoPackageName) {
	for importPath, name := range named {
		declared, isMessages := messages[protogen.GoImportPath(importPath)]
		if path.Base(importPath) == name && (!isMessages || string(declared) == name) {
			file.ImportName(importPath, name)
		} else {
			file.ImportAlias(importPath, name)
		}
	}
}
