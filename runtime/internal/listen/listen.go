// Package listen is a host's listener: one TCP listener and, for processes that share the file
// system, a Unix socket. Both accept tunnels, which are recognized by their preface, and HTTP.
//
// With [Config].TLS the TCP listener serves TLS only, and the protocol is the one that the client
// has chosen (ALPN).
//
// What a [Listener] promises:
//
//   - A connection whose other side has not proven that it knows the token is bounded in time, and
//     all of them together in number: at the limit the oldest makes room for the newest.
//   - Handshakes of TLS are bounded: how many begin a second, how many are computed at once, and
//     how many bytes each may have.
//   - These limits are shared by the addresses of the other sides: one that uses them up leaves
//     others their part.
//   - A client that uses TLS where there is none, or the reverse, gets an error that names the
//     mistake.
//   - A tunnel is served by the handler with which Admit has accepted its dialler; an HTTP
//     connection by the one HTTP handler, which decides with [ConnOf] what it may do.
//   - [Listener.Shutdown] accepts nothing more and lets running requests end; [Listener.Close] ends
//     everything at once.
package listen

import (
	"bufio"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect/v2"

	"github.com/raylink/raylink/internal/backoff"
	"github.com/raylink/raylink/internal/pki"
	"github.com/raylink/raylink/runtime/tunnel"
)

const (
	// firstBytes bounds the time until a new connection has sent enough to be identified.
	firstBytes = PendingTime
	// idleTime is how long an HTTP connection may be idle between two requests. It is longer than
	// the idle timeout of clients, including the gateway, so that they close first.
	idleTime = 2 * time.Minute
	// pingAfter is the time without a frame after which an HTTP/2 peer is pinged, and the time that
	// it then has to respond.
	pingAfter = 30 * time.Second
	// EndTime bounds the time to write responses to callers without a token when the listener
	// closes.
	EndTime = time.Second
)

// Config is what a [Listener] needs of its host.
type Config struct {
	// Address is the address to listen on, HOST:PORT. Port 0 is any free port.
	Address string
	// Advertise is the address under which others reach the listener; empty for the bound one. Port
	// 0 stands for the bound port.
	Advertise string
	// Ports are those to choose from where Address has port 0, FIRST-LAST; empty for any free one.
	Ports string
	// Socket is the path of the Unix socket.
	Socket string
	// Tunnel configures the tunnels, and Self is what their diallers learn about this host.
	Tunnel tunnel.Config
	Self   tunnel.Welcome
	// Admit returns the handler of a tunnel, or the error that refuses its dialler, which has
	// proven that it is peer. opened, which may be nil, is called once the tunnel is open.
	Admit func(hello tunnel.Hello, peer pki.Peer) (handler tunnel.Handler, opened func(*tunnel.Conn), err error)
	// TLS is that of the TCP listener; nil for none.
	TLS *TLS
	// Role is that of a peer which has proven that it knows the token. The default is admin.
	Role pki.Role
	Log  *slog.Logger
	// Spawn runs fn on a goroutine of the host, with a context that ends with the host. It returns
	// false, without running fn, once the host has ended.
	Spawn func(fn func(context.Context)) bool
	// Listen binds an address, as [net.ListenConfig.Listen] does, which is the default.
	Listen func(ctx context.Context, network, address string) (net.Listener, error)
}

// Listener is the listener of one host. Its methods are safe for concurrent use.
type Listener struct {
	config     Config
	advertised string
	socket     string
	tcp        net.Listener
	unix       net.Listener // nil if it could not be bound
	web        *http.Server
	webConns   *connListener
	// admission bounds the connections that are not admitted yet, and crypto their handshakes.
	admission *admission
	crypto    *crypto
	refusals  refusalLog
	// closing is canceled when shutdown begins.
	closing context.Context //nolint:containedctx // the lifetime of a listener, for the requests that it serves
	cancel  context.CancelFunc

	mu sync.Mutex // guards the fields below
	// tunnels have their diallers.
	tunnels map[*tunnel.Conn]pki.Peer
	// webOpen are the HTTP connections.
	webOpen map[*Conn]struct{}
	closed  bool
}

