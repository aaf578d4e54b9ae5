package runtime

import "google.golang.org/protobuf/proto"

// WithCopy gives nodes of this type messages of their own: what a caller in the same process sends
// is copied before the node gets it, and what the node returns before the caller does, streams
// included. It is for an implementation that changes its requests, or returns its own state;
// without it both sides of a local call share the message, and neither may change it.
//
// It is said of the type, not of one node: it is the implementation that needs it, wherever its
// nodes are created.
//
//	rt, err := raylink.Init(ctx, counterv1raylink.CounterType(newCounter).WithCopy())
func (t NodeType) WithCopy() NodeType {
	t.copies = true
	return t
}

// passes is a message as it passes between a caller in this process and the node, either way.
func (n *Node) passes(msg proto.Message) proto.Message {
	if n.copies && guarded {
		return proto.Clone(msg)
	}
	return msg
}
