package runtime

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"weak"

	"connectrpc.com/connect/v2"
	"github.com/google/uuid"

	"github.com/raylink/raylink/gen/raylink/brain/v1/brainv1connect"
	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	"github.com/raylink/raylink/internal/logs"
	"github.com/raylink/raylink/runtime/launch"
	"github.com/raylink/raylink/runtime/rundir"
	"github.com/raylink/raylink/runtime/tunnel"
)

// Host is a process's part in a system: it hosts nodes, reaches those of other hosts, and holds its
// lease with Brain. The front door makes it, one for each process; a test may have as many as it
// wants.
type Host struct {
	options Options
	log     *slog.Logger
	// tunnelLog is for connections.
	tunnelLog *slog.Logger
	id        string
	machine   string
	// life ends when the host is closed; every node's life descends from it.
	life context.Context //nolint:containedctx // the host's life is this context
	kill context.CancelCauseFunc
	// background are the host's own goroutines; all end with life.
	background sync.WaitGroup

	types    *typeSet
	dir      *rundir.Host
	run      *rundir.Run
	launcher launch.Launcher
	output   *output
	front    *front
	// tokenFile is set where this host has made the system's token.
	tokenFile string
	links     *links
	// overseer looks after the connections whose reading goroutines run methods.
	overseer tunnel.Overseer
	// changes counts the changes of what nodes live here, and as which life of theirs.
	changes atomic.Uint64
	// waited are calls to be used again, see newWaitedCall.
	waited sync.Pool
	server *connect.Server
	// dead removes what dead processes have left.
	dead     deadSweeper
	brain    brainv1connect.BrainServiceClient
	registry *registry
	// embedded is the Brain that lives in this process, or nil.
	embedded EmbeddedBrain
	// outlives says that this process goes on when its launcher has died.
	outlives bool
	// keeping are the goroutines that start kept nodes again; keepEnd ends keepLife, and with it
	// them.
	keeping  sync.WaitGroup
	keepLife context.Context //nolint:containedctx // the goroutines' life is this context
	keepEnd  context.CancelFunc

	mu sync.Mutex // guards all below
	// nodes are those that live here, by nid.
	nodes map[string]*Node
	// root is Brain as a node, where it lives here: it answers what every node answers.
	root *Node
	// kids are the children that this host launched, in order, by their parent's nid ("" for the
	// root).
	kids    map[string][]*kid
	keepers []*keeper
	// creations are those under way.
	creations map[*creation]struct{}
	remotes   map[string]weak.Pointer[remote]
	// closing is set when Close begins, ended when nothing may be begun any more.
	closing, ended bool
	// ending is closed when Close begins.
	ending chan struct{}
}

// RootPath names Brain itself, the root of all paths.
const RootPath = "BRAIN"

// kid is a child as its parent's host sees it: one of node and process is set.
type kid struct {
	nid     string
	path    string
	node    *Node
	process launch.Process
	// host is the id of the host in the process.
	host string
	// creation is the request id of the creation that made it; empty where none did.
	creation string
	// restarts says that its record outlives it.
	restarts bool
}

// Parts are what a host is assembled of beside its options: the front door's choice.
type Parts struct {
	// Brain is the one that lives in this process; nil for a process that joins one elsewhere.
	Brain EmbeddedBrain
	// Token is what a system with an embedded Brain has for its token where the options give none
	// and don't open it. Empty means a new one.
	Token string
	// Run is the run directory.
	Run *rundir.Run
	// Launcher is where the processes of new nodes come from; nil for this executable's own. Where
	// a method of it or its processes goes on for 12 seconds after its context has ended, it is
	// left behind with an error.
	Launcher launch.Launcher
	// Output gets the lines that nodes' processes print; nil for what the options say.
	Output func(launch.Line)
}

// EmbeddedBrain is a Brain in the host's own process: the host's listener is Brain's, and the
// gateway to every node.
type EmbeddedBrain interface {
	// Register mounts Brain's service.
	Register(server *connect.Server)
	// Gateway wraps the HTTP handler of the host's own nodes.
	// dial opens connections to hosts that have proven themselves.
	Gateway(local http.Handler, dial func(ctx context.Context, host *nodev1.HostInfo) (net.Conn, error)) http.Handler
	// SetHost says where Brain is reached.
	SetHost(ctx context.Context, host *nodev1.HostInfo) error
	// Root is Brain's own record.
	Root() *nodev1.NodeRecord
	// Close ends Brain. The host calls it when its own nodes have ended and before its listener
	// closes: connections that break while Brain is open mean that their hosts have gone. Further
	// calls do nothing.
	Close() error
}

