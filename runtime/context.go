package runtime

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"

	"connectrpc.com/connect/v2"
)

// Way is how a call came to its node.
type Way string

// The ways a call can go.
const (
	// WayLocal is a call inside one process.
	WayLocal Way = "local"
	// WayTunnel is a call through a tunnel.
	WayTunnel Way = "tunnel"
	// WayHTTP is a call by a Connect, gRPC or gRPC-Web client, direct or through the gateway.
	WayHTTP Way = "http"
)

// Call is what a node's code can know of the call it is serving, the same whatever way the call
// came. See [CallFrom].
type Call struct {
	method *Method
	// from is nil where the call comes from outside nodes, and metadata where there is none.
	from     *Caller
	metadata *Metadata
	// reply is made when there is something to say.
	reply atomic.Pointer[reply]
	way   wayNumber
}

// wayNumber is a [Way] in one byte: every call has one.
type wayNumber uint8

const (
	byLocal wayNumber = iota
	byTunnel
	byHTTP
)

// Caller says who calls.
type Caller struct {
	// NID is the calling node's id; empty where the call comes from outside nodes.
	NID string
	// Path is the calling node's path; empty where the call comes from outside nodes.
	Path string
}

// reply takes what a node's code says beside its response.
type reply struct {
	mu              sync.Mutex
	header, trailer Metadata
}

// CallFrom returns the call that ctx belongs to: the one a node's method was given. It returns nil
// outside of calls.
func CallFrom(ctx context.Context) *Call {
	c, _ := ctx.Value(callKey{}).(*callContext)
	if c == nil || c.call.method == nil {
		return nil
	}
	return &c.call
}

// NodeFrom returns the node whose code runs with ctx: in its methods, and what they have derived;
// in its tasks, OnStop functions and whatever [Node.Do] runs. It returns nil outside of nodes. This
// is how an implementation without a set-up function of its own, behind a local stub or a generated
// `Register...Tunnel`, has turns by [Node.Do]. Such a node is of no system, so it can neither
// create nor find others; it never stops, so its tasks end by themselves or with their process, and
// what OnStop is given never runs.
func NodeFrom(ctx context.Context) *Node {
	if c := callContextOf(ctx); c != nil {
		return c.node
	}
	return nil
}

// Method is the method that was called.
func (c *Call) Method() *Method { return c.method }

// Way is how the call came.
func (c *Call) Way() Way { return [...]Way{WayLocal, WayTunnel, WayHTTP}[c.way] }

// Caller says who calls.
func (c *Call) Caller() Caller {
	if c.from == nil {
		return Caller{}
	}
	return *c.from
}

// Metadata is what the caller sent beside the request, whatever way it came; values of keys that
// end in `-bin` are the octets themselves. Keys that are the transport's (see [WithMetadata]) are
// left out, credentials (`authorization`, `proxy-authorization`, `cookie`) among them. It must not
// be changed.
func (c *Call) Metadata() Metadata {
	if c.metadata == nil {
		return Metadata{}
	}
	return *c.metadata
}

// receive sets what the caller sent beside the request, before the call is seen. Every way ends
// here.
func (c *Call) receive(metadata Metadata) {
	if metadata.Len() == 0 {
		return
	}
	if metadata = metadata.withoutReserved(); metadata.Len() > 0 {
		kept := metadata // so that only what is kept is moved to the heap
		c.metadata = &kept
	}
}

// SetHeader adds to the metadata that goes out before the response; a stream's goes with its first
// message, or with its end if it has none. What can be carried is as for [WithMetadata]; header and
// trailer share one limit. A call whose metadata can't be carried fails with Internal, unless it
// fails already: that error is worth more. Safe for concurrent use.
func (c *Call) SetHeader(key, value string) {
	r := c.replying()
	r.mu.Lock()
	r.header = r.header.With(key, value)
	r.mu.Unlock()
}

// SetTrailer adds to the metadata that goes out after the response, as SetHeader does. Safe for
// concurrent use.
func (c *Call) SetTrailer(key, value string) {
	r := c.replying()
	r.mu.Lock()
	r.trailer = r.trailer.With(key, value)
	r.mu.Unlock()
}

func (c *Call) replying() *reply {
	if c.reply.Load() == nil {
		c.reply.CompareAndSwap(nil, new(reply))
	}
	return c.reply.Load()
}

// hasReply says whether the node's code has set any metadata of the response.
func (c *Call) hasReply() bool { return c.reply.Load() != nil }

// sent returns what the node's code has said so far.
func (c *Call) sent() (header, trailer Metadata) {
	r := c.reply.Load()
	if r == nil {
		return header, trailer
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.header, r.trailer
}

// causeOf is the end of a context as a call's error.
func causeOf(ctx context.Context) error { return takenBack(ctx.Err(), context.Cause(ctx)) }

// takenBack is the error of a call that ended because its caller's context did. Its causes are for
// errors.Is.
func takenBack(causes ...error) error {
	code := connect.CodeCanceled
	text := context.Canceled.Error()
	for _, cause := range causes {
		if errors.Is(cause, context.DeadlineExceeded) {
			code, text = connect.CodeDeadlineExceeded, context.DeadlineExceeded.Error()
		}
	}
	out := connect.NewError(code, text)
	if last := causes[len(causes)-1]; last != nil && last.Error() != text {
		out = connect.NewError(code, text+": "+last.Error())
	}
	for i, cause := range causes {
		if i == 0 || !errors.Is(causes[0], cause) {
			out = out.WithCause(cause)
		}
	}
	return out
}

// overdue makes errors.Is find the deadline in an error that the node's side was the first to
// notice it by.
func overdue(ctx context.Context, err error) error {
	e, ok := errors.AsType[*connect.Error](err)
	if !ok || e.Code() != connect.CodeDeadlineExceeded || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	if _, ok := ctx.Deadline(); !ok {
		return err
	}
	return e.WithCause(context.DeadlineExceeded)
}
