// Package tunnel multiplexes typed RPCs between two processes over one connection.
//
// A tunnel runs over any [net.Conn] (TCP, a Unix socket, or memnet's in tests). The dialling side
// makes calls and the accepting side serves them. The package knows nothing of nodes: targets and
// callers are opaque strings. It guarantees:
//
//   - All RPC shapes, with deadlines, cancellation, headers, trailers, and errors with code,
//     message and details.
//   - Unary calls started by one goroutine reach the handler in the order in which they were
//     started.
//   - No head-of-line blocking between calls: each stream has its own flow-control window, and
//     large messages are sent in fragments that are interleaved.
//   - Every size read from the wire has a limit, and everything that one side buffers for the other
//     is bounded. See [Config].
//   - When the connection ends, every open call fails with Unavailable and the reason. A peer that
//     is silent while calls are open is pinged, and the connection fails if the peer does not
//     answer.
//
// Start with [Dial] and [Accept]. [Conn.Start] makes unary calls without a goroutine per call,
// [Conn.Stream] makes calls of the other shapes, and [Conn.Transport] adapts a connection to
// connect's generated clients. A [Handler] serves calls; [ServerHandler] makes one from a connect
// server. docs/tunnel.md specifies the wire format.
package tunnel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect/v2"

	"github.com/raylink/raylink/runtime/tunnel/internal/codec"
	"github.com/raylink/raylink/runtime/tunnel/internal/sock"
)

// Conn is one end of a tunnel. Its methods are safe for concurrent use.
type Conn struct {
	handshake

	// allocator is the handler if it implements Allocator, else nil.
	allocator Allocator
	// started is the origin of the deadlines of served calls, see servedContext.deadline.
	started time.Time

	// reading is the receiving side: it reads frames and handles each.
	reading readLoop

	// writeFunc is the method value of write, stored so that starting the writer does not allocate.
	writeFunc   func()
	nonblocking sock.Writer
	// secured is nil without TLS, and until the handshake of the tunnel has succeeded.
	secured *secured

	// peerText is the result of peerAddr, once it was called.
	peerText atomic.Pointer[string]

	sawTraffic            atomic.Bool
	calls, sent, received atomic.Uint64
	// windows and excess limit what all streams together grant beyond their initial windows.
	windows windowBudget
	excess  excessBudget

	done    chan struct{}
	refused chan struct{}

	mu sync.Mutex // guards the fields below
	// err is why the connection ended, nil while it is open.
	err error
	// draining is why new calls are refused, nil while they are accepted.
	draining error
	// peerDrained is set once the peer has announced by GOAWAY that it begins no more calls.
	peerDrained bool
	idle        chan struct{}
	// resume unblocks a read loop that waits for the writer. The read loop waits while paused is
	// set.
	resume chan struct{}
	paused bool
	// after holds the functions registered by AfterEnd.
	after     []func()
	out       outbox
	keepalive keepalive

	// The calls of a dialling side.
	sendWindow sendWindow
	interner   interner
	open       callTable
	sweeper    sweeper
	// replyBytes is the total size of the large responses that are being received.
	replyBytes int

	// served are the calls of an accepting side.
	served servedTable
}

// Dial performs the dialling side of the handshake on a new connection and returns the tunnel. It
// takes ownership of nc, even if it fails. On success both sides have proven that they know the
// token. An error from the handshake is a [*HandshakeError].
func Dial(ctx context.Context, nc net.Conn, hello Hello, cfg Config) (*Conn, error) {
	hello.Protocol = ""
	c, err := dial(ctx, nc, hello, cfg)
	if err != nil {
		return nil, err
	}
	c.sendWindow = sendWindow{window: c.peer.window, maxOpen: c.peer.maxCalls}
	c.open = newCallTable()
	c.sweeper = sweeper{mu: &c.mu, open: &c.open}
	c.run()
	return c, nil
}

// DialRaw performs the same handshake for another protocol, named by hello.Protocol, and returns
// the connection for that protocol's use. The client of that protocol has then authenticated its
// peer without revealing a token.
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
	if err := bounded(ctx, nc, c.cfg, c.dialHandshake); err != nil {
		return nil, errors.Join(err, closeQuietly(nc))
	}
	c.cfg.Token = "" // no longer needed: keep it out of dumps of the Conn
	return c, nil
}

