package tree

import (
	"strconv"
	"strings"

	"connectrpc.com/connect/v2"

	"github.com/raylink/raylink/brain/internal/placement"
	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	"github.com/raylink/raylink/internal/nodename"
)

// maxKinds bounds the types of children of one parent: each uses a counter as long as the parent
// lives.
const maxKinds = 4096

// Register creates records for new nodes, all or none: in state starting and in their first
// incarnation. A request id that was used before returns the nodes of that request, with their
// current records.
//
// If the request has a place, the records have allocations. It fails if there is none at the
// moment; see [Txn.RegisterOrWait].
func (x *Txn) Register(req *brainv1.RegisterRequest) ([]*nodev1.NodeRecord, error) {
	return x.register(req, x.asked(req), nil)
}

// parentOf is the nid of the parent; empty for the root.
func (x *Txn) parentOf(req *brainv1.RegisterRequest) string {
	if req.GetParent() == x.root().GetNid() {
		return ""
	}
	return req.GetParent()
}

// asked is a registration in a canonical form: what a repetition must ask for. It is empty without
// a request id.
func (x *Txn) asked(req *brainv1.RegisterRequest) string {
	if req.GetRequestId() == "" {
		return ""
	}
	b := make([]byte, 0, 128)
	for _, text := range []string{x.parentOf(req), req.GetType(), req.GetService()} {
		b = append(strconv.AppendQuote(b, text), ' ')
	}
	b = append(strconv.AppendInt(b, int64(max(int(req.GetCount()), 1)), 10), ' ')
	b = append(strconv.AppendQuote(b, req.GetAlias()), ' ')
	return string(appendPlace(strconv.AppendBool(b, req.GetRestarts()), req.GetPlace()))
}

// register is Register, for what the request asks, with the places that were decided for one that
// has waited, or nil.
func (x *Txn) register(req *brainv1.RegisterRequest, asked string, places []placement.Allocation) ([]*nodev1.NodeRecord, error) {
	parent, kind, alias := x.parentOf(req), req.GetType(), req.GetAlias()
	count := max(int(req.GetCount()), 1)
	if id := req.GetRequestId(); id != "" {
		if !IsUUID(id) {
			return nil, connect.Errorf(connect.CodeInvalidArgument, "the request id %q is not a UUID", clip(id))
		}
		if done := x.request(id); done != nil {
			return x.repeat(done, asked)
		}
	}
	if err := x.checkRegister(req, count); err != nil {
		return nil, err
	}
	above, err := x.living(parent)
	if err != nil {
		return nil, err
	}
	prefix := ""
	if above != nil {
		prefix = above.GetPath() + "/"
		if depth := strings.Count(prefix, "/") + 1; depth > x.limits.MaxDepth {
			return nil, connect.Errorf(connect.CodeResourceExhausted, "a child of %s would be %d names deep; the bound is %d",
				clip(above.GetPath()), depth, x.limits.MaxDepth)
		}
	}
	if x.count+count > x.limits.MaxNodes {
		return nil, connect.Errorf(connect.CodeResourceExhausted, "there is no room for so many new nodes (%d): the tree has %d, and the bound is %d",
			count, x.count, x.limits.MaxNodes)
	}
	index := x.next(parent, kind)
	if index == 0 && len(x.counters(parent)) >= maxKinds {
		return nil, connect.Errorf(connect.CodeResourceExhausted, "there have been nodes of %d types below this parent, which is the bound", maxKinds)
	}
	if places == nil {
		r, err := x.placement(req.GetPlace(), parent, req.GetLauncher(), count)
		if err != nil {
			return nil, err
		}
		if places, err = x.places(r); err != nil {
			return nil, err
		}
	}

	records := make([]*nodev1.NodeRecord, 0, count)
	nids := make([]string, 0, count)
	first := x.revision + 1
	launcher := x.shared.host(req.GetLauncher())
	kind = x.shared.text(kind)
	service, created := x.shared.text(req.GetService()), x.shared.time(x.now)
	if above != nil {
		parent = above.GetNid() // one string for all children
	}
	for i := range count {
		x.revision++
		name, nid := nameOf(kind, index), NewUUID()
		given, err := x.allocate(nid, places, i)
		if err != nil {
			return nil, err
		}
		rec := &nodev1.NodeRecord{
			Nid: nid, Name: name, Path: prefix + name, Type: kind, Index: index, Parent: parent,
			Service: service, Alias: alias, Incarnation: 1, State: nodev1.NodeState_NODE_STATE_STARTING,
			Attributes: cloneValues(req.GetAttributes()), Created: created, Revision: x.revision,
			Restarts: req.GetRestarts(), Allocation: given,
		}
		x.put(&node{rec: rec, born: x.revision, launcher: launcher})
		records = append(records, rec)
		nids = append(nids, nid)
		index++
	}
	putNested(x.indices, parent, kind, index)
	if id := req.GetRequestId(); id != "" {
		done := &request{id: id, asked: x.shared.request(asked), nids: nids, done: x.now, seq: first}
		x.requests[id] = done
		x.reqList = append(x.reqList, done)
	}
	return records, nil
}

// withdrawn marks a request that was withdrawn before it arrived. It differs from every
// registration.
const withdrawn = "withdrawn"

