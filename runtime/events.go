package runtime

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	"github.com/raylink/raylink/internal/nodename"
	"github.com/raylink/raylink/internal/usercode"
	"github.com/raylink/raylink/runtime/tunnel"
)

// EventListener is notified of what happens in a process's part of a system: to the nodes that live
// in it, to those whose processes it has launched and those that it has called, and to its
// connections. It is set by [WithEventListener]; a nil function is off and costs nothing. See
// [LogEvents] for one that logs.
//
// Functions are called one at a time, in the order of the events, on a goroutine of their own:
// after the event, and with no lock held. A function may therefore block, and may call nodes and
// the runtime, except for Close and Shutdown, which wait for it. While it blocks, up to 1024 events
// are queued; further ones are dropped, and their number is logged. A panic is logged, and the next
// event is delivered. When the runtime is closed, the events up to its end are delivered; a
// function that then blocks for a second is abandoned, and Close returns an error.
type EventListener struct {
	// NodeStarted: a node was set up, in this process or in one that it launched.
	NodeStarted func(NodeStartedInfo)
	// NodeDied: a node has ended, however it did: it was stopped, or has failed, or its process or
	// its parent died, or the set-up of another node of the same creation failed.
	NodeDied func(NodeDiedInfo)
	// NodeRestarted: a supervised node (storage and the parameter server of a Brain in a process of
	// its own) was started again under its nid.
	NodeRestarted func(NodeRestartedInfo)
	// ConnectionOpened: a tunnel to or from another process was opened. Connections of HTTP clients
	// are not reported.
	ConnectionOpened func(ConnectionInfo)
	// ConnectionLost: a tunnel has ended, because it broke or because one side closed it.
	ConnectionLost func(ConnectionLostInfo)
	// CallRefused: a call of a node in this process was refused before it ran: the node's mailbox
	// was full, or the node is elsewhere, stopping or not set up, or has no such method, or the
	// request could not be decoded. Calls by HTTP that name no node of this process are not
	// reported.
	CallRefused func(CallRefusedInfo)
	// CycleRefused: a call was refused because it would have waited for itself.
	CycleRefused func(CallRefusedInfo)
}

// EventNode identifies the node of an event.
type EventNode struct {
	NID, Path, Type string
	// Incarnation is how often the node was started under its nid.
	Incarnation uint64
	// PID is the id of the node's process; 0 if it is not known.
	PID int
}

// NodeStartedInfo describes a node that was set up.
type NodeStartedInfo struct {
	EventNode

	Time time.Time
	// Duration is the time from the beginning of the node's set-up, or the start of its process, to
	// its end.
	Duration time.Duration
}

// NodeDiedInfo describes a node that has ended.
type NodeDiedInfo struct {
	EventNode

	Time time.Time
	// Reason is why it ended, such as "stopped" or "killed by signal 9 (killed)".
	Reason string
	// Lifetime is the time since the node was set up; 0 for a node that this process neither hosted
	// nor launched.
	Lifetime time.Duration
}

// NodeRestartedInfo describes a node that was started again.
type NodeRestartedInfo struct {
	EventNode

	Time time.Time
	// Reason is why the last incarnation ended, where that is known.
	Reason string
}

// ConnectionInfo describes a tunnel that was opened.
type ConnectionInfo struct {
	// Time is when it was opened.
	Time time.Time
	// Peer is the id of the host at the other end; empty for a client that is no host.
	Peer string
	// Network is "tcp" or "unix"; Address is the other end's, and may be empty for a Unix socket.
	Network, Address string
	// Incoming is set if the other end has opened the connection.
	Incoming bool
	// Tag is the name of a tagged tunnel; empty for the connection that two hosts share.
	Tag string
}

// ConnectionLostInfo describes a tunnel that has ended.
type ConnectionLostInfo struct {
	ConnectionInfo

	// Err is why it ended; it wraps [tunnel.ErrClosed] if a side closed it.
	Err error
	// Duration is how long it was open.
	Duration time.Duration
}

