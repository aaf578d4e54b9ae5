package tree

import (
	"maps"
	"slices"
	"strconv"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"

	"github.com/raylink/raylink/brain/internal/placement"
	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
)

const (
	maxChanges   = 10_000
	maxKeyBytes  = 256
	maxHostBytes = 4 << 10
)

// Update applies changes in their order, all or none, and returns the record after each.
func (x *Txn) Update(changes []*brainv1.Change) ([]*nodev1.NodeRecord, error) {
	if len(changes) > maxChanges {
		return nil, connect.Errorf(connect.CodeInvalidArgument, "%d changes at once are too many; the bound is %d", len(changes), maxChanges)
	}
	if len(changes) > 1 && slices.ContainsFunc(changes, func(c *brainv1.Change) bool { return c.GetPlace() != nil }) {
		return nil, connect.NewError(connect.CodeInvalidArgument, "a change with a place must be the only one of its request, because it may have to wait")
	}
	inner := x.Begin()
	records := make([]*nodev1.NodeRecord, 0, len(changes))
	for _, change := range changes {
		rec, err := inner.update(change, nil)
		if err != nil {
			return nil, err
		}
		records = append(records, rec)
	}
	inner.Merge()
	return records, nil
}

// update applies one change, with the places that were decided for one that has waited, or nil.
func (x *Txn) update(change *brainv1.Change, places []placement.Allocation) (*nodev1.NodeRecord, error) {
	if change.GetNid() == x.rootNid() {
		return nil, connect.NewError(connect.CodeInvalidArgument, "Brain's own record can't be changed by a request")
	}
	n, err := x.find(change.GetNid())
	if err != nil {
		return nil, err
	}
	if err := x.checkHost("host", change.GetHost()); err != nil {
		return nil, err
	}
	present, meant := n.rec.GetIncarnation(), change.GetIncarnation()
	switch {
	case meant == present:
	case meant == present+1 && n.rec.GetRestarts():
		return x.nextLife(n, change, places)
	case meant == 0:
		return nil, connect.Errorf(connect.CodeInvalidArgument, "a change of %s must say which incarnation it is meant for; the present one is %d", n.rec.GetPath(), present)
	case meant < present:
		return nil, connect.Errorf(connect.CodeFailedPrecondition, "the change is meant for %s at incarnation %d, which is over: it lives at %d",
			n.rec.GetPath(), meant, present)
	case meant == present+1:
		return nil, connect.Errorf(connect.CodeFailedPrecondition, "%s is not registered as a node that restarts; it has one incarnation", n.rec.GetPath())
	default:
		return nil, connect.Errorf(connect.CodeFailedPrecondition, "the change is meant for %s at incarnation %d; it lives at %d", n.rec.GetPath(), meant, present)
	}
	if err := checkTransition(n.rec, change.GetState()); err != nil {
		return nil, err
	}
	if was, is := n.rec.GetHost().GetId(), change.GetHost().GetId(); was != "" && is != "" && was != is {
		return nil, connect.Errorf(connect.CodeFailedPrecondition, "%s lives in another host (pid %d, %s): a node moves only by beginning a new incarnation",
			n.rec.GetPath(), n.rec.GetHost().GetPid(), was)
	}
	attributes, err := x.changedAttributes(n.rec, change)
	if err != nil {
		return nil, err
	}
	rec := x.edit(n, func(rec *nodev1.NodeRecord) {
		if change.GetHost() != nil {
			rec.Host = x.shared.host(change.GetHost())
		}
		rec.Attributes = attributes
		if state := change.GetState(); state != nodev1.NodeState_NODE_STATE_UNSPECIFIED && state != nodev1.NodeState_NODE_STATE_DEAD {
			rec.State = state
		}
	})
	if change.GetState() != nodev1.NodeState_NODE_STATE_DEAD {
		return rec, nil
	}
	cause := change.GetCause()
	if cause == "" {
		cause = "its host gave no cause"
	}
	x.end([]ending{{nid: rec.GetNid(), cause: cause}}, died)
	if after := x.node(rec.GetNid()); after != nil {
		return after.rec, nil
	}
	return x.tomb(rec.GetNid()).rec, nil
}

// nextLife begins the next incarnation of a node that restarts.
func (x *Txn) nextLife(n *node, change *brainv1.Change, places []placement.Allocation) (*nodev1.NodeRecord, error) {
	if state := change.GetState(); state != nodev1.NodeState_NODE_STATE_STARTING && state != nodev1.NodeState_NODE_STATE_RUNNING {
		return nil, connect.Errorf(connect.CodeFailedPrecondition, "incarnation %d of %s must begin with the state starting or running", change.GetIncarnation(), n.rec.GetPath())
	}
	attributes, err := x.changedAttributes(n.rec, change)
	if err != nil {
		return nil, err
	}
	given, err := x.nextPlace(n, change, places)
	if err != nil {
		return nil, err
	}
	// Children that are still alive belong to the last incarnation, whose death was not detected
	// before.
	var rest []ending
	for _, child := range childrenInOrder(x, n.rec.GetNid()) {
		rest = append(rest, ending{
			nid: child.rec.GetNid(), final: true,
			cause: "parent " + n.rec.GetPath() + " was started again, as incarnation " + strconv.FormatUint(change.GetIncarnation(), 10),
		})
	}
	x.end(rest, died)
	return x.edit(n, func(rec *nodev1.NodeRecord) {
		rec.Incarnation = change.GetIncarnation()
		rec.State = change.GetState()
		rec.Host = x.shared.host(change.GetHost())
		rec.Attributes = attributes
		rec.Cause = ""
		rec.Allocation = given
	}), nil
}

