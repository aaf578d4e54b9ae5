package runtime

import (
	"context"
	"fmt"
	"sync"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	"github.com/raylink/raylink/internal/machine"
)

// Called by generated code.
//
// This file is the whole contract between this package and the code that protoc-gen-raylink
// generates, apart from the types that appear in generated signatures. The names begin with
// Generated, so that documentation lists them in one block; programs need none of them. Whatever
// changes here changes [MaxGenerated] and the plugin's contractVersion with it.

// Generated code states the version of its contract with this package; the constants below are the
// range of versions that this package supports. A generated file outside that range does not
// compile, and the comment beside its guard says how to fix it.
const (
	// MinGenerated is the oldest version of generated code that this package supports.
	MinGenerated = 3
	// MaxGenerated is the newest version of generated code that this package supports: the version
	// that its own plugin emits.
	MaxGenerated = 4
)

// EnforceVersion is the type of the guard in generated code. A constant of it cannot be negative,
// so
//
//	_ = runtime.EnforceVersion(4 - runtime.MinGenerated)
//	_ = runtime.EnforceVersion(runtime.MaxGenerated - 4)
//
// compile only if this package supports version 3.
type EnforceVersion uint

// GeneratedService describes a service in generated code. It is plain data, which the linker drops
// if it is not used, and the method table is made from it on first use: importing generated code
// costs nothing. Programs that only call nodes need no more; those that host nodes also supply the
// handlers.
type GeneratedService struct {
	// File points to the variable with the descriptor of the service's file.
	File *protoreflect.FileDescriptor
	// Name is the service's name in that file.
	Name string
	// Type is the node type's name, unique in a program: `learner` in `learner-0`.
	Type string
	// NewConfig makes an empty configuration message; nil for a type without configuration.
	NewConfig func() proto.Message
	// Limits are the schema's; 0 stands for a default.
	Limits Limits
	// Resources are what a node with a process of its own needs, as in the schema; empty for
	// nothing.
	Resources string
	// Methods are in the order of the schema: a [GeneratedCall] is an index into them.
	Methods []GeneratedMethod

	once, hosted sync.Once
	service      *Service
}

// GeneratedMethod describes a method of a [GeneratedService].
type GeneratedMethod struct {
	Name string
	// Concurrent makes a unary method run without a turn.
	Concurrent              bool
	NewRequest, NewResponse func() proto.Message
}

// GeneratedHandler runs a method on a node's implementation: exactly one of its fields is set.
type GeneratedHandler struct {
	// Unary receives a request that is not nil, and returns a response that is not nil, or an
	// error.
	Unary  func(node any, ctx context.Context, req proto.Message) (proto.Message, error)
	Stream func(node any, ctx context.Context, untyped GeneratedStream) error
}

// caller returns the service for calling its nodes.
func (g *GeneratedService) caller() *Service {
	g.once.Do(func() {
		desc := (*g.File).Services().ByName(protoreflect.Name(g.Name))
		if desc == nil {
			panic(fmt.Sprintf("raylink: %s has no service %s: generated code and schema differ; run `buf generate`", (*g.File).Path(), g.Name))
		}
		methods := make([]*Method, len(g.Methods))
		for i, row := range g.Methods {
			methods[i] = &Method{name: row.Name, concurrent: row.Concurrent, newRequest: row.NewRequest, newResponse: row.NewResponse}
		}
		g.service = newService(desc, serviceConfig{typeName: g.Type, newConfig: g.NewConfig, Limits: g.Limits, resources: g.resources()}, methods...)
	})
	return g.service
}

// resources parses the resources, which the plugin has verified.
func (g *GeneratedService) resources() map[string]int64 {
	resources, err := machine.ParseResources(g.Resources)
	if err != nil {
		panic(fmt.Sprintf("raylink: service %s: %v; run `buf generate`", g.Name, err))
	}
	return resources
}

// host returns the service for hosting its nodes. handlers run its methods, in the same order.
func (g *GeneratedService) host(handlers []GeneratedHandler) *Service {
	service := g.caller()
	g.hosted.Do(func() {
		for i, m := range service.methods {
			h := handlers[i]
			if (h.Unary != nil) != (m.shape == connect.StreamTypeUnary) {
				panic(fmt.Sprintf("raylink: method %s is %v in the schema and not in generated code; run `buf generate`", m.spec.Procedure, m.shape))
			}
			m.unary = h.Unary
			if h.Stream != nil {
				m.stream = func(node any, ctx context.Context, stream connect.ServerStream) error {
					return h.Stream(node, ctx, GeneratedStream{&servedStream{stream: stream, method: m}})
				}
			}
		}
	})
	return service
}

// NodeType returns the node type whose nodes setup makes. config in setup is nil if and only if the
// schema names no configuration.
func (g *GeneratedService) NodeType(
	handlers []GeneratedHandler, setup func(ctx context.Context, node *Node, config proto.Message) (any, error),
) NodeType {
	return NodeType{service: g.host(handlers), setup: setup}
}

// Create creates a node under parent and blocks until it is set up. While a node's method waits in
// Create, the node's mailbox continues to serve, so that the child may call its parent. If Create
// returns an error, because set-up fails or ctx ends, nothing is left of the node.
func (g *GeneratedService) Create(ctx context.Context, parent Parent, config proto.Message, opts ...CreateOption) (Ref, error) {
	refs, err := g.CreateN(ctx, parent, 1, config, opts...)
	if err != nil {
		return Ref{}, err
	}
	return refs[0], nil
}

