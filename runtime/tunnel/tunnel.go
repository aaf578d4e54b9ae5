// Package tunnel carries typed calls between two processes over one connection.
//
// A tunnel is a multiplexed connection over any [net.Conn] (TCP, a Unix socket, or memnet's in
// tests): the side that dialled calls, the side that accepted serves. It knows nothing of nodes;
// targets and callers are opaque strings. It promises:
//
//   - All RPC shapes, with deadlines, cancellation, headers, trailers, and errors with code,
//     message and details.
//   - Unary calls from one goroutine reach the handler in the order they were started.
//   - A slow reader of one stream, or one large message, holds up nobody else: streams have windows
//     of their own, large
//     messages go in fragments that take turns.
//   - Every size that comes from the wire has a limit, and whatever a side buffers for the other
//     has a bound. See [Config].
//   - When the connection ends, every open call ends with Unavailable and the reason. A peer that
//     is silent while calls are
//     open is pinged, and found out.
//
// Start with [Dial] and [Accept]. [Conn.Start] makes unary calls without a goroutine for each,
// [Conn.Stream] makes the others, and [Conn.Transport] is the same for connect's generated clients.
// A [Handler] serves; [ServerHandler] makes one from a connect server. docs/tunnel.md specifies the
// wire.
package tunnel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect/v2"
)

// Conn is one end of a tunnel. Its methods may be called from any goroutine.
type Conn struct {
	inlining
	ownership

	cfg     Config
	nc      net.Conn
	dialled bool
	version int
	hello   Hello
	welcome Welcome
	own     limits
	peer    limits
	handler Handler
	// allocator is the handler, if it is one.
	allocator Allocator
	// born is what the deadlines of the calls that are served are counted from.
	born time.Time

	// in, and what it has read, belong to the goroutine that owns reading, see readOwner.
	in      frameReader
	names   nameTable
	now     time.Time
	polling polling
	// request is the one at hand.
	request request
	// keeps has the procedures whose last large response has kept the buffer it came in.
	keeps map[string]bool
	// fragment is the one that is being read straight to its place; its assembly is nil where there
	// is none.
	fragment fragment
	// recent is where the last DATA went, and unpublished the streams that have got some since.
	recent      target
	unpublished []*inbox

	// writing is write, kept so that starting it costs nothing.
	writing func()
	attempt attempt

	heard                 atomic.Bool
	calls, sent, received atomic.Uint64
	// windows is what the streams' windows take beyond those that they begin with.
	windows atomic.Int64

	done    chan struct{}
	refused chan struct{}

	mu sync.Mutex // guards what follows
	// err is why the connection ended.
	err error
	// draining is why no new calls are taken.
	draining error
	// peerDrained says that the peer will begin no more calls.
	peerDrained bool
	quiet       chan struct{}
	// drained wakes a reading goroutine that waits for the writer; it waits while paused is set.
	drained chan struct{}
	paused  bool
	// after is what AfterEnd was given.
	after     []func()
	out       outbox
	keepalive keepalive
	extra     extraBudget

	// A dialling side's calls.
	gate     gate
	interner interner
	slots    []slot
	free     []uint32
	// idsUsed is the largest number of slots that there have been.
	idsUsed int
	// unwatched are the calls whose contexts nothing but the sweeper looks at yet.
	unwatched sweep
	// replyBytes is the size of the large responses on their way.
	replyBytes int

	// An accepting side's calls, by id.
	served       []*Incoming
	serving      int
	streams      int
	requestBytes int
	// metaBytes is what the names, chains and headers of the open calls count for.
	metaBytes int
}

// Dial makes the dialling end of a tunnel out of a new connection, which it owns from then on, also
// when it fails. It returns after the handshake, in which both sides have proven that they know the
// token; a failure is a [*HandshakeError].
func Dial(ctx context.Context, nc net.Conn, hello Hello, cfg Config) (*Conn, error) {
	hello.Protocol = ""
	c, err := dial(ctx, nc, hello, cfg)
	if err != nil {
		return nil, err
	}
	c.gate = gate{window: c.peer.window, maxOpen: c.peer.maxCalls}
	c.slots = make([]slot, 1) // id 0 is the connection
	c.run()
	return c, nil
}

