package runtime

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect/v2"

	"github.com/raylink/raylink/internal/connecterr"
	"github.com/raylink/raylink/runtime/internal/mailbox"
	"github.com/raylink/raylink/runtime/tunnel"
)

// Way is how a call reached its node.
type Way string

// The ways of a call.
const (
	// WayLocal is a call inside one process.
	WayLocal Way = "local"
	// WayTunnel is a call through a tunnel, from another process.
	WayTunnel Way = "tunnel"
	// WayHTTP is a call by a Connect, gRPC or gRPC-Web client, direct or through the gateway.
	WayHTTP Way = "http"
)

// Call is the call that a node's code is serving, with the same contents whatever way it came. See
// [CallFrom]. Its methods are safe for concurrent use.
type Call struct {
	method *Method
	// from is nil for a call from outside nodes, and metadata if there is none.
	from     *Caller
	metadata *Metadata
	// response is allocated when the node's code first sets a header or trailer.
	response atomic.Pointer[responseMetadata]
	way      wayNumber
}

// wayNumber is a [Way] in one byte, since every call has one.
type wayNumber uint8

const (
	byLocal wayNumber = iota
	byTunnel
	byHTTP
)

// Caller identifies the node that made a call.
type Caller struct {
	// NID is the calling node's id; empty where the call comes from outside nodes.
	NID string
	// Path is the calling node's path; empty where the call comes from outside nodes.
	Path string
}

// responseMetadata is the metadata that a node's code adds to its response.
type responseMetadata struct {
	mu              sync.Mutex
	header, trailer Metadata
}

// CallFrom returns the call that ctx belongs to, where ctx is the context of a node's method or
// derived from it. It returns nil outside of calls.
func CallFrom(ctx context.Context) *Call {
	c, _ := ctx.Value(callKey{}).(*callContext)
	if c == nil || c.call.method == nil {
		return nil
	}
	return &c.call
}

// NodeFrom returns the node whose code runs with ctx: its methods, tasks, OnStop functions and what
// [Node.Do] runs, with any context derived from theirs. It returns nil outside of nodes. An
// implementation without a set-up function of its own, behind a generated `NewLocal...` or
// `Register...Tunnel`, gets its node this way, to take turns with [Node.Do]. Such a node is
// outside any system: it can neither create nor find other nodes; it never stops, so its tasks end
// by themselves or with the process, and its OnStop functions never run.
func NodeFrom(ctx context.Context) *Node {
	if c := callContextOf(ctx); c != nil {
		return c.node
	}
	return nil
}

// Method is the method that was called.
func (c *Call) Method() *Method { return c.method }

// Way is how the call reached the node.
func (c *Call) Way() Way { return [...]Way{WayLocal, WayTunnel, WayHTTP}[c.way] }

// Caller identifies the calling node; it is the zero value if the call comes from outside nodes.
func (c *Call) Caller() Caller {
	if c.from == nil {
		return Caller{}
	}
	return *c.from
}

// Metadata is what the caller sent along with the request. Values of keys that end in `-bin` are
// raw bytes. Keys reserved for the transports (see [WithMetadata]) are left out, including
// credentials (`authorization`, `proxy-authorization`, `cookie`). It must not be modified.
func (c *Call) Metadata() Metadata {
	if c.metadata == nil {
		return Metadata{}
	}
	return *c.metadata
}

// receive sets the caller's metadata, before the call is visible to the node's code. Calls of every
// way go through it.
func (c *Call) receive(metadata Metadata) {
	if metadata.Len() == 0 {
		return
	}
	if metadata = metadata.withoutReserved(); metadata.Len() > 0 {
		filtered := metadata // so that only the filtered copy escapes to the heap
		c.metadata = &filtered
	}
}

