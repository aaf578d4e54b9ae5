// Package nodename has the rules for the names of nodes (types, aliases, nids) and of what they
// serve (services, procedures). Brain, the runtime, the plugin and the command line share it, so
// that none accepts a name that another refuses. Package nodeurl makes URLs of these names.
package nodename

import (
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// RootPath is the path of the root, Brain. Paths of other nodes omit it.
const RootPath = "BRAIN"

// Limits on the length of names, in bytes.
const (
	MaxTypeBytes    = 128
	MaxAliasBytes   = 256
	MaxServiceBytes = 512
	// MaxProcedureBytes bounds `/package.Service/Method`: the tunnel's bound on one interned name.
	MaxProcedureBytes = 1 << 10
)

// Of returns the name of a node of a type with an index among its siblings.
func Of(kind string, index uint64) string { return kind + "-" + strconv.FormatUint(index, 10) }

// IsName reports whether s has the form of a node's name: a type, a hyphen, and digits. It accepts
// leading zeros, which no node's name has, so that an alias can't be mistaken for a name.
func IsName(s string) bool {
	i := strings.LastIndexByte(s, '-')
	return i > 0 && i+1 < len(s) && strings.Trim(s[i+1:], "0123456789") == ""
}

// IsUUID reports whether s has the form of a UUID: five groups of hexadecimal digits, in either
// case.
func IsUUID(s string) bool { return isHexGroups(s, 8, 4, 4, 4, 12) }

func isHexGroups(s string, sizes ...int) bool {
	groups := strings.Split(s, "-")
	if len(groups) != len(sizes) {
		return false
	}
	for i, group := range groups {
		if len(group) != sizes[i] || strings.Trim(group, "0123456789abcdefABCDEF") != "" {
			return false
		}
	}
	return true
}

// BadType returns why kind can't be a type of node, or "" if it can. A type appears in names,
// paths, file names, URLs and HTTP headers.
func BadType(kind string) string {
	switch {
	case len(kind) > MaxTypeBytes:
		return fmt.Sprintf("it has %d bytes; the limit is %d", len(kind), MaxTypeBytes)
	case kind == "" || kind[0] < 'a' || kind[0] > 'z' || strings.Trim(kind, "abcdefghijklmnopqrstuvwxyz0123456789-") != "":
		return "a type is lower-case letters, digits and hyphens, beginning with a letter"
	case kind[len(kind)-1] == '-' || IsName(kind):
		return "a type may not end in a hyphen and digits, for a node's name is its type, a hyphen and its index"
	case isHexGroups(kind, 8, 4, 4, 4):
		return "with an index it would have the form of a nid, a UUID"
	}
	return ""
}

// BadService returns why name can't be the full name of a node's service, or "" if it can.
func BadService(name string) string {
	if len(name) > MaxServiceBytes {
		return fmt.Sprintf("it has %d bytes; the limit is %d", len(name), MaxServiceBytes)
	}
	return ""
}

// Procedure returns the procedure of a service's method, `/package.Service/Method`: its name in
// calls by HTTP and by tunnel. service is a full name, method is not.
func Procedure(service, method string) string { return "/" + service + "/" + method }

// CutProcedure returns the service and the method of a procedure. ok is false, and both are empty,
// unless procedure begins with a slash and has a second one.
func CutProcedure(procedure string) (service, method string, ok bool) {
	name, ok := strings.CutPrefix(procedure, "/")
	if !ok {
		return "", "", false
	}
	if service, method, ok = strings.Cut(name, "/"); !ok {
		return "", "", false
	}
	return service, method, true
}

// MethodFullName returns the full name of a procedure's method, `package.Service/Method`: its name
// in errors, logs and events.
func MethodFullName(procedure string) string { return strings.TrimPrefix(procedure, "/") }

// BadProcedure returns why `/package.Service/Method` can't be called, or "" if it can.
func BadProcedure(procedure string) string {
	if len(procedure) > MaxProcedureBytes {
		return fmt.Sprintf("the procedure %.32s... has %d bytes; the limit is %d", procedure, len(procedure), MaxProcedureBytes)
	}
	return ""
}

// BadAlias returns why alias can't be an alias, as the predicate of a sentence, or "" if it can.
func BadAlias(alias string) string {
	switch {
	case alias == "":
		return "is empty"
	case len(alias) > MaxAliasBytes:
		return fmt.Sprintf("has %d bytes; the limit is %d", len(alias), MaxAliasBytes)
	case !utf8.ValidString(alias):
		return "is not UTF-8"
	case strings.Contains(alias, "/"):
		return "has a '/', as only paths have"
	case alias == RootPath:
		return "is the root's name"
	case alias == "." || alias == "..":
		return "is a relative path"
	case IsUUID(alias):
		return "is a UUID, as nids are"
	case IsName(alias):
		return "has the form of a name, type-N"
	case strings.ContainsFunc(alias, func(r rune) bool { return unicode.IsSpace(r) || !unicode.IsPrint(r) }):
		return "has a space or a character that can't be printed"
	}
	return ""
}
