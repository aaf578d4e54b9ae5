package runtime

import (
	"cmp"
	"context"
	"fmt"
	"reflect"
	"strings"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"

	optionsv1 "github.com/raylink/raylink/gen/raylink/options/v1"
	"github.com/raylink/raylink/internal/nodename"
	"github.com/raylink/raylink/internal/pki"
)

// Defaults of options that a schema leaves out, as raylink/options/v1 documents them.
const (
	defaultMaxConcurrency = 1
	defaultMaxPending     = 16384
	defaultMaxStreams     = 1024
)

// serviceConfig are the schema's options for a service's nodes.
type serviceConfig struct {
	Limits

	// typeName is the node type's name, unique in a program: `learner` in `learner-0`.
	typeName string
	// newConfig makes an empty configuration message; nil for a type without configuration.
	newConfig func() proto.Message
	// resources are what a node with a process of its own needs, as amounts by name.
	resources map[string]int64
}

// Service is one service's method table, made once by generated code and used by the host's
// dispatcher, the HTTP handler, the standalone nodes and the tunnel adapters. It is immutable.
type Service struct {
	name    string
	desc    protoreflect.ServiceDescriptor
	config  serviceConfig
	methods []*Method
	byProc  map[string]*Method
}

// newService makes the method table of a service. It panics if the methods do not fit the schema.
func newService(desc protoreflect.ServiceDescriptor, config serviceConfig, methods ...*Method) *Service {
	s := &Service{
		name:    string(desc.FullName()),
		desc:    desc,
		config:  config,
		methods: methods,
		byProc:  make(map[string]*Method, len(methods)),
	}
	s.config.MaxConcurrency = cmp.Or(s.config.MaxConcurrency, defaultMaxConcurrency)
	s.config.MaxPending = cmp.Or(s.config.MaxPending, defaultMaxPending)
	s.config.MaxStreams = cmp.Or(s.config.MaxStreams, defaultMaxStreams)
	for i, m := range methods {
		md := desc.Methods().ByName(protoreflect.Name(m.name))
		if md == nil {
			panic(fmt.Sprintf("raylink: service %s has no method %s: generated code and schema differ; run `buf generate`", s.name, m.name))
		}
		m.service, m.index = s, i
		m.shape, m.role = streamTypeOf(md), roleOf(md)
		m.requestType, m.responseType = reflect.TypeOf(m.newRequest()), reflect.TypeOf(m.newResponse())
		m.spec = connect.Spec{
			StreamType:       m.shape,
			IdempotencyLevel: idempotencyOf(md),
			Schema:           md,
			Procedure:        nodename.Procedure(s.name, m.name),
		}
		s.byProc[m.spec.Procedure] = m
	}
	return s
}

// Name is the service's full name, `package.Service`.
func (s *Service) Name() string { return s.name }

// String returns the service's full name.
func (s *Service) String() string { return s.name }

// Type is the node type's name.
func (s *Service) Type() string { return s.config.typeName }

// Descriptor is the service's schema.
func (s *Service) Descriptor() protoreflect.ServiceDescriptor { return s.desc }

// methodNames lists the methods, for errors.
func (s *Service) methodNames() string {
	names := make([]string, len(s.methods))
	for i, m := range s.methods {
		names[i] = m.name
	}
	return strings.Join(names, ", ")
}

func streamTypeOf(md protoreflect.MethodDescriptor) connect.StreamType {
	t := connect.StreamTypeUnary
	if md.IsStreamingClient() {
		t |= connect.StreamTypeClient
	}
	if md.IsStreamingServer() {
		t |= connect.StreamTypeServer
	}
	return t
}

func roleOf(md protoreflect.MethodDescriptor) pki.Role {
	switch opts, _ := proto.GetExtension(md.Options(), optionsv1.E_Method).(*optionsv1.MethodOptions); opts.GetRole() {
	case optionsv1.Role_ROLE_ADMIN:
		return pki.RoleAdmin
	case optionsv1.Role_ROLE_JOIN:
		return pki.RoleJoin
	case optionsv1.Role_ROLE_UNSPECIFIED, optionsv1.Role_ROLE_CALL:
	}
	return ""
}

func idempotencyOf(md protoreflect.MethodDescriptor) connect.IdempotencyLevel {
	opts, ok := md.Options().(*descriptorpb.MethodOptions)
	if !ok {
		return connect.IdempotencyUnknown
	}
	switch opts.GetIdempotencyLevel() {
	case descriptorpb.MethodOptions_NO_SIDE_EFFECTS:
		return connect.IdempotencyNoSideEffects
	case descriptorpb.MethodOptions_IDEMPOTENT:
		return connect.IdempotencyIdempotent
	case descriptorpb.MethodOptions_IDEMPOTENCY_UNKNOWN:
	}
	return connect.IdempotencyUnknown
}

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
	// role is what the schema requires of callers; "" for nothing in particular.
	role    pki.Role
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
func (m *Method) fullName() string { return nodename.MethodFullName(m.spec.Procedure) }

// String returns the method's full name, `package.Service/Method`.
func (m *Method) String() string { return m.fullName() }

// Service is the service that the method belongs to.
func (m *Method) Service() *Service { return m.service }

// Spec is the method's description for connect.
func (m *Method) Spec() connect.Spec { return m.spec }

// Concurrent reports whether the schema lets the method run without a turn, as streams always do.
func (m *Method) Concurrent() bool { return m.concurrent || m.shape != connect.StreamTypeUnary }

// Idempotent reports whether the schema says that running the method twice is the same as running
// it once: by `option idempotency_level = IDEMPOTENT`, or NO_SIDE_EFFECTS. See [Retry].
func (m *Method) Idempotent() bool { return m.spec.IdempotencyLevel != connect.IdempotencyUnknown }

// isRequest and isResponse report whether a message is of the method's request or response type.
func (m *Method) isRequest(msg proto.Message) bool  { return reflect.TypeOf(msg) == m.requestType }
func (m *Method) isResponse(msg proto.Message) bool { return reflect.TypeOf(msg) == m.responseType }

// methodOption configures how a method runs.
type methodOption func(*Method)

// concurrent makes a unary method run without a turn.
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

// orEmpty replaces a nil message by the empty one.
func orEmpty[M proto.Message](msg M, fresh func() proto.Message) proto.Message {
	var none M
	if any(msg) == any(none) {
		return fresh()
	}
	return msg
}
