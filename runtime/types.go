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

// NodeType is a type of node that this process can host: a service, and how one is set up. It is an
// [Option], and a value: its methods return a changed copy.
type NodeType struct {
	service *Service
	setup   func(ctx context.Context, node *Node, config proto.Message) (any, error)
	// name is the type's; empty for the one that the schema gives.
	name   string
	copies bool
	// limits override those of the schema where they are not 0.
	limits Limits
	// beside are unary methods that run beside the turns although the schema doesn't say so.
	beside []string
	// prepare changes a configuration in the creating process; nil for none.
	prepare func(config proto.Message) error
}

// NewNodeType is for generated code. setup gets the configuration that the schema names, never nil,
// or nil where it names none.
func NewNodeType(service *Service, setup func(ctx context.Context, node *Node, config proto.Message) (any, error)) NodeType {
	return NodeType{service: service, setup: setup}
}

// Service is the type's service.
func (t NodeType) Service() *Service { return t.service }

// Name is the type's name, `learner` in `learner-0`: what the schema says, unless [NodeType.Named]
// said otherwise.
func (t NodeType) Name() string { return cmp.Or(t.name, t.service.Type()) }

// ApplyRuntime implements Option.
func (t NodeType) ApplyRuntime(o *Options) { o.Types = append(o.Types, t) }

// Named gives the type another name than its schema does. Types of one name can't be in one
// process, so this is how services of one simple name share a program, and how one service has two
// implementations:
//
//	rt, err := raylink.Init(ctx, demov1raylink.LearnerType(newLearner), demov2raylink.LearnerType(newSecond).Named("learner-v2"),
//		demov1raylink.LearnerType(newGreedy).Named("greedy"))
//	learner, err := demov1raylink.CreateLearner(ctx, rt)                            // learner-0
//	greedy, err := demov1raylink.CreateLearner(ctx, rt, runtime.OfType("greedy"))   // greedy-0
//
// A name is lower-case letters, digits and hyphens, beginning with a letter, of at most 128 bytes,
// and doesn't end in a hyphen and digits. Init refuses others.
func (t NodeType) Named(name string) NodeType {
	if name == "" {
		name = "-" // no name at all: Init says so, instead of taking the schema's
	}
	t.name = name
	return t
}

// Limits bound what the mailbox of one node holds and runs. A field that is 0 leaves what the
// schema says.
type Limits struct {
	// MaxConcurrency is how many turns are given out at once.
	MaxConcurrency int
	// MaxPending is how many calls may wait.
	MaxPending int
	// MaxStreams bounds the concurrent methods and streams that run beside the turns, together.
	MaxStreams int
}

// Limits overrides the schema's limits, where the schema is somebody else's.
func (t NodeType) Limits(l Limits) NodeType {
	t.limits = l
	return t
}

// Concurrent makes unary methods run beside the turns although the schema doesn't say so: they must
// do their own locking. Methods are named as in the schema; Init refuses a name that the service
// doesn't have.
func (t NodeType) Concurrent(methods ...string) NodeType {
	t.beside = append(slices.Clone(t.beside), methods...)
	return t
}

// Preparing makes the process that creates nodes of this type change their configuration before it
// is sent to where they will live: for what means something in that process only, such as a
// relative path. prepare gets a copy of what the caller gave. Its error fails the creation. Where
// the creating process does not have the type, the configuration goes out as it is.
func (t NodeType) Preparing(prepare func(config proto.Message) error) NodeType {
	t.prepare = prepare
	return t
}

// OfType creates a node of a type by its name, where a process has several types of one service,
// see [NodeType.Named]. Without it the type is the service's only one, or that with the schema's
// own name.
func OfType(name string) CreateOption {
	return func(o *createOptions) { o.request.Type = name }
}

// config is what holds for nodes of the type.
func (t NodeType) config() ServiceConfig {
	c := t.service.config
	c.Type = t.Name()
	c.MaxConcurrency = cmp.Or(t.limits.MaxConcurrency, c.MaxConcurrency)
	c.MaxPending = cmp.Or(t.limits.MaxPending, c.MaxPending)
	c.MaxStreams = cmp.Or(t.limits.MaxStreams, c.MaxStreams)
	return c
}

// check says what is wrong with the type.
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
	for _, name := range t.beside {
		m := t.service.byProc["/"+t.service.name+"/"+name]
		switch {
		case m == nil:
			return bad("Concurrent: the service has no method %q; it has %s", name, t.service.methodNames())
		case m.shape != connect.StreamTypeUnary:
			return bad("Concurrent: %s is a stream, which always runs beside the turns; leave it out", name)
		}
	}
	return nil
}

// besideTable has, by their index, the unary methods that run beside the turns by the type's own
// word; nil for none.
func (t NodeType) besideTable() []bool {
	if len(t.beside) == 0 {
		return nil
	}
	table := make([]bool, len(t.service.methods))
	for _, name := range t.beside {
		table[t.service.byProc["/"+t.service.name+"/"+name].index] = true
	}
	return table
}

// typeSet are the types that a process can host.
type typeSet struct {
	// own are those that the program gave, in order, and named the same by name.
	own   []NodeType
	named map[string]NodeType
	// system are those that every process has, by their service's name. They yield: their names are
	// free for the program.
	system map[string]NodeType
}

// newTypeSet checks what a process is to host.
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
			s.system[t.service.name] = t // the program's own implementation of what every system has
		}
	}
	return s, nil
}

// all are the types, the program's own first; one for each name and service.
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

// services are the services of all types, each once.
func (s *typeSet) services() []*Service {
	var services []*Service
	for _, t := range s.all() {
		if !slices.ContainsFunc(services, func(o *Service) bool { return o.name == t.service.name }) {
			services = append(services, t.service)
		}
	}
	return services
}

// get finds the type of a name and service.
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

// resolve finds the type that a creation means: by name, by service, or by both.
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

// of are the types of a service: the program's own, or else the system's.
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
