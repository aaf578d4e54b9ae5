package runtime

import (
	"context"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"

	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
)

// Ref is the untyped half of a handle: which node it is, and what can be asked of any node. It is small; copy it freely.
// The zero Ref reaches no node, and its calls say so.
type Ref struct{}

// Parent is where a new node goes: the runtime itself (a child of the root that lives as long as this process), the node
// that asks, or a handle's Ref.
type Parent interface{ parentOf() }

// Finder is who asks for a node: the runtime, or a node, to which relative paths are relative.
type Finder interface{ finder() }

// Where names a node: [Path], [Alias] or [NID].
type Where struct{}

// CreateOption says how a node is created.
type CreateOption interface{}

// Node is a node as its own code sees it.
type Node struct{}

// NodeType is a type of node that this process can host: a service, and how one is set up.
type NodeType struct{}

// NewNodeType is for generated code. setup gets the configuration that the schema names, never nil, or nil where it names none.
func NewNodeType(service *Service, setup func(ctx context.Context, node *Node, config proto.Message) (any, error)) NodeType {
	panic("not yet")
}

// Create creates a node. It is for generated code.
func Create(ctx context.Context, parent Parent, service *Service, config proto.Message, opts ...CreateOption) (Ref, error) {
	panic("not yet")
}

// CreateN creates n nodes at once, all or none. It is for generated code.
func CreateN(ctx context.Context, parent Parent, service *Service, n int, config proto.Message, opts ...CreateOption) ([]Ref, error) {
	panic("not yet")
}

// Find looks a node up. It is for generated code.
func Find(ctx context.Context, from Finder, service *Service, where Where) (Ref, error) {
	panic("not yet")
}

// RefFrom makes a reference from what travelled in a message, without asking anybody. It is for generated code.
func RefFrom(from Finder, service *Service, ref *nodev1.NodeRef) (Ref, error) {
	panic("not yet")
}

// NewLocal puts a node's implementation behind a mailbox, in this process and outside any system. It needs no Close.
// It is for generated code.
func NewLocal(service *Service, node any) Ref {
	panic("not yet")
}

// RegisterTunnel registers a node's implementation, behind a mailbox, on a connect server. It is for generated code.
func RegisterTunnel(server *connect.Server, service *Service, node any) {
	panic("not yet")
}

// NewTunnel makes a reference to the node that a connect client reaches. It is for generated code.
func NewTunnel(service *Service, client *connect.Client) Ref {
	panic("not yet")
}