// Start makes a host: it listens, joins Brain and can create and find nodes. The caller must Close
// it.
func Start(ctx context.Context, options Options, parts Parts) (_ *Host, err error) {
	if err := options.check(); err != nil {
		return nil, err
	}
	made := parts.Brain != nil && options.Token == "" && !options.Open
	if made {
		if options.Token = parts.Token; options.Token == "" {
			options.Token = rundir.NewToken()
		}
	}
	h := &Host{
		options:   options,
		log:       partOf(options.Logger, logs.Host),
		tunnelLog: partOf(options.Logger, logs.Tunnel),
		id:        uuid.NewString(),
		run:       parts.Run,
		embedded:  parts.Brain,
		launcher:  parts.Launcher,
		nodes:     make(map[string]*Node),
		kids:      make(map[string][]*kid),
		creations: make(map[*creation]struct{}),
		remotes:   make(map[string]weak.Pointer[remote]),
		ending:    make(chan struct{}),
	}
	if h.launcher == nil {
		h.launcher = launch.Self(launch.WithHelloTimeout(options.StartTimeout))
	} else {
		h.launcher = &userLauncher{inner: h.launcher, log: h.log, limit: launcherLimit}
	}
	h.output = newOutput(&h.options, parts.Output, h.log)
	h.life, h.kill = context.WithCancelCause(context.Background())
	h.keepLife, h.keepEnd = context.WithCancel(h.life)
	defer func() {
		if err != nil {
			h.release(err)
		}
	}()
	if h.types, err = newTypeSet(options.Types, options.SystemTypes); err != nil {
		return nil, err
	}
	if h.dir, err = rundir.NewHost(""); err != nil {
		return nil, fmt.Errorf("making the host's runtime directory: %w", err)
	}
	if h.machine, err = rundir.Machine(); err != nil {
		return nil, fmt.Errorf("finding out which machine this is: %w", err)
	}
	h.server = newHostServer(h, parts.Brain)
	h.links = newLinks(h)
	if h.front, err = openFront(h, parts.Brain); err != nil {
		return nil, err
	}
	if made {
		if err := h.publishToken(); err != nil {
			return nil, err
		}
	}
	if parts.Brain != nil {
		if err := parts.Brain.SetHost(ctx, h.Info()); err != nil {
			return nil, fmt.Errorf("telling Brain where it is reached: %w", err)
		}
		h.mu.Lock()
		h.root = newNode(h, NodeType{service: &Service{name: "raylink.brain.v1.BrainService"}}, parts.Brain.Root())
		h.mu.Unlock()
		h.root.serveWith(nil)
	}
	if err := h.join(ctx, parts.Brain != nil); err != nil {
		return nil, err
	}
	h.log.Info("host started", slog.String("host", h.id), slog.String("address", h.front.advertised), slog.Int("pid", os.Getpid()),
		slog.String("brain", options.Brain))
	return h, nil
}

// partOf is the log of one part of the runtime.
func partOf(log *slog.Logger, part string) *slog.Logger {
	return log.With(slog.String(logs.PartKey, part))
}

// publishToken lets this user's other processes find the token that was made.
func (h *Host) publishToken() (err error) {
	addresses := []string{h.front.advertised}
	if bound := h.front.tcp.Addr().String(); bound != h.front.advertised {
		addresses = append(addresses, bound)
	}
	h.tokenFile, err = h.dir.PublishToken(h.options.Token, addresses...)
	return err
}

// TokenFile is the file that has the system's token, where this host has made one: programs of this
// user read it to call nodes over HTTP. It is "" where the token was given, or there is none.
func (h *Host) TokenFile() string { return h.tokenFile }

