package generator

import (
	"slices"
	"strings"

	"google.golang.org/protobuf/compiler/protogen"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// names are the identifiers of one generated package.
//
// Names of the schema (a service's handle, its methods) stand as protoc-gen-go spells them. The
// plugin's own names yield: first all schema names are taken, then the own ones in the order of
// [ownNames], and within one kind by the services' full names, then those of streams and of rows;
// whatever finds its name taken gets underscores until it is free. So CreateLearnerN creates a node
// of service LearnerN where there is one, and that which creates n learners is CreateLearnerN_,
// wherever the two services are declared.
type names struct {
	services map[protoreflect.FullName]*serviceNames
	// rows are by the full names of their messages.
	rows map[protoreflect.FullName]*rowNames
	// taken has every identifier of the package's scope. A file's imports must keep clear of them
	// too.
	taken map[string]bool
}

// serviceNames are the identifiers of one service.
type serviceNames struct {
	handle string // of the schema

	node, unimplemented, nodeType, create, find, from, newLocal, registerTunnel, newTunnel, name, createN string

	table    string // the variable with the method table
	handlers string // the variable with the handlers, which run the methods of nodes
	// ref and intercepted are the methods of the handle that the plugin adds.
	ref, intercepted string
	// stringer is the handle's String method; empty if the schema has a method of that name.
	stringer string
	methods  map[protoreflect.Name]*methodNames
}

// methodNames are the identifiers of one method.
type methodNames struct {
	method string // of the schema

	async                      string // a method of the handle; unary methods only
	serverStream, clientStream string // streaming methods only
}

// rowNames are the identifiers of one row. The fields of the columns' struct are named as those of
// the message.
type rowNames struct {
	columns, row string
	// length, set and get are the methods of the columns.
	length, set, get string
}

// ownName is one kind of identifier that the plugin adds for a service.
type ownName struct {
	spell func(service string) string
	field func(*serviceNames) *string
}

// ownNames are the exported ones, in the order of precedence. Names that are used most come first;
// createN, which other names run into most easily, comes last.
func ownNames() []ownName {
	return []ownName{
		{func(s string) string { return s + "Node" }, func(n *serviceNames) *string { return &n.node }},
		{func(s string) string { return "Unimplemented" + s + "Node" }, func(n *serviceNames) *string { return &n.unimplemented }},
		{func(s string) string { return s + "Type" }, func(n *serviceNames) *string { return &n.nodeType }},
		{func(s string) string { return "Create" + s }, func(n *serviceNames) *string { return &n.create }},
		{func(s string) string { return "Find" + s }, func(n *serviceNames) *string { return &n.find }},
		{func(s string) string { return s + "From" }, func(n *serviceNames) *string { return &n.from }},
		{func(s string) string { return "NewLocal" + s }, func(n *serviceNames) *string { return &n.newLocal }},
		{func(s string) string { return "Register" + s + "Tunnel" }, func(n *serviceNames) *string { return &n.registerTunnel }},
		{func(s string) string { return "New" + s + "Tunnel" }, func(n *serviceNames) *string { return &n.newTunnel }},
		{func(s string) string { return s + "Name" }, func(n *serviceNames) *string { return &n.name }},
		{func(s string) string { return "Create" + s + "N" }, func(n *serviceNames) *string { return &n.createN }},
	}
}

// newNames names everything that is generated for the services and rows of one package, which come
// sorted.
func newNames(services []*protogen.Service, rows []*rowType) *names {
	n := &names{
		services: make(map[protoreflect.FullName]*serviceNames), rows: make(map[protoreflect.FullName]*rowNames),
		taken: make(map[string]bool),
	}
	for _, service := range services {
		n.taken[service.GoName] = true
		own := &serviceNames{handle: service.GoName, methods: make(map[protoreflect.Name]*methodNames)}
		for _, method := range service.Methods {
			own.methods[method.Desc.Name()] = &methodNames{method: method.GoName}
		}
		own.nameHandleMethods(service)
		n.services[service.Desc.FullName()] = own
	}
	for _, kind := range ownNames() {
		for _, service := range services {
			*kind.field(n.services[service.Desc.FullName()]) = take(n.taken, kind.spell(service.GoName))
		}
	}
	each := func(name func(service *protogen.Service, method *protogen.Method, own *methodNames)) {
		for _, service := range services {
			for _, method := range sortedMethods(service) {
				name(service, method, n.services[service.Desc.FullName()].methods[method.Desc.Name()])
			}
		}
	}
	each(func(service *protogen.Service, method *protogen.Method, own *methodNames) {
		if isStreaming(method) {
			own.serverStream = take(n.taken, service.GoName+method.GoName+"ServerStream")
			own.clientStream = take(n.taken, service.GoName+method.GoName+"ClientStream")
		}
	})
	for _, row := range rows {
		n.rows[row.message.Desc.FullName()] = newRowNames(row.message)
	}
	for _, row := range rows {
		n.rows[row.message.Desc.FullName()].columns = take(n.taken, row.message.GoIdent.GoName+"Columns")
	}
	for _, row := range rows {
		n.rows[row.message.Desc.FullName()].row = take(n.taken, row.message.GoIdent.GoName+"Row")
	}
	// Unexported names begin in lower case and go on with a capital somewhere, so that no keyword,
	// predeclared name or local variable of generated code is among them.
	for _, service := range services {
		n.services[service.Desc.FullName()].table = take(n.taken, unexported(service.GoName)+"Service")
	}
	for _, service := range services {
		n.services[service.Desc.FullName()].handlers = take(n.taken, unexported(service.GoName)+"Handlers")
	}
	return n
}

// nameHandleMethods names what the handle has beside the schema's methods.
func (s *serviceNames) nameHandleMethods(service *protogen.Service) {
	taken := make(map[string]bool)
	for _, method := range service.Methods {
		taken[method.GoName] = true
	}
	if !taken["String"] {
		s.stringer = take(taken, "String")
	}
	s.ref = take(taken, "Ref")
	s.intercepted = take(taken, "Intercepted")
	for _, method := range sortedMethods(service) {
		if !isStreaming(method) {
			s.methods[method.Desc.Name()].async = take(taken, method.GoName+"Async")
		}
	}
}

// newRowNames names what the columns have beside the schema's fields.
func newRowNames(message *protogen.Message) *rowNames {
	taken := make(map[string]bool)
	for _, field := range message.Fields {
		taken[field.GoName] = true
	}
	return &rowNames{length: take(taken, "Len"), set: take(taken, "Set"), get: take(taken, "Get")}
}

// take takes name, or what it becomes once it is free.
func take(taken map[string]bool, name string) string {
	for taken[name] {
		name += "_"
	}
	taken[name] = true
	return name
}

func unexported(name string) string { return strings.ToLower(name[:1]) + name[1:] }

func isStreaming(method *protogen.Method) bool {
	return method.Desc.IsStreamingClient() || method.Desc.IsStreamingServer()
}

// sortedMethods are a service's methods by name, so that nothing depends on the order in which they
// were declared.
func sortedMethods(service *protogen.Service) []*protogen.Method {
	return slices.SortedFunc(slices.Values(service.Methods), func(a, b *protogen.Method) int {
		return strings.Compare(string(a.Desc.Name()), string(b.Desc.Name()))
	})
}