// nextPlace returns the allocation of a node's next incarnation: the present one, unless the change
// has a place and the node's machine has left.
func (x *Txn) nextPlace(n *node, change *brainv1.Change, places []placement.Allocation) (*nodev1.Allocation, error) {
	had := n.rec.GetAllocation()
	if _, there := x.accounts.Machine(had.GetMachine()); there || change.GetPlace() == nil {
		return had, nil
	}
	if places == nil {
		r, err := x.placement(change.GetPlace(), n.rec.GetParent(), n.launcher, 1)
		if err != nil {
			return nil, err
		}
		if places, err = x.places(r); err != nil {
			return nil, err
		}
	}
	x.accounts.Release(n.rec.GetNid())
	return x.allocate(n.rec.GetNid(), places, 0)
}

// checkTransition refuses to move a state backwards.
func checkTransition(rec *nodev1.NodeRecord, state nodev1.NodeState) error {
	if _, known := nodev1.NodeState_name[int32(state)]; !known {
		return connect.Errorf(connect.CodeInvalidArgument, "%d is not a node's state", state)
	}
	if rec.GetState() == nodev1.NodeState_NODE_STATE_DEAD {
		return connect.Errorf(connect.CodeFailedPrecondition, "%s is dead: %s", rec.GetPath(), rec.GetCause())
	}
	if state != nodev1.NodeState_NODE_STATE_UNSPECIFIED && state < rec.GetState() {
		return connect.Errorf(connect.CodeFailedPrecondition, "%s is %s and can't be %s again in the same incarnation",
			rec.GetPath(), stateName(rec.GetState()), stateName(state))
	}
	return nil
}

func stateName(state nodev1.NodeState) string {
	switch state {
	case nodev1.NodeState_NODE_STATE_STARTING:
		return "starting"
	case nodev1.NodeState_NODE_STATE_RUNNING:
		return "running"
	case nodev1.NodeState_NODE_STATE_STOPPING:
		return "stopping"
	case nodev1.NodeState_NODE_STATE_DEAD:
		return "dead"
	case nodev1.NodeState_NODE_STATE_UNSPECIFIED:
	}
	return "in no state"
}

func (x *Txn) changedAttributes(rec *nodev1.NodeRecord, change *brainv1.Change) (map[string]*nodev1.Value, error) {
	if len(change.GetSetAttributes()) == 0 && len(change.GetDeleteAttributes()) == 0 {
		return rec.GetAttributes(), nil
	}
	if err := x.checkValues(change.GetSetAttributes()); err != nil {
		return nil, err
	}
	attributes := maps.Clone(rec.GetAttributes())
	for _, key := range change.GetDeleteAttributes() {
		delete(attributes, key)
	}
	if attributes == nil {
		attributes = make(map[string]*nodev1.Value)
	}
	maps.Copy(attributes, cloneValues(change.GetSetAttributes()))
	if err := x.checkValues(attributes); err != nil {
		return nil, err
	}
	return attributes, nil
}

func (x *Txn) checkValues(values map[string]*nodev1.Value) error {
	if len(values) > x.limits.MaxAttributes {
		return connect.Errorf(connect.CodeInvalidArgument, "%d attributes are too many; the bound is %d", len(values), x.limits.MaxAttributes)
	}
	total := 0
	for key, value := range values {
		if key == "" || len(key) > maxKeyBytes {
			return connect.Errorf(connect.CodeInvalidArgument, "an attribute's key has 1 to %d bytes; %q has %d", maxKeyBytes, clip(key), len(key))
		}
		if value.GetKind() == nil {
			return connect.Errorf(connect.CodeInvalidArgument, "the attribute %q has no value", clip(key))
		}
		total += len(key) + proto.Size(value)
	}
	if total > x.limits.MaxAttributeBytes {
		return connect.Errorf(connect.CodeInvalidArgument, "attributes of %d bytes are too big; the bound is %d", total, x.limits.MaxAttributeBytes)
	}
	return nil
}

func cloneValues(values map[string]*nodev1.Value) map[string]*nodev1.Value {
	if len(values) == 0 {
		return nil
	}
	clones := make(map[string]*nodev1.Value, len(values))
	for key, value := range values {
		clones[key] = proto.CloneOf(value)
	}
	return clones
}
