package runtime

import (
	"context"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"

	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	"github.com/raylink/raylink/internal/connecterr"
)

// localEndpoint is a node of this process.
type localEndpoint struct {
	node *Node
	// tunnelTag is only for the NodeRefs of the node: calls within the process use no tunnel.
	tunnelTag string
}

func (e *localEndpoint) record() *nodev1.NodeRecord { return e.node.snapshot() }
func (e *localEndpoint) nid() string                { return e.node.nid }
func (e *localEndpoint) label() string              { return e.node.path }
func (e *localEndpoint) host() *Host                { return e.node.host }
func (e *localEndpoint) local() *Node               { return e.node }
func (e *localEndpoint) tag() string                { return e.tunnelTag }
func (e *localEndpoint) tagged(tag string) endpoint { return &localEndpoint{e.node, tag} }

func (e *localEndpoint) ended(ctx context.Context) error {
	if e.node.host == nil {
		return errNoEnd()
	}
	select {
	case <-e.node.stopped:
		return nil
	case <-ctx.Done():
		return causeOf(ctx)
	}
}

func (e *localEndpoint) invoke(ctx context.Context, m *Method, req proto.Message, out *outgoing) (proto.Message, error) {
	n := e.node
	if err := n.checkEncodes(m, true, req); err != nil {
		return nil, err
	}
	if err := n.checkDecodes(m, true, req); err != nil {
		return nil, fromPeer(ctx, err)
	}
	cc := localCall(ctx, m, out.metadata)
	cc.sent = fingerprintOf(req)
	res, err := n.invoke(cc, n.passes(req))
	if err == nil && out.info == nil && !cc.call.hasResponseMetadata() {
		return res, nil
	}
	header, trailer, err := n.outcome(cc, err)
	deliver(out.info, header, trailer)
	if err != nil {
		return nil, fromPeer(ctx, err)
	}
	return res, nil
}

// submit implements endpoint. The call always goes through the mailbox, and never runs on its
// caller's goroutine.
func (e *localEndpoint) submit(ctx context.Context, m *Method, req proto.Message, f *future, out *outgoing) error {
	n := e.node
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
	f.watch(ctx, func(cause error) error { return endedAt(connecterr.Canceled(cause), n.path, m, n.cancel(j, cause)) })
	return nil
}

func (e *localEndpoint) stream(ctx context.Context, m *Method, out *outgoing) (connect.ClientStream, error) {
	return e.node.openPipe(ctx, m, out)
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

// localCall makes the context of a call made with ctx to a node of this process.
func localCall(ctx context.Context, m *Method, metadata Metadata) *callContext {
	c := newCall(ctx, m, byLocal)
	c.call.receive(metadata)
	if cc := callContextOf(ctx); cc != nil {
		c.call.from = &cc.node.identity
		c.chain = chainOf(ctx)
	}
	return c
}
