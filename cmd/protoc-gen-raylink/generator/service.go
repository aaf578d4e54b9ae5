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

// service writes one service: its method table, what runs the methods, the node's side, then the caller's.
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

// methodTable writes the data that callers work with.
func (s *serviceWriter) methodTable() {
	config := []jen.Code{jen.Id("Type").Op(":").Lit(s.options.typeName)}
	if s.options.config != nil {
		config = append(config, jen.Id("NewConfig").Op(":").Add(newMessage(s.options.config)))
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
	rows := make([]jen.Code, 0, len(s.service.Methods))
	for _, method := range s.service.Methods {
		row := []jen.Code{
			jen.Id("Name").Op(":").Lit(string(method.Desc.Name())),
			jen.Id("NewRequest").Op(":").Add(newMessage(method.Input)),
			jen.Id("NewResponse").Op(":").Add(newMessage(method.Output)),
		}
		if s.options.concurrent[method.Desc.Name()] {
			row = append(row, jen.Id("Concurrent").Op(":").True())
		}
		rows = append(rows, jen.Custom(multiline(), row...))
	}
	s.Line()
	s.Commentf("// The method table of %s. Calls name a method by its index in it.", s.service.Desc.FullName())
	s.Var().Id(s.table).Op("=").Add(rt("Table")).Custom(multiline(),
		jen.Id("File").Op(":").Op("&").Add(qual(s.src.GoDescriptorIdent)),
		jen.Id("Service").Op(":").Lit(string(s.service.Desc.Name())),
		jen.Id("Config").Op(":").Add(rt("ServiceConfig")).Custom(multiline(), config...),
		jen.Id("Methods").Op(":").Index().Add(rt("TableMethod")).Custom(multiline(), rows...),
	)
}

// newMessage is a function that makes an empty message.
func newMessage(message *protogen.Message) *jen.Statement {
	return jen.Func().Params().Qual(protoPackage, "Message").Block(jen.Return(jen.New(qual(message.GoIdent))))
}

// methodHandlers writes the functions that run the methods of a node.
func (s *serviceWriter) methodHandlers() {
	handlers := make([]jen.Code, 0, len(s.service.Methods))
	for _, method := range s.service.Methods {
		handlers = append(handlers, jen.Custom(multiline(), s.handler(method)))
	}
	s.Line()
	s.Commentf("// What runs the methods of %s on a node, in the order of the table.", s.service.Desc.FullName())
	s.Var().Id(s.handlers).Op("=").Index().Add(rt("TableHandler")).Custom(multiline(), handlers...)
}

// handler is the function that runs one method, as a field of runtime.TableHandler.
func (s *serviceWriter) handler(method *protogen.Method) jen.Code {
	node, ctx := jen.Id("node").Any(), jen.Id("ctx").Add(ctxType())
	call := jen.Id("node").Assert(jen.Id(s.node)).Dot(method.GoName)
	if !isStreaming(method) {
		message := jen.Qual(protoPackage, "Message")
		return jen.Id("Unary").Op(":").Func().Params(node, ctx, jen.Id("req").Add(message)).Params(message, jen.Error()).Block(
			jen.List(jen.Id("res"), jen.Err()).Op(":=").Add(call).Call(jen.Id("ctx"), jen.Id("req").Assert(pointer(method.Input))),
			jen.If(jen.Err().Op("!=").Nil()).Block(jen.Return(jen.Nil(), jen.Err())),
			jen.If(jen.Id("res").Op("==").Nil()).Block(jen.Id("res").Op("=").New(qual(method.Output.GoIdent))),
			jen.Return(jen.Id("res"), jen.Nil()),
		)
	}
	client, server := method.Desc.IsStreamingClient(), method.Desc.IsStreamingServer()
	var body []jen.Code
	switch {
	case client && server:
		typed := rt("BidiStream").Types(pointer(method.Input), pointer(method.Output)).Call(jen.Id("stream"))
		body = []jen.Code{jen.Return(call.Call(jen.Id("ctx"), typed))}
	case client:
		typed := rt("ClientStream").Types(pointer(method.Input)).Call(jen.Id("stream"))
		body = []jen.Code{
			jen.List(jen.Id("res"), jen.Err()).Op(":=").Add(call).Call(jen.Id("ctx"), typed),
			jen.Return(rt("SendResponse").Call(jen.Id("stream"), jen.Id("res"), jen.Err())),
		}
	default:
		typed := rt("ServerStream").Types(pointer(method.Output)).Call(jen.Id("stream"))
		body = []jen.Code{
			jen.List(jen.Id("req"), jen.Err()).Op(":=").Add(rt("ReceiveRequest")).Types(pointer(method.Input)).Call(jen.Id("stream")),
			jen.If(jen.Err().Op("!=").Nil()).Block(jen.Return(jen.Err())),
			jen.Return(call.Call(jen.Id("ctx"), jen.Id("req"), typed)),
		}
	}
	return jen.Id("Stream").Op(":").Func().Params(node, ctx, jen.Id("stream").Op("*").Add(rt("ServedStream"))).Error().Block(body...)
}

// caller and host are the service as constructors pass it on.
func (s *serviceWriter) caller() *jen.Statement { return jen.Id(s.table).Dot("Caller").Call() }

func (s *serviceWriter) host() *jen.Statement {
	return jen.Id(s.table).Dot("Host").Call(jen.Id(s.handlers))
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
		jen.Return(rt("NewNodeType").Call(s.host(), jen.Func().Params(
			jen.Id("ctx").Add(ctxType()), jen.Id("node").Op("*").Add(rt("Node")), jen.Id(config).Qual(protoPackage, "Message"),
		).Params(jen.Any(), jen.Error()).Block(
			jen.Return(jen.Id("setup").Call(args...)),
		))),
	)
	s.annotate(s.service.Location, s.nodeType)
}
