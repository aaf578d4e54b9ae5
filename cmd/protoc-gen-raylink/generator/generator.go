// Package generator turns the services of .proto files into Go: node interfaces, handles, local and async stubs, tunnel
// adapters. It is what protoc-gen-raylink runs.
//
// For each file with services it writes `<file>.raylink.go` into a package of its own beside the messages: `demov1raylink`
// beside `demov1`. It promises that
//
//   - the same schemas give the same bytes, in whatever order files and services come;
//   - names that stand in the schema are never changed: a name of the plugin's own that meets one, or another of its own, gets a
//     trailing underscore (names.go says which of two yields);
//   - what it can't support is refused with file, line and reason, all faults of a run at once, and nothing is written then.
//
// Start reading at [Generate]. Schemas are read with protogen and Go is written with jennifer, which alone sees to the
// imports of a generated file; protogen prints the file and finds its annotated symbols.
package generator

import (
	"fmt"
	"slices"

	"google.golang.org/protobuf/compiler/protogen"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/pluginpb"
)

// Options are what protogen has to know to read a request for [Generate].
func Options() protogen.Options {
	return protogen.Options{
		// Protogen takes the parameters that all Go plugins share (paths, module, M, annotate_code, ...); there are no others.
		ParamFunc: func(name, _ string) error {
			return fmt.Errorf("unknown parameter %q; see protoc-gen-raylink --help", name)
		},
	}
}

// Generate adds a generated file to the plugin's response for each file with services that the request asks for.
// Its error lists everything that is wrong with the schemas, one line each.
func Generate(plugin *protogen.Plugin) error {
	// Also said of a failed run: protoc would otherwise blame the failure on missing support.
	plugin.SupportedFeatures = uint64(pluginpb.CodeGeneratorResponse_FEATURE_PROTO3_OPTIONAL |
		pluginpb.CodeGeneratorResponse_FEATURE_SUPPORTS_EDITIONS)
	plugin.SupportedEditionsMinimum = descriptorpb.Edition_EDITION_PROTO2
	plugin.SupportedEditionsMaximum = descriptorpb.Edition_EDITION_2024

	g := &generator{plugin: plugin, packages: goPackages(plugin), options: make(map[protoreflect.FullName]nodeOptions)}
	g.check()
	if err := g.problems.err(); err != nil {
		return err
	}
	for _, file := range plugin.Files {
		if !file.Generate || len(file.Services) == 0 {
			continue
		}
		if err := g.generate(file); err != nil {
			return err
		}
	}
	return nil
}

// generator is one run of the plugin.
type generator struct {
	plugin   *protogen.Plugin
	packages []*goPackage
	// options has the checked options of each service that is generated.
	options  map[protoreflect.FullName]nodeOptions
	problems problems
}

// check finds everything that is wrong with the schemas before anything is written.
func (g *generator) check() {
	extensions := findExtensions(g.plugin.Request)
	outputs := make(map[string]*protogen.File)
	for _, pkg := range g.packages {
		g.checkNames(pkg)
		types := make(map[string]*protogen.Service)
		for _, service := range pkg.services {
			file := pkg.fileOf[service]
			read := optionsReader{plugin: g.plugin, file: file, extensions: extensions.in(file)}
			options := read.node(service)
			if file.Generate {
				g.problems = append(g.problems, read.problems...)
				g.options[service.Desc.FullName()] = options
			}
			if other, ok := types[options.typeName]; ok && (file.Generate || pkg.fileOf[other].Generate) {
				g.problems.addf(file, optionPath(service.Location, nodeTypeField),
					"service %s: its type %q is also that of %s in %s; types are unique in a binary: give one of the two another `type` "+
						"in option (%s)", service.Desc.Name(), options.typeName, other.Desc.Name(), pkg.fileOf[other].Desc.Path(),
					nodeOptionName)
			}
			types[options.typeName] = service
		}
		for _, file := range pkg.files {
			if file.Generate {
				g.checkImports(pkg, file)
				if other, ok := outputs[pkg.filename(file)]; ok {
					g.problems.addf(file, nil, "its generated file would be %s, which is also that of %s; rename one of the two",
						pkg.filename(file), other.Desc.Path())
				}
				outputs[pkg.filename(file)] = file
			}
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
		methods := make(map[string]*protogen.Method)
		for _, method := range service.Methods {
			if other, ok := methods[method.GoName]; ok {
				g.problems.addf(file, method.Location.Path, "method %s: its name in Go is %s, which is also that of method %s; "+
					"rename one of the two", method.Desc.FullName(), method.GoName, other.Desc.Name())
			}
			methods[method.GoName] = method
		}
	}
}

// checkImports refuses messages that generated code, being in another package, could not import.
func (g *generator) checkImports(pkg *goPackage, file *protogen.File) {
	for _, other := range g.plugin.Files {
		if cleanImportPath(other.GoImportPath) == pkg.importPath {
			g.problems.addf(file, goPackagePath, "its nodes would go into the Go package %v, which is that of the messages of %s; "+
				"give one of the two another go_package", pkg.importPath, other.Desc.Path())
		}
	}
	if reason := notImportable(file); reason != "" {
		g.problems.addf(file, goPackagePath, "%s", reason)
		return
	}
	for _, service := range file.Services {
		for _, method := range service.Methods {
			for _, message := range []*protogen.Message{method.Input, method.Output} {
				g.checkImport(file, method.Location.Path, message)
			}
		}
		if config := g.options[service.Desc.FullName()].config; config != nil {
			g.checkImport(file, optionPath(service.Location, nodeConfigField), config)
		}
	}
}

func (g *generator) checkImport(file *protogen.File, where protoreflect.SourcePath, message *protogen.Message) {
	home := g.plugin.FilesByPath[message.Desc.ParentFile().Path()]
	if home == nil || home == file {
		return
	}
	if reason := notImportable(home); reason != "" {
		g.problems.addf(file, where, "%s can't be used, for in %s %s", message.Desc.FullName(), home.Desc.Path(), reason)
	}
}

// generate writes one file.
func (g *generator) generate(file *protogen.File) error {
	i := slices.IndexFunc(g.packages, func(p *goPackage) bool { return p.messages == cleanImportPath(file.GoImportPath) })
	pkg := g.packages[i]
	w := newWriter(g.plugin, pkg, file, g.options)
	w.preamble()
	for _, service := range file.Services {
		w.service(service)
	}
	return w.print()
}
