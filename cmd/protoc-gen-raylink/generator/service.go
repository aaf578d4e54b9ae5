package generator

import (
	"fmt"
	"strconv"
	"strings"

	"google.golang.org/protobuf/compiler/protogen"
)

// serviceWriter writes what one service becomes.
type serviceWriter struct {
	*writer
	*serviceNames

	service *protogen.Service
	options nodeOptions
}

// service writes one service: its method table, the handlers that run its methods, the node's side,
// then the caller's.
func (w *writer) service(service *protogen.Service) {
	s := &serviceWriter{
		writer:       w,
		service:      service,
		options:      w.options[service.Desc.FullName()],
		serviceNames: w.pkg.names.services[service.Desc.FullName()],
	}
	s.nameConst()
	s.methodTable()
	s.methodHandlers()
	s.nodeInterface()
	s.streamTypes()
	s.unimplementedNode()
	s.typeFunc()
	s.handleType()
	s.handleMethods()
	s.constructors()
	s.adapters()
}

// doc is the documentation of one of the service's own symbols: what it is, then more (the schema's
// comment on the service, for example), then the deprecation if there is one.
func (s *serviceWriter) doc(what string, more ...string) doc {
	return append(append(doc{what}, more...), deprecation(s.src, s.service.Desc, s.service.Comments))
}

func (s *serviceWriter) nameConst() {
	for _, detached := range s.service.Comments.LeadingDetached {
		s.line()
		s.comment("", comment(string(detached)))
	}
	s.document(s.doc(sentence("%s is the full name of the service %s.", s.name, s.service.Desc.Name())))
	s.line("const ", s.name, " = ", strconv.Quote(string(s.service.Desc.FullName())))
	s.annotate(s.service.Location, s.name)
}

// methodTable writes the description of the service, which is all that callers need.
func (s *serviceWriter) methodTable() {
	fields := [][2]string{
		{"File", "&" + s.qual(s.src.GoDescriptorIdent)},
		{"Name", strconv.Quote(string(s.service.Desc.Name()))},
		{"Type", strconv.Quote(s.options.typeName)},
	}
	if s.options.config != nil {
		fields = append(fields, [2]string{"NewConfig", s.newMessage("\t", s.options.config)})
	}
	var limits []string
	for _, bound := range []struct {
		field string
		value uint32
	}{
		{"MaxConcurrency", s.options.maxConcurrency},
		{"MaxPending", s.options.maxPending},
		{"MaxStreams", s.options.maxStreams},
	} {
		if bound.value != 0 {
			limits = append(limits, bound.field+": "+strconv.FormatUint(uint64(bound.value), 10))
		}
	}
	if len(limits) > 0 {
		fields = append(fields, [2]string{"Limits", s.rt("Limits") + "{" + strings.Join(limits, ", ") + "}"})
	}
	if s.options.resources != "" {
		fields = append(fields, [2]string{"Resources", strconv.Quote(s.options.resources)})
	}
	s.line()
	s.comment("", comment(sentence("%s describes the service %s. Calls identify a method by its index in Methods.", s.table, s.service.Desc.FullName())))
	s.line("var ", s.table, " = ", s.rt("GeneratedService"), "{")
	s.pairs("\t", fields...)
	if len(s.service.Methods) > 0 {
		s.line("\tMethods: []", s.rt("GeneratedMethod"), "{")
		for _, method := range s.service.Methods {
			s.line("\t\t{")
			s.line("\t\t\tName: ", strconv.Quote(string(method.Desc.Name())), ",")
			s.line("\t\t\tNewRequest: ", s.newMessage("\t\t\t", method.Input), ",")
			s.line("\t\t\tNewResponse: ", s.newMessage("\t\t\t", method.Output), ",")
			if s.options.concurrent[method.Desc.Name()] {
				s.line("\t\t\tConcurrent: true,")
			}
			s.line("\t\t},")
		}
		s.line("\t},")
	}
	s.line("}")
}

