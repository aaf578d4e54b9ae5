package generator

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"google.golang.org/protobuf/compiler/protogen"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/pluginpb"

	optionsv1 "github.com/raylink/raylink/gen/raylink/options/v1"
	"github.com/raylink/raylink/internal/machine"
	"github.com/raylink/raylink/internal/nodename"
)

// The names of the options, as the messages of refusals cite them.
var (
	nodeOptionName   = optionsv1.E_Node.TypeDescriptor().FullName()   //nolint:gochecknoglobals // constant
	methodOptionName = optionsv1.E_Method.TypeDescriptor().FullName() //nolint:gochecknoglobals // constant
	rowOptionName    = optionsv1.E_Row.TypeDescriptor().FullName()    //nolint:gochecknoglobals // constant
	columnOptionName = optionsv1.E_Column.TypeDescriptor().FullName() //nolint:gochecknoglobals // constant
)

const (
	// Fields of NodeOptions, MethodOptions and ColumnOptions.
	nodeTypeField           = 1
	nodeConfigField         = 2
	nodeMaxConcurrencyField = 3
	nodeMaxPendingField     = 4
	nodeMaxStreamsField     = 5
	nodeResourcesField      = 6
	methodConcurrentField   = 1
	columnDTypeField        = 1
	columnShapeField        = 2
	columnInitialField      = 3

	// Where options stand in a service, a method, a message and a field, in descriptor.proto.
	serviceOptionsField = 3
	methodOptionsField  = 4
	messageOptionsField = 7
	fieldOptionsField   = 8
)

// nodeOptions are a service's options, checked, with the type's default filled in. A bound of 0
// stands for the runtime's default.
type nodeOptions struct {
	typeName string
	// typed is set if the schema names the type, instead of leaving it to the default.
	typed                                  bool
	config                                 *protogen.Message // nil for none
	maxConcurrency, maxPending, maxStreams uint32
	resources                              string                     // in a canonical form
	concurrent                             map[protoreflect.Name]bool // of unary methods
}

// extensions are those of the plugin's options that the request's own schemas define. Only these
// are read: any program may use the extension's number, which on a service that is not written for
// RayLink means something else.
type extensions struct {
	node, method, row, column extension
}

type extension struct {
	known  bool
	file   string
	number int32
	// assumed is set if the number is this plugin's own, because the schema is not part of the
	// request, and may be an early version of it.
	assumed bool
}

// oldNumber is the number of the options of services and methods before they had one of their own.
// Any program may use it.
const oldNumber = 61410

// optionSchema is the file that --export writes, wherever a user puts it.
const optionSchema = "raylink/options/v1/options.proto"

// in is what one file can use. A file of edition 2024 may import schemas for their options alone
// (`import option`), and those need not be part of the request: then the path is all that there is
// to know them by.
func (e extensions) in(file *protogen.File) extensions {
	for _, dependency := range file.Proto.GetOptionDependency() {
		if dependency != optionSchema && !strings.HasSuffix(dependency, "/"+optionSchema) {
			continue
		}
		if !e.node.known {
			e.node = extension{true, dependency, int32(optionsv1.E_Node.TypeDescriptor().Number()), true}
		}
		if !e.method.known {
			e.method = extension{true, dependency, int32(optionsv1.E_Method.TypeDescriptor().Number()), true}
		}
		// Early versions did not have these.
		if !e.row.known {
			e.row = extension{true, dependency, int32(optionsv1.E_Row.TypeDescriptor().Number()), false}
		}
		if !e.column.known {
			e.column = extension{true, dependency, int32(optionsv1.E_Column.TypeDescriptor().Number()), false}
		}
	}
	return e
}

// findExtensions looks through all files of the request, also those that protogen leaves out
// because they are imported for their options alone.
func findExtensions(request *pluginpb.CodeGeneratorRequest) extensions {
	var found extensions
	for _, file := range request.GetProtoFile() {
		for _, field := range file.GetExtension() {
			ext := extension{known: true, file: file.GetName(), number: field.GetNumber()}
			switch protoreflect.FullName(file.GetPackage()).Append(protoreflect.Name(field.GetName())) {
			case nodeOptionName:
				found.node = ext
			case methodOptionName:
				found.method = ext
			case rowOptionName:
				found.row = ext
			case columnOptionName:
				found.column = ext
			}
		}
	}
	return found
}

