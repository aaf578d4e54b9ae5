package runtime

import (
	"context"
	"log/slog"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"
)

// target is what a handle reaches: exactly one of node, remote and client is set.
type target struct {
	service *Service
	host    *Host // nil outside a system
	nid     string

	// node lives in this process.
	node *Node
	// remote lives elsewhere, and is reached through a tunnel.
	remote *remote
	// tag names the tunnel to go by; empty for the one that is shared.
	tag string
	// client reaches a node by any transport of connect's.
	client *clientTarget
}

func (t *target) logger() *slog.Logger {
	if t != nil && t.host != nil {
		return t.host.log
	}
	return slog.Default()
}

// pathHint names the node in errors.
func (t *target) pathHint() string {
	switch {
	case t.node != nil:
		return t.node.path
	case t.remote != nil:
		return t.remote.path()
	}
	return "the node"
}

// invoke makes a unary call and waits.
func (t *target) invoke(ctx context.Context, m *Method, req proto.Message) (proto.Message, error) {
	switch {
	case t == nil:
		return nil, errNoNode()
	case t.node != nil:
		return t.node.invokeLocal(ctx, m, req)
	case t.remote != nil:
		return t.remote.invoke(ctx, t.tag, m, req)
	}
	return t.client.invoke(ctx, t, m, req)
}

// submit makes a unary call and does not wait.
func (t *target) submit(ctx context.Context, m *Method, req proto.Message) *future {
	f := newFuture(m, t)
	var err error
	switch {
	case t == nil:
		err = errNoNode()
	case t.node != nil:
		err = t.node.submitLocal(ctx, m, req, f)
	case t.remote != nil:
		err = t.remote.submit(ctx, t.tag, m, req, f)
	default:
		err = t.client.submit(ctx, m, req, f)
	}
	if err != nil {
		f.complete(nil, err)
	}
	return f
}

// stream begins a streaming call.
func (t *target) stream(ctx context.Context, m *Method) (connect.ClientStream, error) {
	switch {
	case t == nil:
		return nil, errNoNode()
	case t.node != nil:
		return t.node.openPipe(ctx, m)
	case t.remote != nil:
		return t.remote.stream(ctx, t.tag, m)
	}
	return t.client.stream(ctx, m)
}

// invokeLocal is invoke for a node of this process.
func (n *Node) invokeLocal(ctx context.Context, m *Method, req proto.Message) (proto.Message, error) {
	cc := localCall(ctx, m)
	cc.sent = sealOf(req)
	res, err := n.invoke(cc, n.passes(req))
	cc.call.deliver(ctx)
	return res, fromPeer(ctx, err)
}

// submitLocal is submit for a node of this process: the call always waits in line, so that its caller never runs it.
func (n *Node) submitLocal(ctx context.Context, m *Method, req proto.Message, f *future) error {
	if ctx.Err() != nil {
		return causeOf(ctx)
	}
	cc := localCall(ctx, m)
	cc.sent = sealOf(req)
	// Nobody waits for an async call yet, so its caller's turn is in nobody's way.
	cc.chain = nil
	j, err := n.submit(cc, n.passes(req), proto.Size(req), func(j *job) { f.complete(j.res, fromPeer(ctx, j.err)) })
	if err != nil {
		return err
	}
	f.watch(ctx, func(cause error) { n.cancel(j, cause) })
	return nil
}
