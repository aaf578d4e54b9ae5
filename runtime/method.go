package runtime

import (
	"context"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"
)

// Message is a pointer to a generated message struct.
type Message[T any] interface {
	*T
	proto.Message
}

// Method is one row of a service's method table.
type Method struct {
	name       string
	shape      connect.StreamType
	concurrent bool
	// index is the method's place in its service's table.
	index int
	// builtin says that every node answers the method.
	builtin bool
	service *Service
	spec    connect.Spec

	newRequest  func() proto.Message
	newResponse func() proto.Message
	// isRequest and isResponse say whether a message is of the method's own type.
	isRequest, isResponse func(proto.Message) bool
	// unary runs a unary method on a node's implementation. req is never nil, nor is the response of a nil error.
	unary func(node any, ctx context.Context, req proto.Message) (proto.Message, error)
	// stream runs a streaming method on a node's implementation.
	stream func(node any, ctx context.Context, stream connect.ServerStream) error
}

// Name is the method's name in its service.
func (m *Method) Name() string { return m.name }

// fullName is the method's name with its service's, `package.Service/Method`.
func (m *Method) fullName() string { return m.spec.Procedure[1:] }

// Service is the service that the method belongs to.
func (m *Method) Service() *Service { return m.service }

// Spec is the method as connect describes it.
func (m *Method) Spec() connect.Spec { return m.spec }

// Concurrent says whether the method runs beside the node's turns.
func (m *Method) Concurrent() bool { return m.concurrent || m.shape != connect.StreamTypeUnary }

// MethodTable is a typed method: what the constructors below return and [NewService] takes.
type MethodTable interface{ method() *Method }

// MethodOption says how a method runs. It is for generated code.
type MethodOption func(*Method)

// Concurrent makes a unary method run beside the node's turns.
func Concurrent() MethodOption { return func(m *Method) { m.concurrent = true } }

func newMethod(name string, shape connect.StreamType, opts []MethodOption) Method {
	m := Method{name: name, shape: shape}
	for _, opt := range opts {
		opt(&m)
	}
	return m
}

// typed is a method with its types; Req and Res are pointers to messages.
type typed[Req, Res proto.Message] struct {
	m           Method
	newRequest  func() Req
	newResponse func() Res
}

func (t *typed[Req, Res]) method() *Method { return &t.m }

func newTyped[Req, Res any, PReq Message[Req], PRes Message[Res]](
	name string, shape connect.StreamType, opts []MethodOption,
) typed[PReq, PRes] {
	t := typed[PReq, PRes]{
		m:           newMethod(name, shape, opts),
		newRequest:  func() PReq { return new(Req) },
		newResponse: func() PRes { return new(Res) },
	}
	t.m.newRequest = func() proto.Message { return PReq(new(Req)) }
	t.m.newResponse = func() proto.Message { return PRes(new(Res)) }
	t.m.isRequest = func(msg proto.Message) bool { return is[PReq](msg) }
	t.m.isResponse = func(msg proto.Message) bool { return is[PRes](msg) }
	return t
}

func is[M proto.Message](msg proto.Message) bool {
	_, ok := msg.(M)
	return ok
}

// isNil says that there is no message, or a nil one.
func isNil(msg proto.Message) bool { return msg == nil || !msg.ProtoReflect().IsValid() }

// Unary is a unary method with its types; Req and Res are pointers to messages.
type Unary[Req, Res proto.Message] struct{ typed[Req, Res] }

// UnaryMethod makes a unary method from a method expression of the node interface, such as LearnerNode.Learn.
// It is for generated code.
func UnaryMethod[Node, Req, Res any, PReq Message[Req], PRes Message[Res]](
	name string, fn func(Node, context.Context, PReq) (PRes, error), opts ...MethodOption,
) *Unary[PReq, PRes] {
	u := &Unary[PReq, PRes]{newTyped[Req, Res, PReq, PRes](name, connect.StreamTypeUnary, opts)}
	u.m.unary = func(node any, ctx context.Context, req proto.Message) (proto.Message, error) {
		res, err := fn(node.(Node), ctx, req.(PReq)) //nolint:forcetypeassert // the table belongs to the node's own type
		if err != nil {
			return nil, err
		}
		if res == nil {
			res = new(Res)
		}
		return res, nil
	}
	return u
}

// ServerStreaming is a server-streaming method with its types.
type ServerStreaming[Req, Res proto.Message] struct{ typed[Req, Res] }

// ServerStreamMethod makes a server-streaming method. It is for generated code.
func ServerStreamMethod[Node, Req, Res any, PReq Message[Req], PRes Message[Res]](
	name string, fn func(Node, context.Context, PReq, ServerStreamingServer[PRes]) error, opts ...MethodOption,
) *ServerStreaming[PReq, PRes] {
	s := &ServerStreaming[PReq, PRes]{newTyped[Req, Res, PReq, PRes](name, connect.StreamTypeServer, opts)}
	s.m.stream = func(node any, ctx context.Context, stream connect.ServerStream) error {
		req, err := receive(new(source).from(stream), s.newRequest)
		if err != nil {
			return err
		}
		return fn(node.(Node), ctx, req, &serverStream[PReq, PRes]{stream: stream, method: &s.typed}) //nolint:forcetypeassert // as above
	}
	return s
}

// ClientStreaming is a client-streaming method with its types.
type ClientStreaming[Req, Res proto.Message] struct{ typed[Req, Res] }

// ClientStreamMethod makes a client-streaming method. It is for generated code.
func ClientStreamMethod[Node, Req, Res any, PReq Message[Req], PRes Message[Res]](
	name string, fn func(Node, context.Context, ClientStreamingServer[PReq]) (PRes, error), opts ...MethodOption,
) *ClientStreaming[PReq, PRes] {
	c := &ClientStreaming[PReq, PRes]{newTyped[Req, Res, PReq, PRes](name, connect.StreamTypeClient, opts)}
	c.m.stream = func(node any, ctx context.Context, stream connect.ServerStream) error {
		res, err := fn(node.(Node), ctx, &serverStream[PReq, PRes]{stream: stream, method: &c.typed}) //nolint:forcetypeassert // as above
		if err != nil {
			return err
		}
		if res == nil {
			res = new(Res)
		}
		return stream.Send(res)
	}
	return c
}

// BidiStreaming is a bidirectional method with its types.
type BidiStreaming[Req, Res proto.Message] struct{ typed[Req, Res] }

// BidiStreamMethod makes a bidirectional method. It is for generated code.
func BidiStreamMethod[Node, Req, Res any, PReq Message[Req], PRes Message[Res]](
	name string, fn func(Node, context.Context, BidiStreamingServer[PReq, PRes]) error, opts ...MethodOption,
) *BidiStreaming[PReq, PRes] {
	b := &BidiStreaming[PReq, PRes]{newTyped[Req, Res, PReq, PRes](name, connect.StreamTypeBidi, opts)}
	b.m.stream = func(node any, ctx context.Context, stream connect.ServerStream) error {
		return fn(node.(Node), ctx, &serverStream[PReq, PRes]{stream: stream, method: &b.typed}) //nolint:forcetypeassert // as above
	}
	return b
}