// optionPath is where a field of the node option stands.
func optionPath(at protogen.Location, fields ...int32) protoreflect.SourcePath {
	number := int32(optionsv1.E_Node.TypeDescriptor().Number())
	return slices.Concat(at.Path, protoreflect.SourcePath{serviceOptionsField, number}, fields)
}

// methodOptionPath is where a field of the method option stands.
func methodOptionPath(at protogen.Location, fields ...int32) protoreflect.SourcePath {
	number := int32(optionsv1.E_Method.TypeDescriptor().Number())
	return slices.Concat(at.Path, protoreflect.SourcePath{methodOptionsField, number}, fields)
}

// rowOptionPath is where the row option stands.
func rowOptionPath(at protogen.Location) protoreflect.SourcePath {
	number := int32(optionsv1.E_Row.TypeDescriptor().Number())
	return slices.Concat(at.Path, protoreflect.SourcePath{messageOptionsField, number})
}

// columnOptionPath is where a field of the column option stands.
func columnOptionPath(at protogen.Location, fields ...int32) protoreflect.SourcePath {
	number := int32(optionsv1.E_Column.TypeDescriptor().Number())
	return slices.Concat(at.Path, protoreflect.SourcePath{fieldOptionsField, number}, fields)
}

// optionsReader reads and checks the options of one file's services.
type optionsReader struct {
	messages   *messageIndex
	file       *protogen.File
	extensions extensions
	problems   problems
}

// node reads a service's options, and those of its methods.
func (r *optionsReader) node(service *protogen.Service) nodeOptions {
	read := nodeOptions{typeName: defaultType(string(service.Desc.Name())), concurrent: make(map[protoreflect.Name]bool)}
	for _, method := range service.Methods {
		r.method(method, read.concurrent)
	}
	r.readNode(service, &read)
	if reason := nodename.BadType(read.typeName); reason != "" {
		r.problems.addf(r.file, optionPath(service.Location, nodeTypeField), "service %s: type %q: %s",
			service.Desc.Name(), read.typeName, reason)
	}
	return read
}

func (r *optionsReader) readNode(service *protogen.Service, read *nodeOptions) {
	if !r.extensions.node.known {
		return
	}
	options := &optionsv1.NodeOptions{}
	if err := readOption(service.Desc.Options(), optionsv1.E_Node, r.extensions.node, options); err != nil {
		r.problems.addf(r.file, optionPath(service.Location), "service %s: option (%s): %v", service.Desc.Name(), nodeOptionName, err)
		return
	}
	if options.Type != nil {
		read.typeName, read.typed = options.GetType(), true
	}
	if options.Config != nil {
		read.config = r.config(service, options.GetConfig())
	}
	read.maxConcurrency = r.bound(service, "max_concurrency", nodeMaxConcurrencyField, options.MaxConcurrency)
	read.maxPending = r.bound(service, "max_pending", nodeMaxPendingField, options.MaxPending)
	read.maxStreams = r.bound(service, "max_streams", nodeMaxStreamsField, options.MaxStreams)
	resources, err := machine.ParseResources(options.GetResources())
	if err != nil {
		r.problems.addf(r.file, optionPath(service.Location, nodeResourcesField), "service %s: %v", service.Desc.Name(), err)
	}
	read.resources = resources.String()
}

