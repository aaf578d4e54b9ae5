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

// MaxTag is the maximum length of a tag in bytes. Escaped as a directory name it can be three times
// as long.
const MaxTag = 80

const (
	tagPrefix     = "tag-"
	versionSuffix = ".params"
	draftSuffix   = ".draft"
	tempSuffix    = ".begun"
	indexName     = "index"
	statusName    = "status"
	// lockName is the file that the officer locks.
	lockName = "officer.lock"
)

// CheckTag returns an error that wraps [ErrVersion] if a tag is invalid.
func CheckTag(name string) error {
	if name == "" || len(name) > MaxTag || !utf8.ValidString(name) || strings.ContainsFunc(name, unicode.IsControl) {
		return fmt.Errorf("%w: invalid tag %q: a tag consists of 1 to %d bytes of printable text", ErrVersion, name, MaxTag)
	}
	return nil
}

// tagPath returns a tag's directory. The prefix prevents the names "." and "..".
func tagPath(directory, name string) string {
	return filepath.Join(directory, tagPrefix+url.QueryEscape(name))
}

// parseTagDirectory decodes the name of a tag's directory.
func parseTagDirectory(directory string) (string, bool) {
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

// parseVersionFile decodes the name of a version's file.
func parseVersionFile(file string) (uint64, bool) {
	digits, ok := strings.CutSuffix(file, versionSuffix)
	if !ok {
		return 0, false
	}
	id, err := strconv.ParseUint(digits, 10, 64)
	return id, err == nil && id > 0 && strconv.FormatUint(id, 10) == digits
}

// maxContent is the maximum length of a content's name in bytes.
const maxContent = 64

// checkContent returns an error that wraps [ErrVersion] if a content's name is invalid.
func checkContent(content string) error {
	ok := content != "" && len(content) <= maxContent
	for _, c := range []byte(content) {
		ok = ok && ('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_')
	}
	if !ok {
		return fmt.Errorf("%w: invalid content %q: it consists of 1 to %d letters, digits, '-' and '_'", ErrVersion, content, maxContent)
	}
	return nil
}

func draftPath(tagDirectory, content string) string {
	return filepath.Join(tagDirectory, content+draftSuffix)
}

// parseDraftPath decodes the path of a draft.
func parseDraftPath(path string) (content string, ok bool) {
	content, ok = strings.CutSuffix(filepath.Base(path), draftSuffix)
	return content, ok && checkContent(content) == nil
}
