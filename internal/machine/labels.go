package machine

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Bounds of [Labels].
const (
	// MaxLabels is how many labels a set of them may have.
	MaxLabels = 64
	// MaxLabelName bounds a label's value, and its key without the prefix, in bytes.
	MaxLabelName = 63
	// MaxLabelPrefix bounds the prefix of a label's key, in bytes.
	MaxLabelPrefix = 253
)

// Labels are what users say about machines, as values by keys: `role=trainer`. The rules are those
// of Kubernetes (https://kubernetes.io/docs/concepts/overview/working-with-objects/labels), so that
// the labels of its nodes can be used as they are:
//
//   - A value is empty, or up to 63 letters, digits, '-', '_' and '.', the first and the last of
//     which are letters or digits.
//   - A key is a name of the same form, but not empty. Before it there may be a prefix and a slash:
//     up to 253 lower-case letters, digits, '-' and '.', in parts between dots that begin and end
//     with a letter or digit (`example.com/role`).
//
// Labels are valid if [Labels.Check] returns nil; those that [ParseLabels] returns are. nil is
// valid, and has none.
type Labels map[string]string

// ParseLabels parses labels, each `key=value`, as of a flag that can be repeated. An error names
// the first one that is refused: one of another syntax, or with a key that occurred before.
func ParseLabels(labels ...string) (Labels, error) {
	l := make(Labels)
	for _, label := range labels {
		key, value, ok := strings.Cut(label, "=")
		if !ok {
			return nil, fmt.Errorf("label %s: a label has the form key=value", quote(label))
		}
		if err := checkLabel(key, value); err != nil {
			return nil, fmt.Errorf("label %s: %w", quote(label), err)
		}
		if _, twice := l[key]; twice {
			return nil, fmt.Errorf("label %s: %s occurs twice", quote(label), key)
		}
		if len(l) == MaxLabels {
			return nil, fmt.Errorf("label %s: there are more than %d labels", quote(label), MaxLabels)
		}
		l[key] = value
	}
	return l, nil
}

// Check returns an error that names the first label, by key, that is not valid, or that there are
// too many. It is for what has not come from [ParseLabels], such as what a peer has sent.
func (l Labels) Check() error {
	if len(l) > MaxLabels {
		return fmt.Errorf("labels: there are %d labels; the limit is %d", len(l), MaxLabels)
	}
	for _, key := range slices.Sorted(maps.Keys(l)) {
		if err := checkLabel(key, l[key]); err != nil {
			return fmt.Errorf("label %s: %w", quote(key+"="+l[key]), err)
		}
	}
	return nil
}

func checkLabel(key, value string) error {
	name := key
	if prefix, rest, ok := strings.Cut(key, "/"); ok {
		name = rest
		if len(prefix) > MaxLabelPrefix || slices.ContainsFunc(strings.Split(prefix, "."), isNoDomainLabel) {
			return fmt.Errorf("the prefix of a key is a domain name: up to %d lower-case letters, digits, '-' and '.', such as example.com", MaxLabelPrefix)
		}
	}
	if !isLabelName(name) {
		return fmt.Errorf("a key is up to %d letters, digits, '-', '_' and '.' that begin and end with a letter or digit, and may have a prefix such as example.com/",
			MaxLabelName)
	}
	if value != "" && !isLabelName(value) {
		return fmt.Errorf("a value is empty, or up to %d letters, digits, '-', '_' and '.' that begin and end with a letter or digit", MaxLabelName)
	}
	return nil
}

const (
	lowerAlphanumeric = "abcdefghijklmnopqrstuvwxyz0123456789"
	alphanumeric      = lowerAlphanumeric + "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
)

// isLabelName reports whether s can be a key without prefix, or a value.
func isLabelName(s string) bool { return len(s) <= MaxLabelName && hasForm(s, alphanumeric, "-_.") }

// isNoDomainLabel reports whether s can't be a part of a domain name (RFC 1123, in lower case).
func isNoDomainLabel(s string) bool { return !hasForm(s, lowerAlphanumeric, "-") }

// hasForm reports whether s begins and ends with one of ends, and has only these and inner between.
func hasForm(s, ends, inner string) bool {
	return s != "" && strings.Contains(ends, s[:1]) && strings.Contains(ends, s[len(s)-1:]) && strings.Trim(s, ends+inner) == ""
}

// Match reports whether each of the required labels is there, with the same value.
func (l Labels) Match(required Labels) bool {
	for key, value := range required {
		if has, ok := l[key]; !ok || has != value {
			return false
		}
	}
	return true
}

// Texts returns each label as [ParseLabels] parses it, sorted by key.
func (l Labels) Texts() []string {
	all := make([]string, 0, len(l))
	for _, key := range slices.Sorted(maps.Keys(l)) {
		all = append(all, key+"="+l[key])
	}
	return all
}

// String returns the labels sorted by key: `role=trainer,zone=a`.
func (l Labels) String() string { return strings.Join(l.Texts(), ",") }

// Clone returns a copy.
func (l Labels) Clone() Labels { return maps.Clone(l) }