// Accept performs the accepting side of the handshake and returns the tunnel. It takes ownership of
// nc, even if it fails. self is what the dialler learns about this side. admit is called after the
// dialler has proven that it knows the token and before anything else is read. If admit returns an
// error, the dialler is refused with that error's connect code. A dialler that asks for another
// protocol is refused.
func Accept(ctx context.Context, nc net.Conn, cfg Config, self Welcome, admit func(Hello) (Handler, error)) (*Conn, error) {
	c, _, err := AcceptAny(ctx, nc, cfg, self, func(hello Hello) (Handler, error) {
		if hello.Protocol != "" {
			return nil, connect.Errorf(connect.CodeUnimplemented, "this side does not serve the protocol %q", hello.Protocol)
		}
		return admit(hello)
	})
	return c, err
}

// AcceptAny is Accept for a side that serves other protocols too. If the dialler names one and
// admit accepts it, the Handler may be nil, and AcceptAny returns the connection for that protocol
// and a nil Conn.
func AcceptAny(
	ctx context.Context, nc net.Conn, cfg Config, self Welcome, admit func(Hello) (Handler, error),
) (*Conn, net.Conn, error) {
	c := newConn(nc, cfg)
	if err := bounded(ctx, nc, c.cfg, func() error { return c.acceptHandshake(self, admit) }); err != nil {
		return nil, nil, errors.Join(err, closeQuietly(nc))
	}
	c.cfg.Token = "" // as above
	if c.hello.Protocol != "" {
		return nil, c.raw(), nil
	}
	c.run()
	return c, nil, nil
}

// Refuse performs the accepting side of the handshake up to the dialler's HELLO, and refuses it
// with reason, which is a [connect.Error]. It closes nc.
func Refuse(ctx context.Context, nc net.Conn, cfg Config, reason error) error {
	c := newConn(nc, cfg)
	err := bounded(ctx, nc, c.cfg, func() error {
		if err := readPreface(c.frames); err != nil {
			return err
		}
		if _, _, err := readHandshakeFrame(c.frames); err != nil {
			return err
		}
		return c.refuseWithPreface(reason)
	})
	c.reading.in.mem.Free()
	return errors.Join(err, closeQuietly(nc))
}

// raw returns the underlying connection, including any bytes read beyond the handshake.
func (c *Conn) raw() net.Conn {
	nc := c.nc
	if rest := c.reading.in.buffered(c.reading.in.end - c.reading.in.begin); len(rest) > 0 {
		nc = Unread(nc, rest)
	}
	c.reading.in.mem.Free()
	return nc
}

func newConn(nc net.Conn, cfg Config) *Conn {
	in := newFrameReader(nc)
	if u, ok := nc.(*unread); ok {
		nc = u.Conn
		in = newFrameReader(nc)
		in.mem = &codec.Buffer{B: u.head}
		in.buf, in.end = u.head, len(u.head)
	}
	c := &Conn{
		handshake: handshake{cfg: cfg.WithDefaults(), nc: nc}, reading: readLoop{in: in}, started: time.Now(),
		done: make(chan struct{}), refused: make(chan struct{}),
	}
	c.reading.conn, c.frames = c, &c.reading.in
	c.own = c.cfg.limits()
	c.windows.limit, c.excess.limit = c.cfg.MaxStreamBytes, c.own.maxMessage
	c.reading.owner, c.reading.reclaimed = ownerLoop, make(chan struct{}, 1)
	c.resume = make(chan struct{}, 1)
	c.writeFunc = c.write
	return c
}

func (c *Conn) run() {
	if c.secured = takeTLS(c.nc); c.secured != nil {
		c.nonblocking.Init(c.secured.wire)
		c.reading.poller.InitThrough(c.secured.wire, c.cfg.BusyPoll, c.secured)
		c.reading.in.secured = c.secured
	} else {
		c.nonblocking.Init(c.nc)
		c.reading.poller.Init(c.nc, c.cfg.BusyPoll)
	}
	c.out.maxFragment = c.peer.maxFragment
	c.allocator, _ = c.handler.(Allocator)
	c.reading.in.beforeMove = c.reading.publish
	c.reading.in.poll, c.reading.in.beforeRead, c.reading.in.afterRead = c.reading.poll, c.reading.beforeRead, c.reading.afterRead
	go c.reading.read()
}

