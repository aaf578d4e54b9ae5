// Package generator turns the services of .proto files into Go: node interfaces, handles, local and
// async stubs, tunnel adapters; and their rows: columns of typed slices. It is what
// protoc-gen-raylink runs.
//
// For each file with services or rows it writes `<file>.raylink.go` into a package of its own
// beside the messages: `demov1raylink` beside `demov1`. It promises that
//
//   - the same schemas give the same bytes, in whatever order files and services come;
//   - names that stand in the schema are never changed: a name of the plugin's own that meets one,
//     or another of its own, gets a
//     trailing underscore (names.go says which of two yields);
//   - what it can't support is refused with file, line and reason, all faults of a run at once, and
//     nothing is written then.
//
// Start reading at [Generate]. Schemas are read with protogen. Go is written line by line, as gofmt
// would write it, in parallel; only where annotations are asked for, protogen parses it to find
// their symbols.
package generator

import (
	"fmt"
	"io/fs"
	"path"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"google.golang.org/protobuf/compiler/protogen"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/pluginpb"

	"github.com/raylink/raylink/internal/nodename"
	"github.com/raylink/raylink/proto"
)

// Options are what protogen has to know to read a request for [Generate].
func Options() protogen.Options {
	return protogen.Options{
		// Protogen takes the parameters that all Go plugins share (paths, module, M, annotate_code,
		// ...); there are no others.
		ParamFunc: func(name, _ string) error {
			return fmt.Errorf("unknown parameter %q; see protoc-gen-raylink --help", name)
		},
	}
}

// Generate adds a generated file to the plugin's response for each file with services or rows that
// the request asks for. Its error lists everything that is wrong with the schemas, one line each.
func Generate(plugin *protogen.Plugin) error {
	// Also said of a failed run: protoc would otherwise blame the failure on missing support.
	plugin.SupportedFeatures = uint64(pluginpb.CodeGeneratorResponse_FEATURE_PROTO3_OPTIONAL |
		pluginpb.CodeGeneratorResponse_FEATURE_SUPPORTS_EDITIONS)
	plugin.SupportedEditionsMinimum = descriptorpb.Edition_EDITION_PROTO2
	plugin.SupportedEditionsMaximum = descriptorpb.Edition_EDITION_2024

	g := newGenerator(plugin)
	g.check()
	if err := g.problems.err(); err != nil {
		return err
	}
	annotate := slices.ContainsFunc(strings.Split(plugin.Request.GetParameter(), ","), func(parameter string) bool {
		name, value, _ := strings.Cut(parameter, "=")
		return name == "annotate_code" && value != "false"
	})
	for _, file := range g.generate() {
		if err := file.add(plugin, annotate); err != nil {
			return err
		}
	}
	return nil
}

const goSuffix = ".go"

// Respond runs [Generate] and makes the plugin's response.
func Respond(plugin *protogen.Plugin) *pluginpb.CodeGeneratorResponse {
	if err := Generate(plugin); err != nil {
		plugin.Error(err)
	}
	response := plugin.Response()
	// Protogen parses and prints what has Go's suffix, once more than is needed, and so the files
	// have theirs from here.
	for _, file := range response.GetFile() {
		if !strings.HasSuffix(file.GetName(), goSuffix) && !strings.HasSuffix(file.GetName(), ".meta") {
			file.Name = new(file.GetName() + goSuffix)
		}
	}
	return response
}

// generator is one run of the plugin.
type generator struct {
	plugin *protogen.Plugin
	// files are all of the request, by path.
	files    []*protogen.File
	packages []*goPackage
	// messages finds the files whose messages go into one Go package, by its import path.
	messages map[protogen.GoImportPath][]*protogen.File
	// rows has the messages of each file that are rows, in the order of their declaration.
	rows map[*protogen.File][]*rowType
	// options has the checked options of each service that is generated.
	options map[protoreflect.FullName]nodeOptions
	// reached are the files whose messages generated code needs, checked once each.
	reached  map[*protogen.File]bool
	problems problems
}

func newGenerator(plugin *protogen.Plugin) *generator {
	found, problems := findRows(plugin, findExtensions(plugin.Request))
	g := &generator{
		plugin: plugin, packages: goPackages(plugin, found), rows: found, problems: problems,
		messages: make(map[protogen.GoImportPath][]*protogen.File),
		options:  make(map[protoreflect.FullName]nodeOptions),
		reached:  make(map[*protogen.File]bool),
	}
	g.files = slices.SortedFunc(slices.Values(plugin.Files), func(a, b *protogen.File) int {
		return strings.Compare(a.Desc.Path(), b.Desc.Path())
	})
	for _, file := range g.files {
		importPath := cleanImportPath(file.GoImportPath)
		g.messages[importPath] = append(g.messages[importPath], file)
	}
	return g
}

