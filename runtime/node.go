package runtime

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	"github.com/raylink/raylink/runtime/internal/mailbox"
)

// maxPendingBytes bounds what waits in one node's mailbox.
const maxPendingBytes = 64 << 20

// Node is a node as its own code sees it: its set-up function is given one and may keep it. Its
// methods may be called from any goroutine.
type Node struct {
	host    *Host // nil for a stub outside any system
	service *Service
	impl    any
	// beside has the unary methods, by their index, that the type makes concurrent; overrides is
	// that, and how many turns there are, as it travels in a chain.
	beside    []bool
	overrides string
	// copies says that messages are copied between the node and its callers in this process.
	copies  bool
	witness witness //nolint:unused // the build tag invariants uses it
	nid     string
	path    string
	// identity is the node as the caller of others, and wireName the same on the wire.
	identity Caller
	wireName string

	mailbox *mailbox.Mailbox
	// paces are those of the service's methods, by their index.
	paces     []pace
	intercept Invoke
	target    *target
	// life is what every context of the node's code descends from; kill ends it. work is that of
	// its calls and tasks, which end before OnStop's functions are called; cut ends it.
	life, work context.Context //nolint:containedctx // the node's life is this context
	kill, cut  context.CancelCauseFunc
	// tasks are those of Go.
	tasks tasks
	born  time.Time
	// ready is closed when the node is set up, or never will be: then neverReady says why. isUp is
	// for those who only look whether it is, and creating counts the children that it waits for.
	ready      chan struct{}
	neverReady error
	isUp       atomic.Bool
	creating   atomic.Int32

	mu sync.Mutex // guards all below
	// record is the node as Brain knows it; replaced, never changed.
	record *nodev1.NodeRecord
	onStop []func(context.Context) error
	// onStops is how many of them there were when the node began to call them.
	onStops  int
	tunnels  map[string]*tunnelTag
	stopping bool
	failure  error
	// stopped is closed when the node is gone; stopErr is set then.
	stopped chan struct{}
	stopErr error
}

func newNode(host *Host, t NodeType, record *nodev1.NodeRecord) *Node {
	service := t.service
	n := &Node{
		host: host, service: service, copies: t.copies, beside: t.besideTable(), nid: record.GetNid(), path: record.GetPath(), record: record,
		born: time.Now(), ready: make(chan struct{}), stopped: make(chan struct{}), tunnels: make(map[string]*tunnelTag),
	}
	n.identity = Caller{NID: n.nid, Path: n.path}
	n.wireName = n.identity.wire()
	c := t.config()
	n.overrides = t.overrides(c)
	n.mailbox = mailbox.New(func() string { return n.path }, mailbox.Limits{
		Turns: c.MaxConcurrency, Pending: c.MaxPending, Bytes: maxPendingBytes, Beside: c.MaxStreams,
	})
	n.paces = make([]pace, len(service.methods))
	base := context.Background()
	if host != nil {
		base = host.life
	}
	n.life, n.kill = context.WithCancelCause(base)
	// Calls that the node's code makes outside of calls are the node's too.
	n.life = context.WithValue(n.life, callKey{}, &callContext{node: n})
	n.work, n.cut = context.WithCancelCause(n.life)
	n.target = &target{service: service, host: host, node: n, nid: n.nid}
	return n
}

// serveWith gives the node its implementation: from here on it can serve. It returns false, and
// changes nothing, for a node that is stopping.
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

// giveUp ends a set-up that failed: what waited for it is told why.
func (n *Node) giveUp(cause error) {
	n.mailbox.Abandon(cause)
	n.neverReady = cause
	close(n.ready)
}

func (n *Node) ref() Ref { return Ref{t: n.target} }

// Ref is the node's own reference: what others reach it by.
func (n *Node) Ref() Ref { return n.ref() }

// NID is the node's id.
func (n *Node) NID() string { return n.nid }

// Path is the node's path.
func (n *Node) Path() string { return n.path }

// MaxMessage is the largest message that the node's host receives, in bytes: see [WithMaxMessage].
// A node that keeps what it was sent can refuse what it could not be asked for again.
func (n *Node) MaxMessage() int {
	if n.host == nil {
		return defaultMaxMessage
	}
	return n.host.options.MaxMessage
}

// Context ends when the node ends: after its last OnStop function, or at once if it is killed.
func (n *Node) Context() context.Context { return n.life }

// Logger logs under the node's path.
func (n *Node) Logger() *slog.Logger { return n.logger().With(slog.String("node", n.path)) }

// snapshot is the node's record as last acknowledged.
func (n *Node) snapshot() *nodev1.NodeRecord {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.record
}

func (n *Node) logger() *slog.Logger {
	if n.host == nil {
		return slog.Default()
	}
	return n.host.log
}

func (n *Node) hideErrors() bool { return n.host != nil && n.host.options.HideErrors }
