package runtime

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"

	"github.com/raylink/raylink/internal/nodename"
)

// NodeType is a type of node that this process can host: a service and a set-up function. It is an
// [Option], and a value: its methods return a modified copy.
type NodeType struct {
	service *Service
	setup   func(ctx context.Context, node *Node, config proto.Message) (any, error)
	// name is the type's name; empty for that of the schema.
	name   string
	copies bool
	// limits override those of the schema where they are not 0.
	limits Limits
	// concurrent are unary methods that run without a turn although the schema does not declare
	// them concurrent.
	concurrent []string
	// prepare modifies a configuration in the creating process; nil for none.
	prepare func(config proto.Message) error
}

// Service returns the type's service.
func (t NodeType) Service() *Service { return t.service }

// Name is the type's name, `learner` in `learner-0`: that of the schema, unless [NodeType.Named]
// has set another.
func (t NodeType) Name() string { return cmp.Or(t.name, t.service.Type()) }

// String returns the type's name and its service's, such as `learner (demo.v1.Learner)`.
func (t NodeType) String() string {
	if t.service == nil {
		return "no node type"
	}
	return t.Name() + " (" + t.service.name + ")"
}

// ApplyRuntime implements [Option].
func (t NodeType) ApplyRuntime(o *Options) { o.Types = append(o.Types, t) }

// Named gives the type another name than its schema does. The types of a process must have distinct
// names, so with Named services with the same simple name can share a program, and one service can
// have two implementations:
//
//	rt, err := raylink.Init(ctx, demov1raylink.LearnerType(newLearner), demov2raylink.LearnerType(newSecond).Named("learner-v2"),
//		demov1raylink.LearnerType(newGreedy).Named("greedy"))
//	learner, err := demov1raylink.CreateLearner(ctx, rt)                            // learner-0
//	greedy, err := demov1raylink.CreateLearner(ctx, rt, runtime.OfType("greedy"))   // greedy-0
//
// A name consists of lower-case letters, digits and hyphens, begins with a letter, has at most 128
// bytes, and does not end in a hyphen and digits. Init refuses other names.
func (t NodeType) Named(name string) NodeType {
	if name == "" {
		name = "-" // not a valid name: Init refuses it, instead of using the schema's
	}
	t.name = name
	return t
}

// Limits bound the mailbox of one node. A field that is 0 leaves the schema's limit.
type Limits struct {
	// MaxConcurrency is the number of turns: how many methods run at once.
	MaxConcurrency int
	// MaxPending is how many calls may wait in the mailbox, together with those that have given
	// their turn back ([Node.EndTurn]) and not returned.
	MaxPending int
	// MaxStreams bounds the concurrent methods and streams, which run without a turn, together.
	MaxStreams int
}

// Limits overrides the schema's limits, for schemas that the program does not own.
func (t NodeType) Limits(l Limits) NodeType {
	t.limits = l
	return t
}

// Concurrent makes unary methods run without a turn although the schema does not declare them
// concurrent: they must do their own locking. methods are names as in the schema; Init refuses
// names that the service does not have.
func (t NodeType) Concurrent(methods ...string) NodeType {
	t.concurrent = append(slices.Clone(t.concurrent), methods...)
	return t
}

// Preparing sets a function that modifies the configuration of new nodes of this type in the
// creating process, before it is sent to theirs: for values that are meaningful only there, such as
// a relative path. prepare receives a copy of the caller's configuration. Its error fails the
// creation. If the creating process does not have the type, prepare is not called.
func (t NodeType) Preparing(prepare func(config proto.Message) error) NodeType {
	t.prepare = prepare
	return t
}

// OfType creates a node of the type with that name, for processes that have several types of one
// service, see [NodeType.Named]. Without it the type is the service's only one, or else the one
// with the schema's name.
func OfType(name string) CreateOption {
	return func(o *createOptions) { o.request.Type = name }
}

// config is the service's configuration with the type's overrides.
func (t NodeType) config() serviceConfig {
	c := t.service.config
	c.typeName = t.Name()
	c.MaxConcurrency = cmp.Or(t.limits.MaxConcurrency, c.MaxConcurrency)
	c.MaxPending = cmp.Or(t.limits.MaxPending, c.MaxPending)
	c.MaxStreams = cmp.Or(t.limits.MaxStreams, c.MaxStreams)
	return c
}

// check validates the type.
func (t NodeType) check() error {
	if t.service == nil {
		return connect.NewError(connect.CodeInvalidArgument, "a zero NodeType was given: use the generated ...Type function")
	}
	bad := func(format string, args ...any) error {
		return connect.Errorf(connect.CodeInvalidArgument, "the node type %q of %s: %s", t.Name(), t.service.name, fmt.Sprintf(format, args...))
	}
	if why := nodename.BadType(t.Name()); why != "" {
		return bad("%s", why)
	}
	for name, limit := range map[string]int{
		"MaxConcurrency": t.limits.MaxConcurrency, "MaxPending": t.limits.MaxPending, "MaxStreams": t.limits.MaxStreams,
	} {
		if limit < 0 {
			return bad("Limits: %s is %d; leave it 0 for what the schema says", name, limit)
		}
	}
	for _, name := range t.concurrent {
		m := t.service.byProc[nodename.Procedure(t.service.name, name)]
		switch {
		case m == nil:
			return bad("Concurrent: the service has no method %q; it has %s", name, t.service.methodNames())
		case m.shape != connect.StreamTypeUnary:
			return bad("Concurrent: %s is a stream, which always runs without a turn; leave it out", name)
		}
	}
	return nil
}