// CallRefusedInfo describes a call that was refused before it ran.
type CallRefusedInfo struct {
	// NID and Path are the called node's; Path is empty if no such node is known here.
	NID, Path string
	// Method is the method's full name, `package.Service/Method`.
	Method string
	// Caller is the node that made the call; zero if the call came from outside nodes.
	Caller Caller
	Time   time.Time
	// Err is the error that the caller gets. That of a cycle names all calls in it.
	Err error
}

// LogEvents returns a listener that logs each event: deaths, losses and refusals as warnings, what
// ended on purpose and the rest as information.
func LogEvents(log *slog.Logger) EventListener {
	node := func(n EventNode) []any {
		return []any{slog.String("node", n.Path), slog.String("nid", n.NID), slog.Uint64("incarnation", n.Incarnation), slog.Int("pid", n.PID)}
	}
	connection := func(c ConnectionInfo) []any {
		return []any{
			slog.String("peer", c.Peer), slog.String("address", c.Network+":"+c.Address),
			slog.Bool("incoming", c.Incoming), slog.String("tag", c.Tag),
		}
	}
	call := func(c CallRefusedInfo) []any {
		return []any{slog.String("node", c.Path), slog.String("method", c.Method), slog.String("caller", c.Caller.Path), slog.Any("error", c.Err)}
	}
	return EventListener{
		NodeStarted: func(e NodeStartedInfo) {
			log.Info("node started", append(node(e.EventNode), slog.Duration("duration", e.Duration))...)
		},
		NodeDied: func(e NodeDiedInfo) {
			level := slog.LevelWarn
			if e.Reason == reasonStopped {
				level = slog.LevelInfo
			}
			attrs := append(node(e.EventNode), slog.String("reason", e.Reason), slog.Duration("lifetime", e.Lifetime))
			log.Log(context.Background(), level, "node died", attrs...)
		},
		NodeRestarted: func(e NodeRestartedInfo) {
			log.Warn("node restarted", append(node(e.EventNode), slog.String("reason", e.Reason))...)
		},
		ConnectionOpened: func(e ConnectionInfo) { log.Info("connection opened", connection(e)...) },
		ConnectionLost: func(e ConnectionLostInfo) {
			log.Warn("connection lost", append(connection(e.ConnectionInfo), slog.Duration("duration", e.Duration), slog.Any("error", e.Err))...)
		},
		CallRefused:  func(e CallRefusedInfo) { log.Warn("call refused", call(e)...) },
		CycleRefused: func(e CallRefusedInfo) { log.Warn("cycle refused", call(e)...) },
	}
}

// reasonStopped is the reason of a node's end that was stopped.
const reasonStopped = "stopped"

const (
	// maxEvents bounds the queue of events.
	maxEvents = 1024
	// eventsEnd bounds how long closing waits for a listener.
	eventsEnd = time.Second
)

// events delivers a host's events to its listeners.
type events struct {
	// One slice for each event, with the functions that listen for it.
	nodeStarted      []func(NodeStartedInfo)
	nodeDied         []func(NodeDiedInfo)
	nodeRestarted    []func(NodeRestartedInfo)
	connectionOpened []func(ConnectionInfo)
	connectionLost   []func(ConnectionLostInfo)
	callRefused      []func(CallRefusedInfo)
	cycleRefused     []func(CallRefusedInfo)

	log *slog.Logger

	mu      sync.Mutex // guards the fields below
	queue   []func()
	dropped int
	// idle is closed when the goroutine that delivers has ended; nil if there is none.
	idle chan struct{}
}

// newEvents returns nil if there are no listeners.
func newEvents(listeners []EventListener, log *slog.Logger) *events {
	if len(listeners) == 0 {
		return nil
	}
	e := &events{log: log}
	for _, l := range listeners {
		e.nodeStarted = appendSet(e.nodeStarted, l.NodeStarted)
		e.nodeDied = appendSet(e.nodeDied, l.NodeDied)
		e.nodeRestarted = appendSet(e.nodeRestarted, l.NodeRestarted)
		e.connectionOpened = appendSet(e.connectionOpened, l.ConnectionOpened)
		e.connectionLost = appendSet(e.connectionLost, l.ConnectionLost)
		e.callRefused = appendSet(e.callRefused, l.CallRefused)
		e.cycleRefused = appendSet(e.cycleRefused, l.CycleRefused)
	}
	return e
}