// newMessage is a function that makes an empty message.
func (s *serviceWriter) newMessage(indent string, message *protogen.Message) string {
	return "func() " + s.protoMessage() + " {\n" +
		indent + "\treturn new(" + s.qual(message.GoIdent) + ")\n" +
		indent + "}"
}

// methodHandlers writes the functions that run the methods of a node.
func (s *serviceWriter) methodHandlers() {
	s.line()
	s.comment("", comment(sentence("%s run the methods of a node, in the order of %s.", s.handlers, s.table)))
	if len(s.service.Methods) == 0 {
		s.line("var ", s.handlers, " = []", s.rt("GeneratedHandler"), "{}")
		return
	}
	s.line("var ", s.handlers, " = []", s.rt("GeneratedHandler"), "{")
	for _, method := range s.service.Methods {
		s.line("\t{")
		s.handler(method)
		s.line("\t},")
	}
	s.line("}")
}

// handler writes the function that runs one method, as a field of runtime.GeneratedHandler.
func (s *serviceWriter) handler(method *protogen.Method) {
	call := "node.(" + s.node + ")." + method.GoName + "(ctx, "
	in, out := s.pointer(method.Input), s.pointer(method.Output)
	if !isStreaming(method) {
		s.line("\t\tUnary: func(node any, ctx ", s.ctxType(), ", req ", s.protoMessage(), ") (", s.protoMessage(), ", error) {")
		s.line("\t\t\tres, err := ", call, "req.(", in, "))")
		s.line("\t\t\tif err != nil {")
		s.line("\t\t\t\treturn nil, err")
		s.line("\t\t\t}")
		s.line("\t\t\tif res == nil {")
		s.line("\t\t\t\tres = new(", s.qual(method.Output.GoIdent), ")")
		s.line("\t\t\t}")
		s.line("\t\t\treturn res, nil")
		s.line("\t\t},")
		return
	}
	s.line("\t\tStream: func(node any, ctx ", s.ctxType(), ", untyped ", s.rt("GeneratedStream"), ") error {")
	s.line("\t\t\tstream := ", s.rt("GeneratedStreamOf"), "[", in, ", ", out, "](untyped)")
	switch client, server := method.Desc.IsStreamingClient(), method.Desc.IsStreamingServer(); {
	case client && server:
		s.line("\t\t\treturn ", call, "stream)")
	case client:
		s.line("\t\t\treturn stream.SendOnly(", call, "stream))")
	default:
		s.line("\t\t\treq, err := stream.Receive()")
		s.line("\t\t\tif err != nil {")
		s.line("\t\t\t\treturn err")
		s.line("\t\t\t}")
		s.line("\t\t\treturn ", call, "req, stream)")
	}
	s.line("\t\t},")
}

func (s *serviceWriter) nodeInterface() {
	s.document(s.doc(
		sentence("%s is the interface that a node of the service %s implements. Its unary methods run one at a time unless the schema says otherwise.",
			s.node, s.service.Desc.FullName()),
		schemaDoc(s.service.Comments)...,
	))
	s.annotate(s.service.Location, s.node)
	if len(s.service.Methods) == 0 {
		s.line("type ", s.node, " interface{}")
		return
	}
	s.line("type ", s.node, " interface {")
	for i, method := range s.service.Methods {
		if i > 0 {
			s.line()
		}
		for _, detached := range method.Comments.LeadingDetached {
			s.comment("\t", comment(string(detached)))
			s.line()
		}
		d := append(schemaDoc(method.Comments), deprecation(s.src, method.Desc, method.Comments))
		// Gofmt leaves the comments of methods alone: once is for the reader.
		s.comment("\t", formatDoc(d.String(), 1))
		params, result := s.nodeSignature(method)
		s.line("\t", method.GoName, "(", params, ") ", result)
		s.annotate(method.Location, s.node+"."+method.GoName)
	}
	s.line("}")
}

