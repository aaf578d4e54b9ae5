package runtime

import (
	"context"
	"log/slog"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"
)

// target is what a handle refers to: exactly one of node, remote and client is set.
type target struct {
	service *Service
	host    *Host // nil outside a system
	nid     string

	// node is set if the node lives in this process.
	node *Node
	// remote is set if the node lives in another process, reached through a tunnel.
	remote *remote
	// tag selects a tagged tunnel; empty for the shared one.
	tag string
	// client is set if the node is reached through a connect client, over any transport.
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

// invoke makes a unary call and waits for it.
func (t *target) invoke(ctx context.Context, m *Method, req proto.Message) (proto.Message, error) {
	if t == nil {
		return nil, errNoNode()
	}
	out, err := outgoingOf(ctx, m)
	switch {
	case err != nil:
		return nil, err
	case t.node != nil:
		return t.node.invokeLocal(ctx, m, req, out)
	case t.remote != nil:
		return t.remote.invoke(ctx, t.tag, m, req, out)
	}
	return t.client.invoke(ctx, t, m, req, out)
}

// submit makes a unary call and does not wait for it.
func (t *target) submit(ctx context.Context, m *Method, req proto.Message) *future {
	f := newFuture(m, t)
	err := t.submitTo(ctx, m, req, f)
	if err != nil {
		f.complete(err)
	}
	return f
}

func (t *target) submitTo(ctx context.Context, m *Method, req proto.Message, f *future) error {
	if t == nil {
		return errNoNode()
	}
	out, err := outgoingOf(ctx, m)
	switch {
	case err != nil:
		return err
	case t.node != nil:
		return t.node.submitLocal(ctx, m, req, f, out)
	case t.remote != nil:
		return t.remote.submit(ctx, t.tag, m, req, f, out)
	}
	return t.client.submit(ctx, m, req, f, out)
}

// stream begins a streaming call.
func (t *target) stream(ctx context.Context, m *Method) (connect.ClientStream, error) {
	if t == nil {
		return nil, errNoNode()
	}
	out, err := outgoingOf(ctx, m)
	switch {
	case err != nil:
		return nil, err
	case t.node != nil:
		return t.node.openPipe(ctx, m, out)
	case t.remote != nil:
		return t.remote.stream(ctx, t.tag, m, out)
	}
	return t.client.stream(ctx, m, out)
}

// invokeLocal is invoke for a local node.
func (n *Node) invokeLocal(ctx context.Context, m *Method, req proto.Message, out *outgoing) (proto.Message, error) {
	if err := n.checkEncodes(m, true, req); err != nil {
		return nil, err
	}
	if err := n.checkDecodes(m, true, req); err != nil {
		return nil, fromPeer(ctx, err)
	}
	cc := localCall(ctx, m, out.metadata)
	cc.sent = fingerprintOf(req)
	res, err := n.invoke(cc, n.passes(req))
	if err == nil && out.info == nil && !cc.call.hasReply() {
		return res, nil
	}
	header, trailer, err := n.outcome(cc, err)
	deliver(out.info, header, trailer)
	if err != nil {
		return nil, fromPeer(ctx, err)
	}
	return res, nil
}

// submitLocal is submit for a local node. The call always goes through the mailbox, and never runs
// on its caller's goroutine.
func (n *Node) submitLocal(ctx context.Context, m *Method, req proto.Message, f *future, out *outgoing) error {
	if ctx.Err() != nil {
		return n.ended(ctx, m, unsent)
	}
	if err := n.checkEncodes(m, true, req); err != nil {
		return err
	}
	if err := n.checkDecodes(m, true, req); err != nil {
		return fromPeer(ctx, err)
	}
	cc := localCall(ctx, m, out.metadata)
	cc.sent = fingerprintOf(req)
	info := out.info
	// Its caller does not wait for an asynchronous call yet, so the caller's turn cannot be part of
	// a cycle.
	cc.chain = nil
	cc.future = f
	j, err := n.submit(cc, n.passes(req), proto.Size(req), func(j *job) {
		// This goroutine is new: with a large frame here, completeWith would outgrow its initial
		// stack.
		show, err := j.asyncOutcome(ctx, info)
		f.completeWith(j.res, err, show)
	})
	if err != nil {
		return err
	}
	f.watch(ctx, func(cause error) error { return endedAt(canceledError(cause), n.path, m, n.cancel(j, cause)) })
	return nil
}

// asyncOutcome is the outcome of an asynchronous call. show delivers its metadata to the caller's
// info; it is nil if the caller did not ask for metadata. Not inlined, so that its frame is gone
// when the future is completed.
//
//go:noinline
func (j *job) asyncOutcome(ctx context.Context, info *connect.CallInfo) (show func(), _ error) {
	header, trailer, err := j.cc.node.outcome(j.cc, j.err)
	if info != nil {
		show = func() { deliver(info, header, trailer) }
	}
	return show, fromPeer(ctx, err)
}
