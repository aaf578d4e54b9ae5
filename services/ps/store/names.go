package store

import (
	"fmt"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// MaxTag is the length of the longest tag, in bytes. As a directory's name it may be three times as long.
const MaxTag = 80

const (
	tagPrefix     = "tag-"
	versionSuffix = ".params"
	begunSuffix   = ".begun"
	indexName     = "index"
)

// CheckTag says why a text can't be a tag.
func CheckTag(name string) error {
	if name == "" || len(name) > MaxTag || !utf8.ValidString(name) || strings.ContainsFunc(name, unicode.IsControl) {
		return fmt.Errorf("%w: a tag is printable text of 1 to %d bytes, and %q is not", ErrVersion, MaxTag, name)
	}
	return nil
}

// tagPath is a tag's directory. The prefix keeps `.` and `..` from being one.
func tagPath(directory, name string) string {
	return filepath.Join(directory, tagPrefix+url.QueryEscape(name))
}

// tagOf reads the name of a tag's directory.
func tagOf(directory string) (string, bool) {
	escaped, ok := strings.CutPrefix(directory, tagPrefix)
	if !ok {
		return "", false
	}
	name, err := url.QueryUnescape(escaped)
	return name, err == nil && CheckTag(name) == nil && url.QueryEscape(name) == escaped
}

func versionPath(tagDirectory string, id uint64) string {
	return filepath.Join(tagDirectory, strconv.FormatUint(id, 10)+versionSuffix)
}

// idOf reads the name of a version's file.
func idOf(file string) (uint64, bool) {
	digits, ok := strings.CutSuffix(file, versionSuffix)
	if !ok {
		return 0, false
	}
	id, err := strconv.ParseUint(digits, 10, 64)
	return id, err == nil && id > 0 && strconv.FormatUint(id, 10) == digits
}
