package runtime

import (
	"context"
	"net"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	"github.com/raylink/raylink/internal/nodename"
	"github.com/raylink/raylink/internal/pki"
)

// builtinMethods are the methods that every node has in addition to its own. They run concurrently,
// outside the mailbox: a node serves them while it is busy, draining or being set up.
type builtinMethods struct {
	ping         *unaryMethod[*nodev1.PingRequest, *nodev1.PingResponse]
	info         *unaryMethod[*nodev1.InfoRequest, *nodev1.InfoResponse]
	children     *unaryMethod[*nodev1.ChildrenRequest, *nodev1.ChildrenResponse]
	create       *unaryMethod[*nodev1.CreateRequest, *nodev1.CreateResponse]
	cancelCreate *unaryMethod[*nodev1.CancelCreateRequest, *nodev1.CancelCreateResponse]
	createTunnel *unaryMethod[*nodev1.CreateTunnelRequest, *nodev1.CreateTunnelResponse]
	tunnelStats  *unaryMethod[*nodev1.TunnelStatsRequest, *nodev1.TunnelStatsResponse]
	stop         *unaryMethod[*nodev1.StopRequest, *nodev1.StopResponse]
	service      *Service
}

// builtins is initialized on first use, because its methods refer to code that uses it.
var builtins = sync.OnceValue(func() *builtinMethods { //nolint:gochecknoglobals // a table that never changes
	b := &builtinMethods{
		ping:         newUnaryMethod("Ping", (*Node).servePing, concurrent()),
		info:         newUnaryMethod("Info", (*Node).serveInfo, concurrent()),
		children:     newUnaryMethod("Children", (*Node).serveChildren, concurrent()),
		create:       newUnaryMethod("Create", (*Node).serveCreate, concurrent()),
		cancelCreate: newUnaryMethod("CancelCreate", (*Node).serveCancelCreate, concurrent()),
		createTunnel: newUnaryMethod("CreateTunnel", (*Node).serveCreateTunnel, concurrent()),
		tunnelStats:  newUnaryMethod("TunnelStats", (*Node).serveTunnelStats, concurrent()),
		stop:         newUnaryMethod("Stop", (*Node).serveStop, concurrent()),
	}
	b.service = newService(nodev1.File_raylink_node_v1_node_proto.Services().ByName("NodeService"), serviceConfig{typeName: "node"},
		&b.ping.m, &b.info.m, &b.children.m, &b.create.m, &b.cancelCreate.m, &b.createTunnel.m, &b.tunnelStats.m, &b.stop.m)
	for _, m := range b.service.methods {
		m.builtin = true
	}
	for _, m := range []*Method{&b.create.m, &b.cancelCreate.m, &b.stop.m} {
		m.role = pki.RoleJoin
	}
	return b
})

// lookupMethod finds a procedure among the node's own methods and the built-in ones.
func (n *Node) lookupMethod(procedure string) (*Method, error) {
	if m := n.service.byProc[procedure]; m != nil {
		return m, nil
	}
	if m := builtins().service.byProc[procedure]; m != nil {
		return m, nil
	}
	return nil, n.noMethod(procedure)
}

// noMethod is the error for a procedure that the node lacks; it lists those that it has.
func (n *Node) noMethod(procedure string) error {
	return connect.Errorf(connect.CodeUnimplemented, "%s is a node of %s, which has no method %s; it has %s",
		n.path, n.service.name, nodename.MethodFullName(procedure), n.service.methodNames())
}

func (n *Node) servePing(context.Context, *nodev1.PingRequest) (*nodev1.PingResponse, error) {
	return &nodev1.PingResponse{Time: timestamppb.Now()}, nil
}

func (n *Node) serveInfo(context.Context, *nodev1.InfoRequest) (*nodev1.InfoResponse, error) {
	rec := n.snapshot()
	stats := n.mailbox.Stats()
	ip, _, err := net.SplitHostPort(rec.GetHost().GetAddress())
	if err != nil {
		// A node outside any system has no address.
		ip = ""
	}
	return &nodev1.InfoResponse{Info: &nodev1.NodeInfo{
		Record:        proto.CloneOf(rec),
		Ip:            ip,
		PendingCalls:  uint64(stats.Waiting + stats.Running), //nolint:gosec // counts are not negative
		FinishedCalls: stats.Finished,
		Uptime:        durationpb.New(time.Since(n.born)),
	}}, nil
}

func (n *Node) serveChildren(ctx context.Context, _ *nodev1.ChildrenRequest) (*nodev1.ChildrenResponse, error) {
	if n.host == nil {
		return &nodev1.ChildrenResponse{}, nil
	}
	root := n.nid
	if n == n.host.root {
		root = ""
	}
	res, err := n.host.brain.List(ctx, &brainv1.ListRequest{Root: root, Children: true})
	if err != nil {
		return nil, err
	}
	return &nodev1.ChildrenResponse{Children: res.GetNodes()}, nil
}

func (n *Node) serveCreate(ctx context.Context, req *nodev1.CreateRequest) (*nodev1.CreateResponse, error) {
	if n.host == nil {
		return nil, errNoSystem()
	}
	parent, nid := n, n.nid
	if n == n.host.root {
		parent, nid = nil, ""
	}
	if req.GetPlacement() == nodev1.Placement_PLACEMENT_HERE {
		return nil, connect.NewError(connect.CodeInvalidArgument, "a node that is to live with its creator is not created by its parent")
	}
	records, err := n.host.create(ctx, parent, nid, req)
	if err != nil {
		return nil, err
	}
	return &nodev1.CreateResponse{Nodes: records}, nil
}

