package generator

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/compiler/protogen"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Places in descriptor.proto.
//
//nolint:gochecknoglobals // constants
var (
	// goPackagePath is where a file's go_package option stands.
	goPackagePath = protoreflect.SourcePath{8, 11}
	// filePath stands for the file itself.
	filePath = protoreflect.SourcePath{}
)

// problem is one thing that is wrong with a schema. Line and column count from 1, and are 0 where
// the compiler didn't tell.
type problem struct {
	file         string
	line, column int
	text         string
}

func (p problem) String() string {
	if p.line == 0 {
		return fmt.Sprintf("%s: %s", p.file, p.text)
	}
	return fmt.Sprintf("%s:%d:%d: %s", p.file, p.line, p.column, p.text)
}

// problems are all that was found, in whatever order.
type problems []problem

// addf adds a problem with what stands at path in file.
func (ps *problems) addf(file *protogen.File, path protoreflect.SourcePath, format string, args ...any) {
	p := problem{file: file.Desc.Path(), text: fmt.Sprintf(format, args...)}
	p.line, p.column = position(file, path)
	*ps = append(*ps, p)
}

// position finds the place of path, or of the innermost thing around it that has one: compilers
// record options at different depths, and some files come without source locations.
func position(file *protogen.File, path protoreflect.SourcePath) (line, column int) {
	locations := file.Desc.SourceLocations()
	for ; len(path) > 0; path = path[:len(path)-1] {
		if loc := locations.ByPath(path); loc.Path != nil {
			return loc.StartLine + 1, loc.StartColumn + 1
		}
	}
	// What is wrong with the file as a whole is shown where its declarations begin.
	for _, first := range []protoreflect.SourcePath{{packageField}, {syntaxField}, {editionField}} {
		if loc := locations.ByPath(first); loc.Path != nil {
			return loc.StartLine + 1, loc.StartColumn + 1
		}
	}
	return 0, 0
}

// err is all problems in the order of their places, or nil.
func (ps *problems) err() error {
	if len(*ps) == 0 {
		return nil
	}
	sorted := slices.SortedFunc(slices.Values(*ps), func(a, b problem) int {
		return cmp.Or(strings.Compare(a.file, b.file), a.line-b.line, a.column-b.column, strings.Compare(a.text, b.text))
	})
	lines := make([]string, 0, len(sorted))
	for _, p := range slices.Compact(sorted) {
		lines = append(lines, p.String())
	}
	return errors.New(strings.Join(lines, "\n"))
}