func appendSet[T any](fns []func(T), fn func(T)) []func(T) {
	if fn == nil {
		return fns
	}
	return append(fns, fn)
}

// emit queues an event for the functions that listen for it. It does not block.
func emit[T any](e *events, fns []func(T), info T) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, fn := range fns {
		if len(e.queue) >= maxEvents {
			e.dropped++
			continue
		}
		e.queue = append(e.queue, func() { fn(info) })
	}
	if e.idle == nil && len(e.queue) > 0 {
		e.idle = make(chan struct{})
		go e.deliver()
	}
}

// deliver calls the listeners until the queue is empty.
func (e *events) deliver() {
	for {
		e.mu.Lock()
		dropped := e.dropped
		e.dropped = 0
		if len(e.queue) == 0 {
			close(e.idle)
			e.queue, e.idle = nil, nil
			e.mu.Unlock()
			return
		}
		fn := e.queue[0]
		e.queue = e.queue[1:]
		e.mu.Unlock()
		if dropped > 0 {
			e.log.Warn("events were dropped: a listener is too slow", slog.Int("events", dropped))
		}
		usercode.Run(func() error { fn(); return nil }, func(err error) {
			f, ok := err.(*usercode.UnreturnedError) //nolint:errorlint // Run's own type
			if !ok {
				return
			}
			f.Log(e.log, "an event listener")
			if f.Goexit {
				go e.deliver() // this goroutine ends
			}
		})
	}
}

// flush waits until all events are delivered.
func (e *events) flush() error {
	if e == nil {
		return nil
	}
	e.mu.Lock()
	idle := e.idle
	e.mu.Unlock()
	if idle == nil {
		return nil
	}
	limit := time.NewTimer(eventsEnd)
	defer limit.Stop()
	select {
	case <-idle:
		return nil
	case <-limit.C:
		return fmt.Errorf("an event listener has not returned within %v of the runtime's end: it is abandoned", eventsEnd)
	}
}

func eventNode(rec *nodev1.NodeRecord, pid int) EventNode {
	return EventNode{NID: rec.GetNid(), Path: rec.GetPath(), Type: rec.GetType(), Incarnation: rec.GetIncarnation(), PID: pid}
}

// The functions below report events. They cost a comparison if there are no listeners.

// nodeStarted reports a node that was set up in the process pid, since began.
func (h *Host) nodeStarted(rec *nodev1.NodeRecord, pid int, began time.Time) {
	e := h.events
	if e == nil {
		return
	}
	if rec.GetIncarnation() <= 1 {
		emit(e, e.nodeStarted, NodeStartedInfo{EventNode: eventNode(rec, pid), Time: time.Now(), Duration: time.Since(began)})
	}
}

// nodeDied reports the end of a node that had been set up at the time since.
func (h *Host) nodeDied(rec *nodev1.NodeRecord, pid int, since time.Time, reason string) {
	if e := h.events; e != nil {
		emit(e, e.nodeDied, NodeDiedInfo{EventNode: eventNode(rec, pid), Time: time.Now(), Reason: reason, Lifetime: time.Since(since)})
	}
}

// launched notes that this host launches the node's processes, and so reports their ends itself.
// It returns what must be kept for as long as the process runs.
func (h *Host) launched(nid string) *remote {
	if h.events == nil {
		return nil
	}
	r := h.remote(nid)
	r.isLaunchedHere.Store(true)
	return r
}

