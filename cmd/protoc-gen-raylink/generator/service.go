package generator

import (
	"fmt"

	"github.com/dave/jennifer/jen"
	"google.golang.org/protobuf/compiler/protogen"
)

// serviceWriter writes what one service becomes.
type serviceWriter struct {
	*writer
	*serviceNames

	service *protogen.Service
	options nodeOptions
}

// service writes one service: its method table, the node's side, then the caller's.
func (w *writer) service(service *protogen.Service) {
	s := &serviceWriter{
		writer:       w,
		service:      service,
		options:      w.options[service.Desc.FullName()],
		serviceNames: w.pkg.names.services[service.Desc.FullName()],
	}
	s.nameConst()
	s.methodTable()
	s.nodeInterface()
	s.streamTypes()
	s.unimplementedNode()
	s.typeFunc()
	s.handleType()
	s.handleMethods()
	s.constructors()
	s.adapters()
}

// doc is the documentation of one of the service's own symbols: what it is, then what the schema says of the service if
// that is wanted there, then whether it is deprecated.
func (s *serviceWriter) doc(what string, more ...string) doc {
	return append(append(doc{what}, more...), deprecation(s.src, s.service.Desc, s.service.Comments))
}

func (s *serviceWriter) nameConst() {
	for _, detached := range s.service.Comments.LeadingDetached {
		w := s.writer
		w.Line()
		w.Comment(comment(string(detached)))
	}
	s.document(s.doc(sentence("%s is the full name of the service %s.", s.name, s.service.Desc.Name())))
	s.Const().Id(s.name).Op("=").Lit(string(s.service.Desc.FullName()))
	s.annotate(s.service.Location, s.name)
}

// methodTable writes the variables that everything else works with.
func (s *serviceWriter) methodTable() {
	defs := make([]jen.Code, 0, len(s.service.Methods)+1)
	for _, method := range s.service.Methods {
		args := []jen.Code{jen.Lit(string(method.Desc.Name())), jen.Id(s.node).Dot(method.GoName)}
		if s.options.concurrent[method.Desc.Name()] {
			args = append(args, rt("Concurrent").Call())
		}
		defs = append(defs, jen.Id(s.methods[method.Desc.Name()].table).Op("=").Add(rt(tableConstructor(method))).Call(args...))
	}
	config := []jen.Code{jen.Id("Type").Op(":").Lit(s.options.typeName)}
	if s.options.config != nil {
		config = append(config, jen.Id("NewConfig").Op(":").Func().Params().Qual(protoPackage, "Message").Block(
			jen.Return(jen.New(qual(s.options.config.GoIdent))),
		))
	}
	for _, bound := range []struct {
		field string
		value uint32
	}{
		{"MaxConcurrency", s.options.maxConcurrency},
		{"MaxPending", s.options.maxPending},
		{"MaxStreams", s.options.maxStreams},
	} {
		if bound.value != 0 {
			config = append(config, jen.Id(bound.field).Op(":").Lit(int(bound.value)))
		}
	}
	args := make([]jen.Code, 0, len(s.service.Methods)+2)
	args = append(args,
		qual(s.src.GoDescriptorIdent).Dot("Services").Call().Dot("ByName").Call(jen.Lit(string(s.service.Desc.Name()))),
		rt("ServiceConfig").Custom(multiline("{", "}"), config...),
	)
	for _, method := range s.service.Methods {
		args = append(args, jen.Id(s.methods[method.Desc.Name()].table))
	}
	defs = append(defs, jen.Id(s.table).Op("=").Add(rt("NewService")).Custom(multiline("(", ")"), args...))
	s.Line()
	s.Commentf("// The method table of %s.", s.service.Desc.FullName())
	s.Var().Defs(defs...)
}

// tableConstructor is the function of the runtime that makes a method's row.
func tableConstructor(method *protogen.Method) string {
	switch client, server := method.Desc.IsStreamingClient(), method.Desc.IsStreamingServer(); {
	case client && server:
		return "BidiStreamMethod"
	case client:
		return "ClientStreamMethod"
	case server:
		return "ServerStreamMethod"
	}
	return "UnaryMethod"
}

func (s *serviceWriter) nodeInterface() {
	var items []jen.Code
	for _, method := range s.service.Methods {
		if len(items) > 0 {
			items = append(items, jen.Line())
		}
		for _, detached := range method.Comments.LeadingDetached {
			items = append(items, jen.Comment(comment(string(detached))), jen.Line())
		}
		d := append(schemaDoc(method.Comments), deprecation(s.src, method.Desc, method.Comments))
		if text := d.String(); text != "" {
			items = append(items, jen.Comment(text))
		}
		params, result := s.nodeSignature(method)
		items = append(items, jen.Id(method.GoName).Params(params...).Add(result))
		s.annotate(method.Location, s.node+"."+method.GoName)
	}
	s.document(s.doc(
		sentence("%s is what a node of the service %s implements. Its unary methods run one at a time unless the schema says otherwise.",
			s.node, s.service.Desc.FullName()),
		schemaDoc(s.service.Comments)...,
	))
	s.Type().Id(s.node).Interface(items...)
	s.annotate(s.service.Location, s.node)
}

