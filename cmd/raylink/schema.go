package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"connectrpc.com/connect/v2"
	"connectrpc.com/grpcreflect/v2"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"

	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	"github.com/raylink/raylink/gen/raylink/node/v1/nodev1connect"
)

// maxFiles bounds the files of a schema.
const maxFiles = 10_000

// schema resolves the types of a node's methods, which it fetches from the node's host by gRPC
// reflection when they are first needed. It resolves the types in Any fields too. Its methods may
// be called concurrently.
type schema struct {
	stream *grpcreflect.ClientStream
	cancel context.CancelFunc

	mu    sync.Mutex // guards all below
	raw   map[string]*descriptorpb.FileDescriptorProto
	files *protoregistry.Files
}

// learn opens a reflection stream to a node's host. The caller must close the schema.
func (s *system) learn(ctx context.Context, node string) *schema {
	ctx, cancel := context.WithCancel(ctx)
	return &schema{
		stream: grpcreflect.NewClient(s.client(node)).NewStream(ctx),
		cancel: cancel,
		raw:    make(map[string]*descriptorpb.FileDescriptorProto),
		files:  &protoregistry.Files{},
	}
}

// close ends the stream.
func (s *schema) close() { s.cancel() }

// find returns the descriptor of a name.
func (s *schema) find(name protoreflect.FullName) (protoreflect.Descriptor, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if d, err := s.files.FindDescriptorByName(name); err == nil {
		return d, nil
	}
	files, err := s.stream.FileContainingSymbol(name)
	if err != nil {
		return nil, fmt.Errorf("asking for the schema of %s: %w", name, err)
	}
	if err := s.add(files); err != nil {
		return nil, fmt.Errorf("the schema of %s: %w", name, err)
	}
	return s.files.FindDescriptorByName(name)
}

// add adds files and fetches those that they import. The caller holds mu.
func (s *schema) add(files []*descriptorpb.FileDescriptorProto) error {
	for queue := files; len(queue) > 0; {
		file := queue[0]
		queue = queue[1:]
		if s.raw[file.GetName()] != nil {
			continue
		}
		if len(s.raw) >= maxFiles {
			return fmt.Errorf("it has more than %d files", maxFiles)
		}
		s.raw[file.GetName()] = file
		for _, path := range file.GetDependency() {
			if s.raw[path] != nil || slices.ContainsFunc(queue, func(f *descriptorpb.FileDescriptorProto) bool { return f.GetName() == path }) {
				continue
			}
			imported, err := s.stream.FileByFilename(path)
			if err != nil {
				return fmt.Errorf("asking for %s: %w", path, err)
			}
			queue = append(queue, imported...)
		}
	}
	set := &descriptorpb.FileDescriptorSet{}
	for _, file := range s.raw {
		set.File = append(set.File, file)
	}
	var err error
	s.files, err = protodesc.FileOptions{AllowUnresolvable: true}.NewFiles(set)
	return err
}

// service returns the descriptor of a service.
func (s *schema) service(name string) (protoreflect.ServiceDescriptor, error) {
	d, err := s.find(protoreflect.FullName(name))
	if err != nil {
		return nil, err
	}
	service, ok := d.(protoreflect.ServiceDescriptor)
	if !ok {
		return nil, connect.Errorf(connect.CodeInternal, "the node's host describes %s, which should be a service, as something else", name)
	}
	return service, nil
}

// decode decodes a message of the type with the given full name.
func (s *schema) decode(name string, value []byte) (proto.Message, error) {
	t, err := s.FindMessageByName(protoreflect.FullName(name))
	if err != nil {
		return nil, err
	}
	msg := t.New().Interface()
	return msg, proto.UnmarshalOptions{Resolver: s}.Unmarshal(value, msg)
}

// FindMessageByName implements protoregistry.MessageTypeResolver.
func (s *schema) FindMessageByName(name protoreflect.FullName) (protoreflect.MessageType, error) {
	d, err := s.find(name)
	if err != nil {
		// It may be a well-known type that none of the host's files imports.
		return protoregistry.GlobalTypes.FindMessageByName(name)
	}
	message, ok := d.(protoreflect.MessageDescriptor)
	if !ok {
		return nil, protoregistry.NotFound
	}
	return dynamicpb.NewMessageType(message), nil
}

// FindMessageByURL implements protoregistry.MessageTypeResolver.
func (s *schema) FindMessageByURL(url string) (protoreflect.MessageType, error) {
	return s.FindMessageByName(protoreflect.FullName(url[strings.LastIndexByte(url, '/')+1:]))
}

// FindExtensionByName implements protoregistry.ExtensionTypeResolver.
func (s *schema) FindExtensionByName(name protoreflect.FullName) (protoreflect.ExtensionType, error) {
	return s.types().FindExtensionByName(name)
}

// FindExtensionByNumber implements protoregistry.ExtensionTypeResolver.
func (s *schema) FindExtensionByNumber(message protoreflect.FullName, field protoreflect.FieldNumber) (protoreflect.ExtensionType, error) {
	return s.types().FindExtensionByNumber(message, field)
}

// types returns the types that have been fetched so far.
func (s *schema) types() *dynamicpb.Types {
	s.mu.Lock()
	defer s.mu.Unlock()
	return dynamicpb.NewTypes(s.files)
}

// Services that every host serves besides those of its nodes. Each node answers builtinService.
const (
	builtinService = nodev1connect.NodeServiceName
	healthService  = "grpc.health.v1.Health"
)

// servicesOf returns the names of the services that a node answers, its own first.
func servicesOf(rec *nodev1.NodeRecord) []string {
	return slices.Compact([]string{rec.GetService(), builtinService})
}

// services returns the descriptors of services.
func (s *schema) services(names []string) ([]protoreflect.ServiceDescriptor, error) {
	list := make([]protoreflect.ServiceDescriptor, len(names))
	for i, name := range names {
		var err error
		if list[i], err = s.service(name); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// method finds a method by `Method`, `Service/Method` or `package.Service/Method`; a dot may stand
// for the slash.
func (s *schema) method(rec *nodev1.NodeRecord, name string) (protoreflect.MethodDescriptor, error) {
	wanted, method := "", strings.TrimPrefix(name, "/")
	if i := strings.LastIndexAny(method, "/."); i >= 0 {
		wanted, method = method[:i], method[i+1:]
	}
	names := servicesOf(rec)
	if wanted == healthService {
		names = append(names, healthService)
	}
	services, err := s.services(names)
	if err != nil {
		return nil, err
	}
	for _, service := range services {
		if wanted != "" && wanted != string(service.FullName()) && wanted != string(service.Name()) {
			continue
		}
		if m := service.Methods().ByName(protoreflect.Name(method)); m != nil {
			return m, nil
		}
	}
	return nil, connect.Errorf(connect.CodeUnimplemented, "%s has no method %s; it has %s", rec.GetPath(), name, strings.Join(methodNames(services), ", "))
}

// methodNames lists the methods of services: a method by its bare name if that is enough to call
// it.
func methodNames(services []protoreflect.ServiceDescriptor) []string {
	var names []string
	for i, service := range services {
		for j := range service.Methods().Len() {
			name := string(service.Methods().Get(j).Name())
			hidden := slices.ContainsFunc(services[:i], func(other protoreflect.ServiceDescriptor) bool {
				return other.Methods().ByName(protoreflect.Name(name)) != nil
			})
			if hidden {
				name = string(service.Name()) + "/" + name
			}
			names = append(names, name)
		}
	}
	return names
}
