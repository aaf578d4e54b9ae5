package runtime

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"
	"weak"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connectinprocess"
	"github.com/google/uuid"

	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
	"github.com/raylink/raylink/gen/raylink/brain/v1/brainv1connect"
	"github.com/raylink/raylink/gen/raylink/machine/v1/machinev1connect"
	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	"github.com/raylink/raylink/internal/admission"
	"github.com/raylink/raylink/internal/hostapi"
	"github.com/raylink/raylink/internal/logs"
	"github.com/raylink/raylink/internal/nodename"
	"github.com/raylink/raylink/internal/pki"
	"github.com/raylink/raylink/runtime/internal/listen"
	"github.com/raylink/raylink/runtime/internal/membership"
	"github.com/raylink/raylink/runtime/internal/peers"
	"github.com/raylink/raylink/runtime/internal/session"
	"github.com/raylink/raylink/runtime/launch"
	"github.com/raylink/raylink/runtime/rundir"
	"github.com/raylink/raylink/runtime/tunnel"
)

// Host is one process's membership in a system: it hosts nodes, calls those of other hosts, and
// holds a lease with Brain. The front door makes one per process; a test may make any number. Its
// methods are safe for concurrent use.
type Host struct {
	options Options
	log     *slog.Logger
	// tunnelLog is the log of the tunnels.
	tunnelLog *slog.Logger
	id        string
	machine   string
	// life is canceled when the host is closed; the life of every node descends from it.
	life       context.Context //nolint:containedctx // the host's life is this context
	cancelLife context.CancelCauseFunc
	// background counts the host's own goroutines; all of them end with life.
	background sync.WaitGroup

	types    *typeSet
	dir      *rundir.Host
	run      *rundir.Run
	launcher launch.Launcher
	// machines keeps this machine; nil in a process that was launched for a node.
	machines *machineKeeper
	output   *output
	listener *listen.Listener
	// guard authorizes HTTP requests.
	guard *webGuard
	// member is the membership in a system that uses TLS, else nil.
	member *membership.Member
	// tokenFile is set if this host has generated the system's token.
	tokenFile string
	peers     *peers.Pool
	// watchdog is the watchdog of the connections whose reading goroutines run methods inline.
	watchdog tunnel.Watchdog
	// changes counts changes to the set of nodes that live here and to their incarnations.
	changes atomic.Uint64
	// events is nil if there are no listeners.
	events *events
	// layers are the client interceptors of the calls that are made here.
	layers []ClientInvoke
	// waited is a pool of call states, see newWaitedCall.
	waited sync.Pool
	// server has the services of the host itself for HTTP clients, tunnelled for other hosts.
	server, tunnelled *connect.Server
	// dead removes what dead processes have left behind.
	dead    deadSweeper
	brain   brainv1connect.BrainServiceClient
	session *session.Session
	// removals are those of records that wait for an absent Brain.
	removals pendingRemovals
	// embedded is the Brain in this process, or nil.
	embedded hostapi.Brain
	// outlives is set if this process continues to run after its launcher has died.
	outlives bool
	// keeping counts the supervisors, which restart nodes; they end when keepEnd cancels keepLife.
	supervising    sync.WaitGroup
	supervision    context.Context //nolint:containedctx // the goroutines' life is this context
	endSupervision context.CancelFunc

	mu sync.Mutex // guards the fields below
	// nodes are the nodes that live here, by nid.
	nodes map[string]*Node
	// root is Brain as a node, if it is embedded here: it serves what every node serves.
	root *Node
	// children are the children that this host launched, in order, by the nid of their parent (""
	// for the root).
	children    map[string][]*child
	supervisors []*supervisor
	// creations are those in progress.
	creations map[*creation]struct{}
	remotes   map[string]weak.Pointer[remote]
	// closing is set when Close begins; ended when no new work may begin.
	closing, ended bool
	// ending is closed when the host begins to end; see beginEnding.
	ending     chan struct{}
	endingOnce sync.Once
	// declaredDead is closed when Brain has declared a node of this host dead.
	declaredDead     chan struct{}
	declaredDeadOnce sync.Once
	// endCause is why the host's nodes end with it; nil if they are stopped.
	endCause atomic.Pointer[string]
	// only is the node that the process was launched for; the host ends with it.
	only atomic.Pointer[Node]
}

// child is a child of a node or of the root, as launched by this host: exactly one of node and
// process is set.
type child struct {
	nid     string
	path    string
	node    *Node
	process launch.Process
	// host is the id of the host in the child's process.
	host string
	// inAgent is set if the process is an agent's: others use it, too.
	inAgent bool
	// creation is the request id of the creation that made the child; empty if there was none.
	creation string
	// restarts is set if the child's record outlives its process.
	restarts bool
	// record is that of the node when it was set up, at the time started. remote is kept for
	// events.
	record  *nodev1.NodeRecord
	started time.Time
	remote  *remote
}