// check finds everything that is wrong with the schemas before anything is written.
func (g *generator) check() {
	extensions := findExtensions(g.plugin.Request)
	g.checkOwnSchemas()
	g.checkCollisions()
	messages := &messageIndex{files: g.plugin.Files}
	for _, pkg := range g.packages {
		g.checkNames(pkg)
		type typed struct {
			service *protogen.Service
			typed   bool
		}
		types := make(map[string]typed)
		for _, service := range pkg.services {
			file := pkg.fileOf[service]
			read := optionsReader{messages: messages, file: file, extensions: extensions.in(file)}
			options := read.node(service)
			if file.Generate {
				g.problems = append(g.problems, read.problems...)
				g.options[service.Desc.FullName()] = options
			}
			// Two defaults that are one type are no fault: the program can name one of the two
			// (runtime.NodeType.Named).
			other, ok := types[options.typeName]
			if ok && (options.typed || other.typed) && (file.Generate || pkg.fileOf[other.service].Generate) {
				g.problems.addf(file, optionPath(service.Location, nodeTypeField),
					"service %s: its type %q is also that of %s in %s; types are unique in a binary: give one of the two another `type` "+
						"in option (%s)", service.Desc.Name(), options.typeName, other.service.Desc.Name(), pkg.fileOf[other.service].Desc.Path(),
					nodeOptionName)
			}
			types[options.typeName] = typed{service, options.typed}
		}
		for _, file := range pkg.files {
			if file.Generate {
				g.checkImports(pkg, file)
			}
		}
	}
}

// ownGoPrefix is where the Go code of RayLink's own schemas is.
const ownGoPrefix = "github.com/raylink/raylink/gen/"

// checkOwnSchemas refuses RayLink's own schemas with another Go package than that of RayLink's own
// code: messages would import a package that isn't there, or a copy that can't be in one binary
// with the original.
func (g *generator) checkOwnSchemas() {
	for _, file := range g.plugin.Files {
		name := string(file.Desc.Package())
		if entries, err := fs.ReadDir(proto.Schemas, strings.ReplaceAll(name, ".", "/")); err != nil || name == "" || entries[0].IsDir() {
			continue // not the package of an exported schema
		}
		want := protogen.GoImportPath(ownGoPrefix + strings.ReplaceAll(name, ".", "/"))
		if got := cleanImportPath(file.GoImportPath); got != want {
			g.problems.addf(file, goPackagePath, "its Go package is %v, and RayLink's own code of it is in %v; leave its go_package alone: "+
				"with buf's managed mode by `disable: [{file_option: go_package, path: raylink}]`, "+
				"else drop the M parameter or write the file anew with protoc-gen-raylink --export", got, want)
		}
	}
}

// checkNames refuses what two names of the schema, which never change, make impossible.
func (g *generator) checkNames(pkg *goPackage) {
	services := make(map[string]*protogen.Service)
	for _, service := range pkg.services {
		file := pkg.fileOf[service]
		if other, ok := services[service.GoName]; ok && (file.Generate || pkg.fileOf[other].Generate) {
			g.problems.addf(file, service.Location.Path, "service %s: its name in Go is %s, which is also that of service %s in %s; "+
				"rename one of the two", service.Desc.Name(), service.GoName, other.Desc.Name(), pkg.fileOf[other].Desc.Path())
		}
		services[service.GoName] = service
		if !file.Generate {
			continue
		}
		if reason := nodename.BadService(string(service.Desc.FullName())); reason != "" {
			g.problems.addf(file, service.Location.Path, "service %s: its full name can't be a node's: %s", service.Desc.Name(), reason)
		}
		methods := make(map[string]*protogen.Method)
		for _, method := range service.Methods {
			if other, ok := methods[method.GoName]; ok {
				g.problems.addf(file, method.Location.Path, "method %s: its name in Go is %s, which is also that of method %s; "+
					"rename one of the two", method.Desc.FullName(), method.GoName, other.Desc.Name())
			}
			methods[method.GoName] = method
			procedure := nodename.Procedure(string(service.Desc.FullName()), string(method.Desc.Name()))
			if reason := nodename.BadProcedure(procedure); reason != "" {
				g.problems.addf(file, method.Location.Path, "method %.64s: %s", method.Desc.Name(), reason)
			}
		}
	}
}