// DialRaw makes the same handshake for another protocol, the one that hello names, and returns the
// connection for it. So a client of that protocol knows whom it talks to, and need not show a
// token.
func DialRaw(ctx context.Context, nc net.Conn, hello Hello, cfg Config) (net.Conn, Welcome, error) {
	c, err := dial(ctx, nc, hello, cfg)
	if err != nil {
		return nil, Welcome{}, err
	}
	return c.raw(), c.welcome, nil
}

func dial(ctx context.Context, nc net.Conn, hello Hello, cfg Config) (*Conn, error) {
	c := newConn(nc, cfg)
	c.dialled, c.hello = true, hello
	if err := bounded(ctx, nc, c.cfg, c.greet); err != nil {
		return nil, errors.Join(err, closeQuietly(nc))
	}
	c.cfg.Token = "" // it has served; a dump of the connection need not show it
	return c, nil
}

// Accept makes the accepting end of a tunnel out of a connection, which it owns from then on, also
// when it fails. self is what the dialler learns of this side. admit is asked when the dialler has
// proven that it knows the token, and before anything else is read; its error refuses the dialler,
// with the code that connect finds in it. A dialler that wants another protocol is refused.
func Accept(ctx context.Context, nc net.Conn, cfg Config, self Welcome, admit func(Hello) (Handler, error)) (*Conn, error) {
	c, _, err := AcceptAny(ctx, nc, cfg, self, func(hello Hello) (Handler, error) {
		if hello.Protocol != "" {
			return nil, connect.Errorf(connect.CodeUnimplemented, "connections here carry no %q", hello.Protocol)
		}
		return admit(hello)
	})
	return c, err
}

// AcceptAny is Accept for a side that serves other protocols too: where the dialler has named one,
// and admit has admitted it, perhaps with a nil Handler, it returns the connection for that
// protocol and no Conn.
func AcceptAny(
	ctx context.Context, nc net.Conn, cfg Config, self Welcome, admit func(Hello) (Handler, error),
) (*Conn, net.Conn, error) {
	c := newConn(nc, cfg)
	if err := bounded(ctx, nc, c.cfg, func() error { return c.answer(self, admit) }); err != nil {
		return nil, nil, errors.Join(err, closeQuietly(nc))
	}
	c.cfg.Token = "" // as above
	if c.hello.Protocol != "" {
		return nil, c.raw(), nil
	}
	c.run()
	return c, nil, nil
}

// raw gives the connection back, with what was read of it beyond the handshake.
func (c *Conn) raw() net.Conn {
	nc := c.nc
	if rest := c.in.buffered(c.in.end - c.in.begin); len(rest) > 0 {
		nc = Unread(nc, rest)
	}
	c.in.mem.free()
	return nc
}

func newConn(nc net.Conn, cfg Config) *Conn {
	in := newFrameReader(nc)
	if u, ok := nc.(*unread); ok {
		nc = u.Conn
		in = newFrameReader(nc)
		in.mem = &buffer{b: u.head}
		in.buf, in.end = u.head, len(u.head)
	}
	c := &Conn{
		cfg: cfg.WithDefaults(), nc: nc, in: in, born: time.Now(),
		done: make(chan struct{}), refused: make(chan struct{}),
	}
	c.own = c.cfg.limits()
	c.reclaimed = make(chan struct{}, 1)
	c.drained = make(chan struct{}, 1)
	c.writing = c.write
	c.attempt.init(nc)
	c.polling.init(nc, c.cfg.BusyPoll)
	return c
}

func (c *Conn) run() {
	c.out.maxFragment = c.peer.maxFragment
	c.allocator, _ = c.handler.(Allocator)
	c.in.moving = c.publish
	c.in.poll, c.in.before, c.in.after = c.poll, c.beforeRead, c.afterRead
	go c.read()
}