func (r *optionsReader) method(method *protogen.Method, concurrent map[protoreflect.Name]bool) {
	if !r.extensions.method.known {
		return
	}
	options := &optionsv1.MethodOptions{}
	if err := readOption(method.Desc.Options(), optionsv1.E_Method, r.extensions.method, options); err != nil {
		r.problems.addf(r.file, methodOptionPath(method.Location), "method %s: option (%s): %v",
			method.Desc.FullName(), methodOptionName, err)
		return
	}
	if isStreaming(method) {
		if options.Concurrent != nil && !options.GetConcurrent() {
			r.problems.addf(r.file, methodOptionPath(method.Location, methodConcurrentField),
				"method %s: a stream can't take turns; leave `concurrent` out, and take turns inside the method with Node.Do",
				method.Desc.FullName())
		}
		return
	}
	concurrent[method.Desc.Name()] = options.GetConcurrent()
}

// readOption reads one option from a descriptor's options into target, which stays empty where the
// option is not set. What the plugin doesn't know is an error: to leave it out would change what
// the schema means.
func readOption(options protoreflect.ProtoMessage, xt protoreflect.ExtensionType, ext extension, target proto.Message) error {
	if number := int32(xt.TypeDescriptor().Number()); ext.number != number {
		return fmt.Errorf("%s gives it the number %d, and this plugin knows it as %d; "+
			"write that file anew with protoc-gen-raylink --export",
			ext.file, ext.number, number)
	}
	// Decoded anew: what protogen made of it depends on which extensions the request and this
	// program have in common.
	raw, err := proto.Marshal(options)
	if err != nil {
		return fmt.Errorf("encode: %w", err)
	}
	decoded := options.ProtoReflect().New().Interface()
	if err := (proto.UnmarshalOptions{Resolver: protoregistry.GlobalTypes, AllowPartial: true}).Unmarshal(raw, decoded); err != nil {
		return fmt.Errorf("decode: %w", err)
	}
	if value, ok := proto.GetExtension(decoded, xt).(proto.Message); ok {
		proto.Merge(target, value)
	}
	if !proto.HasExtension(decoded, xt) && ext.assumed && hasField(decoded.ProtoReflect().GetUnknown(), oldNumber) {
		return fmt.Errorf("it was compiled with the number %d, which it had in early versions of %s; "+
			"write that file anew with protoc-gen-raylink --export", oldNumber, ext.file)
	}
	if unknown := target.ProtoReflect().GetUnknown(); len(unknown) > 0 {
		number, _, _ := protowire.ConsumeTag(unknown)
		return fmt.Errorf("field %d is not known to this version of the plugin; "+
			"run: go install github.com/raylink/raylink/cmd/protoc-gen-raylink@latest", number)
	}
	return nil
}

// readRowOption reads an option of a message or a field, most of which have none, and reports
// whether it is set.
func readRowOption(options protoreflect.ProtoMessage, xt protoreflect.ExtensionType, ext extension, target proto.Message) (bool, error) {
	if !ext.known {
		return false, nil
	}
	raw, err := proto.Marshal(options)
	if err != nil {
		return false, fmt.Errorf("encode: %w", err)
	}
	if !hasField(raw, protowire.Number(ext.number)) {
		return false, nil
	}
	return true, readOption(options, xt, ext, target)
}

// hasField reports whether encoded fields have one with the number want.
func hasField(encoded []byte, want protowire.Number) bool {
	for len(encoded) > 0 {
		number, _, n := protowire.ConsumeField(encoded)
		if n < 0 || number == want {
			return n >= 0
		}
		encoded = encoded[n:]
	}
	return false
}

// config finds the message that configures a service's nodes.
func (r *optionsReader) config(service *protogen.Service, name string) *protogen.Message {
	bad := func(format string, args ...any) *protogen.Message {
		r.problems.addf(r.file, optionPath(service.Location, nodeConfigField), "service %s: config %q: %s",
			service.Desc.Name(), name, fmt.Sprintf(format, args...))
		return nil
	}
	if !protoreflect.FullName(name).IsValid() {
		return bad("not the full name of a message, such as %q", r.file.Desc.Package().Append("Config"))
	}
	if known, ok := r.messages.find(protoreflect.FullName(name)); ok {
		switch {
		case known.message.Desc.IsMapEntry():
			return bad("the entry of a map is not a message of its own in Go")
		case !isVisible(r.file.Desc, known.file.Desc.Path()):
			return bad("the message is in %s, which this file doesn't import", known.file.Desc.Path())
		}
		return known.message
	}
	full := r.file.Desc.Package().Append(protoreflect.Name(name))
	if _, ok := r.messages.find(full); ok {
		return bad("there is no such message; give its full name, %q", full)
	}
	return bad("there is no such message in this file or those that it imports")
}

