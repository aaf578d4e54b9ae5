package generator

import (
	"bytes"
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/compiler/protogen"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// contractVersion is the version of the contract between generated code and the runtime that this
// plugin writes for: runtime.MaxGenerated of the same release.
const contractVersion = 4

// rowVersion is the version of the contract between generated row code and package row that this
// plugin writes for: row.MaxGenerated of the same release.
const rowVersion = 1

// Numbers of the fields in descriptor.proto whose comments go to the head of a generated file.
const (
	packageField = 2
	syntaxField  = 12
	editionField = 14
)

// writer writes one generated file, as gofmt would: gofmt itself, which prints nested literals once
// for each level, takes most of a plugin's time. Tests compare the two.
type writer struct {
	pkg     *goPackage
	src     *protogen.File
	options map[protoreflect.FullName]nodeOptions
	rows    []*rowType
	// imports are the names of imported packages in this file, by import path.
	imports  map[string]string
	messages map[protogen.GoImportPath]protogen.GoPackageName
	text     bytes.Buffer
	// annotations record where in the schema a symbol comes from.
	annotations []annotation
}

type annotation struct {
	symbol   string
	location protogen.Location
}

// file writes the whole file.
func (w *writer) file(plugin *protogen.Plugin) {
	w.messages = map[protogen.GoImportPath]protogen.GoPackageName{w.pkg.messages: w.src.GoPackageName}
	use := func(message *protogen.Message) {
		if message != nil {
			w.messages[cleanImportPath(message.GoIdent.GoImportPath)] = plugin.FilesByPath[message.Desc.ParentFile().Path()].GoPackageName
		}
	}
	for _, service := range w.src.Services {
		use(w.options[service.Desc.FullName()].config)
		for _, method := range service.Methods {
			use(method.Input)
			use(method.Output)
		}
	}
	for _, row := range w.rows {
		for _, column := range row.columns {
			// The code names the type of a single enum only, and infers that of repeated ones.
			if enum := column.field.Enum; enum != nil && !column.field.Desc.IsList() {
				w.messages[cleanImportPath(enum.GoIdent.GoImportPath)] = plugin.FilesByPath[enum.Desc.ParentFile().Path()].GoPackageName
			}
		}
	}
	w.imports = importNames(w.pkg.names.taken, len(w.src.Services) > 0, len(w.rows) > 0, w.messages)
	w.preamble()
	for _, service := range w.src.Services {
		w.service(service)
	}
	for _, row := range w.rows {
		w.row(row)
	}
}

// line writes a line of its parts, which begins with its indentation.
func (w *writer) line(parts ...string) {
	for _, part := range parts {
		w.text.WriteString(part)
	}
	w.text.WriteByte('\n')
}

// qual is an identifier of a messages' package.
func (w *writer) qual(ident protogen.GoIdent) string {
	return w.imports[string(cleanImportPath(ident.GoImportPath))] + "." + ident.GoName
}

// pointer is the Go type of a message: a pointer to its struct.
func (w *writer) pointer(message *protogen.Message) string { return "*" + w.qual(message.GoIdent) }

// rt is an identifier of the runtime.
func (w *writer) rt(name string) string { return w.imports[runtimePackage] + "." + name }

// connect is an identifier of package connect.
func (w *writer) connect(name string) string { return w.imports[connectPackage] + "." + name }

// rowIdent is an identifier of package row.
func (w *writer) rowIdent(name string) string { return w.imports[rowPackage] + "." + name }

func (w *writer) ctxType() string      { return w.imports[contextPackage] + ".Context" }
func (w *writer) protoMessage() string { return w.imports[protoPackage] + ".Message" }

// document puts a doc comment before the next declaration.
func (w *writer) document(d doc) {
	w.line()
	w.comment("", formatDoc(d.String(), maxFormats))
}

// comment writes a comment, whose lines begin with slashes, indented.
func (w *writer) comment(indent, text string) {
	if text == "" {
		return
	}
	for line := range strings.SplitSeq(text, "\n") {
		w.line(indent, line)
	}
}

// pairs writes the keys and values of a composite literal, one a line. Gofmt aligns values of one
// line; a key before a value of several lines stands alone.
func (w *writer) pairs(indent string, pairs ...[2]string) {
	for len(pairs) > 0 {
		run := slices.IndexFunc(pairs, func(p [2]string) bool { return strings.Contains(p[1], "\n") })
		if run < 0 {
			run = len(pairs)
		}
		width := 0
		for _, p := range pairs[:run] {
			width = max(width, len(p[0]))
		}
		for _, p := range pairs[:run] {
			w.line(indent, p[0], ":", strings.Repeat(" ", width-len(p[0])+1), p[1], ",")
		}
		if run < len(pairs) {
			w.line(indent, pairs[run][0], ": ", pairs[run][1], ",")
			run++
		}
		pairs = pairs[run:]
	}
}

// annotate says that a symbol ("T", "T.method") comes from a place of the schema.
func (w *writer) annotate(location protogen.Location, symbols ...string) {
	for _, symbol := range symbols {
		w.annotations = append(w.annotations, annotation{symbol, location})
	}
}

// preamble writes what stands above the first service.
func (w *writer) preamble() {
	for _, field := range []int32{syntaxField, editionField} {
		loc := w.src.Desc.SourceLocations().ByPath(protoreflect.SourcePath{field})
		for _, text := range append(loc.LeadingDetachedComments, loc.LeadingComments) {
			if strings.TrimSpace(text) != "" {
				w.comment("", comment(text))
				w.line()
			}
		}
	}
	w.comment("", comment("Code generated by protoc-gen-raylink. DO NOT EDIT.\n\nSource: "+w.src.Desc.Path()))
	w.line()
	about := doc{
		sentence("Package %s has %s in %s.", w.pkg.name, w.contents(), w.src.Desc.Path()),
		w.src.Desc.SourceLocations().ByPath(protoreflect.SourcePath{packageField}).LeadingComments,
	}
	w.comment("", formatDoc(about.String(), maxFormats))
	w.line("package ", string(w.pkg.name))
	w.line()
	w.line("import (")
	for i, group := range importGroups(slices.Collect(maps.Keys(w.imports)), w.pkg.messages) {
		if i > 0 {
			w.line()
		}
		for _, importPath := range group {
			name := w.imports[importPath]
			declared, isMessages := w.messages[protogen.GoImportPath(importPath)]
			// A name that the path ends in is omitted.
			if path.Base(importPath) == name && (!isMessages || string(declared) == name) {
				w.line("\t", strconv.Quote(importPath))
			} else {
				w.line("\t", name, " ", strconv.Quote(importPath))
			}
		}
	}
	w.line(")")
	if len(w.src.Services) > 0 {
		w.versionGuard("runtime", contractVersion, w.rt)
	}
	if len(w.rows) > 0 {
		w.versionGuard("row", rowVersion, w.rowIdent)
	}
}

// contents is what the file has.
func (w *writer) contents() string {
	const nodes, rows = "the nodes and handles of the services", "the columns of the rows"
	switch {
	case len(w.rows) == 0:
		return nodes
	case len(w.src.Services) == 0:
		return rows
	}
	return nodes + " and " + rows
}

// versionGuard writes constants that compile only with a package that supports this plugin's code.
// The comment above each says how to fix a mismatch of its kind.
func (w *writer) versionGuard(pkg string, contract int, ident func(string) string) {
	version := strconv.Itoa(contract)
	w.document(doc{sentence("This code is written for version %s of the contract between generated code and package %s. "+
		"If a line below does not compile, the comment above it says how to fix that.", version, pkg)})
	w.line("const (")
	w.line("\t// The plugin is older than package ", pkg, " in go.mod: generate this code again, with the")
	w.line("\t// plugin of that version.")
	w.line("\t//")
	w.line("\t//	go install github.com/raylink/raylink/cmd/protoc-gen-raylink")
	w.line("\t//	buf generate")
	w.line("\t_ = ", ident("EnforceVersion"), "(", version, " - ", ident("MinGenerated"), ")")
	w.line("\t// The plugin is newer than package ", pkg, " in go.mod: upgrade that, or generate this code")
	w.line("\t// again as above.")
	w.line("\t//")
	w.line("\t//	go get github.com/raylink/raylink@latest")
	w.line("\t_ = ", ident("EnforceVersion"), "(", ident("MaxGenerated"), " - ", version, ")")
	w.line(")")
}

// add puts the file into the plugin's response, as it stands unless annotate is set: then protogen
// has to parse and print it, which finds the annotated symbols and changes nothing.
func (w *writer) add(plugin *protogen.Plugin, annotate bool) error {
	name := w.pkg.filename(w.src)
	if !annotate {
		name = strings.TrimSuffix(name, goSuffix) // see Respond
	}
	out := plugin.NewGeneratedFile(name, w.pkg.importPath)
	if _, err := out.Write(w.text.Bytes()); err != nil {
		return fmt.Errorf("%s: write Go: %w", name, err)
	}
	if annotate {
		for _, a := range w.annotations {
			out.AnnotateSymbol(a.symbol, protogen.Annotation{Location: a.location})
		}
	}
	return nil
}
