package generator

import (
	"github.com/dave/jennifer/jen"
	"google.golang.org/protobuf/compiler/protogen"
)

// handleType writes the handle and the one method of its own that it has.
func (s *serviceWriter) handleType() {
	s.document(s.doc(
		sentence("%s is the handle of a node of the service %s, wherever that node lives. It may be used by several goroutines at once.",
			s.handle, s.service.Desc.FullName()),
		schemaDoc(s.service.Comments)...,
	))
	s.Type().Id(s.handle).Struct(jen.Id("ref").Add(rt("Ref")))
	s.annotate(s.service.Location, s.handle)

	s.document(doc{sentence("%s is the node itself: its path, name and attributes, and what can be asked of any node.", s.ref)})
	s.method(s.ref).Params().Add(rt("Ref")).Block(jen.Return(jen.Id("h").Dot("ref")))
	s.annotate(s.service.Location, s.handle+"."+s.ref)
}

// method begins a method of the handle.
func (s *serviceWriter) method(name string) *jen.Statement {
	return s.Func().Params(jen.Id("h").Op("*").Id(s.handle)).Id(name)
}

func (s *serviceWriter) handleMethods() {
	for index, method := range s.service.Methods {
		own := s.methods[method.Desc.Name()]
		params := []jen.Code{jen.Id("ctx").Add(ctxType())}
		args := []jen.Code{jen.Id("ctx"), jen.Id("h").Dot("ref"), jen.Lit(index)}
		types := []jen.Code{pointer(method.Input), pointer(method.Output)}
		if !method.Desc.IsStreamingClient() {
			params = append(params, jen.Id("req").Add(pointer(method.Input)))
			args = append(args, jen.Id("req"))
		}
		result := pointer(method.Output)
		if isStreaming(method) {
			result = jen.Id(own.clientStream)
		}
		s.document(s.methodDoc(method))
		s.method(own.method).Params(params...).Params(result, jen.Error()).Block(
			jen.Return(rt(callFunc(method)).Types(types...).Call(args...)),
		)
		s.annotate(method.Location, s.handle+"."+own.method)
		if isStreaming(method) {
			continue
		}
		s.document(doc{
			sentence("%s is %s without the waiting: the future has the response, or the error, once it is there. "+
				"It blocks only while the way to the node is full.", own.async, own.method),
			deprecation(s.src, method.Desc, method.Comments),
		})
		s.method(own.async).Params(params...).Op("*").Add(rt("Future")).Types(pointer(method.Output)).Block(
			jen.Return(rt("CallAsync").Types(types...).Call(args...)),
		)
		s.annotate(method.Location, s.handle+"."+own.async)
	}
}

// callFunc is the function of the runtime that calls a method and waits.
func callFunc(method *protogen.Method) string {
	switch client, server := method.Desc.IsStreamingClient(), method.Desc.IsStreamingServer(); {
	case client && server:
		return "CallBidiStream"
	case client:
		return "CallClientStream"
	case server:
		return "CallServerStream"
	}
	return "CallUnary"
}

// methodDoc is what the schema says of a method, or a sentence of our own.
func (s *serviceWriter) methodDoc(method *protogen.Method) doc {
	d := schemaDoc(method.Comments)
	if d.String() == "" {
		what := "calls %s, and waits for the response."
		switch {
		case method.Desc.IsStreamingClient() && method.Desc.IsStreamingServer():
			what = "calls %s, and returns the stream of its requests and responses."
		case method.Desc.IsStreamingClient():
			what = "calls %s, and returns the stream to send its requests on."
		case method.Desc.IsStreamingServer():
			what = "calls %s, and returns the stream of its responses."
		}
		d = doc{sentence("%s "+what, method.GoName, method.Desc.FullName())}
	}
	return append(d, deprecation(s.src, method.Desc, method.Comments))
}

