package tree

import (
	"crypto/rand"
	"encoding/hex"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"connectrpc.com/connect/v2"
)

// RootPath is how the root is named where it has to be. As a part of paths it is not written.
const RootPath = "BRAIN"

const (
	maxTypeBytes    = 128
	maxAliasBytes   = 256
	maxServiceBytes = 512
	maxCauseBytes   = 4 << 10
)

// By says how a node is asked for.
type By int

// The ways to ask for a node. ByAny tells the other three apart by form.
const (
	ByAny By = iota
	ByPath
	ByAlias
	ByNID
)

// formOf tells a path, an alias and an nid apart. The rules for aliases see to it that none is of two forms.
func formOf(where string) By {
	switch {
	case where == RootPath || strings.Contains(where, "/"):
		return ByPath
	case IsUUID(where):
		return ByNID
	case isName(where):
		return ByPath
	default:
		return ByAlias
	}
}

// NewUUID makes a random UUID (RFC 9562, version 4).
func NewUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails: the program ends where the system has no randomness
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	var s [36]byte
	hex.Encode(s[:8], b[:4])
	hex.Encode(s[9:13], b[4:6])
	hex.Encode(s[14:18], b[6:8])
	hex.Encode(s[19:23], b[8:10])
	hex.Encode(s[24:], b[10:])
	s[8], s[13], s[18], s[23] = '-', '-', '-', '-'
	return string(s[:])
}

// IsUUID says whether s is written as a UUID: five groups of hexadecimal digits, in either case.
func IsUUID(s string) bool { return isHexGroups(s, 8, 4, 4, 4, 12) }

func isHexGroups(s string, sizes ...int) bool {
	groups := strings.Split(s, "-")
	if len(groups) != len(sizes) {
		return false
	}
	for i, group := range groups {
		if len(group) != sizes[i] {
			return false
		}
		for _, c := range []byte(group) {
			if (c < '0' || c > '9') && (c < 'a' || c > 'f') && (c < 'A' || c > 'F') {
				return false
			}
		}
	}
	return true
}

// isName says whether s has the form of a node's name: a type, a dash, and digits. Leading zeros count too, though no node has
// them, so that an alias can't be mistaken for a name.
func isName(s string) bool {
	i := strings.LastIndexByte(s, '-')
	return i > 0 && i+1 < len(s) && strings.Trim(s[i+1:], "0123456789") == ""
}

func nameOf(kind string, index uint64) string { return kind + "-" + strconv.FormatUint(index, 10) }

// checkType refuses types that would not do as the first half of a name: they appear in paths and URLs.
func checkType(kind string) error {
	switch {
	case kind == "":
		return connect.NewError(connect.CodeInvalidArgument, "a node needs a type")
	case len(kind) > maxTypeBytes:
		return connect.Errorf(connect.CodeInvalidArgument, "the type %q has %d bytes; the bound is %d", clip(kind), len(kind), maxTypeBytes)
	case isHexGroups(kind, 8, 4, 4, 4):
		return connect.Errorf(connect.CodeInvalidArgument, "the type %q would make names that look like nids", kind)
	}
	for i := range len(kind) {
		c := kind[i]
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
		if !letter && (i == 0 || (c < '0' || c > '9') && !strings.ContainsRune("-_.", rune(c))) {
			return connect.Errorf(connect.CodeInvalidArgument, "the type %q is not a letter followed by letters, digits, '-', '_' and '.'", clip(kind))
		}
	}
	return nil
}

// CheckAlias refuses what can't be an alias, and says why.
func CheckAlias(alias string) error {
	var why string
	switch {
	case alias == "":
		why = "is empty"
	case len(alias) > maxAliasBytes:
		why = "has " + strconv.Itoa(len(alias)) + " bytes; the bound is " + strconv.Itoa(maxAliasBytes)
	case !utf8.ValidString(alias):
		why = "is not UTF-8"
	case strings.Contains(alias, "/"):
		why = "has a '/', as only paths have"
	case alias == RootPath:
		why = "is the root's name"
	case alias == "." || alias == "..":
		why = "is a relative path"
	case IsUUID(alias):
		why = "is a UUID, as nids are"
	case isName(alias):
		why = "has the form of a name, type-N"
	case strings.ContainsFunc(alias, func(r rune) bool { return unicode.IsSpace(r) || !unicode.IsPrint(r) }):
		why = "has a space or a character that can't be printed"
	default:
		return nil
	}
	return connect.Errorf(connect.CodeInvalidArgument, "the alias %q %s", clip(alias), why)
}

// clip shortens what goes into an error's text: it came from the wire, and may be long.
func clip(s string) string { return clipTo(s, 256) }

func clipTo(s string, bound int) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	if len(s) <= bound {
		return s
	}
	end := bound
	for !utf8.RuneStart(s[end]) {
		end--
	}
	return s[:end] + "..."
}
