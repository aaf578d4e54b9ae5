package archive

import (
	"fmt"
	"path"
	"strings"
	"unicode/utf8"
)

// MaxTag is the maximum length of a tag in bytes.
const MaxTag = 1024

const (
	jsonSuffix = ".json"
	partSuffix = ".part"
	// idLength is the length of a write's id, which has only the characters of idAlphabet.
	idLength   = 26
	idAlphabet = "abcdefghijklmnopqrstuvwxyz234567"
	// maxName is the maximum length of an escaped name, so that with a dot, the id and suffixes it
	// has at most 255 bytes.
	maxName = 190
	// maxPath is more than the length of any tag's folder: a byte of a tag becomes at most three,
	// and each slash, empty part and split of a part adds at most two.
	maxPath = 5 * MaxTag
)

const (
	formatSafetensors = "safetensors"
	formatBytes       = "bytes"
)

var (
	formats        = []string{formatSafetensors, formatBytes}                                  //nolint:gochecknoglobals // a table
	formatSuffixes = map[string]string{formatSafetensors: ".safetensors", formatBytes: ".bin"} //nolint:gochecknoglobals // a table
)

// location is where a tag's files are, relative to the archive's directory. No two tags have the
// same, also where the file system ignores case or normalizes Unicode: paths have only lower-case
// ASCII.
type location struct {
	tag string
	// folder is "." for tags without a slash.
	folder string
	// stem is the files' names without their suffixes.
	stem string
}

func (l location) content(format string) string {
	return path.Join(l.folder, l.stem+formatSuffixes[format])
}

func (l location) json() string { return path.Join(l.folder, l.stem+jsonSuffix) }

// part is the name of a write's content until it is finished.
func (l location) part(id string) string {
	return path.Join(l.folder, "."+l.stem+"."+id+partSuffix)
}

// partOfJSON is the name of a write's JSON until it is committed.
func (l location) partOfJSON(id string) string {
	return path.Join(l.folder, "."+l.stem+"."+id+jsonSuffix)
}

// parsePart decodes the name of a file of a writer.
func parsePart(name string) (stem string, isContent, ok bool) {
	rest, hidden := strings.CutPrefix(name, ".")
	stemAndID, isContent := strings.CutSuffix(rest, partSuffix)
	isJSON := false
	if !isContent {
		stemAndID, isJSON = strings.CutSuffix(rest, jsonSuffix)
	}
	dot := strings.LastIndexByte(stemAndID, '.')
	if !hidden || !isContent && !isJSON || dot < 1 || !isID(stemAndID[dot+1:]) {
		return "", false, false
	}
	return stemAndID[:dot], isContent, true
}

func isID(id string) bool {
	return len(id) == idLength && strings.Trim(id, idAlphabet) == ""
}

// locate returns the location of a tag's files. Each part of the tag between slashes is a name:
//
//   - lower-case letters, digits, '-', '_' and '.' are themselves
//   - an upper-case letter is '!' and its lower-case letter, as in Go's module cache
//   - every other byte is '%' and two digits, and so is a dot at the beginning of a name
//   - an empty part is "!"
//   - of a folder's name that ends like a file's, the last dot is escaped too: the tags "a" and
//     "a.json/b" exist side by side
//   - a part that is too long for a file system is split, and each name but the last ends with '%'
func locate(tag string) (location, error) {
	if tag == "" || len(tag) > MaxTag || !utf8.ValidString(tag) {
		return location{}, fmt.Errorf("%w: a tag consists of 1 to %d bytes of UTF-8", ErrTag, MaxTag)
	}
	var names []string
	for part := range strings.SplitSeq(tag, "/") {
		if len(names) > 0 {
			last := &names[len(names)-1]
			*last = escapeSuffix(*last)
		}
		names = appendNames(names, part)
	}
	last := len(names) - 1
	return location{tag: tag, folder: path.Join(append([]string{"."}, names[:last]...)...), stem: names[last]}, nil
}

// appendNames appends the names of one part of a tag.
func appendNames(names []string, part string) []string {
	if part == "" {
		return append(names, "!")
	}
	var name strings.Builder
	for i := range len(part) {
		escaped := escape(part[i], name.Len() == 0)
		if name.Len()+len(escaped) > maxName {
			names = append(names, name.String()+"%")
			name.Reset()
			escaped = escape(part[i], true)
		}
		name.WriteString(escaped)
	}
	return append(names, name.String())
}

func escape(c byte, first bool) string {
	switch {
	case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '-', c == '_', c == '.' && !first:
		return string(rune(c))
	case 'A' <= c && c <= 'Z':
		return "!" + string(rune(c-'A'+'a'))
	default:
		return fmt.Sprintf("%%%02x", c)
	}
}

// escapeSuffix escapes the last dot of a folder's name that ends like a file's.
func escapeSuffix(name string) string {
	for _, suffix := range []string{jsonSuffix, formatSuffixes[formatBytes], formatSuffixes[formatSafetensors]} {
		if stem, ok := strings.CutSuffix(name, suffix); ok {
			return stem + "%2e" + suffix[1:]
		}
	}
	return name
}

// parseLocation decodes the path of a tag's files without their suffix. It accepts only what
// [locate] returns.
func parseLocation(name string) (tag string, ok bool) {
	tag, ok = unescape(name)
	if !ok {
		return "", false
	}
	where, err := locate(tag)
	return tag, err == nil && path.Join(where.folder, where.stem) == name
}

// mayHaveTags reports whether a folder could be that of a tag's files. The bound on its length is
// that of the depth to which foreign folders are searched.
func mayHaveTags(folder string) bool {
	return path.Base(folder)[0] != '.' && len(folder) <= maxPath
}

// unescape decodes a path. What it makes of paths that [locate] does not return is unspecified.
func unescape(name string) (string, bool) {
	var tag strings.Builder
	for i := 0; i < len(name); i++ {
		c := name[i]
		next := byte('/')
		if i+1 < len(name) {
			next = name[i+1]
		}
		switch {
		case c == '!' && next == '/':
			// An empty part.
		case c == '!' && 'a' <= next && next <= 'z':
			tag.WriteByte(next - 'a' + 'A')
			i++
		case c == '%' && next == '/':
			// The part goes on.
			i++
		case c == '%' && i+2 < len(name):
			high, low := strings.IndexByte(hexDigits, next), strings.IndexByte(hexDigits, name[i+2])
			if high < 0 || low < 0 {
				return "", false
			}
			tag.WriteByte(byte(high<<4 | low)) //nolint:gosec // two digits
			i += 2
		case c == '!', c == '%':
			return "", false
		default:
			tag.WriteByte(c)
		}
	}
	return tag.String(), true
}

const hexDigits = "0123456789abcdef"