// concurrentTable marks, by index, the unary methods that the type makes concurrent; nil if there
// are none.
func (t NodeType) concurrentTable() []bool {
	if len(t.concurrent) == 0 {
		return nil
	}
	table := make([]bool, len(t.service.methods))
	for _, name := range t.concurrent {
		table[t.service.byProc[nodename.Procedure(t.service.name, name)].index] = true
	}
	return table
}

// typeSet are the types that a process can host.
type typeSet struct {
	// own are the program's types, in order; named are the same by name.
	own   []NodeType
	named map[string]NodeType
	// system are the types that every process has, by the name of their service. The program may
	// use their names for types of its own.
	system map[string]NodeType
}

// newTypeSet validates the types of a process.
func newTypeSet(own, system []NodeType) (*typeSet, error) {
	s := &typeSet{own: own, named: make(map[string]NodeType), system: make(map[string]NodeType)}
	for _, t := range system {
		s.system[t.service.name] = t
	}
	for _, t := range own {
		if err := t.check(); err != nil {
			return nil, err
		}
		name := t.Name()
		if other, ok := s.named[name]; ok {
			return nil, connect.Errorf(connect.CodeAlreadyExists, "two node types are called %q, that of %s and that of %s: "+
				"name one of the two, as by ...Type(...).Named(%q), or set the `type` option of a service of your own",
				name, other.service.name, t.service.name, name+"-b")
		}
		s.named[name] = t
		if _, ok := s.system[t.service.name]; ok && t.name == "" {
			s.system[t.service.name] = t // the program replaces the implementation of a system type
		}
	}
	return s, nil
}

// all returns the types, the program's own first; one for each name and service.
func (s *typeSet) all() []NodeType {
	types := slices.Clone(s.own)
	for _, name := range slices.Sorted(maps.Keys(s.system)) {
		t := s.system[name]
		if !slices.ContainsFunc(s.own, func(o NodeType) bool { return o.service.name == name && o.Name() == t.Name() }) {
			types = append(types, t)
		}
	}
	return types
}

// services returns the services of all types, each once.
func (s *typeSet) services() []*Service {
	var services []*Service
	for _, t := range s.all() {
		if !slices.ContainsFunc(services, func(o *Service) bool { return o.name == t.service.name }) {
			services = append(services, t.service)
		}
	}
	return services
}

// get returns the type with that name and service.
func (s *typeSet) get(name, service string) (NodeType, error) {
	if t, ok := s.named[name]; ok && t.service.name == service {
		return t, nil
	}
	if t, ok := s.system[service]; ok && t.Name() == name {
		return t, nil
	}
	if t, ok := s.named[name]; ok {
		return NodeType{}, connect.Errorf(connect.CodeInvalidArgument, "type %q is %s in this process, not %s", name, t.service.name, service)
	}
	return NodeType{}, s.unknown(fmt.Sprintf("%q of %s", name, service))
}

// resolve returns the type that a creation asks for: by name, by service, or by both.
func (s *typeSet) resolve(name, service string) (NodeType, error) {
	switch {
	case name != "" && service != "":
		return s.get(name, service)
	case name != "":
		if t, ok := s.named[name]; ok {
			return t, nil
		}
		for _, t := range s.system {
			if t.Name() == name {
				return t, nil
			}
		}
		return NodeType{}, s.unknown(strconv.Quote(name))
	}
	of := s.of(service)
	if len(of) > 1 {
		if i := slices.IndexFunc(of, func(t NodeType) bool { return t.Name() == t.service.Type() }); i >= 0 {
			return of[i], nil
		}
		names := make([]string, len(of))
		for i, t := range of {
			names[i] = t.Name()
		}
		return NodeType{}, connect.Errorf(connect.CodeInvalidArgument, "%s has several node types here, %s: say which by runtime.OfType",
			service, strings.Join(names, ", "))
	}
	if len(of) == 1 {
		return of[0], nil
	}
	return NodeType{}, s.unknown("of " + cmp.Or(service, "no name"))
}

// of returns the types of a service: the program's own, or else the system's.
func (s *typeSet) of(service string) []NodeType {
	var of []NodeType
	for _, t := range s.own {
		if t.service.name == service {
			of = append(of, t)
		}
	}
	if t, ok := s.system[service]; ok && len(of) == 0 {
		of = append(of, t)
	}
	return of
}

func (s *typeSet) unknown(what string) error {
	names := "none"
	if all := s.all(); len(all) > 0 {
		list := make([]string, len(all))
		for i, t := range all {
			list[i] = t.Name()
		}
		names = strings.Join(list, ", ")
	}
	return connect.Errorf(connect.CodeNotFound, "this binary has no node type %s; it has %s", what, names)
}

// WithCopy gives nodes of this type messages of their own: requests from callers in the same
// process are copied before the node receives them, and its responses before the caller does, in
// streams too. It is for an implementation that modifies its requests or returns messages that it
// keeps. Without it both sides of a local call share the message, and neither may modify it.
//
// It is an option of the type, not of one node: the implementation needs it wherever its nodes are
// created.
//
//	rt, err := raylink.Init(ctx, counterv1raylink.CounterType(newCounter).WithCopy())
func (t NodeType) WithCopy() NodeType {
	t.copies = true
	return t
}