// SetHeader adds to the metadata that is sent before the response. A stream sends it with its first
// message, or at its end if it has none. The limits are those of [WithMetadata]; header and trailer
// share one size limit. A call whose metadata cannot be sent fails with Internal, unless it has
// failed already: then that error is kept. Safe for concurrent use.
//
// The caller reads header and trailer with [connect.NewClientContext], whatever way the call goes
// and also if it fails:
//
//	ctx, info := connect.NewClientContext(ctx)
//	res, err := learner.Learn(ctx, req)
//	version := info.ResponseHeader().Get("model-version")
//
// They are there once a unary call has returned, a future is done, or a stream's Receive has
// returned: the header with the first message, the trailer with the error that ends the stream.
// info is that of the last call made with its context; calls that run at once need a context each.
func (c *Call) SetHeader(key, value string) {
	r := c.ensureResponse()
	r.mu.Lock()
	r.header = r.header.With(key, value)
	r.mu.Unlock()
}

// SetTrailer adds to the metadata that is sent after the response, with the same rules as
// [Call.SetHeader]. Safe for concurrent use.
func (c *Call) SetTrailer(key, value string) {
	r := c.ensureResponse()
	r.mu.Lock()
	r.trailer = r.trailer.With(key, value)
	r.mu.Unlock()
}

func (c *Call) ensureResponse() *responseMetadata {
	if c.response.Load() == nil {
		c.response.CompareAndSwap(nil, new(responseMetadata))
	}
	return c.response.Load()
}

// hasResponseMetadata reports whether the node's code has set metadata of the response.
func (c *Call) hasResponseMetadata() bool { return c.response.Load() != nil }

// responseMetadata returns the metadata that the node's code has set so far.
func (c *Call) responseMetadata() (header, trailer Metadata) {
	r := c.response.Load()
	if r == nil {
		return header, trailer
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.header, r.trailer
}

// causeOf is the error of a call whose context has ended.
func causeOf(ctx context.Context) error { return connecterr.OfContext(ctx) }

// withDeadlineCause makes errors.Is find context.DeadlineExceeded in an error of the caller's own
// deadline that the serving side noticed first.
func withDeadlineCause(ctx context.Context, err error) error {
	e, ok := errors.AsType[*connect.Error](err)
	if !ok || e.Code() != connect.CodeDeadlineExceeded || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	if _, ok := ctx.Deadline(); !ok {
		return err
	}
	return e.WithCause(context.DeadlineExceeded)
}

type callKey struct{}

// callContext is the context of one run of a node's method. It ends with the caller's context, with
// the node's work and with the run itself. Its values are those of the node: the values of a local
// caller's context are not visible in it, as those of a remote caller's could not be.
//
// It is one allocation. Only a method that waits on Done, derives a context or asks for the cause
// pays for a context that joins these ends.
type callContext struct {
	call Call
	// node is the serving node.
	node *Node
	// nodeCtx has the node's values and ends with its work.
	nodeCtx context.Context //nolint:containedctx // part of this context
	// caller is the context of the call; it ends when the call is canceled.
	caller context.Context //nolint:containedctx // as above
	// turn is the one that the method holds, or nil.
	turn *mailbox.Turn
	// ownTurn is its storage where the method runs on the caller's own goroutine.
	ownTurn mailbox.Turn
	// chain are the calls that wait for this one, see chain.go.
	chain *chain
	// in or future gets the error where the method has not returned when its node has stopped, see
	// interrupt. Both are nil where the caller itself waits for the end of the node.
	in     *tunnel.Incoming
	future *future
	// held is the first of the Holds that still hold the answer back; nil if there is none. It is
	// set with mu held, and read also without.
	held atomic.Pointer[heldAnswer]
	// sent is the fingerprint of the request of a call from this process, see fingerprint.go.
	sent fingerprint

	mu sync.Mutex // guards the fields below
	// err is what Err has returned; it never changes afterwards.
	err error
	// over is the reason why the context has ended by itself: the method has returned, or the call
	// was aborted.
	over error
	// joint is allocated when a single joined context is needed.
	joint *joint
}

// joint is a context that ends with the first of a call's ends.
type joint struct {
	ctx    context.Context //nolint:containedctx // as above
	cancel context.CancelCauseFunc
	unlink func() bool
}

var (
	_ context.Context = (*callContext)(nil)
	_ mailbox.Sized   = (*callContext)(nil)
	_ mailbox.Sized   = (*job)(nil)
)

// maxDeadline is the furthest that a deadline may be away; one beyond that is no deadline, whatever
// way the call came. Connect's header for it has ten digits of milliseconds, which are 115 days.
const maxDeadline = 100 * 24 * time.Hour

// Deadline implements [context.Context].
func (c *callContext) Deadline() (time.Time, bool) {
	deadline, ok := c.caller.Deadline()
	if !ok || time.Until(deadline) > maxDeadline {
		return time.Time{}, false
	}
	return deadline, true
}

// Done implements [context.Context].
func (c *callContext) Done() <-chan struct{} { return c.join().Done() }

// Err implements [context.Context].
func (c *callContext) Err() error {
	// Without the lock: this may be what notices that the deadline has passed. It then ends the
	// call, which takes the lock.
	caller := c.caller.Err()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.err = c.state(caller)
	}
	return c.err
}

