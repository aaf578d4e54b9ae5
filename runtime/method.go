package runtime

import (
	"context"
	"reflect"
	"strings"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"
)

// messagePointer is the constraint of a pointer to a generated message struct.
type messagePointer[T any] interface {
	*T
	proto.Message
}

// Method is one row of a service's method table. It is immutable once its service is made.
type Method struct {
	name       string
	shape      connect.StreamType
	concurrent bool
	// index is the method's position in its service's table.
	index int
	// builtin is set for the methods that every node has.
	builtin bool
	service *Service
	spec    connect.Spec

	newRequest  func() proto.Message
	newResponse func() proto.Message
	// requestType and responseType are the Go types of the messages.
	requestType, responseType reflect.Type
	// unary runs a unary method on a node's implementation. req is never nil, nor is the response
	// of a nil error.
	unary func(node any, ctx context.Context, req proto.Message) (proto.Message, error)
	// stream runs a streaming method on a node's implementation.
	stream func(node any, ctx context.Context, stream connect.ServerStream) error
}

// Name is the method's name in its service.
func (m *Method) Name() string { return m.name }

// fullName is the method's full name, `package.Service/Method`.
func (m *Method) fullName() string { return m.spec.Procedure[1:] }

// String returns the method's full name, `package.Service/Method`.
func (m *Method) String() string { return strings.TrimPrefix(m.spec.Procedure, "/") }

// Service is the service that the method belongs to.
func (m *Method) Service() *Service { return m.service }

// Spec is the method's description for connect.
func (m *Method) Spec() connect.Spec { return m.spec }

// Concurrent reports whether the schema lets the method run beside the node's turns, as streams
// always do.
func (m *Method) Concurrent() bool { return m.concurrent || m.shape != connect.StreamTypeUnary }

// Idempotent reports whether the schema says that running the method twice is the same as running
// it once: by `option idempotency_level = IDEMPOTENT`, or NO_SIDE_EFFECTS. See [Retry].
func (m *Method) Idempotent() bool { return m.spec.IdempotencyLevel != connect.IdempotencyUnknown }

// isRequest and isResponse report whether a message is of the method's request or response type.
func (m *Method) isRequest(msg proto.Message) bool  { return reflect.TypeOf(msg) == m.requestType }
func (m *Method) isResponse(msg proto.Message) bool { return reflect.TypeOf(msg) == m.responseType }

// methodOption configures how a method runs.
type methodOption func(*Method)

// concurrent makes a unary method run beside the node's turns.
func concurrent() methodOption { return func(m *Method) { m.concurrent = true } }

// isNil reports whether there is no message, or a typed nil.
func isNil(msg proto.Message) bool { return msg == nil || !msg.ProtoReflect().IsValid() }

// unaryMethod is a unary method with its types, of a service without generated code: the built-in
// one. Req and Res are pointers to messages.
type unaryMethod[Req, Res proto.Message] struct{ m Method }

// newUnaryMethod makes a unary method from a method expression of the node's type.
func newUnaryMethod[Node, Req, Res any, PReq messagePointer[Req], PRes messagePointer[Res]](
	name string, fn func(Node, context.Context, PReq) (PRes, error), opts ...methodOption,
) *unaryMethod[PReq, PRes] {
	u := &unaryMethod[PReq, PRes]{Method{
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

// call makes a call and waits for its response.
func (u *unaryMethod[Req, Res]) call(ctx context.Context, ref Ref, req Req) (Res, error) {
	var none Res
	res, err := ref.invoke(ctx, &u.m, orEmpty(req, u.m.newRequest))
	if err != nil {
		return none, err
	}
	return res.(Res), nil //nolint:forcetypeassert // the method's table made it
}

// async enqueues a call and returns its future.
func (u *unaryMethod[Req, Res]) async(ctx context.Context, ref Ref, req Req) *Future[Res] {
	return &Future[Res]{f: ref.submit(ctx, &u.m, orEmpty(req, u.m.newRequest))}
}
