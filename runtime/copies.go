package runtime

import "google.golang.org/protobuf/proto"

// WithCopy gives nodes of this type messages of their own: requests from callers in the same
// process are copied before the node receives them, and its responses before the caller does, in
// streams too. It is for an implementation that modifies its requests or returns messages that it
// keeps. Without it both sides of a local call share the message, and neither may modify it.
//
// It is an option of the type, not of one node: the implementation needs it wherever its nodes are
// created.
//
//	rt, err := raylink.Init(ctx, counterv1raylink.CounterType(newCounter).WithCopy())
func (t NodeType) WithCopy() NodeType {
	t.copies = true
	return t
}

// passes returns the message to hand from a caller in this process to the node, or back: itself, or
// a copy if the type asks for that.
func (n *Node) passes(msg proto.Message) proto.Message {
	if n.copies {
		return proto.Clone(msg)
	}
	return msg
}