// startHost is [hostapi.Functions].Start.
func startHost(ctx context.Context, options Options, parts hostapi.Parts) (_ *Host, err error) {
	if err := options.check(); err != nil {
		return nil, err
	}
	founds, err := foundsTLS(&options, parts.Brain != nil)
	if err != nil {
		return nil, err
	}
	made := !founds && parts.Brain != nil && options.Token == "" && !options.Open
	if made {
		if options.Token, err = tokenOf(parts); err != nil {
			return nil, err
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
		children:  make(map[string][]*child),
		creations: make(map[*creation]struct{}),
		remotes:   make(map[string]weak.Pointer[remote]),
		ending:    make(chan struct{}),

		declaredDead: make(chan struct{}),
		events:       newEvents(options.Events, partOf(options.Logger, logs.Host)),
		layers:       clientLayers(options.ClientInterceptors),
	}
	if h.launcher == nil {
		h.launcher = launch.Self(launch.WithHelloTimeout(options.StartTimeout))
	} else {
		h.launcher = &userLauncher{inner: h.launcher, log: h.log, limit: launcherLimit}
	}
	h.output = newOutput(&h.options, parts.Output, h.log)
	h.life, h.cancelLife = context.WithCancelCause(context.Background())
	h.supervision, h.endSupervision = context.WithCancel(h.life)
	defer func() {
		if err != nil {
			h.release(err)
		}
	}()
	if h.types, err = newTypeSet(options.Types, options.systemTypes); err != nil {
		return nil, err
	}
	if h.dir, err = rundir.NewHost(""); err != nil {
		return nil, fmt.Errorf("making the host's runtime directory: %w", err)
	}
	if h.machine, err = rundir.Machine(); err != nil {
		return nil, fmt.Errorf("finding out which machine this is: %w", err)
	}
	if !parts.Launched {
		if h.machines, err = newMachineKeeper(h, parts.Agent); err != nil {
			return nil, err
		}
	}
	authority, err := h.secure(ctx, parts, founds)
	if err != nil {
		return nil, err
	}
	h.server = newHostServer(h, parts.Brain, authority)
	// What hosts call of each other is not for HTTP clients.
	h.tunnelled = newHostServer(h, parts.Brain, authority)
	machinev1connect.RegisterMachineServiceHandler(h.tunnelled, machineService{h})
	h.peers = peers.New(peers.Config{
		Host: h.id, Build: launch.Build(), Machine: h.machine, Tunnel: h.tunnelConfig(), TLS: h.dialTLS(), Open: options.Open,
		Log: h.log, Spawn: h.goBackground,
		Opened: h.tunnelDialled,
	})
	if err = h.listen(parts.Brain); err != nil {
		return nil, err
	}
	if made || founds {
		if err := h.publishToken(authority); err != nil {
			return nil, err
		}
	}
	if parts.Brain != nil {
		if err := parts.Brain.SetHost(ctx, h.info()); err != nil {
			return nil, fmt.Errorf("reporting to Brain where it is reached: %w", err)
		}
		h.mu.Lock()
		h.root = newNode(h, NodeType{service: &Service{name: brainv1connect.BrainServiceName}}, parts.Brain.Root())
		h.mu.Unlock()
		h.root.serveWith(nil)
	}
	if err := h.join(ctx, parts.Brain != nil); err != nil {
		return nil, err
	}
	h.log.Info("host started", slog.String("host", h.id), slog.String("address", h.listener.Advertised()), slog.Int("pid", os.Getpid()),
		slog.String("brain", options.Brain))
	return h, nil
}

// tokenOf returns the token of a system that was given none.
func tokenOf(parts hostapi.Parts) (string, error) {
	if parts.Token == nil {
		return rundir.NewToken(), nil
	}
	return parts.Token()
}

// tunnelConfig configures all tunnels of this host.
func (h *Host) tunnelConfig() tunnel.Config {
	return tunnel.Config{
		Token: h.sharedSecret(), MaxMessageBytes: h.options.MaxMessage, Keepalive: h.options.Lease / 2,
		BusyPoll: h.options.BusyPoll, Watchdog: &h.watchdog, Logger: h.tunnelLog,
	}
}

// partOf is the logger of one part of the runtime.
func partOf(log *slog.Logger, part string) *slog.Logger {
	return log.With(slog.String(logs.PartKey, part))
}

// publishToken writes the generated token to a file that only this user's processes can read.
func (h *Host) publishToken(authority *admission.Authority) (err error) {
	addresses := []string{h.listener.Advertised()}
	if bound := h.listener.Bound(); bound != h.listener.Advertised() {
		addresses = append(addresses, bound)
	}
	if h.tokenFile, err = h.dir.PublishToken(h.options.Token, addresses...); err != nil || authority == nil {
		return err
	}
	authority.SetAddress(h.listener.Advertised())
	return h.dir.PublishAdminToken(authority.AdminToken().Reveal())
}

// TokenFile is the file with the system's token, if this host has generated it: programs of the
// same user read it to call nodes over HTTP. It is "" if the token was configured or there is none.
func (h *Host) TokenFile() string { return h.tokenFile }

// JoinToken is the token by which other processes join the system, if this host has the CA of a
// system that uses TLS; else "".
func (h *Host) JoinToken() string {
	if h.embedded == nil || h.member == nil || !h.member.IsNamed() {
		return ""
	}
	return h.options.Token
}

// info returns what other hosts need to reach this one.
func (h *Host) info() *nodev1.HostInfo {
	return &nodev1.HostInfo{
		Id:        h.id,
		Address:   h.listener.Advertised(),
		Socket:    h.listener.Socket(),
		Machine:   h.machine,
		Pid:       int32(os.Getpid()), //nolint:gosec // process ids fit
		Build:     launch.Build(),
		Directory: h.dir.Path(),
		Nonce:     h.dir.Nonce(),
	}
}

// String names the host by its address. It shows no token.
func (h *Host) String() string { return "host " + h.listener.Advertised() }

// Address is the advertised address (HOST:PORT), for HTTP clients and tunnels alike.
func (h *Host) Address() string { return h.listener.Advertised() }

// RunDirectory is where this run keeps its logs, models, variables and mapped files.
func (h *Host) RunDirectory() *rundir.Run { return h.run }

// RunDirectory is where this run keeps its logs, models, variables and mapped files; nil for a node
// outside any system.
func (n *Node) RunDirectory() *rundir.Run {
	if n.host == nil {
		return nil
	}
	return n.host.run
}

func (h *Host) parentOf() parentOf { return parentOf{host: h} }

func (h *Host) finder() (*Host, string) { return h, "" }

// Close ends the host: first its nodes and their descendants, children before parents, each
// drained; then its connections. What has not ended when ctx does is killed. When Close returns, no
// goroutine, process or file of the host is left. Further calls wait for the first to finish.
func (h *Host) Close(ctx context.Context) error {
	h.mu.Lock()
	if h.closing {
		h.mu.Unlock()
		<-h.life.Done()
		h.background.Wait()
		return nil
	}
	h.closing = true
	h.mu.Unlock()
	began := time.Now()
	h.beginEnding()
	h.cancelCreations(ctx, func(*creation) bool { return true }, connect.NewError(connect.CodeUnavailable, "the runtime is closing"))
	var errs []error
	if h.machines != nil { // what others have created here ends before this host's own nodes
		if h.session != nil && h.embedded == nil {
			// From here on Brain places nothing here, and what waits for a place looks elsewhere.
			h.session.LeaveMachine(ctx)
		}
		errs = append(errs, h.machines.close(ctx))
	}
	errs = append(append(errs, h.stopChildren(ctx, "")), h.stopSupervised(ctx)...)
	// Nodes whose parent lives in another process stop last.
	for _, n := range h.localNodes() {
		cause := "stopped"
		if end := h.endCause.Load(); end != nil {
			cause = *end
		}
		errs = append(errs, h.stopNode(ctx, n, h.options.Drain, cause))
	}
	if h.session != nil {
		h.session.Goodbye(ctx)
	}
	if h.embedded != nil {
		errs = append(errs, h.embedded.Close())
	}
	if h.listener != nil {
		// All nodes have stopped: the responses still being written wait for slow readers.
		sctx, cancel := context.WithTimeout(ctx, max(h.options.Drain-time.Since(began), listen.EndTime))
		defer cancel()
		errs = append(errs, h.listener.Shutdown(sctx))
	}
	h.release(ErrClosed)
	return errors.Join(append(errs, h.output.err(), h.events.flush())...)
}

// beginEnding publishes that the host is ending: from then on its health is not serving.
func (h *Host) beginEnding() { h.endingOnce.Do(func() { close(h.ending) }) }

// endsWith makes the host end with that node.
func (h *Host) endsWith(n *Node) {
	h.only.Store(n)
	if n.isStopping() {
		h.beginEnding()
	}
}

// ErrClosed is the cause with which nodes, calls and creations end when their process's runtime is
// closed.
var ErrClosed = errors.New("the runtime was closed")

// release ends whatever is left, unconditionally.
func (h *Host) release(cause error) {
	h.cancelLife(cause)
	h.mu.Lock()
	h.ended = true
	h.mu.Unlock()
	if h.machines != nil {
		_ = h.machines.close(h.life) // Close has ended what was launched, if this host has ever served
	}
	if h.listener != nil {
		h.listener.Close()
	}
	if h.peers != nil {
		h.peers.Close(cause)
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

// localNode returns the node with that id, or nil if it does not live here.
func (h *Host) localNode(nid string) *Node {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.root != nil && h.root.nid == nid {
		return h.root
	}
	return h.nodes[nid]
}

// localNamed returns the node with that path, alias or nid, or nil if it does not live here.
func (h *Host) localNamed(name string) *Node {
	if n := h.localNode(name); n != nil {
		return n
	}
	if name == nodename.RootPath {
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

// goBackground runs fn on a goroutine of the host; fn must return soon after its context is
// canceled. It returns false, and does not run fn, if the host has ended.
func (h *Host) goBackground(fn func(ctx context.Context)) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ended {
		return false
	}
	h.background.Go(func() { fn(h.life) })
	return true
}

// join connects to Brain and gets this host's lease.
func (h *Host) join(ctx context.Context, embedded bool) error {
	var transport connect.Transport
	var conn func(ctx context.Context) (*tunnel.Conn, error)
	where := h.options.Brain
	if embedded {
		transport, where = connectinprocess.New(h.server), "embedded"
	} else {
		if where == "" {
			return connect.NewError(connect.CodeFailedPrecondition, "no Brain to join: give its address with --brain or RAYLINK_BRAIN, or start one with `raylink brain`")
		}
		transport = h.peers.Brain(where)
		conn = func(ctx context.Context) (*tunnel.Conn, error) { return h.peers.BrainConn(ctx, where) }
	}
	h.brain = brainClient{brainv1connect.NewBrainServiceClient(connect.NewClient(transport)), conn}
	s, err := session.New(ctx, session.Config{
		Host: sessionHost{h}, Brain: h.brain, Address: where, Log: partOf(h.options.Logger, logs.Session), Spawn: h.goBackground,
	})
	if err != nil {
		return err
	}
	if !embedded {
		h.warnUnreachable(ctx, where, s.Root().GetHost())
	}
	h.session = s
	return s.Attach(ctx)
}

// sessionHost is the host as its session with Brain sees it.
type sessionHost struct{ host *Host }

var _ session.Host = sessionHost{}

// Info implements [session.Host].
func (s sessionHost) Info() *nodev1.HostInfo { return s.host.info() }

// Nodes implements [session.Host].
func (s sessionHost) Nodes() []*nodev1.NodeRef {
	nodes := s.host.localNodes()
	refs := make([]*nodev1.NodeRef, 0, len(nodes))
	for _, n := range nodes {
		refs = append(refs, n.Ref().NodeRef())
	}
	return refs
}

// OnPolicy implements [session.Host].
func (s sessionHost) OnPolicy(policy *brainv1.WebPolicy) { s.host.guard.setPolicy(policy) }

// OnAccess implements [session.Host].
func (s sessionHost) OnAccess(policy *brainv1.AccessPolicy) { s.host.onAccess(policy) }

// OnExpelled implements [session.Host].
func (s sessionHost) OnExpelled(reason error) { s.host.onExpelled(reason) }

// OnRecord implements [session.Host]: it passes a record to the handles of the node in this
// process.
func (s sessionHost) OnRecord(rec *nodev1.NodeRecord) {
	s.host.mu.Lock()
	r := s.host.remotes[rec.GetNid()].Value()
	s.host.mu.Unlock()
	if r != nil {
		r.update(rec)
	}
}

// OnDeclaredDead implements [session.Host].
func (s sessionHost) OnDeclaredDead(nid string) {
	s.host.declaredDeadOnce.Do(func() { close(s.host.declaredDead) })
	if n := s.host.localNode(nid); n != nil && !n.isStopping() {
		n.fail(errors.New("its host could not be reached, and it was declared dead"))
	}
}

// listen binds the host's addresses and starts to serve.
func (h *Host) listen(brain hostapi.Brain) error {
	guard, err := newWebGuard(h)
	if err != nil {
		return err
	}
	h.guard = guard
	secured, err := h.serveTLS()
	if err != nil {
		return err
	}
	h.listener, err = listen.New(h.life, listen.Config{
		Address: h.options.Listen, Advertise: h.options.Advertise, Ports: h.options.PortRange, Socket: h.dir.Socket(), Tunnel: h.tunnelConfig(),
		TLS: secured, Role: h.sharedRole(),
		Self: tunnel.Welcome{Host: h.id, Build: launch.Build()}, Admit: h.admit, Log: h.log, Spawn: h.goBackground,
	})
	if err != nil {
		return err
	}
	handler := onFirstUse(func() http.Handler { return newNodeHandler(h) })
	if brain != nil {
		handler = brain.Gateway(handler, h.peers.DialHTTP)
	}
	h.listener.Serve(guard.guard(handler))
	return nil
}

// admit returns the dispatcher for a dialler, which has proven that it is peer.
func (h *Host) admit(hello tunnel.Hello, peer pki.Peer) (tunnel.Handler, func(*tunnel.Conn), error) {
	if hello.Protocol != "" {
		return nil, nil, connect.Errorf(connect.CodeUnimplemented, "a host's connections carry no %q", hello.Protocol)
	}
	if hello.Tag == "" {
		return newDispatcher(h, hello, peer), h.tunnelAccepted, nil
	}
	n := h.localNode(hello.Target)
	if n == nil {
		return nil, nil, connect.Errorf(connect.CodeUnavailable, "no node %s is on host %s", hello.Target, h.id)
	}
	tag, err := n.tunnelTag(hello.Tag)
	if err != nil {
		return nil, nil, err
	}
	opened := func(conn *tunnel.Conn) {
		h.tunnelAccepted(conn)
		tag.carry(conn)
	}
	d := newDispatcher(h, hello, peer)
	d.only, d.tag = n, tag
	return d, opened, nil
}

// deadSweeper removes the host directories of processes that were killed and could not do it
// themselves. Requests that arrive during a sweep share the next one, so that the end of many
// processes at once costs few sweeps.
type deadSweeper struct {
	mu sync.Mutex // held during a sweep

	count sync.Mutex // guards the fields below
	// asked counts the requests; served is how many of them a sweep has covered.
	asked, served uint64
}

// sweepDead removes what processes that are dead by now have left behind. It blocks until that is
// done.
func (h *Host) sweepDead() {
	d := &h.dead
	d.count.Lock()
	d.asked++
	mine := d.asked
	d.count.Unlock()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.count.Lock()
	served := d.served >= mine
	if !served {
		d.served = d.asked
	}
	d.count.Unlock()
	if served {
		return
	}
	if err := rundir.SweepHosts(""); err != nil {
		h.log.Debug("sweeping what dead processes left", slog.Any("error", err))
	}
}

// warnUnreachable warns if this host joins a Brain on another machine but listens on loopback: its
// nodes will be found from there, and calls to them will fail or reach another process. It is no
// error, because a process that creates no nodes is not affected. An address that was given
// is the user's decision: machines that are so by name only reach each other by loopback.
func (h *Host) warnUnreachable(ctx context.Context, brain string, at *nodev1.HostInfo) {
	byDefault := !h.options.listens && listen.IsLoopback(listen.HostOf(h.listener.Advertised()))
	if !byDefault || !isElsewhere(ctx, brain, at.GetMachine(), h.machine) {
		return
	}
	h.log.Warn("Brain is on another machine, and this process listens on loopback only: the nodes that it creates cannot be reached from there. "+
		"Listen on an address that other machines reach: WithListen or RAYLINK_LISTEN, such as HOST:0, with WithAdvertise or RAYLINK_ADVERTISE where "+
		"they know this machine by another address", slog.String("brain", brain), slog.String("listen", h.listener.Advertised()))
}

// resolveTimeout bounds the name lookup for the warning.
const resolveTimeout = time.Second

// isElsewhere reports whether a Brain at an address is known to be on another machine than this
// one.
func isElsewhere(ctx context.Context, brain, machine, own string) bool {
	if machine != "" && machine != own {
		return true
	}
	// Containers may share the machine's id and still have networks of their own.
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	addresses, err := net.DefaultResolver.LookupNetIP(ctx, "ip", listen.HostOf(brain))
	if err != nil {
		return false
	}
	mine, err := net.InterfaceAddrs()
	if err != nil {
		return false
	}
	for _, address := range addresses {
		address = address.Unmap()
		if address.IsLoopback() || address.IsUnspecified() {
			return false
		}
		for _, own := range mine {
			if prefix, err := netip.ParsePrefix(own.String()); err == nil && prefix.Addr().Unmap() == address {
				return false
			}
		}
	}
	return len(addresses) > 0
}
