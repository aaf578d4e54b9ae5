package runtime

import (
	"context"
	"log/slog"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"

	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
)

// endpoint is one node as its callers reach it. There is an implementation for each way: for a node
// in this process, in another process, and behind a connect client. A call behaves the same
// whatever way it goes: what it can carry, how it fails, and when it ends. internal/contract holds
// that, and tests each difference that remains.
//
// An endpoint is safe for concurrent use and comparable. Calls of methods that take turns, made one
// after the other by a goroutine, run in that order. A request must not be modified after it was
// passed to an endpoint, nor a response after it was returned.
type endpoint interface {
	// invoke makes a unary call and waits for its response. It returns when ctx ends, unless the
	// method runs on the caller's goroutine, see [GeneratedCall.Unary].
	invoke(ctx context.Context, m *Method, req proto.Message, out *outgoing) (proto.Message, error)
	// submit makes a unary call and does not wait for it: its outcome completes f. It may block
	// while the node's queue is full or its connection is being opened, until ctx ends. If submit
	// returns an error, the call has not been made and f is still to be completed by the caller.
	submit(ctx context.Context, m *Method, req proto.Message, f *future, out *outgoing) error
	// stream begins a streaming call. The stream ends with ctx.
	stream(ctx context.Context, m *Method, out *outgoing) (connect.ClientStream, error)
	// ended blocks until the node's current incarnation has ended, see [Ref.Ended].
	ended(ctx context.Context) error

	// record is the node's record as this process knows it; never nil, not to be modified.
	record() *nodev1.NodeRecord
	// nid identifies the node in the detection of cycles; empty if the node takes no part in it.
	nid() string
	// label names the node in error messages.
	label() string
	// host is the host whose system the node belongs to; nil outside a system.
	host() *Host
	// local is the node if it lives in this process, else nil.
	local() *Node
	// tag selects the tagged tunnel of the node; empty for the shared connection.
	tag() string
	// tagged returns the endpoint of the same node with another tag.
	tagged(tag string) endpoint
}

var (
	_ endpoint = (*localEndpoint)(nil)
	_ endpoint = (*remoteEndpoint)(nil)
	_ endpoint = (*clientEndpoint)(nil)
	_ endpoint = noEndpoint{}
	_ endpoint = (*interceptedEndpoint)(nil)
)

// endpoint returns what the Ref refers to; for the zero Ref, an endpoint whose calls fail.
func (r Ref) endpoint() endpoint {
	if r.to == nil {
		return noEndpoint{}
	}
	return r.to
}

// invoke makes a unary call and waits for its response.
func (r Ref) invoke(ctx context.Context, m *Method, req proto.Message) (proto.Message, error) {
	if to := r.interceptors(m); to != nil {
		return to.invokeIntercepted(ctx, m, req)
	}
	out, err := outgoingOf(ctx, m)
	if err != nil {
		return nil, err
	}
	return r.endpoint().invoke(ctx, m, req, out)
}

// submit makes a unary call and does not wait for it.
func (r Ref) submit(ctx context.Context, m *Method, req proto.Message) *future {
	if to := r.interceptors(m); to != nil {
		return to.submitIntercepted(ctx, m, req)
	}
	to := r.endpoint()
	f := newFuture(m, to)
	out, err := outgoingOf(ctx, m)
	if err == nil {
		err = to.submit(ctx, m, req, f, out)
	}
	if err != nil {
		f.complete(err)
	}
	return f
}

// stream begins a streaming call.
func (r Ref) stream(ctx context.Context, m *Method) (*callStream, error) {
	if to := r.interceptors(m); to != nil {
		return to.streamIntercepted(ctx, m)
	}
	out, err := outgoingOf(ctx, m)
	if err != nil {
		return nil, err
	}
	to := r.endpoint()
	stream, err := to.stream(ctx, m, out)
	if err != nil {
		return nil, err
	}
	return &callStream{ctx: ctx, stream: stream, method: m, to: to}, nil
}

// noEndpoint is what the zero Ref refers to.
type noEndpoint struct{}

func (noEndpoint) invoke(context.Context, *Method, proto.Message, *outgoing) (proto.Message, error) {
	return nil, errNoNode()
}

func (noEndpoint) submit(context.Context, *Method, proto.Message, *future, *outgoing) error {
	return errNoNode()
}

func (noEndpoint) stream(context.Context, *Method, *outgoing) (connect.ClientStream, error) {
	return nil, errNoNode()
}

func (noEndpoint) ended(context.Context) error { return errNoNode() }
func (noEndpoint) record() *nodev1.NodeRecord  { return &nodev1.NodeRecord{} }
func (noEndpoint) nid() string                 { return "" }
func (noEndpoint) label() string               { return "no node" }
func (noEndpoint) host() *Host                 { return nil }
func (noEndpoint) local() *Node                { return nil }
func (noEndpoint) tag() string                 { return "" }
func (noEndpoint) tagged(string) endpoint      { return nil }

// logger returns the host's logger, or the default one outside a system, where h is nil.
func (h *Host) logger() *slog.Logger {
	if h == nil {
		return slog.Default()
	}
	return h.log
}
