package generator

import (
	"fmt"
	"go/build"
	"go/token"
	"io"
	"path"
	"strings"
	"unicode"

	"golang.org/x/mod/module"
	"google.golang.org/protobuf/compiler/protogen"
)

// This file has what Go asks of the names of packages and files. protoc-gen-go takes more than
// that, for its output is never imported by itself.

// skipped says why Go leaves out the code that is generated for a file, messages included, or "".
func skipped(file *protogen.File) string {
	base := path.Base(file.GeneratedFilenamePrefix) + ".pb.go"
	// No operating system and no architecture: whatever Go builds for one alone is excluded.
	nowhere := build.Context{Compiler: "gc", OpenFile: func(string) (io.ReadCloser, error) {
		return io.NopCloser(strings.NewReader("package p\n")), nil
	}}
	match, err := nowhere.MatchFile("", base)
	switch {
	case err != nil:
		return fmt.Sprintf("Go can't tell whether %s is part of a build: %v; rename the file", base, err)
	case match && !isSafeArgument(base):
		return fmt.Sprintf("Go refuses files whose names begin with %q, as %s does; rename the file", base[:1], base)
	case match:
		return ""
	case base[0] == '_' || base[0] == '.':
		return fmt.Sprintf("Go skips files whose names begin with %q, as %s does; rename the file", base[:1], base)
	}
	stem, _, _ := strings.Cut(base, ".")
	stem = strings.TrimSuffix(stem, "_test")
	return fmt.Sprintf("Go builds %s for one operating system or architecture alone, because its name ends in %q; rename the file",
		base, stem[strings.LastIndexByte(stem, '_'):])
}

// isSafeArgument is the rule of the go command (cmd/internal/load.SafeArg) for names that it gives
// to a compiler.
func isSafeArgument(name string) bool {
	c := name[0]
	return '0' <= c && c <= '9' || 'A' <= c && c <= 'Z' || 'a' <= c && c <= 'z' || c == '.' || c == '_' || c >= 0x80
}

// notImportable says why no other Go package can import a file's messages, or "".
func notImportable(file *protogen.File) string {
	importPath, name := string(file.GoImportPath), string(file.GoPackageName)
	switch {
	case strings.HasPrefix(importPath, "./") || strings.HasPrefix(importPath, "../") || importPath == "." || importPath == "..":
		return fmt.Sprintf("the Go import path %q is relative, so that code in another package can't import the messages; "+
			"write the whole path in go_package, or pass M%s=<import path>", importPath, file.Desc.Path())
	case strings.HasPrefix(importPath, "/"):
		return fmt.Sprintf("the Go import path %q is absolute, so that code in another package can't import the messages", importPath)
	case name == "main":
		return "the Go package is named main, and no other package can import it"
	case name == "documentation":
		return "the Go package is named documentation, and Go skips the files of packages of that name; give go_package another name"
	case !token.IsIdentifier(name) || name == "_":
		return fmt.Sprintf("%q is not a valid Go package name", name)
	}
	return badImportPath(string(cleanImportPath(file.GoImportPath)))
}

// badImportPath says why the go command doesn't build a package of that import path, or "".
func badImportPath(importPath string) string {
	bad := func(why string) string {
		return fmt.Sprintf("%q is not a valid Go import path: %s", importPath, why)
	}
	if err := module.CheckImportPath(importPath); err != nil {
		if invalid, ok := err.(*module.InvalidPathError); ok { //nolint:errorlint // it wraps nothing
			err = invalid.Err
		}
		return bad(err.Error())
	}
	last := path.Base(importPath)
	switch {
	case strings.Contains("/"+importPath+"/", "/vendor/"):
		return bad(`only the go command puts packages below "vendor"`)
	case !isSafeArgument(last):
		return bad(fmt.Sprintf("the go command refuses directories whose names begin with %q", last[:1]))
	}
	return ""
}

// fold makes names equal that the go command takes for a collision: those that differ in case
// alone.
func fold(name string) string {
	return strings.Map(func(r rune) rune {
		least := r
		for f := unicode.SimpleFold(r); f != r; f = unicode.SimpleFold(f) {
			least = min(least, f)
		}
		return least
	}, name)
}