// constructors writes the functions that create, find and receive nodes of a running system.
func (s *serviceWriter) constructors() {
	ctx := jen.Id("ctx").Add(ctxType())
	parent := jen.Id("parent").Add(rt("Parent"))
	from := jen.Id("from").Add(rt("Finder"))
	opts := jen.Id("opts").Op("...").Add(rt("CreateOption"))
	var cfg []jen.Code
	config := jen.Nil()
	if s.options.config != nil {
		cfg = []jen.Code{jen.Id("cfg").Add(pointer(s.options.config))}
		config = jen.Id("cfg")
	}

	s.document(s.doc(sentence("%s creates a node of the type %q below parent, and waits until it is set up.",
		s.create, s.options.typeName)))
	s.fromRef(s.create, "ref", append(append([]jen.Code{ctx, parent}, cfg...), opts),
		rt("Create").Call(jen.Id("ctx"), jen.Id("parent"), s.caller(), config, jen.Id("opts").Op("...")))

	s.document(s.doc(sentence("%s creates n nodes of the type %q below parent at once: all, or none and an error.",
		s.createN, s.options.typeName)))
	s.Func().Id(s.createN).Params(append(append([]jen.Code{ctx, parent, jen.Id("n").Int()}, cfg...), opts)...).
		Params(jen.Index().Op("*").Id(s.handle), jen.Error()).Block(
		jen.List(jen.Id("refs"), jen.Err()).Op(":=").Add(rt("CreateN")).
			Call(jen.Id("ctx"), jen.Id("parent"), s.caller(), jen.Id("n"), config, jen.Id("opts").Op("...")),
		jen.If(jen.Err().Op("!=").Nil()).Block(jen.Return(jen.Nil(), jen.Err())),
		jen.Id("handles").Op(":=").Make(jen.Index().Op("*").Id(s.handle), jen.Len(jen.Id("refs"))),
		jen.For(jen.List(jen.Id("i"), jen.Id("ref")).Op(":=").Range().Id("refs")).Block(
			jen.Id("handles").Index(jen.Id("i")).Op("=").Add(s.handleOf(jen.Id("ref"))),
		),
		jen.Return(jen.Id("handles"), jen.Nil()),
	)
	s.annotate(s.service.Location, s.createN)

	s.document(s.doc(sentence("%s looks up a node of the service %s, by path, alias or id. A relative path is relative to from.",
		s.find, s.service.Desc.FullName())))
	s.fromRef(s.find, "ref", []jen.Code{ctx, from, jen.Id("where").Add(rt("Where"))},
		rt("Find").Call(jen.Id("ctx"), jen.Id("from"), s.caller(), jen.Id("where")))

	s.document(s.doc(sentence("%s makes a handle from a reference that came in a message. It asks nobody.", s.from)))
	s.fromRef(s.from, "found", []jen.Code{from, jen.Id("ref").Op("*").Qual(nodePackage, "NodeRef")},
		rt("RefFrom").Call(jen.Id("from"), s.caller(), jen.Id("ref")))
}

// fromRef writes a function that makes a handle from what call returns, a Ref and an error, and calls that Ref found.
func (s *serviceWriter) fromRef(name, found string, params []jen.Code, call jen.Code) {
	s.Func().Id(name).Params(params...).Params(jen.Op("*").Id(s.handle), jen.Error()).Block(
		jen.List(jen.Id(found), jen.Err()).Op(":=").Add(call),
		jen.If(jen.Err().Op("!=").Nil()).Block(jen.Return(jen.Nil(), jen.Err())),
		jen.Return(s.handleOf(jen.Id(found)), jen.Nil()),
	)
	s.annotate(s.service.Location, name)
}

// handleOf makes a handle of a Ref.
func (s *serviceWriter) handleOf(ref jen.Code) *jen.Statement {
	return jen.Op("&").Id(s.handle).Values(jen.Id("ref").Op(":").Add(ref))
}

// adapters writes the ways to a node outside any system.
func (s *serviceWriter) adapters() {
	node := jen.Id("node").Id(s.node)
	handle := jen.Op("*").Id(s.handle)

	s.document(s.doc(sentence("%s puts node behind a mailbox in this process, outside any system: a fake in a test, for example. "+
		"Nothing has to be closed.", s.newLocal)))
	s.Func().Id(s.newLocal).Params(node).Add(handle).Block(
		jen.Return(s.handleOf(rt("NewLocal").Call(s.host(), jen.Id("node")))),
	)
	s.document(s.doc(sentence("%s puts node behind a mailbox and registers it on server, where %s and any other client of the "+
		"service reach it. Nothing has to be closed.", s.registerTunnel, s.newTunnel)))
	s.Func().Id(s.registerTunnel).Params(jen.Id("server").Op("*").Qual(connectPackage, "Server"), node).Block(
		rt("RegisterTunnel").Call(jen.Id("server"), s.host(), jen.Id("node")),
	)
	s.document(s.doc(sentence("%s is the handle of the node that client reaches.", s.newTunnel)))
	s.Func().Id(s.newTunnel).Params(jen.Id("client").Op("*").Qual(connectPackage, "Client")).Add(handle).Block(
		jen.Return(s.handleOf(rt("NewTunnel").Call(s.caller(), jen.Id("client")))),
	)
	s.annotate(s.service.Location, s.newLocal, s.registerTunnel, s.newTunnel)
}
