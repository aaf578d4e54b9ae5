package runtime

import (
	"context"
	"reflect"

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
	// requestType and responseType are the Go types of these messages.
	requestType, responseType reflect.Type
	// unary runs a unary method on a node's implementation. req is never nil, nor is the response
	// of a nil error.
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

// isRequest and isResponse say whether a message is of the method's own type.
func (m *Method) isRequest(msg proto.Message) bool  { return reflect.TypeOf(msg) == m.requestType }
func (m *Method) isResponse(msg proto.Message) bool { return reflect.TypeOf(msg) == m.responseType }

// MethodTable is a typed method: what [UnaryMethod] returns and [NewService] takes.
type MethodTable interface{ method() *Method }

// MethodOption says how a method runs. It is for generated code.
type MethodOption func(*Method)

// Concurrent makes a unary method run beside the node's turns.
func Concurrent() MethodOption { return func(m *Method) { m.concurrent = true } }

// isNil says that there is no message, or a nil one.
func isNil(msg proto.Message) bool { return msg == nil || !msg.ProtoReflect().IsValid() }

// Unary is a unary method with its types; Req and Res are pointers to messages.
type Unary[Req, Res proto.Message] struct{ m Method }

func (u *Unary[Req, Res]) method() *Method { return &u.m }

// UnaryMethod makes a unary method from a method expression of the node's type. It is for services
// that no generated code is made of, such as the one that every node has.
func UnaryMethod[Node, Req, Res any, PReq Message[Req], PRes Message[Res]](
	name string, fn func(Node, context.Context, PReq) (PRes, error), opts ...MethodOption,
) *Unary[PReq, PRes] {
	u := &Unary[PReq, PRes]{Method{
		name:        name,
		newRequest:  func() proto.Message { return PReq(new(Req)) },
		newResponse: func() proto.Message { return PRes(new(Res)) },
	}}
	for _, opt := range opts {
		opt(&u.m)
	}
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