// checkCollisions refuses generated files and packages that would overwrite each other, or that Go
// takes for one because they differ in case alone.
func (g *generator) checkCollisions() {
	outputs := make(map[string]*protogen.File)      // with services or rows, by the name of the generated file
	siblings := make(map[string]*protogen.File)     // all of a package in g.packages, by folded name
	paths := make(map[string]protogen.GoImportPath) // by folded import path
	owner := make(map[protogen.GoImportPath]*protogen.File)
	collide := func(file *protogen.File, importPath protogen.GoImportPath) {
		folded := fold(string(importPath))
		if other, ok := paths[folded]; ok && other != importPath {
			for _, f := range []*protogen.File{file, owner[other]} {
				if f.Generate && (len(f.Services) > 0 || len(g.rows[f]) > 0) {
					g.problems.addf(f, goPackagePath, "the Go packages %v (of %s) and %v (of %s) differ in case alone, and Go builds no program "+
						"with both; give one of the two another go_package", importPath, file.Desc.Path(), other, owner[other].Desc.Path())
					break
				}
			}
		}
		paths[folded], owner[importPath] = importPath, file
	}
	for _, file := range g.files {
		collide(file, cleanImportPath(file.GoImportPath))
	}
	for _, pkg := range g.packages {
		for _, file := range pkg.files {
			collide(file, pkg.importPath)
			if !file.Generate {
				continue
			}
			name := pkg.filename(file)
			if other, ok := outputs[name]; ok {
				g.problems.addf(file, filePath, "its generated file would be %s, which is also that of %s; rename one of the two",
					name, other.Desc.Path())
			}
			outputs[name] = file
		}
		for _, file := range g.messages[pkg.messages] {
			name := string(pkg.messages) + "/" + path.Base(file.GeneratedFilenamePrefix) + ".pb.go"
			other, ok := siblings[fold(name)]
			siblings[fold(name)] = file
			if !ok || path.Base(other.GeneratedFilenamePrefix) == path.Base(file.GeneratedFilenamePrefix) || !file.Generate && !other.Generate {
				continue
			}
			g.problems.addf(file, filePath, "its generated file %s differs in case alone from that of %s, and Go builds no package with both; "+
				"rename one of the two", path.Base(name), other.Desc.Path())
		}
	}
}

// checkImports refuses messages that generated code, being in another package, could not import.
func (g *generator) checkImports(pkg *goPackage, file *protogen.File) {
	for _, other := range g.messages[pkg.importPath] {
		what := "nodes"
		if len(file.Services) == 0 {
			what = "rows"
		}
		g.problems.addf(file, goPackagePath, "its %s would go into the Go package %v, which is that of the messages of %s; "+
			"give one of the two another go_package", what, pkg.importPath, other.Desc.Path())
	}
	if reason := notImportable(file); reason != "" {
		g.problems.addf(file, goPackagePath, "%s", reason)
		return
	}
	g.checkBuilt(file)
	for _, service := range file.Services {
		for _, method := range service.Methods {
			for _, message := range []*protogen.Message{method.Input, method.Output} {
				g.checkImport(file, method.Location.Path, message.Desc)
			}
		}
		if config := g.options[service.Desc.FullName()].config; config != nil {
			g.checkImport(file, optionPath(service.Location, nodeConfigField), config.Desc)
		}
	}
	for _, row := range g.rows[file] {
		for _, column := range row.columns {
			if enum := column.field.Enum; enum != nil {
				g.checkImport(file, column.field.Location.Path, enum.Desc)
			}
		}
	}
}

// checkBuilt refuses a file whose generated code Go skips, and those below it in the same run: what
// a skipped file lacks, all that import it lack too.
func (g *generator) checkBuilt(file *protogen.File) {
	if g.reached[file] {
		return
	}
	g.reached[file] = true
	if reason := skipped(file); reason != "" {
		g.problems.addf(file, filePath, "%s", reason)
	}
	for i := range file.Desc.Imports().Len() {
		if imported := g.plugin.FilesByPath[file.Desc.Imports().Get(i).Path()]; imported != nil && imported.Generate {
			g.checkBuilt(imported)
		}
	}
}

func (g *generator) checkImport(file *protogen.File, where protoreflect.SourcePath, used protoreflect.Descriptor) {
	home := g.plugin.FilesByPath[used.ParentFile().Path()]
	if home == nil || home == file {
		return
	}
	reason := notImportable(home)
	if reason == "" && !home.Generate { // else it is refused itself
		reason = skipped(home)
	}
	if reason != "" {
		g.problems.addf(file, where, "%s can't be used, for in %s %s", used.FullName(), home.Desc.Path(), reason)
	}
}

// generate writes all files that the request asks for, on all processors.
func (g *generator) generate() []*writer {
	var files []*writer
	for _, pkg := range g.packages {
		for _, src := range pkg.files {
			if src.Generate {
				files = append(files, &writer{pkg: pkg, src: src, options: g.options, rows: g.rows[src]})
			}
		}
	}
	var next atomic.Int64
	var workers sync.WaitGroup
	for range min(runtime.GOMAXPROCS(0), len(files)) {
		workers.Go(func() {
			for i := next.Add(1) - 1; i < int64(len(files)); i = next.Add(1) - 1 {
				files[i].file(g.plugin)
			}
		})
	}
	workers.Wait()
	return files
}
