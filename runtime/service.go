package runtime

import (
	"cmp"
	"fmt"
	"reflect"
	"strings"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
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
}

// Service is one service's method table, made once by generated code and used by the host's
// dispatcher, the HTTP handler, the local stub and the tunnel adapters. It is immutable.
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
		m.shape = streamTypeOf(md)
		m.requestType, m.responseType = reflect.TypeOf(m.newRequest()), reflect.TypeOf(m.newResponse())
		m.spec = connect.Spec{
			StreamType:       m.shape,
			IdempotencyLevel: idempotencyOf(md),
			Schema:           md,
			Procedure:        "/" + s.name + "/" + m.name,
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
