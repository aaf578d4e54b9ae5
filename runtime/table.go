package runtime

import (
	"context"
	"fmt"
	"sync"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Table describes a service in generated code. It is plain data, which the linker drops if it is
// not used, and the method table is made from it on first use: importing generated code costs
// nothing. Callers need only the table; programs that host nodes also supply the handlers. It is
// for generated code.
type Table struct {
	// File points to the variable with the descriptor of the service's file.
	File *protoreflect.FileDescriptor
	// Service is the service's name in that file.
	Service string
	Config  ServiceConfig
	// Methods are in the order of the schema: calls identify a method by its index here.
	Methods []TableMethod

	once, hosted sync.Once
	service      *Service
}

// TableMethod is a method of a [Table].
type TableMethod struct {
	Name string
	// Concurrent makes a unary method run beside the node's turns.
	Concurrent              bool
	NewRequest, NewResponse func() proto.Message
}

// TableHandler runs a method on a node's implementation: exactly one of its fields is set.
type TableHandler struct {
	// Unary receives a request that is not nil, and returns a response that is not nil, or an
	// error.
	Unary  func(node any, ctx context.Context, req proto.Message) (proto.Message, error)
	Stream func(node any, ctx context.Context, stream *ServedStream) error
}

// Caller returns the service for calling its nodes.
func (t *Table) Caller() *Service {
	t.once.Do(func() {
		desc := (*t.File).Services().ByName(protoreflect.Name(t.Service))
		if desc == nil {
			panic(fmt.Sprintf("raylink: %s has no service %s: generated code and schema differ; run `buf generate`", (*t.File).Path(), t.Service))
		}
		methods := make([]*Method, len(t.Methods))
		for i, row := range t.Methods {
			methods[i] = &Method{name: row.Name, concurrent: row.Concurrent, newRequest: row.NewRequest, newResponse: row.NewResponse}
		}
		t.service = newService(desc, t.Config, methods)
	})
	return t.service
}

// Host returns the service for hosting its nodes. handlers run its methods, in the table's order.
func (t *Table) Host(handlers []TableHandler) *Service {
	service := t.Caller()
	t.hosted.Do(func() {
		for i, m := range service.methods {
			h := handlers[i]
			if (h.Unary != nil) != (m.shape == connect.StreamTypeUnary) {
				panic(fmt.Sprintf("raylink: method %s is %v in the schema and not in generated code; run `buf generate`", m.spec.Procedure, m.shape))
			}
			m.unary = h.Unary
			if h.Stream != nil {
				m.stream = func(node any, ctx context.Context, stream connect.ServerStream) error {
					return h.Stream(node, ctx, &ServedStream{stream: stream, method: m})
				}
			}
		}
	})
	return service
}
