package runtime

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	"github.com/raylink/raylink/runtime/internal/mailbox"
)

// maxPendingBytes bounds the total size of the requests that wait in one node's mailbox.
const maxPendingBytes = 64 << 20

// Node is a node from the point of view of its own code: its set-up function receives it and may
// keep it. All methods are safe for concurrent use.
type Node struct {
	host    *Host // nil for a node outside any system
	service *Service
	impl    any
	// concurrent marks, by index, the unary methods that the node type makes concurrent. overrides
	// encodes that, and the number of turns, for call chains.
	concurrent []bool
	overrides  string
	// copies requests that messages are copied between the node and its callers in this process.
	copies bool
	recent recentMessages
	nid    string
	path   string
	// identity is the node as the caller of others; encodedCaller is its encoded form.
	identity      Caller
	encodedCaller string

	mailbox *mailbox.Mailbox
	// latencies are the latency EWMAs of the service's methods, by index.
	latencies []latencyEWMA
	intercept Invoke
	// to is the node as an endpoint of calls within this process.
	to endpoint
	// life is the ancestor of every context of the node's code, and work of the contexts of its
	// calls and tasks, which end before the OnStop functions are called. cancelLife and cancelWork
	// cancel them.
	life, work             context.Context //nolint:containedctx // the node's life is this context
	cancelLife, cancelWork context.CancelCauseFunc
	// endsHeld registers endHeld for the end of work, when the node first holds an answer.
	endsHeld sync.Once
	tasks    tasks
	born     time.Time
	// ready is closed when the node is set up or its set-up has failed; neverReady is then the
	// reason. isUp is the same for a check that does not block. creating counts the children whose
	// creation the node waits for.
	ready      chan struct{}
	neverReady error
	isUp       atomic.Bool
	creating   atomic.Int32

	mu sync.Mutex // guards the fields below
	// record is the node as Brain knows it; replaced, never modified.
	record *nodev1.NodeRecord
	onStop []func(context.Context) error
	// onStops is how many OnStop functions there were when the node began to call them.
	onStops  int
	tunnels  map[string]*tunnelTag
	stopping bool
	// beginsStop is closed when stopping is set.
	beginsStop chan struct{}
	failure    error
	// stopped is closed when the node is gone; stopErr is set before.
	stopped chan struct{}
	stopErr error
}

func newNode(host *Host, t NodeType, record *nodev1.NodeRecord) *Node {
	service := t.service
	n := &Node{
		host: host, service: service, copies: t.copies, concurrent: t.concurrentTable(), nid: record.GetNid(), path: record.GetPath(), record: record,
		born: time.Now(), ready: make(chan struct{}), beginsStop: make(chan struct{}), stopped: make(chan struct{}), tunnels: make(map[string]*tunnelTag),
	}
	n.identity = Caller{NID: n.nid, Path: n.path}
	n.encodedCaller = n.identity.wire()
	c := t.config()
	n.overrides = t.overrides(c)
	n.mailbox = mailbox.New(func() string { return n.path }, mailbox.Limits{
		Turns: c.MaxConcurrency, Pending: c.MaxPending, Bytes: maxPendingBytes, Concurrent: c.MaxStreams,
	})
	n.latencies = make([]latencyEWMA, len(service.methods))
	base := context.Background()
	if host != nil {
		base = host.life
	}
	n.life, n.cancelLife = context.WithCancelCause(base)
	// Calls that the node's code makes outside of serving a call still name the node as their
	// caller.
	n.life = context.WithValue(n.life, callKey{}, &callContext{node: n})
	n.work, n.cancelWork = context.WithCancelCause(n.life)
	n.to = host.intercepted(&localEndpoint{node: n})
	return n
}

// serveWith sets the node's implementation and opens its mailbox. It returns false, and changes
// nothing, if the node is stopping.
func (n *Node) serveWith(impl any) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.stopping {
		return false
	}
	n.impl = impl
	if n.host != nil {
		n.intercept = chainInterceptors(n.host.options.Interceptors, impl)
	}
	n.isUp.Store(true)
	close(n.ready)
	n.mailbox.Open()
	return true
}

// giveUp ends a failed set-up: calls that wait for it fail with cause.
func (n *Node) giveUp(cause error) {
	n.mailbox.Abandon(cause)
	n.neverReady = cause
	close(n.ready)
}

func (n *Node) ref() Ref { return Ref{service: n.service, to: n.to} }

// Ref returns a reference to the node, by which others can reach it.
func (n *Node) Ref() Ref { return n.ref() }

// NID is the node's id.
func (n *Node) NID() string { return n.nid }

// String returns the node's path.
func (n *Node) String() string { return n.path }

// Path is the node's path.
func (n *Node) Path() string { return n.path }

// MaxMessage is the largest message that the node's host receives, in bytes: see [WithMaxMessage].
// A node that stores what it receives can use it to refuse values that would be too large to
// return.
func (n *Node) MaxMessage() int {
	if n.host == nil {
		return defaultMaxMessage
	}
	return n.host.options.MaxMessage
}

// Context is canceled when the node ends: after its last OnStop function, or at once if it is
// killed.
func (n *Node) Context() context.Context { return n.life }

// Stopping is closed when the node begins to stop. Stopping waits for streams that are open: a
// method that streams without an end returns when this channel is closed.
func (n *Node) Stopping() <-chan struct{} { return n.beginsStop }

// Logger returns the runtime's logger with the node's path attached.
func (n *Node) Logger() *slog.Logger { return n.logger().With(slog.String("node", n.path)) }

// snapshot is the node's record as last acknowledged by Brain; not to be modified.
func (n *Node) snapshot() *nodev1.NodeRecord {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.record
}

func (n *Node) logger() *slog.Logger { return n.host.logger() }

func (n *Node) hideErrors() bool { return n.host != nil && n.host.options.HideErrors }

// passes returns the message to hand from a caller in this process to the node, or back: itself, or
// a copy if the type asks for that.
func (n *Node) passes(msg proto.Message) proto.Message {
	if n.copies {
		return proto.Clone(msg)
	}
	return msg
}