// CreateN creates n nodes at once, all or none; otherwise it is like Create.
func (g *GeneratedService) CreateN(ctx context.Context, parent Parent, n int, config proto.Message, opts ...CreateOption) ([]Ref, error) {
	return createNodes(ctx, parent, g.caller(), n, config, opts...)
}

// Find looks a node up with Brain. It fails with NotFound, naming the nodes that exist, if there is
// no such living node, and with FailedPrecondition if the node is of another service.
func (g *GeneratedService) Find(ctx context.Context, from Finder, where Where) (Ref, error) {
	return findNode(ctx, from, g.caller(), where)
}

// From converts a NodeRef that was received in a message to a Ref, without a call. Calls go over
// the tunnel that the NodeRef names, if it names one.
func (g *GeneratedService) From(from Finder, ref *nodev1.NodeRef) (Ref, error) {
	return refFrom(from, g.caller(), ref)
}

// NewTunnel returns a reference to the node that a connect client reaches.
func (g *GeneratedService) NewTunnel(client *connect.Client) Ref {
	return Ref{service: g.caller(), to: &clientEndpoint{client: client}}
}

// NewLocal runs a node's implementation behind a mailbox in this process, outside any system: a
// fake in a test, for example. It need not be closed.
func (g *GeneratedService) NewLocal(handlers []GeneratedHandler, node any) Ref {
	return newStandalone(g.host(handlers), node).ref()
}

// RegisterTunnel registers a node's implementation, behind a mailbox with the schema's limits, with
// a connect server. It need not be closed.
func (g *GeneratedService) RegisterTunnel(server *connect.Server, handlers []GeneratedHandler, node any) {
	registerStandalone(server, newStandalone(g.host(handlers), node))
}

// GeneratedCall calls a method of a node. It is the index of the method in the Methods of its
// service, with the types of its messages, which are pointers.
//
// Neither a request nor a response may be modified afterwards, by any side: in the same process
// they are passed by reference. A nil request is the empty message.
type GeneratedCall[Req, Res proto.Message] int

// Unary makes a unary call and waits for its response. It returns as soon as ctx ends, with one
// exception: a call within a process to an idle node, or of a concurrent method, runs the method on
// the caller's goroutine. Then it returns when the method does, whose own context has ended with
// ctx.
func (c GeneratedCall[Req, Res]) Unary(ctx context.Context, ref Ref, req Req) (Res, error) {
	var none Res
	m, err := ref.method(int(c))
	if err != nil {
		return none, err
	}
	res, err := ref.invoke(ctx, m, orEmpty(req, m.newRequest))
	if err != nil {
		return none, err
	}
	return res.(Res), nil //nolint:forcetypeassert // the method's table made it
}

// Async enqueues a unary call and returns its future. It blocks only while the node's queue is full
// or its connection is being opened, and no longer than ctx. Calls that are enqueued one after the
// other by a goroutine run in that order. The call is canceled when ctx is.
func (c GeneratedCall[Req, Res]) Async(ctx context.Context, ref Ref, req Req) *Future[Res] {
	m, err := ref.method(int(c))
	if err != nil {
		return &Future[Res]{f: failedFuture(err)}
	}
	return &Future[Res]{f: ref.submit(ctx, m, orEmpty(req, m.newRequest))}
}

// ServerStream calls a method with one request and returns the stream of its responses.
func (c GeneratedCall[Req, Res]) ServerStream(ctx context.Context, ref Ref, req Req) (ServerStreamingClient[Res], error) {
	stream, err := beginStream(ctx, ref, int(c))
	if err != nil {
		return nil, err
	}
	if err := stream.sendOnly(orEmpty(req, stream.method.newRequest)); err != nil {
		return nil, err
	}
	return serverStreamingClient[Res]{stream}, nil
}

// ClientStream begins a call and returns the stream on which its requests are sent.
func (c GeneratedCall[Req, Res]) ClientStream(ctx context.Context, ref Ref) (ClientStreamingClient[Req, Res], error) {
	stream, err := beginStream(ctx, ref, int(c))
	if err != nil {
		return nil, err
	}
	return clientStreamingClient[Req, Res]{stream}, nil
}

// BidiStream begins a call and returns its stream.
func (c GeneratedCall[Req, Res]) BidiStream(ctx context.Context, ref Ref) (BidiStreamingClient[Req, Res], error) {
	stream, err := beginStream(ctx, ref, int(c))
	if err != nil {
		return nil, err
	}
	return bidiStreamingClient[Req, Res]{stream}, nil
}

// GeneratedStream is the node's side of a stream, without the types of its messages. It is
// converted to a [GeneratedStreamOf].
type GeneratedStream struct{ s *servedStream }

// GeneratedStreamOf is the node's side of a stream, with the types of its messages. It implements
// [ServerStreamingServer], [ClientStreamingServer] and [BidiStreamingServer]. It is one pointer, so
// that passing it as one of them does not allocate, and has as little code as possible, because it
// is instantiated for every method.
type GeneratedStreamOf[Req, Res proto.Message] struct{ s *servedStream }

// Receive blocks until the next request, or the only one. After the last one it returns io.EOF.
func (s GeneratedStreamOf[Req, Res]) Receive() (Req, error) { return typedMessage[Req](s.s.receive()) }

// Send sends the next response.
func (s GeneratedStreamOf[Req, Res]) Send(res Res) error {
	return s.s.stream.Send(orEmpty(res, s.s.method.newResponse))
}

// SendOnly sends the only response of a client-streaming method, or returns err if it is not nil.
func (s GeneratedStreamOf[Req, Res]) SendOnly(res Res, err error) error {
	if err != nil {
		return err
	}
	return s.Send(res)
}