// New binds the addresses; connections are accepted from [Listener.Serve] on. A Unix socket that
// can't be bound is logged, since TCP is equivalent. The caller must Close the listener.
func New(ctx context.Context, config Config) (*Listener, error) {
	if config.Role == "" {
		config.Role = pki.RoleAdmin
	}
	if config.Listen == nil {
		config.Listen = new(net.ListenConfig).Listen
	}
	l := &Listener{
		config: config, tunnels: make(map[*tunnel.Conn]pki.Peer), webOpen: make(map[*Conn]struct{}),
		admission: newAdmission(), crypto: newCrypto(), socket: config.Socket,
	}
	l.closing, l.cancel = context.WithCancel(context.Background())
	var err error
	if l.tcp, err = listenTCP(ctx, config); err != nil {
		return nil, err
	}
	l.advertised = l.Bound()
	if config.Advertise != "" {
		if l.advertised, err = advertise(config.Advertise, l.tcp.Addr()); err != nil {
			_ = l.tcp.Close()
			return nil, err
		}
	} else if ip := net.ParseIP(HostOf(l.advertised)); ip != nil && ip.IsUnspecified() {
		_ = l.tcp.Close()
		return nil, connect.Errorf(connect.CodeInvalidArgument,
			"listening on %s, which is no address to be reached by: say which with --advertise (RAYLINK_ADVERTISE)", config.Address)
	}
	if l.unix, err = config.Listen(ctx, "unix", config.Socket); err != nil {
		// The socket only saves time: TCP is equivalent.
		config.Log.Warn("no Unix socket", slog.Any("error", err))
		l.unix, l.socket = nil, ""
	} else if err := os.Chmod(config.Socket, 0o600); err != nil {
		_ = l.tcp.Close()
		_ = l.unix.Close()
		return nil, connect.Errorf(connect.CodeInternal, "keeping the socket to this user: %v", err)
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	l.webConns = newConnListener(l.tcp.Addr())
	l.web = &http.Server{
		Protocols: protocols, ReadHeaderTimeout: firstBytes, IdleTimeout: idleTime,
		ConnContext: func(ctx context.Context, nc net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, nc)
		},
		HTTP2: &http.HTTP2Config{
			// Detect a peer that has silently disappeared: an HTTP/2 connection is not idle while
			// it has an open stream.
			SendPingTimeout: pingAfter, PingTimeout: pingAfter,
		},
		ErrorLog: slog.NewLogLogger(config.Log.Handler(), slog.LevelDebug),
	}
	return l, nil
}

// Serve accepts connections, in the background, and serves HTTP with handler. It must be called
// once.
func (l *Listener) Serve(handler http.Handler) {
	l.web.Handler = handler
	l.config.Spawn(func(context.Context) {
		if err := l.web.Serve(l.webConns); !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
			l.config.Log.Error("the HTTP server ended", slog.Any("error", err))
		}
	})
	for _, in := range []net.Listener{l.tcp, l.unix} {
		if in != nil {
			l.config.Spawn(func(ctx context.Context) { l.accept(ctx, in) })
		}
	}
}

// Advertised is the address, HOST:PORT, under which others reach the listener.
func (l *Listener) Advertised() string { return l.advertised }

// Bound is the address, HOST:PORT, that the listener is bound to.
func (l *Listener) Bound() string { return l.tcp.Addr().String() }

// Socket is the path of the Unix socket, or "" if there is none.
func (l *Listener) Socket() string { return l.socket }

// Closing is a context that is canceled when the listener begins to close.
func (l *Listener) Closing() context.Context { return l.closing }

func (l *Listener) accept(ctx context.Context, in net.Listener) {
	var retry backoff.Backoff
	for {
		nc, err := in.Accept()
		switch {
		case err == nil:
			retry.Reset()
			if !l.admit(nc, in == l.tcp) {
				return
			}
		case ctx.Err() != nil || errors.Is(err, net.ErrClosed):
			return
		default:
			// Most likely the process is out of file descriptors: wait until some are closed.
			l.config.Log.Warn("accepting a connection", slog.Any("error", err))
			if retry.Wait(ctx) != nil {
				return
			}
		}
	}
}

// admit identifies a new connection in the background, once there is room for it. It does not wait,
// so that a source that has more than its part delays no others. It reports false once the host has
// ended.
func (l *Listener) admit(nc net.Conn, overTCP bool) bool {
	p, _ := l.admission.tryEnter(nc)
	var waits *arrival
	if p == nil {
		var displaced net.Conn
		if waits, displaced = l.admission.await(nc); displaced != nil {
			l.refused(displaced, errors.New("too many connections without a token are open"))
		}
	}
	isRunning := l.config.Spawn(func(ctx context.Context) {
		if p == nil {
			p = l.admission.enterLater(ctx, waits)
		}
		if p != nil {
			l.identify(ctx, nc, p, overTCP)
		}
	})
	if !isRunning {
		if p != nil {
			p.gone()
		}
		_ = nc.Close()
	}
	return isRunning
}

// helloBytes is the size of the buffer for sniffing; the first bytes of nearly all connections fit.
const helloBytes = 512