// state returns why the context has ended. caller is the error of the caller's context.
func (c *callContext) state(caller error) error {
	if c.joint != nil {
		return c.joint.ctx.Err()
	}
	if caller != nil {
		return caller
	}
	if c.over != nil {
		return context.Canceled
	}
	return c.nodeCtx.Err()
}

// Value implements [context.Context].
func (c *callContext) Value(key any) any {
	switch key.(type) {
	case callKey:
		return c
	case *int:
		// Package context uses an unexported *int key to find the innermost cancelable context, for
		// its cause and to derive others without a goroutine. Without this it would find the node's
		// context, and miss the caller's end. TestCauseOfACall fails if the standard library
		// changes that.
		if joined := c.join(); joined.Value(key) == any(joined) {
			return joined
		}
	}
	return c.nodeCtx.Value(key)
}

// join returns the joined context, and makes it on first use.
func (c *callContext) join() context.Context {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.joint != nil {
		return c.joint.ctx
	}
	j := &joint{}
	c.joint = j
	j.ctx, j.cancel = context.WithCancelCause(c.caller)
	switch nodeCtx := c.nodeCtx; {
	case c.over != nil:
		j.cancel(c.over)
	case nodeCtx.Err() != nil:
		j.cancel(context.Cause(nodeCtx))
	default:
		j.unlink = context.AfterFunc(nodeCtx, func() { j.cancel(context.Cause(nodeCtx)) })
	}
	return j.ctx
}

// end ends the context when the method has returned, and releases what join registered.
func (c *callContext) end() { c.abort(context.Canceled) }

// abort ends the context with a cause, possibly while the method is running.
func (c *callContext) abort(cause error) {
	c.mu.Lock()
	if c.over == nil {
		c.over = cause
	}
	j := c.joint
	c.mu.Unlock()
	if j == nil {
		return
	}
	if j.unlink != nil {
		j.unlink()
	}
	j.cancel(cause)
}

// interrupt completes the call with err although its method has not returned.
func (c *callContext) interrupt(err *connect.Error) {
	switch {
	case c.in != nil:
		c.in.Refuse(err)
	case c.future != nil:
		c.future.complete(fromPeer(c.caller, err))
	}
}

// Label implements [mailbox.Sized]: it is the method's name.
func (c *callContext) Label() string { return c.call.method.name }

// Bytes implements [mailbox.Sized]. The request of a call from this process is its caller's, and
// that of a call by HTTP is counted by the host.
func (c *callContext) Bytes() int64 {
	if c.in == nil {
		return 0
	}
	return int64(c.in.RequestBytes)
}

// callContextOf returns the call context that ctx belongs to, or nil.
func callContextOf(ctx context.Context) *callContext {
	c, _ := ctx.Value(callKey{}).(*callContext)
	return c
}

// mayBlock is called with the context of a node's code before it may block on others: then it must
// not occupy a reading goroutine.
func mayBlock(ctx context.Context) {
	for cc := callContextOf(ctx); cc != nil && cc.caller != nil; cc = callContextOf(cc.caller) {
		if cc.in != nil {
			if cc.in.MayBlock() {
				cc.node.latencies[cc.call.method.index].markSlow()
			}
			return
		}
	}
}