// closeQuietly closes a connection of which the failure is known already.
func closeQuietly(nc net.Conn) error {
	if err := nc.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// Hello is what the dialler said.
func (c *Conn) Hello() Hello { return c.hello }

// Welcome is what the accepting side answered.
func (c *Conn) Welcome() Welcome { return c.welcome }

// Version is the version of the protocol that the two sides agreed on.
func (c *Conn) Version() int { return c.version }

// Done is closed when the connection has ended.
func (c *Conn) Done() <-chan struct{} { return c.done }

// Err is nil until the connection has ended, and then says why.
func (c *Conn) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Stats counts what went over a connection.
type Stats struct {
	// Calls is how many calls of every shape were begun.
	Calls uint64
	// BytesSent and BytesReceived count all that was written and read, framing included, the
	// handshake excluded.
	BytesSent, BytesReceived uint64
}

// Stats returns the counts up to now.
func (c *Conn) Stats() Stats {
	return Stats{Calls: c.calls.Load(), BytesSent: c.sent.Load(), BytesReceived: c.received.Load()}
}

// Pending is how many calls are open.
func (c *Conn) Pending() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pending()
}

func (c *Conn) pending() int { return c.gate.open + c.serving }

func (c *Conn) peerName() string {
	host := c.hello.Client
	if c.dialled {
		host = c.welcome.Host
	}
	if host == "" {
		return c.nc.RemoteAddr().String()
	}
	return fmt.Sprintf("%s (%v)", host, c.nc.RemoteAddr())
}

// errPeerClosed is the end of a connection that the peer closed, or whose process ended.
var errPeerClosed = errors.New("the peer closed the connection")

var errLost = errors.New("the connection was lost")

// lost is the end of a connection that nobody wanted.
func lost(err error) error {
	if errors.Is(err, io.EOF) {
		// Not io.EOF itself: to who reads a stream that means a good end.
		return errPeerClosed
	}
	return fmt.Errorf("%w: %w", errLost, err)
}

// hasLeft says whether the connection's end is that of a peer which was done with it: it had said
// that it would leave. That it has is first noticed by whoever reads, or by whoever writes what
// nobody waits for any more, as the answer to a ping. Callers hold the lock.
func (c *Conn) hasLeft(reason error) bool {
	return c.peerDrained && (errors.Is(reason, errPeerClosed) || c.pending() == 0 && errors.Is(reason, errLost))
}

// fail ends the connection: all that is open ends with the reason.
func (c *Conn) fail(reason error) {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	if c.hasLeft(reason) {
		reason = errPeerShutDown
	}
	c.err = reason
	if c.draining == nil {
		close(c.refused)
	}
	c.keepalive.stop()
	var calls []*Call
	var clients []*clientStream
	c.unwatched.clear()
	for i := range c.slots {
		s := &c.slots[i]
		switch {
		case s.call != nil:
			c.out.drop(s.call.parcel)
			calls = append(calls, s.call)
		case s.stream != nil:
			c.out.close(&s.stream.lane, unavailable(reason))
			clients = append(clients, s.stream)
		}
		*s = slot{}
	}
	after := c.after
	c.after = nil
	served := c.served
	c.served, c.serving = nil, 0
	for _, in := range served {
		if in != nil && in.stream() != nil {
			c.out.close(&in.stream().lane, unavailable(reason))
		}
	}
	c.checkQuiet()
	c.mu.Unlock()

	_ = c.nc.Close() // whatever it says, the connection is over
	text := unavailable(fmt.Errorf("tunnel to %s: %w", c.peerName(), reason))
	for _, call := range calls {
		call.finish(text)
	}
	for _, s := range clients {
		s.inbox.close(text, false)
	}
	for _, in := range served {
		if in != nil {
			in.abandon(text)
		}
	}
	close(c.done)
	for _, f := range after {
		go f()
	}
}

// AfterEnd has f called, on a goroutine of its own, when the connection has ended: at once if it
// has. An idle connection has one goroutine less than with somebody who waits for Done.
func (c *Conn) AfterEnd(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		go f()
		return
	}
	c.after = append(c.after, f)
}

// Close ends the connection at once. Open calls fail with Unavailable.
func (c *Conn) Close() error {
	c.fail(fmt.Errorf("this side closed it: %w", ErrClosed))
	return nil
}

// refusing is the error of a call that cannot begin any more.
func (c *Conn) refusing() error {
	switch {
	case c.err != nil:
		return notRun(unavailable(fmt.Errorf("tunnel to %s: %w", c.peerName(), c.err)))
	case c.draining != nil:
		return notRun(unavailable(fmt.Errorf("tunnel to %s: %w", c.peerName(), c.draining)))
	}
	return nil
}

var _ connect.Transport = (*transport)(nil)