// messageIndex finds the messages of all files by full name. It is made on first use, because most
// schemas name none.
type messageIndex struct {
	files  []*protogen.File
	byName map[protoreflect.FullName]knownMessage
}

type knownMessage struct {
	file    *protogen.File
	message *protogen.Message
}

func (x *messageIndex) find(name protoreflect.FullName) (knownMessage, bool) {
	if x.byName == nil {
		x.byName = make(map[protoreflect.FullName]knownMessage)
		for _, file := range x.files {
			x.add(file, file.Messages)
		}
	}
	known, ok := x.byName[name]
	return known, ok
}

func (x *messageIndex) add(file *protogen.File, messages []*protogen.Message) {
	for _, message := range messages {
		x.byName[message.Desc.FullName()] = knownMessage{file, message}
		x.add(file, message.Messages)
	}
}

// isVisible reports whether file can use the declarations of the file at path: its own, those of
// its imports, and of the files that these import publicly.
func isVisible(file protoreflect.FileDescriptor, path string) bool {
	if file.Path() == path {
		return true
	}
	seen := make(map[string]bool)
	var publicly func(file protoreflect.FileDescriptor) bool
	publicly = func(file protoreflect.FileDescriptor) bool {
		if file.Path() == path {
			return true
		}
		if seen[file.Path()] {
			return false
		}
		seen[file.Path()] = true
		for i := range file.Imports().Len() {
			if imported := file.Imports().Get(i); imported.IsPublic && publicly(imported.FileDescriptor) {
				return true
			}
		}
		return false
	}
	for i := range file.Imports().Len() {
		if publicly(file.Imports().Get(i).FileDescriptor) {
			return true
		}
	}
	return false
}

// bound checks one of the limits; nil gives 0.
func (r *optionsReader) bound(service *protogen.Service, name string, field int32, value *uint32) uint32 {
	if value == nil {
		return 0
	}
	switch {
	case *value == 0:
		r.problems.addf(r.file, optionPath(service.Location, field), "service %s: %s must be at least 1; leave it out for the default",
			service.Desc.Name(), name)
	case *value > math.MaxInt32:
		r.problems.addf(r.file, optionPath(service.Location, field), "service %s: %s is %d, more than an int of 32 bits can hold",
			service.Desc.Name(), name, *value)
	}
	return *value
}

// defaultType is a service's name in kebab case: parameter-server for ParameterServer, http-server
// for HTTPServer. A digit never follows a hyphen, so that of what can be wrong with a type only its
// length is left, and the form of a nid.
func defaultType(name string) string {
	var b strings.Builder
	gap := false // a hyphen is due before the next letter
	for i := range len(name) {
		c := name[i]
		switch {
		case c == '_':
			gap = b.Len() > 0
			continue
		case isUpper(c):
			// A capital begins a word after a small letter or a digit, and as the last of several
			// capitals before a small letter.
			afterSmall := i > 0 && !isUpper(name[i-1])
			beforeSmall := i > 0 && i+1 < len(name) && isLower(name[i+1])
			gap = gap || (b.Len() > 0 && (afterSmall || beforeSmall))
			c += 'a' - 'A'
		case !isLower(c): // a digit
			gap = false
			if b.Len() == 0 {
				b.WriteByte('x') // as protoc-gen-go spells a name that begins with an underscore
			}
		}
		if gap {
			b.WriteByte('-')
			gap = false
		}
		b.WriteByte(c)
	}
	if b.Len() == 0 {
		return "x"
	}
	return b.String()
}

func isUpper(c byte) bool { return 'A' <= c && c <= 'Z' }
func isLower(c byte) bool { return 'a' <= c && c <= 'z' }
