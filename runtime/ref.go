package runtime

import (
	"context"
	"fmt"
	"maps"
	"strings"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"

	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
)

// Ref is the untyped half of a handle: it identifies a node, and has the operations that every node
// supports. It is small and may be copied freely. Methods without a context make no call: they
// return what this process knows, which is the node's record as last received. A Ref is safe for
// concurrent use. The zero Ref refers to no node, and calls with it fail with FailedPrecondition.
type Ref struct {
	// service has the methods that are called.
	service *Service
	to      endpoint // nil in the zero Ref, see Ref.endpoint
}

// IsZero reports whether the Ref refers to no node.
func (r Ref) IsZero() bool { return r.to == nil }

// record is the node's record as this process knows it; never nil, not to be modified.
func (r Ref) record() *nodev1.NodeRecord { return r.endpoint().record() }

// NID is the node's id; empty for a node outside any system.
func (r Ref) NID() string { return r.record().GetNid() }

// Path is the node's path.
func (r Ref) Path() string { return r.record().GetPath() }

// Name is the last part of the path.
func (r Ref) Name() string { return r.record().GetName() }

// Alias is the node's alias, or "".
func (r Ref) Alias() string { return r.record().GetAlias() }

// State is the node's lifecycle state, as last received.
func (r Ref) State() nodev1.NodeState { return r.record().GetState() }

// Incarnation is how often the node has been started under its nid.
func (r Ref) Incarnation() uint64 { return r.record().GetIncarnation() }

// Service is the full name of the node's service.
func (r Ref) Service() string {
	if s := r.record().GetService(); s != "" || r.service == nil {
		return s
	}
	return r.service.name
}

// Attributes returns a copy of the node's attributes.
func (r Ref) Attributes() map[string]*nodev1.Value { return maps.Clone(r.record().GetAttributes()) }

// NodeRef returns the message that refers to the node, to be put into other messages; its receiver
// makes a handle of it. From the NodeRef of a tagged Ref, handles are made whose calls go over that
// tunnel.
func (r Ref) NodeRef() *nodev1.NodeRef {
	to := r.endpoint()
	return refOf(to.record(), to.tag())
}

// Record returns a copy of the node's record as this process knows it.
func (r Ref) Record() *nodev1.NodeRecord { return proto.CloneOf(r.record()) }

// String returns the path, or "no node" if there is none.
func (r Ref) String() string {
	if p := r.Path(); p != "" {
		return p
	}
	return "no node"
}

// Tagged returns a Ref to the same node whose calls go over the tunnel with that tag, a connection
// of its own. The node must have created the tunnel with CreateTunnel. Calls over different tunnels
// are not ordered with each other. If the node lives in this process, calls go to it directly and
// the tag is ignored. To get a tagged handle, make it of the NodeRef:
//
//	bulk, err := demov1raylink.LearnerFrom(rt, learner.Ref().Tagged("bulk").NodeRef())
func (r Ref) Tagged(tag string) Ref {
	return Ref{service: r.service, to: r.endpoint().tagged(tag)}
}

func (r Ref) parentOf() parentOf {
	to := r.endpoint()
	return parentOf{host: to.host(), ref: r, node: to.local()}
}

// Parent determines where a new node is placed in the tree. It is the runtime itself (a child of
// the root that lives as long as this process), a [Node], or the Ref of a handle.
type Parent interface{ parentOf() parentOf }

// parentOf is a resolved parent. node is set if it lives in this process, ref if it is a node at
// all.
type parentOf struct {
	host *Host
	node *Node
	ref  Ref
}

// Finder looks up nodes. It is the runtime, a node, or the Ref of a handle. A node and a Ref
// resolve relative paths against the node's own.
type Finder interface {
	finder() (host *Host, base string)
}

func (n *Node) parentOf() parentOf { return parentOf{host: n.host, node: n, ref: n.ref()} }

func (n *Node) finder() (*Host, string) { return n.host, n.path }

func (r Ref) finder() (*Host, string) { return r.endpoint().host(), r.Path() }

// AttributeValue is the set of types that an attribute can have.
type AttributeValue interface {
	int64 | int | float64 | bool | string | []byte
}

// valueOf converts an attribute to its message.
func valueOf[T AttributeValue](v T) *nodev1.Value {
	switch v := any(v).(type) {
	case int64:
		return &nodev1.Value{Kind: &nodev1.Value_Int64Value{Int64Value: v}}
	case int:
		return &nodev1.Value{Kind: &nodev1.Value_Int64Value{Int64Value: int64(v)}}
	case float64:
		return &nodev1.Value{Kind: &nodev1.Value_DoubleValue{DoubleValue: v}}
	case bool:
		return &nodev1.Value{Kind: &nodev1.Value_BoolValue{BoolValue: v}}
	case string:
		return &nodev1.Value{Kind: &nodev1.Value_StringValue{StringValue: v}}
	case []byte:
		return &nodev1.Value{Kind: &nodev1.Value_BytesValue{BytesValue: v}}
	}
	return nil
}