// origin is what is known of a new connection.
type origin struct {
	// isTLS is set within TLS.
	isTLS bool
	// tunnel configures a tunnel.
	tunnel tunnel.Config
	// peer has a role if the other side has proven one.
	peer pki.Peer
	// refusal is why a tunnel is refused, nil if it is not.
	refusal error
}

// identify sniffs what protocol a new connection speaks, and hands it over accordingly.
func (l *Listener) identify(ctx context.Context, nc net.Conn, p *pending, overTCP bool) {
	isWeb := false
	defer func() {
		if !isWeb {
			p.gone() // it was admitted, or closed
		}
	}()
	in := bufio.NewReaderSize(nc, helloBytes)
	from := origin{tunnel: l.config.Tunnel}
	if overTCP {
		head, err := l.peek(ctx, nc, in, 1)
		if err != nil {
			return
		}
		isTLS := head[0] == recordHandshake
		switch {
		case isTLS && l.config.TLS != nil:
			isWeb = l.identifyTLS(ctx, nc, in, p)
			return
		case isTLS:
			l.refuseHTTP(ctx, nc, hasNoTLS)
			return
		case l.config.TLS != nil && head[0] != tunnel.Preface[0]:
			l.refuseHTTP(ctx, nc, needsTLS)
			return
		case l.config.TLS != nil:
			from.refusal = connect.NewError(connect.CodeFailedPrecondition, "this address serves TLS only, and the dialler does not use it: "+
				"give it a token of this system (`raylink token` prints it; set RAYLINK_TOKEN), or --tls-ca where the system has certificates of its own")
		}
	}
	isWeb = l.sniff(ctx, nc, in, p, from)
}

// peek returns the first n bytes of a connection. On error the connection is closed.
func (l *Listener) peek(ctx context.Context, nc net.Conn, in *bufio.Reader, n int) ([]byte, error) {
	if in.Buffered() >= n {
		return in.Peek(n)
	}
	if err := nc.SetReadDeadline(time.Now().Add(firstBytes)); err != nil {
		_ = nc.Close()
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = nc.SetReadDeadline(time.Unix(1, 0)) })
	head, err := in.Peek(n)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err == nil {
		err = nc.SetReadDeadline(time.Time{})
	}
	if err != nil {
		_ = nc.Close()
	}
	return head, err
}

// sniff distinguishes tunnels from HTTP.
func (l *Listener) sniff(ctx context.Context, nc net.Conn, in *bufio.Reader, p *pending, from origin) (isWeb bool) {
	for i := range len(tunnel.Preface) {
		head, err := l.peek(ctx, nc, in, i+1)
		if err != nil {
			return false
		}
		if head[i] != tunnel.Preface[i] {
			l.deliver(&Conn{Conn: nc, in: &peekedReader{conn: nc, in: in}, listener: l, pending: p, peer: from.peer})
			return true
		}
	}
	begun, err := in.Peek(in.Buffered())
	if err != nil {
		_ = nc.Close()
		return false
	}
	return l.acceptTunnel(ctx, nc, begun, p, from)
}

// deliver passes a connection to the HTTP server.
func (l *Listener) deliver(c *Conn) {
	if c.peer.Role != "" {
		c.pending.admit()
	}
	l.mu.Lock()
	l.webOpen[c] = struct{}{}
	l.mu.Unlock()
	if l.isRevoked(c.peer) {
		_ = c.Close()
		return
	}
	l.webConns.deliver(c)
}

