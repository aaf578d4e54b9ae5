package runtime

import (
	"context"
	"fmt"

	"connectrpc.com/connect/v2"
	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"

	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
)

// findNode is [GeneratedService.Find].
func findNode(ctx context.Context, from Finder, service *Service, where Where) (Ref, error) {
	host, base := from.finder()
	if host == nil {
		return Ref{}, errNoSystem()
	}
	rec, err := host.lookup(ctx, where, base)
	if err != nil {
		return Ref{}, err
	}
	if rec.GetService() != service.name {
		return Ref{}, connect.Errorf(connect.CodeFailedPrecondition, "%s is a node of %s, not of %s", rec.GetPath(), rec.GetService(), service.name)
	}
	return host.refTo(service, rec), nil
}

// FindAny looks a node up, whatever its service. The result is only a Ref, not a typed handle.
func FindAny(ctx context.Context, from Finder, where Where) (Ref, error) {
	host, base := from.finder()
	if host == nil {
		return Ref{}, errNoSystem()
	}
	rec, err := host.lookup(ctx, where, base)
	if err != nil {
		return Ref{}, err
	}
	return host.refTo(builtins().service, rec), nil
}

func (h *Host) lookup(ctx context.Context, where Where, base string) (*nodev1.NodeRecord, error) {
	w := &brainv1.Where{}
	switch where.kind {
	case wherePath:
		path, err := absolute(where.value, base)
		if err != nil {
			return nil, err
		}
		w.By = &brainv1.Where_Path{Path: path}
	case whereAlias:
		w.By = &brainv1.Where_Alias{Alias: where.value}
	case whereNID:
		w.By = &brainv1.Where_Nid{Nid: where.value}
	default:
		return nil, connect.NewError(connect.CodeInvalidArgument, "the zero Where names no node: use Path, Alias or NID")
	}
	mayBlock(ctx)
	res, err := h.brain.Lookup(ctx, &brainv1.LookupRequest{Where: w})
	if err != nil {
		return nil, fmt.Errorf("looking a node up: %w", err)
	}
	return res.GetNode(), nil
}

// refFrom is [GeneratedService.From].
func refFrom(from Finder, service *Service, ref *nodev1.NodeRef) (Ref, error) {
	host, _ := from.finder()
	if host == nil {
		return Ref{}, errNoSystem()
	}
	if _, err := uuid.Parse(ref.GetNid()); err != nil {
		return Ref{}, connect.Errorf(connect.CodeInvalidArgument, "the NodeRef's nid, %q, is no UUID", ref.GetNid())
	}
	if ref.GetService() != service.name {
		return Ref{}, connect.Errorf(connect.CodeFailedPrecondition, "the NodeRef is for %s, a node of %s, not of %s", ref.GetPath(), ref.GetService(), service.name)
	}
	state := nodev1.NodeState_NODE_STATE_RUNNING
	if ref.GetHost() == nil {
		state = nodev1.NodeState_NODE_STATE_STARTING
	}
	out := host.refTo(service, &nodev1.NodeRecord{
		Nid: ref.GetNid(), Path: ref.GetPath(), Name: lastPart(ref.GetPath()), Service: ref.GetService(), Incarnation: ref.GetIncarnation(), State: state,
		Host: proto.CloneOf(ref.GetHost()),
	})
	if tag := ref.GetTag(); tag != "" {
		out = out.Tagged(tag)
	}
	return out, nil
}

func lastPart(path string) string {
	for i := len(path) - 1; i >= 0; i-- {
		if path[i] == '/' {
			return path[i+1:]
		}
	}
	return path
}

// refTo makes a reference to a node from its record. If the node lives here, it refers to it
// directly.
func (h *Host) refTo(service *Service, rec *nodev1.NodeRecord) Ref {
	if n := h.localNode(rec.GetNid()); n != nil {
		return Ref{service: service, to: n.to}
	}
	r := h.remote(rec.GetNid())
	r.update(rec)
	return Ref{service: service, to: h.intercepted(&remoteEndpoint{remote: r})}
}

// Children returns the records of the nodes at the root of the tree, in the order of their
// creation.
func (h *Host) Children(ctx context.Context) ([]*nodev1.NodeRecord, error) {
	res, err := h.brain.List(ctx, &brainv1.ListRequest{Children: true})
	if err != nil {
		return nil, fmt.Errorf("listing the root's children: %w", err)
	}
	return res.GetNodes(), nil
}
