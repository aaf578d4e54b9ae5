package generator

import (
	"strconv"

	"google.golang.org/protobuf/compiler/protogen"
)

// handleType writes the handle and the methods that it has beside the schema's.
func (s *serviceWriter) handleType() {
	s.document(s.doc(
		sentence("%s is the handle of a node of the service %s, wherever that node lives. It is safe for concurrent use.",
			s.handle, s.service.Desc.FullName()),
		schemaDoc(s.service.Comments)...,
	))
	s.line("type ", s.handle, " struct {")
	s.line("\tref ", s.rt("Ref"))
	s.line("}")
	s.annotate(s.service.Location, s.handle)

	s.document(doc{sentence("%s returns the untyped half of the handle: the node's path, name and attributes, and the operations that every node has.", s.ref)})
	s.method(s.ref, "", s.rt("Ref"), "h.ref")
	s.annotate(s.service.Location, s.handle+"."+s.ref)

	s.document(doc{sentence("%s returns a handle of the same node whose calls the interceptors wrap, the first outermost, inside of those that h has.",
		s.intercepted)})
	s.method(s.intercepted, "interceptors ..."+s.rt("ClientInterceptor"), "*"+s.handle,
		"&"+s.handle+"{ref: h.ref.Intercepted(interceptors...)}")
	s.annotate(s.service.Location, s.handle+"."+s.intercepted)

	if s.stringer != "" {
		s.document(doc{sentence("%s returns the service's name and the node's path.", s.stringer)})
		s.method(s.stringer, "", "string", strconv.Quote(string(s.service.Desc.Name())+"(")+" + h.ref.String() + "+strconv.Quote(")"))
	}
}

// method writes a method of the handle, which returns one expression.
func (s *serviceWriter) method(name, params, results, returned string) {
	s.line("func (h *", s.handle, ") ", name, "(", params, ") ", results, " {")
	s.line("\treturn ", returned)
	s.line("}")
}

func (s *serviceWriter) handleMethods() {
	for index, method := range s.service.Methods {
		own := s.methods[method.Desc.Name()]
		in, out := s.pointer(method.Input), s.pointer(method.Output)
		params, result := "ctx "+s.ctxType(), out
		call := s.rt("GeneratedCall") + "[" + in + ", " + out + "](" + strconv.Itoa(index) + ")."
		args := "(ctx, h.ref"
		if !method.Desc.IsStreamingClient() {
			params += ", req " + in
			args += ", req"
		}
		args += ")"
		if isStreaming(method) {
			result = own.clientStream
		}
		s.document(s.methodDoc(method))
		s.method(own.method, params, "("+result+", error)", call+callMethod(method)+args)
		s.annotate(method.Location, s.handle+"."+own.method)
		if isStreaming(method) {
			continue
		}
		s.document(doc{
			sentence("%s calls %s and returns a future of its response or error. "+
				"It blocks only while the node's queue is full or its connection is being opened.", own.async, own.method),
			deprecation(s.src, method.Desc, method.Comments),
		})
		s.method(own.async, params, "*"+s.rt("Future")+"["+out+"]", call+"Async"+args)
		s.annotate(method.Location, s.handle+"."+own.async)
	}
}

// callMethod is the method of runtime.GeneratedCall that calls a method and waits.
func callMethod(method *protogen.Method) string {
	switch client, server := method.Desc.IsStreamingClient(), method.Desc.IsStreamingServer(); {
	case client && server:
		return "BidiStream"
	case client:
		return "ClientStream"
	case server:
		return "ServerStream"
	}
	return "Unary"
}

// methodDoc is the schema's comment on a method, or a sentence of the plugin's own.
func (s *serviceWriter) methodDoc(method *protogen.Method) doc {
	d := schemaDoc(method.Comments)
	if d.String() == "" {
		what := "calls %s and waits for its response."
		switch {
		case method.Desc.IsStreamingClient() && method.Desc.IsStreamingServer():
			what = "calls %s and returns the stream of its requests and responses."
		case method.Desc.IsStreamingClient():
			what = "calls %s and returns the stream on which its requests are sent."
		case method.Desc.IsStreamingServer():
			what = "calls %s and returns the stream of its responses."
		}
		d = doc{sentence("%s "+what, method.GoName, method.Desc.FullName())}
	}
	return append(d, deprecation(s.src, method.Desc, method.Comments))
}