// nodeSignature is a method as a node implements it.
func (s *serviceWriter) nodeSignature(method *protogen.Method) (params, result string) {
	params = s.ctxType()
	if !method.Desc.IsStreamingClient() {
		params += ", " + s.pointer(method.Input)
	}
	if isStreaming(method) {
		params += ", " + s.methods[method.Desc.Name()].serverStream
	}
	if method.Desc.IsStreamingServer() {
		return params, "error"
	}
	return params, "(" + s.pointer(method.Output) + ", error)"
}

// streamTypes names the streams of each streaming method, so that programs need not spell them out.
func (s *serviceWriter) streamTypes() {
	for _, method := range s.service.Methods {
		if !isStreaming(method) {
			continue
		}
		own := s.methods[method.Desc.Name()]
		in, out := s.pointer(method.Input), s.pointer(method.Output)
		kind, serverTypes, clientTypes := "ServerStreaming", out, out
		if method.Desc.IsStreamingClient() {
			kind, serverTypes, clientTypes = "ClientStreaming", in, in+", "+out // the response is the method's result
			if method.Desc.IsStreamingServer() {
				kind, serverTypes = "BidiStreaming", clientTypes
			}
		}
		s.document(s.doc(sentence("%s is the node's side of %s.", own.serverStream, method.GoName)))
		s.line("type ", own.serverStream, " = ", s.rt(kind+"Server"), "[", serverTypes, "]")
		s.document(s.doc(sentence("%s is the caller's side of %s.", own.clientStream, method.GoName)))
		s.line("type ", own.clientStream, " = ", s.rt(kind+"Client"), "[", clientTypes, "]")
		s.annotate(method.Location, own.serverStream, own.clientStream)
	}
}

func (s *serviceWriter) unimplementedNode() {
	s.document(s.doc(sentence("%s returns an error with the code Unimplemented from every method. "+
		"A node that embeds it still compiles when the schema gets another method.", s.unimplemented)))
	s.line("type ", s.unimplemented, " struct{}")
	s.annotate(s.service.Location, s.unimplemented)
	for _, method := range s.service.Methods {
		params, result := s.nodeSignature(method)
		none := "nil, "
		if method.Desc.IsStreamingServer() {
			none = ""
		}
		s.document(doc{
			sentence("%s returns an error with the code Unimplemented.", method.GoName),
			deprecation(s.src, method.Desc, method.Comments),
		})
		s.line("func (", s.unimplemented, ") ", method.GoName, "(", params, ") ", result, " {")
		s.line("\treturn ", none, s.connect("NewError"), "(", s.connect("CodeUnimplemented"), ", ",
			strconv.Quote(fmt.Sprintf("%s/%s is not implemented", s.service.Desc.FullName(), method.Desc.Name())), ")")
		s.line("}")
		s.annotate(method.Location, s.unimplemented+"."+method.GoName)
	}
}

// typeFunc writes the function that makes a node type of an implementation.
func (s *serviceWriter) typeFunc() {
	params := []string{s.ctxType(), "*" + s.rt("Node")}
	config, given, args := "_", "", "ctx, node"
	if s.options.config != nil {
		config, given = "config", ", with the configuration that the node was created with"
		params = append(params, s.pointer(s.options.config))
		args += ", config.(" + s.pointer(s.options.config) + ")"
	}
	s.document(s.doc(sentence("%s returns the node type %q, whose nodes setup makes. Setup is called once for each incarnation of a node%s.",
		s.nodeType, s.options.typeName, given)))
	s.line("func ", s.nodeType, "(setup func(", strings.Join(params, ", "), ") (", s.node, ", error)) ", s.rt("NodeType"), " {")
	s.line("\treturn ", s.table, ".NodeType(", s.handlers, ", func(ctx ", s.ctxType(), ", node *", s.rt("Node"), ", ",
		config, " ", s.protoMessage(), ") (any, error) {")
	s.line("\t\treturn setup(", args, ")")
	s.line("\t})")
	s.line("}")
	s.annotate(s.service.Location, s.nodeType)
}