// nodeSignature is a method as a node implements it.
func (s *serviceWriter) nodeSignature(method *protogen.Method) (params []jen.Code, result *jen.Statement) {
	params = []jen.Code{ctxType()}
	if !method.Desc.IsStreamingClient() {
		params = append(params, pointer(method.Input))
	}
	if isStreaming(method) {
		params = append(params, jen.Id(s.methods[method.Desc.Name()].serverStream))
	}
	if method.Desc.IsStreamingServer() {
		return params, jen.Error()
	}
	return params, jen.Params(pointer(method.Output), jen.Error())
}

// streamTypes names the streams of each streaming method, so that nobody has to spell them out.
func (s *serviceWriter) streamTypes() {
	for _, method := range s.service.Methods {
		if !isStreaming(method) {
			continue
		}
		own := s.methods[method.Desc.Name()]
		kind, types := "ServerStreaming", []jen.Code{pointer(method.Output)}
		if method.Desc.IsStreamingClient() {
			kind = "ClientStreaming"
			if method.Desc.IsStreamingServer() {
				kind = "BidiStreaming"
			}
			types = []jen.Code{pointer(method.Input), pointer(method.Output)}
		}
		serverTypes := types
		if kind == "ClientStreaming" {
			serverTypes = types[:1] // the response is the method's result
		}
		s.document(s.doc(sentence("%s is the node's side of %s.", own.serverStream, method.GoName)))
		s.Type().Id(own.serverStream).Op("=").Add(rt(kind + "Server")).Types(serverTypes...)
		s.document(s.doc(sentence("%s is the caller's side of %s.", own.clientStream, method.GoName)))
		s.Type().Id(own.clientStream).Op("=").Add(rt(kind + "Client")).Types(types...)
		s.annotate(method.Location, own.serverStream, own.clientStream)
	}
}

func (s *serviceWriter) unimplementedNode() {
	s.document(s.doc(sentence("%s answers every method with an error of the code Unimplemented. "+
		"Embed it in a node, and the node still compiles when the schema gets a method more.", s.unimplemented)))
	s.Type().Id(s.unimplemented).Struct()
	s.annotate(s.service.Location, s.unimplemented)
	for _, method := range s.service.Methods {
		params, result := s.nodeSignature(method)
		err := jen.Qual(connectPackage, "NewError").Call(jen.Qual(connectPackage, "CodeUnimplemented"),
			jen.Lit(fmt.Sprintf("%s/%s is not implemented", s.service.Desc.FullName(), method.Desc.Name())))
		returned := jen.Return(jen.Nil(), err)
		if method.Desc.IsStreamingServer() {
			returned = jen.Return(err)
		}
		s.document(doc{
			sentence("%s returns an error of the code Unimplemented.", method.GoName),
			deprecation(s.src, method.Desc, method.Comments),
		})
		s.Func().Params(jen.Id(s.unimplemented)).Id(method.GoName).Params(params...).Add(result).Block(returned)
		s.annotate(method.Location, s.unimplemented+"."+method.GoName)
	}
}

// typeFunc writes the function that makes an implementation a type of node.
func (s *serviceWriter) typeFunc() {
	params := []jen.Code{ctxType(), jen.Op("*").Add(rt("Node"))}
	args := []jen.Code{jen.Id("ctx"), jen.Id("node")}
	config, given := "_", ""
	if s.options.config != nil {
		config, given = "config", " with the configuration it was created with"
		params = append(params, pointer(s.options.config))
		args = append(args, jen.Id("config").Assert(pointer(s.options.config)))
	}
	s.document(s.doc(sentence("%s is the node type %q, implemented by what setup returns. Setup is called once in each life of a node%s.",
		s.nodeType, s.options.typeName, given)))
	s.Func().Id(s.nodeType).Params(
		jen.Id("setup").Func().Params(params...).Params(jen.Id(s.node), jen.Error()),
	).Add(rt("NodeType")).Block(
		jen.Return(rt("NewNodeType").Call(jen.Id(s.table), jen.Func().Params(
			jen.Id("ctx").Add(ctxType()), jen.Id("node").Op("*").Add(rt("Node")), jen.Id(config).Qual(protoPackage, "Message"),
		).Params(jen.Any(), jen.Error()).Block(
			jen.Return(jen.Id("setup").Call(args...)),
		))),
	)
	s.annotate(s.service.Location, s.nodeType)
}
