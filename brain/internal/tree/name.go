package tree

import (
	"crypto/rand"
	"encoding/hex"
	"strings"
	"unicode/utf8"

	"connectrpc.com/connect/v2"

	"github.com/raylink/raylink/internal/nodename"
)

const maxCauseBytes = 4 << 10

// By is how a lookup identifies a node.
type By int

// The ways to identify a node. ByAny distinguishes the other three by their form.
const (
	ByAny By = iota
	ByPath
	ByAlias
	ByNID
)

// formOf distinguishes a path, an alias and an nid. The rules for aliases exclude ambiguous ones.
func formOf(where string) By {
	switch {
	case where == nodename.RootPath || strings.Contains(where, "/"):
		return ByPath
	case IsUUID(where):
		return ByNID
	case nodename.IsName(where):
		return ByPath
	default:
		return ByAlias
	}
}

// NewUUID makes a random UUID (RFC 9562, version 4).
func NewUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails: the program ends if the system has no randomness
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

// IsUUID reports whether s has the form of a UUID: five groups of hexadecimal digits, in either
// case.
func IsUUID(s string) bool { return nodename.IsUUID(s) }

func nameOf(kind string, index uint64) string { return nodename.Of(kind, index) }

// checkType refuses types that cannot be the first half of a name.
func checkType(kind string) error {
	if kind == "" {
		return connect.NewError(connect.CodeInvalidArgument, "a node needs a type")
	}
	if why := nodename.BadType(kind); why != "" {
		return connect.Errorf(connect.CodeInvalidArgument, "the type %q can't be a node's: %s", clip(kind), why)
	}
	return nil
}

// CheckAlias refuses invalid aliases, with the reason.
func CheckAlias(alias string) error {
	if why := nodename.BadAlias(alias); why != "" {
		return connect.Errorf(connect.CodeInvalidArgument, "the alias %q %s", clip(alias), why)
	}
	return nil
}

// clip shortens a text from the wire for an error.
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