// acceptTunnel serves a tunnel, or the HTTP connection that it becomes. begun has been read of it.
func (l *Listener) acceptTunnel(ctx context.Context, nc net.Conn, begun []byte, p *pending, from origin) (isWeb bool) {
	if from.refusal != nil {
		l.refused(nc, from.refusal)
		_ = tunnel.Refuse(ctx, tunnel.Unread(nc, begun), from.tunnel, from.refusal) // that is the error to report
		return false
	}
	peer := from.peer
	var opened func(*tunnel.Conn)
	conn, raw, err := tunnel.AcceptAny(ctx, tunnel.Unread(nc, begun), from.tunnel, l.config.Self, func(hello tunnel.Hello) (tunnel.Handler, error) {
		switch {
		case peer.HostID != "" && hello.Client != peer.HostID:
			return nil, connect.Errorf(connect.CodeUnauthenticated, "the dialler claims to be host %s, and its certificate is that of %s", hello.Client, peer.HostID)
		case from.isTLS && l.config.TLS.IsNamed && peer.Role == "":
			return nil, connect.NewError(connect.CodeUnauthenticated, "the dialler's certificate has no role in this system")
		case peer.Role == "":
			peer = pki.Peer{HostID: hello.Client, Role: l.config.Role}
		}
		if hello.Protocol == tunnel.ProtocolHTTP {
			return nil, nil //nolint:nilnil // HTTP has a handler of its own
		}
		var handler tunnel.Handler
		var err error
		handler, opened, err = l.config.Admit(hello, peer)
		return handler, err
	})
	if err != nil {
		if l.config.TLS != nil && ctx.Err() == nil {
			l.refused(nc, err)
		}
		l.config.Log.Debug("a tunnel was refused", slog.Any("error", err))
		return false
	}
	if raw != nil {
		l.deliver(&Conn{Conn: raw, in: raw, listener: l, pending: p, peer: peer})
		return true
	}
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		_ = conn.Close()
		return false
	}
	l.tunnels[conn] = peer
	l.mu.Unlock()
	if l.isRevoked(peer) {
		_ = conn.Close()
	}
	if opened != nil {
		opened(conn)
	}
	conn.AfterEnd(func() {
		l.mu.Lock()
		delete(l.tunnels, conn)
		l.mu.Unlock()
	})
	return false
}

// Shutdown stops accepting and waits until running requests have ended or ctx ends.
func (l *Listener) Shutdown(ctx context.Context) error {
	_ = l.tcp.Close()
	if l.unix != nil {
		_ = l.unix.Close()
	}
	var errs []error
	l.cancel()
	l.admission.closeIdle()
	// What is left then is a caller without a token that does not read its response.
	defer time.AfterFunc(EndTime, l.admission.close).Stop()
	for _, c := range l.openTunnels() {
		errs = append(errs, c.Shutdown(ctx))
	}
	switch err := l.web.Shutdown(ctx); {
	case err != nil && ctx.Err() == nil:
		errs = append(errs, err)
	case err != nil:
		l.config.Log.Warn("HTTP responses are cut off: they were not read to their end within the drain")
	}
	return errors.Join(errs...)
}

// Close closes everything at once.
func (l *Listener) Close() {
	_ = l.tcp.Close()
	if l.unix != nil {
		_ = l.unix.Close()
	}
	l.cancel()
	l.admission.close()
	_ = l.web.Close()
	_ = l.webConns.Close()
	for _, c := range l.openTunnels() {
		_ = c.Close()
	}
}

func (l *Listener) openTunnels() []*tunnel.Conn {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	conns := make([]*tunnel.Conn, 0, len(l.tunnels))
	for c := range l.tunnels {
		conns = append(conns, c)
	}
	return conns
}

// peekedReader first returns the bytes that were peeked at.
type peekedReader struct {
	conn net.Conn
	in   *bufio.Reader
}

func (r *peekedReader) Read(p []byte) (int, error) {
	if r.in.Buffered() > 0 {
		return r.in.Read(p)
	}
	return r.conn.Read(p)
}

// handedConns is a net.Listener of connections that were accepted elsewhere.
type connListener struct {
	addr   net.Addr
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newConnListener(addr net.Addr) *connListener {
	return &connListener{addr: addr, conns: make(chan net.Conn), closed: make(chan struct{})}
}

func (l *connListener) deliver(nc net.Conn) {
	select {
	case l.conns <- nc:
	case <-l.closed:
		_ = nc.Close()
	}
}

// Accept implements [net.Listener].
func (l *connListener) Accept() (net.Conn, error) {
	select {
	case nc := <-l.conns:
		return nc, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Close implements [net.Listener].
func (l *connListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

// Addr implements [net.Listener].
func (l *connListener) Addr() net.Addr { return l.addr }

// advertise resolves the address to advertise: port 0 stands for the bound port.
func advertise(address string, bound net.Addr) (string, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil || host == "" {
		return "", connect.Errorf(connect.CodeInvalidArgument, "the address to advertise, %q, is not of the form HOST:PORT", address)
	}
	if port == "0" {
		if _, port, err = net.SplitHostPort(bound.String()); err != nil {
			return "", connect.Errorf(connect.CodeInternal, "the bound address %q has no port", bound)
		}
	}
	return net.JoinHostPort(host, port), nil
}

// HostOf returns the host of HOST:PORT, or of a bare host.
func HostOf(address string) string {
	if host, _, err := net.SplitHostPort(address); err == nil {
		return host
	}
	return strings.Trim(address, "[]")
}

// IsLoopback reports whether a host is a name or an address of loopback.
func IsLoopback(host string) bool {
	ip := net.ParseIP(host)
	return strings.EqualFold(host, "localhost") || ip != nil && ip.IsLoopback()
}