// Withdraw undoes registrations by their request ids: the nodes that they registered are removed,
// and a registration that waits or arrives later is refused.
func (x *Txn) Withdraw(ids []string, cause string) ([]*nodev1.NodeRecord, error) {
	if len(ids) > maxChanges {
		return nil, connect.Errorf(connect.CodeInvalidArgument, "%d registrations at once are too many to withdraw; the bound is %d", len(ids), maxChanges)
	}
	var removed []*nodev1.NodeRecord
	for _, id := range ids {
		if !IsUUID(id) {
			return nil, connect.Errorf(connect.CodeInvalidArgument, "the request id %q is not a UUID", clip(id))
		}
		done := x.request(id)
		if done == nil {
			x.revision++
			late := &request{id: id, asked: withdrawn, done: x.now, seq: x.revision}
			x.requests[id] = late
			x.reqList = append(x.reqList, late)
			if w := x.waitingFor(id); w != nil {
				x.endWait(w)
				x.answer(w, Result{Err: connect.Errorf(connect.CodeCanceled, "the registration %s was withdrawn while it waited for a place", id)})
			}
			continue
		}
		var living []string
		for _, nid := range done.nids {
			if x.node(nid) != nil {
				living = append(living, nid)
			}
		}
		nodes, err := x.Remove(living, cause)
		if err != nil {
			return nil, err
		}
		removed = append(removed, nodes...)
	}
	return removed, nil
}

// repeat returns the result of a registration that is repeated.
func (x *Txn) repeat(done *request, asked string) ([]*nodev1.NodeRecord, error) {
	if done.asked == withdrawn {
		return nil, connect.Errorf(connect.CodeCanceled, "the registration %s was withdrawn before it arrived", done.id)
	}
	if done.asked != asked {
		return nil, errOtherRequest(done.id)
	}
	records := make([]*nodev1.NodeRecord, 0, len(done.nids))
	for _, nid := range done.nids {
		n, err := x.find(nid)
		switch {
		case err == nil:
			records = append(records, n.rec)
		case x.tomb(nid) != nil:
			records = append(records, x.tomb(nid).rec)
		default:
			return nil, connect.Errorf(connect.CodeNotFound, "the request %s was done, and what it registered has been gone for long", done.id)
		}
	}
	return records, nil
}

func (x *Txn) checkRegister(req *brainv1.RegisterRequest, count int) error {
	if err := checkType(req.GetType()); err != nil {
		return err
	}
	if why := nodename.BadService(req.GetService()); why != "" {
		return connect.Errorf(connect.CodeInvalidArgument, "the service %q can't be a node's: %s", clip(req.GetService()), why)
	}
	if uint64(req.GetCount()) > uint64(x.limits.MaxCount) { //nolint:gosec // the limit is positive
		return connect.Errorf(connect.CodeInvalidArgument, "%d nodes at once are too many; the bound is %d", req.GetCount(), x.limits.MaxCount)
	}
	if alias := req.GetAlias(); alias != "" {
		if count > 1 {
			return connect.Errorf(connect.CodeInvalidArgument, "%d nodes can't share the alias %q", count, clip(alias))
		}
		if err := CheckAlias(alias); err != nil {
			return err
		}
		if holder := x.node(x.alias(alias)); holder != nil {
			return connect.Errorf(connect.CodeAlreadyExists, "the alias %q is taken by %s (%s)", alias, holder.rec.GetPath(), holder.rec.GetNid())
		}
	}
	if err := x.checkValues(req.GetAttributes()); err != nil {
		return err
	}
	return x.checkHost("launcher", req.GetLauncher())
}

// living returns the record of a new node's parent; nil for the root.
func (x *Txn) living(parent string) (*nodev1.NodeRecord, error) {
	if parent == "" {
		return nil, nil //nolint:nilnil // the root has no record of this kind
	}
	n, err := x.find(parent)
	if err != nil {
		if d := x.tomb(parent); d != nil {
			return nil, connect.Errorf(connect.CodeFailedPrecondition, "the parent %s (%s) is dead: %s", d.rec.GetPath(), parent, d.rec.GetCause())
		}
		return nil, err
	}
	switch n.rec.GetState() {
	case nodev1.NodeState_NODE_STATE_DEAD:
		return nil, connect.Errorf(connect.CodeFailedPrecondition, "the parent %s (%s) is dead: %s", n.rec.GetPath(), parent, n.rec.GetCause())
	case nodev1.NodeState_NODE_STATE_STOPPING:
		return nil, connect.Errorf(connect.CodeFailedPrecondition, "the parent %s (%s) is stopping", n.rec.GetPath(), parent)
	case nodev1.NodeState_NODE_STATE_UNSPECIFIED, nodev1.NodeState_NODE_STATE_STARTING, nodev1.NodeState_NODE_STATE_RUNNING:
	}
	return n.rec, nil
}

// find returns a living node, or the error for a missing one.
func (x *Txn) find(nid string) (*node, error) {
	if n := x.node(nid); n != nil {
		return n, nil
	}
	return nil, unknown(x, nid)
}

func (x *Txn) rootNid() string { return x.root().GetNid() }