// reportChange reports what a new record says of a node in another process.
func (r *remote) reportChange(before, after *nodev1.NodeRecord) {
	e := r.host.events
	if e == nil || before.GetIncarnation() == 0 {
		return
	}
	pid := int(after.GetHost().GetPid())
	isDead, wasDead := after.GetState() == nodev1.NodeState_NODE_STATE_DEAD, before.GetState() == nodev1.NodeState_NODE_STATE_DEAD
	isRunning := after.GetState() == nodev1.NodeState_NODE_STATE_RUNNING
	switch {
	case isDead && !wasDead && !r.isLaunchedHere.Load():
		emit(e, e.nodeDied, NodeDiedInfo{EventNode: eventNode(after, pid), Time: time.Now(), Reason: after.GetCause()})
	case isRunning && after.GetIncarnation() > 1 && (before.GetState() != after.GetState() || before.GetIncarnation() < after.GetIncarnation()):
		emit(e, e.nodeRestarted, NodeRestartedInfo{EventNode: eventNode(after, pid), Time: time.Now(), Reason: r.lastCause})
	}
	if isDead {
		r.lastCause = after.GetCause()
	}
}

// tunnelDialled and tunnelAccepted report a tunnel that was opened.
func (h *Host) tunnelDialled(conn *tunnel.Conn)  { h.connectionOpened(conn, false) }
func (h *Host) tunnelAccepted(conn *tunnel.Conn) { h.connectionOpened(conn, true) }

// connectionOpened reports a tunnel, and its end when that has come.
func (h *Host) connectionOpened(conn *tunnel.Conn, incoming bool) {
	e := h.events
	if e == nil {
		return
	}
	address := conn.RemoteAddr()
	info := ConnectionInfo{
		Time: time.Now(), Peer: conn.Welcome().Host, Network: address.Network(), Address: address.String(), Incoming: incoming, Tag: conn.Hello().Tag,
	}
	if incoming {
		info.Peer = conn.Hello().Client
	}
	emit(e, e.connectionOpened, info)
	conn.AfterEnd(func() {
		emit(e, e.connectionLost, ConnectionLostInfo{ConnectionInfo: info, Err: conn.Err(), Duration: time.Since(info.Time)})
	})
}

// refused reports a call of the node that is refused with err, and returns err.
func (n *Node) refused(cc *callContext, err error) error {
	if n.host != nil && n.host.events != nil && err != nil {
		e := n.host.events
		emit(e, e.callRefused, n.refusal(cc, err))
	}
	return err
}

// refusedCycle reports a call that would wait for itself, and returns err.
func (n *Node) refusedCycle(cc *callContext, err error) error {
	if n.host != nil && n.host.events != nil && err != nil {
		e := n.host.events
		emit(e, e.cycleRefused, n.refusal(cc, err))
	}
	return err
}

func (n *Node) refusal(cc *callContext, err error) CallRefusedInfo {
	return CallRefusedInfo{NID: n.nid, Path: n.path, Method: cc.call.method.fullName(), Caller: cc.call.Caller(), Time: time.Now(), Err: err}
}

// refused reports a call that is refused although no node has seen it, and returns err.
func (d *dispatcher) refused(in *tunnel.Incoming, res resolved, err error) error {
	e := d.host.events
	if e == nil {
		return err
	}
	nid, _, _ := strings.Cut(in.Target, "@")
	info := CallRefusedInfo{NID: nid, Method: nodename.MethodFullName(in.Procedure), Time: time.Now(), Err: err}
	if res.node != nil {
		info.Path = res.node.path
	}
	if from := parseCaller(in.Caller); from != nil {
		info.Caller = *from
	}
	emit(e, e.callRefused, info)
	return err
}

// refusedWait reports that a caller may not wait for an asynchronous call, since that would be a
// cycle, and returns err.
func (f *future) refusedWait(ctx context.Context, err error) error {
	h := f.to.host()
	if h == nil || h.events == nil || err == nil {
		return err
	}
	info := CallRefusedInfo{NID: f.to.nid(), Path: f.to.label(), Method: f.method.fullName(), Time: time.Now(), Err: err}
	if n := NodeFrom(ctx); n != nil {
		info.Caller = n.identity
	}
	emit(h.events, h.events.cycleRefused, info)
	return err
}
