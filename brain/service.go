package brain

import (
	"context"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/raylink/raylink/brain/internal/tree"
	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
)

// The supported versions of the protocol.
const (
	minVersion = 1
	maxVersion = 1
)

// service implements brainv1connect.BrainServiceHandler. Its streaming methods are in attach.go and
// follow.go.
type service struct{ brain *Brain }

// Hello negotiates the protocol version.
func (s *service) Hello(_ context.Context, req *brainv1.HelloRequest) (*brainv1.HelloResponse, error) {
	version := min(req.GetMaxVersion(), maxVersion)
	if version < minVersion || version < req.GetMinVersion() {
		return nil, connect.Errorf(connect.CodeFailedPrecondition,
			"no version of Brain's protocol in common: the caller supports %d to %d, this Brain %d to %d",
			req.GetMinVersion(), req.GetMaxVersion(), minVersion, maxVersion)
	}
	root := s.brain.Root()
	return &brainv1.HelloResponse{
		Version: version,
		BrainId: s.brain.id,
		Root: &nodev1.NodeRef{
			Nid: root.GetNid(), Path: root.GetPath(), Service: root.GetService(), Incarnation: root.GetIncarnation(), Host: root.GetHost(),
		},
		Lease: durationpb.New(s.brain.opts.Lease),
	}, nil
}

// Register creates records, and with them names, for new nodes.
func (s *service) Register(ctx context.Context, req *brainv1.RegisterRequest) (*brainv1.RegisterResponse, error) {
	if err := tree.CheckText(req); err != nil {
		return nil, err
	}
	nodes, machines, err := s.brain.place(ctx, func(x *tree.Txn, caller tree.Caller) ([]*nodev1.NodeRecord, *tree.Waiting, error) {
		return x.RegisterOrWait(req, caller)
	})
	if err != nil {
		return nil, err
	}
	s.brain.leases.Expect(req.GetLauncher())
	return &brainv1.RegisterResponse{Nodes: nodes, Machines: machines}, nil
}

// Update changes records.
func (s *service) Update(ctx context.Context, req *brainv1.UpdateRequest) (*brainv1.UpdateResponse, error) {
	if err := tree.CheckText(req); err != nil {
		return nil, err
	}
	var nodes []*nodev1.NodeRecord
	var machines []*brainv1.MachineUse
	var err error
	if changes := req.GetChanges(); len(changes) == 1 && changes[0].GetPlace() != nil {
		nodes, machines, err = s.brain.place(ctx, func(x *tree.Txn, caller tree.Caller) ([]*nodev1.NodeRecord, *tree.Waiting, error) {
			return x.UpdateOrWait(changes, caller)
		})
	} else {
		err = s.brain.change(ctx, func(x *tree.Txn) (err error) {
			nodes, err = x.Update(changes)
			return err
		})
	}
	if err != nil {
		return nil, err
	}
	for _, change := range req.GetChanges() {
		s.brain.leases.Expect(change.GetHost())
	}
	return &brainv1.UpdateResponse{Nodes: nodes, Machines: machines}, nil
}

// Remove removes nodes and their descendants from the tree.
func (s *service) Remove(ctx context.Context, req *brainv1.RemoveRequest) (*brainv1.RemoveResponse, error) {
	if err := tree.CheckText(req); err != nil {
		return nil, err
	}
	var nodes []*nodev1.NodeRecord
	err := s.brain.change(ctx, func(x *tree.Txn) (err error) {
		if nodes, err = x.Remove(req.GetNids(), req.GetCause()); err != nil {
			return err
		}
		withdrawn, err := x.Withdraw(req.GetRequestIds(), req.GetCause())
		nodes = append(nodes, withdrawn...)
		return err
	})
	if err != nil {
		return nil, err
	}
	return &brainv1.RemoveResponse{Nodes: nodes}, nil
}

// Lookup finds one node.
func (s *service) Lookup(_ context.Context, req *brainv1.LookupRequest) (*brainv1.LookupResponse, error) {
	if err := tree.CheckText(req); err != nil {
		return nil, err
	}
	rec, err := s.brain.lookUp(req)
	if err != nil {
		return nil, err
	}
	return &brainv1.LookupResponse{Node: rec}, nil
}

func (b *Brain) lookUp(req *brainv1.LookupRequest) (*nodev1.NodeRecord, error) {
	var by tree.By
	var where string
	switch asked := req.GetWhere().GetBy().(type) {
	case *brainv1.Where_Path:
		by, where = tree.ByPath, asked.Path
	case *brainv1.Where_Alias:
		by, where = tree.ByAlias, asked.Alias
	case *brainv1.Where_Nid:
		by, where = tree.ByNID, asked.Nid
	case *brainv1.Where_Any:
		by, where = tree.ByAny, asked.Any
	default:
		return nil, connect.NewError(connect.CodeInvalidArgument, "a lookup needs a path, an alias or an nid")
	}
	b.mu.RLock()
	defer b.mu.RUnlock()
	return b.tree.Lookup(by, where)
}

// List returns a subtree, or one level of it.
func (s *service) List(_ context.Context, req *brainv1.ListRequest) (*brainv1.ListResponse, error) {
	if err := tree.CheckText(req); err != nil {
		return nil, err
	}
	s.brain.mu.RLock()
	defer s.brain.mu.RUnlock()
	nodes, err := s.brain.tree.List(req.GetRoot(), req.GetChildren())
	if err != nil {
		return nil, err
	}
	return &brainv1.ListResponse{Nodes: nodes}, nil
}

// ReportHost reports a host's death. When it returns, the host's nodes have been removed.
func (s *service) ReportHost(ctx context.Context, req *brainv1.ReportHostRequest) (*brainv1.ReportHostResponse, error) {
	if err := tree.CheckText(req); err != nil {
		return nil, err
	}
	if !tree.IsUUID(req.GetHostId()) {
		return nil, connect.NewError(connect.CodeInvalidArgument, "a dead host is reported by its id, a UUID")
	}
	cause := req.GetCause()
	if cause == "" {
		cause = "its launcher gave no cause"
	}
	if err := s.brain.leases.Report(ctx, req.GetHostId(), cause); err != nil {
		return nil, err
	}
	return &brainv1.ReportHostResponse{}, nil
}