func (n *Node) serveCancelCreate(ctx context.Context, req *nodev1.CancelCreateRequest) (*nodev1.CancelCreateResponse, error) {
	if n.host == nil {
		return nil, errNoSystem()
	}
	if _, err := uuid.Parse(req.GetRequestId()); err != nil {
		return nil, connect.Errorf(connect.CodeInvalidArgument, "the request id of a creation is a UUID, not %q", req.GetRequestId())
	}
	if err := n.host.undoCreation(ctx, req.GetRequestId()); err != nil {
		return nil, err
	}
	return &nodev1.CancelCreateResponse{}, nil
}

func (n *Node) serveCreateTunnel(_ context.Context, req *nodev1.CreateTunnelRequest) (*nodev1.CreateTunnelResponse, error) {
	info, err := n.CreateTunnel(req.GetTag())
	if err != nil {
		return nil, err
	}
	return &nodev1.CreateTunnelResponse{Tunnel: info}, nil
}

func (n *Node) serveTunnelStats(_ context.Context, req *nodev1.TunnelStatsRequest) (*nodev1.TunnelStatsResponse, error) {
	stats, err := n.TunnelStats(req.GetTag())
	if err != nil {
		return nil, err
	}
	return &nodev1.TunnelStatsResponse{Tunnels: stats}, nil
}

func (n *Node) serveStop(ctx context.Context, req *nodev1.StopRequest) (*nodev1.StopResponse, error) {
	if n.host == nil {
		return nil, errNoSystem()
	}
	if n == n.host.root {
		return nil, connect.NewError(connect.CodeFailedPrecondition, "Brain ends with its process: interrupt that")
	}
	drain := n.host.options.Drain
	if req.GetDrain() != nil {
		drain = max(0, req.GetDrain().AsDuration())
	}
	if n.isAwaitedBy(ctx) {
		n.host.beginStop(n, drain, "stopped")
		return &nodev1.StopResponse{}, nil
	}
	if err := n.host.stopNode(ctx, n, drain, "stopped"); err != nil {
		return nil, err
	}
	return &nodev1.StopResponse{}, nil
}

// isAwaitedBy reports whether the end of the node has to wait for the call with ctx: the call is
// made by code of the node or of a descendant, or a turn of one of them waits for it.
func (n *Node) isAwaitedBy(ctx context.Context) bool {
	cc := callContextOf(ctx)
	if cc == nil {
		return false
	}
	within := func(path string) bool { return path == n.path || strings.HasPrefix(path, n.path+"/") }
	if cc.call.from != nil && within(cc.call.from.Path) {
		return true
	}
	for entry := cc.chain; entry != nil; entry = entry.outer {
		if within(entry.path) {
			return true
		}
	}
	return false
}

// Ping calls the node and returns the round-trip time. A node answers it even while it is busy.
func (r Ref) Ping(ctx context.Context) (time.Duration, error) {
	start := time.Now()
	_, err := builtins().ping.call(ctx, r, nil)
	return time.Since(start), err
}

// Info returns the node's record, address, uptime and numbers of calls, from the node itself.
func (r Ref) Info(ctx context.Context) (*nodev1.NodeInfo, error) {
	res, err := builtins().info.call(ctx, r, nil)
	return res.GetInfo(), err
}

// Children returns the records of the node's living children, in the order of their creation.
func (r Ref) Children(ctx context.Context) ([]*nodev1.NodeRecord, error) {
	res, err := builtins().children.call(ctx, r, nil)
	return res.GetChildren(), err
}

// Parent finds the node's parent, whatever its service; the zero Ref for a child of the root.
func (r Ref) Parent(ctx context.Context) (Ref, error) {
	parent := r.record().GetParent()
	switch {
	case r.IsZero():
		return Ref{}, errNoNode()
	case r.to.host() == nil:
		return Ref{}, errNoSystem()
	case parent == "" && r.record().GetType() != "":
		return Ref{}, nil
	case parent == "":
		// A handle that was made of a NodeRef does not know the parent.
		info, err := r.Info(ctx)
		if err != nil {
			return Ref{}, err
		}
		if parent = info.GetRecord().GetParent(); parent == "" {
			return Ref{}, nil
		}
	}
	return FindAny(ctx, r.to.host(), NID(parent))
}

// CreateTunnel makes the node open a tagged tunnel, see [Node.CreateTunnel].
func (r Ref) CreateTunnel(ctx context.Context, tag string) (*nodev1.TunnelInfo, error) {
	res, err := builtins().createTunnel.call(ctx, r, &nodev1.CreateTunnelRequest{Tag: tag})
	return res.GetTunnel(), err
}

// TunnelStats returns the traffic of the node's tagged tunnels; an empty tag selects all of them.
func (r Ref) TunnelStats(ctx context.Context, tag string) ([]*nodev1.TunnelStats, error) {
	res, err := builtins().tunnelStats.call(ctx, r, &nodev1.TunnelStatsRequest{Tag: tag})
	return res.GetTunnels(), err
}

// Stop ends the node and returns when it is gone: its children end first, then its running and
// pending calls are drained for up to the drain time of its process, ten seconds by default, then
// the node ends. Where that would deadlock, because the call of Stop is made by the node's own code
// or that of a descendant, or a turn of one of them waits for it, Stop begins the end and returns
// at once.
func (r Ref) Stop(ctx context.Context) error {
	_, err := builtins().stop.call(ctx, r, nil)
	return err
}
