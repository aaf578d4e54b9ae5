// Package hostapi has the part of package runtime's API that makes hosts. It is for the front doors
// (packages raylink and join, by way of internal/assemble), for the parameter server, which follows
// the machines of its system, and for tests. Package runtime does not export it, so that its
// documentation has only what nodes and their callers use.
//
// Package runtime imports this package and assigns the functions during initialization, as package
// grpc does with its own package internal. Here, the types of package runtime are type parameters:
// with an instance of [Functions] the compiler checks both the functions that are assigned and
// every call of them. Only that both sides name the same instance is checked by a type assertion,
// once, while the program initializes.
package hostapi

import (
	"context"
	"net"
	"net/http"
	"time"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"

	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
	machinev1 "github.com/raylink/raylink/gen/raylink/machine/v1"
	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	"github.com/raylink/raylink/internal/access"
	"github.com/raylink/raylink/runtime/launch"
	"github.com/raylink/raylink/runtime/rundir"
)

// Functions are functions of package runtime: Host is a *runtime.Host; Options, Option and NodeType
// are the types of package runtime with those names.
type Functions[Host, Options, Option, NodeType any] struct {
	// NewOptions applies options, then the environment, then the defaults. Start returns the errors
	// in the environment.
	NewOptions func(opts ...Option) Options
	// IgnoreBrainFromEnvironment makes NewOptions ignore RAYLINK_BRAIN: only an option can then
	// name a Brain to join.
	IgnoreBrainFromEnvironment func() Option
	// SetSystemTypes sets the node types that every process can host. A type of the program's own
	// with the same name takes precedence.
	SetSystemTypes func(options *Options, types []NodeType)

	// Start makes a host: it listens, joins Brain, and can then create and find nodes. The caller
	// owns the host and must Close it. On error nothing is left running.
	Start func(ctx context.Context, options Options, parts Parts) (Host, error)
	// ServeChild makes this process the host of the one node that it was launched for, and returns
	// when that node has ended: with nil if it ended gracefully, which includes an end because of
	// its parent's death. Code that ignores its context cannot delay the end for ever: the process
	// exits without returning from ServeChild five seconds after the end of a set-up's context, and
	// for a node that ran, twice the drain time plus five seconds after its end began.
	ServeChild func(child *launch.Child, options Options) error

	// ProvideNode creates the first node of a system type, given by its service, below the root and
	// in the host's own process. config is the type's configuration; nil means its defaults. The
	// node ends after all nodes that others create.
	ProvideNode func(ctx context.Context, h Host, service string, config proto.Message) error
	// SuperviseNode supervises the first node of a system type, given by its service, below the
	// root, until the host is closed: it starts the node if it has never run, adopts it if it is
	// alive, and restarts it whenever it dies. It returns when the node is running.
	//
	// config is the type's configuration; nil means its defaults. Each incarnation that this host
	// starts gets it. An incarnation that is adopted keeps the one that it was started with.
	SuperviseNode func(ctx context.Context, h Host, service string, config proto.Message) error

	// Machine is what a host declares of its machine. It must not be modified.
	Machine func(h Host) *machinev1.Machine
	// CloseMachine stops all processes that a host has launched for hosts on other machines, and
	// launches no more of them. Those that have not ended when ctx does are killed.
	CloseMachine func(ctx context.Context, h Host) error
	// WatchMachines calls each with all machines of a system, that of the node whose code runs with
	// ctx: at first, and whenever one has joined, left or changed. While Brain is away it waits. It
	// returns when ctx ends, with nil. The machines must not be modified.
	WatchMachines func(ctx context.Context, each func(machines []*brainv1.MachineUse)) error
	// DeclaredDead returns a channel that is closed when Brain has declared nodes of the host dead.
	DeclaredDead func(h Host) <-chan struct{}
}

// Parts are what a host is made of in addition to its options.
type Parts struct {
	// Brain is the one that is embedded in this process; nil for a process that joins another's.
	Brain Brain
	// Token returns the token of a system with an embedded Brain where the options neither give one
	// nor open the system, nor is there TLS. If it is nil, a new one is generated.
	Token func() (string, error)
	// PKI is the directory of the CA that this host makes or opens if it founds a system that uses
	// TLS. If it is empty, the CA ends with the system.
	PKI string
	// CertificateLifetime is that of the CA's certificates; 0 is the default. It is for tests.
	CertificateLifetime time.Duration
	// Run is the run directory.
	Run *rundir.Run
	// Launcher starts the processes of new nodes; nil runs this executable. Where a method of it or
	// of its processes has not returned 12 seconds after its context ended, it is abandoned with an
	// error.
	Launcher launch.Launcher
	// Output receives the lines that nodes' processes print; nil for the function in the options.
	Output func(launch.Line)
	// Launched is set if the process was launched for a node. Others keep the machine that they are
	// on.
	Launched bool
	// Agent makes the host an agent, whose description of the machine precedes those of others.
	Agent bool
}

// Brain is a Brain in the host's own process: the host's listener is Brain's, and the gateway to
// every node.
type Brain interface {
	// Register mounts Brain's service.
	Register(server *connect.Server)
	// Gateway wraps the HTTP handler of the host's own nodes and forwards requests for other nodes.
	// dial opens connections to hosts that have proven that they know the token.
	Gateway(local http.Handler, dial func(ctx context.Context, host *nodev1.HostInfo) (net.Conn, error)) http.Handler
	// SetAccess makes Brain pass on to hosts which clients they serve, and end the leases of hosts
	// whose token is revoked. It is called before calls are served, in a system with a CA.
	SetAccess(source access.Source)
	// SetHost announces the host under which Brain is reached.
	SetHost(ctx context.Context, host *nodev1.HostInfo) error
	// AppendLookup appends the encoded response to a lookup that has come through a connection. It
	// only reads memory.
	AppendLookup(to []byte, req *brainv1.LookupRequest) ([]byte, error)
	// Root is Brain's own record.
	Root() *nodev1.NodeRecord
	// Failed is closed when Brain's store has failed, so that no further changes can be made.
	Failed() <-chan struct{}
	// Close ends Brain. The host calls it after its own nodes have ended and before its listener
	// closes: Brain takes a connection that breaks while it is open for the death of the host at
	// the other end. Further calls do nothing.
	Close() error
}

// functions is the instance of [Functions] that package runtime has set.
var functions any //nolint:gochecknoglobals // set once, during initialization

// Set sets the functions. Package runtime calls it during initialization.
func Set[Host, Options, Option, NodeType any](f Functions[Host, Options, Option, NodeType]) {
	functions = f
}

// Get returns the functions, for a variable of a package that imports package runtime. It panics if
// the type arguments are not those with which they were set.
func Get[Host, Options, Option, NodeType any]() Functions[Host, Options, Option, NodeType] {
	return functions.(Functions[Host, Options, Option, NodeType]) //nolint:forcetypeassert // documented
}