// Info is how others find this host.
func (h *Host) Info() *nodev1.HostInfo {
	return &nodev1.HostInfo{
		Id:        h.id,
		Address:   h.front.advertised,
		Socket:    h.front.socket,
		Machine:   h.machine,
		Pid:       int32(os.Getpid()), //nolint:gosec // process ids fit
		Build:     launch.Build(),
		Directory: h.dir.Path(),
		Nonce:     h.dir.Nonce(),
	}
}

// ID is the host's id, new with each process.
func (h *Host) ID() string { return h.id }

// Address is where the host listens: for HTTP clients and tunnels alike.
func (h *Host) Address() string { return h.front.advertised }

// RunDirectory is where this run keeps its logs, models, variables and mapped files.
func (h *Host) RunDirectory() *rundir.Run { return h.run }

// RunDirectory is where this run keeps its logs, models, variables and mapped files; nil for a stub
// outside any system.
func (n *Node) RunDirectory() *rundir.Run {
	if n.host == nil {
		return nil
	}
	return n.host.run
}

func (h *Host) parentOf() parentOf { return parentOf{host: h} }

func (h *Host) finder() (*Host, string) { return h, "" }

// Close ends the host: its nodes and those below them, children first, each drained; then its
// connections. What is not done when ctx ends is ended the hard way. Close returns when nothing of
// the host is left.
func (h *Host) Close(ctx context.Context) error {
	h.mu.Lock()
	if h.closing {
		h.mu.Unlock()
		<-h.life.Done()
		h.background.Wait()
		return nil
	}
	h.closing = true
	close(h.ending)
	h.mu.Unlock()
	h.cancelCreations(ctx, func(*creation) bool { return true }, connect.NewError(connect.CodeUnavailable, "the runtime is closing"))
	errs := append([]error{h.stopKids(ctx, "")}, h.stopKept(ctx)...)
	// A node whose parent lives in another process goes last of all.
	for _, n := range h.localNodes() {
		errs = append(errs, h.stopNode(ctx, n, h.options.Drain, "stopped"))
	}
	if h.registry != nil {
		h.registry.goodbye(ctx)
	}
	if h.embedded != nil {
		errs = append(errs, h.embedded.Close())
	}
	if h.front != nil {
		errs = append(errs, h.front.shutdown(ctx))
	}
	h.release(ErrClosed)
	return errors.Join(append(errs, h.output.err())...)
}

// ErrClosed is the cause that nodes, calls and creations end with when their process's runtime is
// shut down.
var ErrClosed = errors.New("the runtime was closed")

// release ends what is left, without regard.
func (h *Host) release(cause error) {
	h.kill(cause)
	h.mu.Lock()
	h.ended = true
	h.mu.Unlock()
	if h.front != nil {
		h.front.close()
	}
	if h.links != nil {
		h.links.close(cause)
	}
	h.background.Wait()
	if h.dir != nil {
		if err := h.dir.Close(); err != nil {
			h.log.Warn("the host's runtime directory was not removed", slog.Any("error", err))
		}
	}
}

func (h *Host) localNodes() []*Node {
	h.mu.Lock()
	defer h.mu.Unlock()
	nodes := make([]*Node, 0, len(h.nodes))
	for _, n := range h.nodes {
		nodes = append(nodes, n)
	}
	return nodes
}

// localNode is the node of that id if it lives here.
func (h *Host) localNode(nid string) *Node {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.root != nil && h.root.nid == nid {
		return h.root
	}
	return h.nodes[nid]
}

// localNamed is the node of that path, alias or nid if it lives here.
func (h *Host) localNamed(name string) *Node {
	if n := h.localNode(name); n != nil {
		return n
	}
	if name == RootPath {
		h.mu.Lock()
		defer h.mu.Unlock()
		return h.root
	}
	for _, n := range h.localNodes() {
		if rec := n.snapshot(); rec.GetPath() == name || rec.GetAlias() == name && name != "" {
			return n
		}
	}
	return nil
}

// goBackground runs fn on a goroutine of the host's; fn must return soon after ctx ends. It returns
// false, and runs nothing, when the host has ended.
func (h *Host) goBackground(fn func(ctx context.Context)) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ended {
		return false
	}
	h.background.Go(func() { fn(h.life) })
	return true
}

// Options are what the host was made with, defaults filled in.
func (h *Host) Options() Options { return h.options }
