package generator

import (
	"fmt"
	godoc "go/doc/comment"
	"regexp"
	"strings"
	"unicode"

	"google.golang.org/protobuf/compiler/protogen"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
)

// comment writes text as a Go comment that is nothing but a comment. A directive (`//go:embed`) has
// no space after the slashes, so each line gets one; characters that the Go compiler takes in no
// place go. Gofmt would make a build constraint of a line that begins with `+build`, wherever it
// stands.
func comment(text string) string {
	text = strings.ToValidUTF8(text, "\uFFFD")
	text = strings.NewReplacer("\r\n", "\n", "\r", "\n", "\x00", "", "\uFEFF", "").Replace(text)
	text = strings.TrimRight(text, "\n")
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		line = strings.TrimRightFunc(line, unicode.IsSpace)
		if words := strings.TrimSpace(line); strings.HasPrefix(words, "+build") {
			line = "(" + words + ")"
		}
		switch {
		case line == "":
			lines[i] = "//"
		case line[0] == ' ' || line[0] == '\t':
			lines[i] = "//" + line
		default:
			lines[i] = "// " + line
		}
	}
	return strings.Join(lines, "\n")
}

// maxFormats bounds how often formatDoc formats a comment; twice has been seen to be needed.
const maxFormats = 16

// formatDoc writes a doc comment as gofmt does, until that changes nothing or has been done so
// often: lists and code can take it more than once.
func formatDoc(text string, times int) string {
	var parser godoc.Parser
	var printer godoc.Printer
	for range times {
		if text == "" {
			break
		}
		var words strings.Builder
		for line := range strings.SplitSeq(text, "\n") {
			words.WriteString(strings.TrimPrefix(strings.TrimPrefix(line, "//"), " "))
			words.WriteByte('\n')
		}
		lines := strings.Split(strings.TrimSuffix(string(printer.Comment(parser.Parse(words.String()))), "\n"), "\n")
		for i, line := range lines {
			switch line = strings.TrimRightFunc(line, unicode.IsSpace); {
			case line == "" || line[0] == '\t':
				lines[i] = "//" + line
			default:
				lines[i] = "// " + line
			}
		}
		formatted := strings.Join(lines, "\n")
		if formatted == text {
			break
		}
		text = formatted
	}
	return text
}

// doc is the documentation of one symbol: paragraphs, empty ones left out.
type doc []string

// lintComment is a line that speaks to buf's linter alone.
var lintComment = regexp.MustCompile(`(?m)^[ \t]*buf:lint:ignore .*\n?`)

// text is the paragraphs before they become a comment.
func (d doc) text() string {
	var paragraphs []string
	for _, p := range d {
		if strings.Contains(p, "buf:lint:ignore") {
			p = lintComment.ReplaceAllString(p, "")
		}
		if p = strings.Trim(p, "\n"); strings.TrimSpace(p) != "" {
			paragraphs = append(paragraphs, p)
		}
	}
	return strings.Join(paragraphs, "\n\n")
}

// String is the comment; empty where there are no paragraphs.
func (d doc) String() string {
	if text := d.text(); text != "" {
		return comment(text)
	}
	return ""
}

// lineLength is the maximum length of a line of the plugin's own sentences.
const lineLength = 100

// sentence breaks a sentence of the plugin's own into lines. The schema's words stand as they were
// written.
func sentence(format string, args ...any) string {
	var b strings.Builder
	length := 0
	for word := range strings.FieldsSeq(fmt.Sprintf(format, args...)) {
		switch {
		case length == 0:
		case length+1+len(word) > lineLength-len("// "):
			b.WriteByte('\n')
			length = 0
		default:
			b.WriteByte(' ')
			length++
		}
		b.WriteString(word)
		length += len(word)
	}
	return b.String()
}

// schemaDoc is what the schema says of a declaration: the comment before it, then the one
// behind it.
func schemaDoc(comments protogen.CommentSet) doc {
	return doc{string(comments.Leading), string(comments.Trailing)}
}

var deprecatedParagraph = regexp.MustCompile(`(?m)(\A|\n[ \t]*\n)[ \t]*Deprecated: `)

// deprecation is the paragraph by which Go's tools know that something is deprecated; empty where
// it isn't, or where the schema's own words already hold such a paragraph.
func deprecation(file *protogen.File, d protoreflect.Descriptor, comments protogen.CommentSet) string {
	if !isDeprecated(file, d) {
		return ""
	}
	for _, text := range []protogen.Comments{comments.Leading, comments.Trailing} {
		if deprecatedParagraph.MatchString(string(text)) {
			return ""
		}
	}
	return sentence("Deprecated: marked as deprecated in %s.", file.Desc.Path())
}

// isDeprecated reports whether a declaration, or its file, is marked as deprecated.
func isDeprecated(file *protogen.File, d protoreflect.Descriptor) bool {
	if file.Proto.GetOptions().GetDeprecated() {
		return true
	}
	switch options := d.Options().(type) {
	case *descriptorpb.ServiceOptions:
		return options.GetDeprecated()
	case *descriptorpb.MethodOptions:
		return options.GetDeprecated()
	case *descriptorpb.MessageOptions:
		return options.GetDeprecated()
	case *descriptorpb.FieldOptions:
		return options.GetDeprecated()
	}
	return false
}