// closeQuietly closes a connection that has already failed or been closed.
func closeQuietly(nc net.Conn) error {
	if err := nc.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// Hello returns the dialler's part of the handshake.
func (c *Conn) Hello() Hello { return c.hello }

// Welcome returns the accepting side's part of the handshake.
func (c *Conn) Welcome() Welcome { return c.welcome }

// peerAddr returns the address of the other side as a text, which every call through connect needs.
func (c *Conn) peerAddr() string {
	if known := c.peerText.Load(); known != nil {
		return *known
	}
	text := c.nc.RemoteAddr().String()
	c.peerText.Store(&text)
	return text
}

// RemoteAddr returns the address of the other side, as its net.Conn has it.
func (c *Conn) RemoteAddr() net.Addr { return c.nc.RemoteAddr() }

// Version returns the protocol version that the two sides agreed on.
func (c *Conn) Version() int { return c.version }

// Done returns a channel that is closed when the connection has ended.
func (c *Conn) Done() <-chan struct{} { return c.done }

// Err returns why the connection ended, or nil while it is open.
func (c *Conn) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Stats are the counters of a connection.
type Stats struct {
	// Calls is the number of calls of every shape begun so far.
	Calls uint64
	// BytesSent and BytesReceived count the bytes written and read, including framing and excluding
	// the handshake.
	BytesSent, BytesReceived uint64
}

// Stats returns the current counters.
func (c *Conn) Stats() Stats {
	return Stats{Calls: c.calls.Load(), BytesSent: c.sent.Load(), BytesReceived: c.received.Load()}
}

// Pending returns the number of open calls.
func (c *Conn) Pending() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pending()
}

func (c *Conn) pending() int { return c.sendWindow.open + c.served.open }

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

// errPeerClosed ends a connection that the peer closed, or whose process exited.
var errPeerClosed = errors.New("the peer closed the connection")

var errLost = errors.New("the connection was lost")

// lostError returns the reason of a connection that ended unexpectedly with err.
func lostError(err error) error {
	if errors.Is(err, io.EOF) {
		// Not io.EOF itself: to the reader of a stream, io.EOF means a clean end.
		return errPeerClosed
	}
	return fmt.Errorf("%w: %w", errLost, err)
}

// hasLeft reports whether reason is the expected end of a connection whose peer had announced that
// it was leaving. Either the reader sees the close first, or a writer whose data is no longer
// needed, such as the answer to a ping. The caller must hold c.mu.
func (c *Conn) hasLeft(reason error) bool {
	return c.peerDrained && (errors.Is(reason, errPeerClosed) || c.pending() == 0 && errors.Is(reason, errLost))
}

// fail ends the connection and fails everything that is open with reason. Only the first call has
// an effect.
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
	c.sweeper.clear()
	for i := range c.open.slots {
		s := &c.open.slots[i]
		switch {
		case s.call != nil:
			c.out.drop(s.call.outMessage)
			calls = append(calls, s.call)
		case s.stream != nil:
			c.out.close(&s.stream.queue, unavailable(reason))
			clients = append(clients, s.stream)
		}
		*s = slot{}
	}
	after := c.after
	c.after = nil
	served := c.served.calls
	c.served.calls, c.served.open = nil, 0
	for _, in := range served {
		if in != nil && in.stream() != nil {
			c.out.close(&in.stream().queue, unavailable(reason))
		}
	}
	c.checkIdle()
	c.mu.Unlock()

	_ = c.nc.Close() // the connection has ended whatever Close returns
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

// AfterEnd calls f on its own goroutine once the connection has ended, immediately if it already
// has. Unlike waiting for Done it costs an idle connection no goroutine.
func (c *Conn) AfterEnd(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		go f()
		return
	}
	c.after = append(c.after, f)
}

// Close ends the connection immediately. Open calls fail with Unavailable.
func (c *Conn) Close() error {
	c.fail(fmt.Errorf("this side closed it: %w", ErrClosed))
	return nil
}

// refusalError returns the error for a new call if calls are no longer accepted, else nil. The
// caller must hold c.mu.
func (c *Conn) refusalError() error {
	switch {
	case c.err != nil:
		return notRun(unavailable(fmt.Errorf("tunnel to %s: %w", c.peerName(), c.err)))
	case c.draining != nil:
		return notRun(unavailable(fmt.Errorf("tunnel to %s: %w", c.peerName(), c.draining)))
	}
	return nil
}

// crossedGoAway reports whether the peer refused a call because it was shutting down. What the
// caller gets then is the error of a call that begins after the GOAWAY: the connection is lost to
// both, and neither has run. A refusal with details comes from the peer's handler. The caller must
// hold c.mu.
func (c *Conn) crossedGoAway(failure error) bool {
	e, ok := errors.AsType[*connect.Error](failure)
	return ok && c.peerDrained && c.draining != nil && e.Code() == connect.CodeUnavailable && len(e.Details()) == 0
}