// Attribute reads an attribute from what this process knows of the node; it makes no call. It
// returns false if the node has no attribute of that name and type.
func Attribute[T AttributeValue](ref Ref, key string) (T, bool) {
	var out T
	v, ok := ref.record().GetAttributes()[key]
	if !ok {
		return out, false
	}
	switch p := any(&out).(type) {
	case *int64:
		_, ok = v.GetKind().(*nodev1.Value_Int64Value)
		*p = v.GetInt64Value()
	case *int:
		_, ok = v.GetKind().(*nodev1.Value_Int64Value)
		*p = int(v.GetInt64Value())
	case *float64:
		_, ok = v.GetKind().(*nodev1.Value_DoubleValue)
		*p = v.GetDoubleValue()
	case *bool:
		_, ok = v.GetKind().(*nodev1.Value_BoolValue)
		*p = v.GetBoolValue()
	case *string:
		_, ok = v.GetKind().(*nodev1.Value_StringValue)
		*p = v.GetStringValue()
	case *[]byte:
		_, ok = v.GetKind().(*nodev1.Value_BytesValue)
		*p = v.GetBytesValue()
	}
	return out, ok
}

// SetAttribute publishes an attribute of the node, and replaces an earlier value. When it returns
// without an error, Brain has stored it; processes with handles of the node receive it soon
// afterwards.
func SetAttribute[T AttributeValue](ctx context.Context, n *Node, key string, v T) error {
	if n.host == nil {
		return connect.NewError(connect.CodeFailedPrecondition, "a node outside any system has no attributes")
	}
	return n.host.setAttribute(ctx, n, key, valueOf(v))
}

// Where identifies a node to look up: see [Path], [Alias] and [NID].
type Where struct {
	kind  whereKind
	value string
}

type whereKind int

const (
	wherePath whereKind = iota + 1
	whereAlias
	whereNID
)

// Path identifies a node by its path: absolute, or relative to the node that looks it up
// (`./child`, `../sibling`).
func Path(path string) Where { return Where{wherePath, path} }

// Alias identifies a node by its alias.
func Alias(alias string) Where { return Where{whereAlias, alias} }

// NID identifies a node by its id.
func NID(nid string) Where { return Where{whereNID, nid} }

// absolute resolves a path against base, the path of the node that looks it up; "" outside nodes,
// where a relative path is an error.
func absolute(path, base string) (string, error) {
	if !strings.HasPrefix(path, "./") && !strings.HasPrefix(path, "../") && path != "." && path != ".." {
		return path, nil
	}
	if base == "" {
		return "", connect.Errorf(connect.CodeInvalidArgument, "the path %q is relative: only a node can resolve relative paths", path)
	}
	at := strings.Split(base, "/")
	for part := range strings.SplitSeq(path, "/") {
		switch part {
		case ".", "":
		case "..":
			if len(at) == 0 {
				return "", connect.Errorf(connect.CodeInvalidArgument, "the path %q leads above the root from %s", path, base)
			}
			at = at[:len(at)-1]
		default:
			at = append(at, part)
		}
	}
	return strings.Join(at, "/"), nil
}

// Ended blocks until the node's current incarnation has ended: it was stopped, it died, or it has
// been started again. Then it returns nil, and the cause in [Ref.Record] says how it ended, where
// that is known. If ctx ends first, Ended returns its error. It makes no call to the node: Brain
// reports its end, so any number of callers may wait.
func (r Ref) Ended(ctx context.Context) error {
	mayBlock(ctx)
	return r.endpoint().ended(ctx)
}

// errNoEnd is the error of waiting for the end of a node that is in no system.
func errNoEnd() error {
	return connect.NewError(connect.CodeFailedPrecondition, "waiting for a node's end: a node outside any system has none")
}

// setAttribute publishes an attribute of a local node.
func (h *Host) setAttribute(ctx context.Context, n *Node, key string, v *nodev1.Value) error {
	mayBlock(ctx)
	res, err := h.brain.Update(ctx, &brainv1.UpdateRequest{Changes: []*brainv1.Change{{
		Nid: n.nid, Incarnation: n.snapshot().GetIncarnation(), SetAttributes: map[string]*nodev1.Value{key: v},
	}}})
	if err != nil {
		return fmt.Errorf("publishing the attribute %q of %s: %w", key, n.path, err)
	}
	n.setRecord(res.GetNodes()[0])
	return nil
}