// constructors writes the functions that create, find and receive nodes of a running system.
func (s *serviceWriter) constructors() {
	ctx := "ctx " + s.ctxType()
	parent := ", parent " + s.rt("Parent")
	from := "from " + s.rt("Finder")
	opts := ", opts ..." + s.rt("CreateOption")
	cfg, config := "", "nil"
	if s.options.config != nil {
		cfg, config = ", cfg "+s.pointer(s.options.config), "cfg"
	}

	s.document(s.doc(sentence("%s creates a node of the type %q under parent and blocks until it is set up.",
		s.create, s.options.typeName)))
	s.fromRef(s.create, "ref", ctx+parent+cfg+opts,
		s.table+".Create(ctx, parent, "+config+", opts...)")

	s.document(s.doc(sentence("%s creates n nodes of the type %q under parent at once: all, or none and an error.",
		s.createN, s.options.typeName)))
	s.line("func ", s.createN, "(", ctx, parent, ", n int", cfg, opts, ") ([]*", s.handle, ", error) {")
	s.line("\trefs, err := ", s.table, ".CreateN(ctx, parent, n, ", config, ", opts...)")
	s.line("\tif err != nil {")
	s.line("\t\treturn nil, err")
	s.line("\t}")
	s.line("\thandles := make([]*", s.handle, ", len(refs))")
	s.line("\tfor i, ref := range refs {")
	s.line("\t\thandles[i] = ", s.handleOf("ref"))
	s.line("\t}")
	s.line("\treturn handles, nil")
	s.line("}")
	s.annotate(s.service.Location, s.createN)

	s.document(s.doc(sentence("%s looks up a node of the service %s, by path, alias or id. A relative path is relative to from.",
		s.find, s.service.Desc.FullName())))
	s.fromRef(s.find, "ref", ctx+", "+from+", where "+s.rt("Where"),
		s.table+".Find(ctx, from, where)")

	s.document(s.doc(sentence("%s makes a handle of a reference that was received in a message. It makes no call.", s.from)))
	s.fromRef(s.from, "found", from+", ref *"+s.imports[nodePackage]+".NodeRef",
		s.table+".From(from, ref)")
}

// fromRef writes a function that makes a handle from what call returns, a Ref and an error, and
// calls that Ref found.
func (s *serviceWriter) fromRef(name, found, params, call string) {
	s.line("func ", name, "(", params, ") (*", s.handle, ", error) {")
	s.line("\t", found, ", err := ", call)
	s.line("\tif err != nil {")
	s.line("\t\treturn nil, err")
	s.line("\t}")
	s.line("\treturn ", s.handleOf(found), ", nil")
	s.line("}")
	s.annotate(s.service.Location, name)
}

// handleOf makes a handle of a Ref.
func (s *serviceWriter) handleOf(ref string) string { return "&" + s.handle + "{ref: " + ref + "}" }

// adapters writes the ways to a node outside any system.
func (s *serviceWriter) adapters() {
	s.document(s.doc(sentence("%s runs node behind a mailbox in this process, outside any system: a fake in a test, for example. "+
		"It need not be closed.", s.newLocal)))
	s.line("func ", s.newLocal, "(node ", s.node, ") *", s.handle, " {")
	s.line("\treturn ", s.handleOf(s.table+".NewLocal("+s.handlers+", node)"))
	s.line("}")
	s.document(s.doc(sentence("%s runs node behind a mailbox and registers it with server, where %s and any other client of the "+
		"service reach it. It need not be closed.", s.registerTunnel, s.newTunnel)))
	s.line("func ", s.registerTunnel, "(server *", s.connect("Server"), ", node ", s.node, ") {")
	s.line("\t", s.table, ".RegisterTunnel(server, ", s.handlers, ", node)")
	s.line("}")
	s.document(s.doc(sentence("%s returns a handle of the node that client reaches.", s.newTunnel)))
	s.line("func ", s.newTunnel, "(client *", s.connect("Client"), ") *", s.handle, " {")
	s.line("\treturn ", s.handleOf(s.table+".NewTunnel(client)"))
	s.line("}")
	s.annotate(s.service.Location, s.newLocal, s.registerTunnel, s.newTunnel)
}