var _ connect.Transport = (*transport)(nil)

// Shutdown ends the connection gracefully. No new calls begin on either side; open calls may finish
// and their responses are written; then the connection is closed. If ctx ends first, the connection
// is closed at once and the error wraps ctx's. Shutdown returns nil if the connection has already
// ended.
func (c *Conn) Shutdown(ctx context.Context) error {
	c.mu.Lock()
	over := c.err != nil
	if over {
		c.mu.Unlock()
		return nil //nolint:nilerr // already ended for whatever reason: nothing is open
	}
	c.drain(fmt.Errorf("this side is shutting down: %w", ErrClosed))
	if c.idle == nil {
		c.idle = make(chan struct{})
	}
	idle := c.idle
	c.checkIdle()
	c.mu.Unlock()
	var err error
	select {
	case <-idle:
		err = c.awaitPeerClose(ctx)
	case <-ctx.Done():
		err = fmt.Errorf("shutting down the tunnel to %s with %d calls open: %w", c.peerName(), c.Pending(), ctx.Err())
	}
	c.fail(fmt.Errorf("this side shut down: %w", ErrClosed))
	return err
}

// awaitPeerClose waits until the dialler has closed the connection, since only the dialler knows
// that it has read everything. It gives up after HandshakeTimeout.
func (c *Conn) awaitPeerClose(ctx context.Context) error {
	if c.dialled {
		return nil
	}
	timer := time.NewTimer(c.cfg.HandshakeTimeout)
	defer timer.Stop()
	select {
	case <-c.done:
	case <-timer.C:
	case <-ctx.Done():
		return fmt.Errorf("waiting for %s to close the tunnel: %w", c.peerName(), ctx.Err())
	}
	return nil
}

// drain refuses new calls from now on and sends GOAWAY. It does nothing if the connection has
// ended. The caller must hold c.mu.
func (c *Conn) drain(reason error) {
	if c.draining != nil || c.err != nil {
		return
	}
	c.draining = reason
	close(c.refused)
	body := appendErrorBlock(nil, connect.NewError(connect.CodeUnavailable, "shutting down"), maxGoAwayBytes)
	c.out.frame(kindGoAway, 0, body)
	c.kick()
}

// checkIdle unblocks Shutdown if nothing is left to wait for. On a dialling side whose peer is
// shutting down, it then closes the connection. The caller must hold c.mu.
func (c *Conn) checkIdle() {
	leaving := c.dialled && c.peerDrained
	if c.idle == nil && !leaving {
		return
	}
	over := c.err != nil
	idle := c.pending() == 0 && !c.out.writing && len(c.out.buf) == 0 && len(c.out.ring) == 0 && len(c.out.replies) == 0
	// An accepting side waits for the dialler's GOAWAY, so that no call already in flight is lost
	// without an answer.
	if !over && (!idle || !c.dialled && !c.peerDrained) {
		return
	}
	if c.idle != nil {
		close(c.idle)
		c.idle = nil
	}
	if leaving && !over {
		go c.fail(errPeerShutDown)
	}
}

var errPeerShutDown = fmt.Errorf("the peer shut down: %w", ErrClosed)

func (l *readLoop) onGoAway(h frameHeader, body []byte) error {
	c := l.conn
	p := parser{rest: body}
	reason := p.errorBlock()
	if p.end(); p.err != nil {
		return p.err
	}
	if h.flags()&goAwayFatal != 0 {
		return fmt.Errorf("the peer ended the connection: %s", reason.Message()) //nolint:err113 // for information only, not to be matched
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.peerDrained = true
	if c.dialled {
		c.drain(fmt.Errorf("the peer is shutting down: %w", ErrClosed))
	}
	c.checkIdle()
	return nil
}

// Unread returns a connection whose reads first return head, which has already been read from nc,
// and then continue with nc. Dial and Accept unwrap it, so their writes go to the socket directly.
func Unread(nc net.Conn, head []byte) net.Conn {
	return &unread{Conn: nc, head: slices.Clone(head)}
}

type unread struct {
	net.Conn

	head []byte
}

// Read returns what is left of head, and then reads the connection.
func (u *unread) Read(b []byte) (int, error) {
	if len(u.head) == 0 {
		return u.Conn.Read(b)
	}
	n := copy(b, u.head)
	u.head = u.head[n:]
	return n, nil
}
