// Package listen is a host's listener: one TCP listener and, for processes that share the file
// system, a Unix socket. Both accept tunnels, which are recognized by their preface, and HTTP.
//
// What a [Listener] promises:
//
//   - A connection whose other side has not proven that it knows the token is bounded in time, and
//     all of them together in number: at the limit the oldest makes room for the newest.
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
	// Socket is the path of the Unix socket.
	Socket string
	// Tunnel configures the tunnels, and Self is what their diallers learn about this host.
	Tunnel tunnel.Config
	Self   tunnel.Welcome
	// Admit returns the handler of a tunnel, or the error that refuses its dialler, which has
	// proven that it knows the token. opened, which may be nil, is called once the tunnel is open.
	Admit func(hello tunnel.Hello) (handler tunnel.Handler, opened func(*tunnel.Conn), err error)
	Log   *slog.Logger
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
	// admission bounds the connections that are not admitted yet.
	admission *admission
	// closing is canceled when shutdown begins.
	closing context.Context //nolint:containedctx // the lifetime of a listener, for the requests that it serves
	cancel  context.CancelFunc

	mu      sync.Mutex // guards the fields below
	tunnels map[*tunnel.Conn]struct{}
	closed  bool
}

// New binds the addresses; connections are accepted from [Listener.Serve] on. A Unix socket that
// can't be bound is logged, since TCP is equivalent. The caller must Close the listener.
func New(ctx context.Context, config Config) (*Listener, error) {
	if config.Listen == nil {
		config.Listen = new(net.ListenConfig).Listen
	}
	l := &Listener{config: config, tunnels: make(map[*tunnel.Conn]struct{}), admission: newAdmission(), socket: config.Socket}
	l.closing, l.cancel = context.WithCancel(context.Background())
	var err error
	if l.tcp, err = config.Listen(ctx, "tcp", config.Address); err != nil {
		return nil, connect.Errorf(connect.CodeUnavailable, "listening on %s: %v", config.Address, err)
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
			p := l.admission.enter(ctx, nc)
			if p == nil {
				return
			}
			if !l.config.Spawn(func(ctx context.Context) { l.identify(ctx, nc, p) }) {
				p.gone()
				_ = nc.Close()
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

// helloBytes is the size of the buffer for sniffing; the first bytes of nearly all connections fit.
const helloBytes = 512

// identify sniffs what protocol a new connection speaks, and hands it over accordingly.
func (l *Listener) identify(ctx context.Context, nc net.Conn, p *pending) {
	isWeb := false
	defer func() {
		if !isWeb {
			p.gone() // it was admitted, or closed
		}
	}()
	in := bufio.NewReaderSize(nc, helloBytes)
	if err := nc.SetReadDeadline(time.Now().Add(firstBytes)); err != nil {
		_ = nc.Close()
		return
	}
	stop := context.AfterFunc(ctx, func() { _ = nc.SetReadDeadline(time.Unix(1, 0)) })
	isTunnel := true
	for i := range len(tunnel.Preface) {
		head, err := in.Peek(i + 1)
		if err != nil {
			stop()
			_ = nc.Close()
			return
		}
		if head[i] != tunnel.Preface[i] {
			isTunnel = false
			break
		}
	}
	if !stop() {
		_ = nc.Close()
		return
	}
	if err := nc.SetReadDeadline(time.Time{}); err != nil {
		_ = nc.Close()
		return
	}
	if !isTunnel {
		isWeb = true
		l.webConns.deliver(&Conn{Conn: nc, in: &peekedReader{conn: nc, in: in}, listener: l, pending: p})
		return
	}
	begun, err := in.Peek(in.Buffered())
	if err != nil {
		_ = nc.Close()
		return
	}
	var opened func(*tunnel.Conn)
	conn, raw, err := tunnel.AcceptAny(ctx, tunnel.Unread(nc, begun), l.config.Tunnel, l.config.Self, func(hello tunnel.Hello) (tunnel.Handler, error) {
		if hello.Protocol == tunnel.ProtocolHTTP {
			return nil, nil //nolint:nilnil // HTTP has a handler of its own
		}
		var handler tunnel.Handler
		var err error
		handler, opened, err = l.config.Admit(hello)
		return handler, err
	})
	if err != nil {
		l.config.Log.Debug("a tunnel was refused", slog.Any("error", err))
		return
	}
	if raw != nil {
		isWeb = true
		p.admit()
		l.webConns.deliver(&Conn{Conn: raw, in: raw, listener: l, pending: p, proven: true})
		return
	}
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		_ = conn.Close()
		return
	}
	l.tunnels[conn] = struct{}{}
	l.mu.Unlock()
	if opened != nil {
		opened(conn)
	}
	conn.AfterEnd(func() {
		l.mu.Lock()
		delete(l.tunnels, conn)
		l.mu.Unlock()
	})
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
