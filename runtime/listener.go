package runtime

import (
	"bufio"
	"context"
	"crypto/subtle"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"

	"github.com/raylink/raylink/internal/backoff"
	"github.com/raylink/raylink/internal/hostapi"
	"github.com/raylink/raylink/runtime/launch"
	"github.com/raylink/raylink/runtime/tunnel"
)

// firstBytes bounds the time until a new connection has sent enough to be identified.
const firstBytes = pendingTime

// pingAfter is the time without a frame after which an HTTP/2 peer is pinged, and the time that it
// then has to respond.
const pingAfter = 30 * time.Second

// listener is a host's door to the network: one TCP listener and, for processes that share the file system, a
// Unix socket. Both accept tunnels and HTTP. A tunnel is recognized by its preface.
type listener struct {
	host       *Host
	advertised string
	socket     string
	loopback   bool
	tcp        net.Listener
	unix       net.Listener
	web        *http.Server
	webConns   *connListener
	errors     *connecthttp.ErrorWriter
	// own serves the tunnel calls that are for the host itself.
	own tunnel.Handler
	// admission bounds the connections that are not admitted yet, public the calls that need no
	// token.
	admission *admission
	public    atomic.Int64
	// origins are the browser origins that may call: the host's own, and those that Brain allows.
	origins atomic.Pointer[origins]
	// compression is set if responses may be compressed.
	compression atomic.Bool
	// closing is canceled when shutdown begins.
	closing context.Context //nolint:containedctx // the lifetime of a listener, for the requests that it serves
	cancel  context.CancelFunc

	mu      sync.Mutex // guards the fields below
	tunnels map[*tunnel.Conn]struct{}
	closed  bool
}

// openFront binds the listeners and starts to serve.
func listen(h *Host, brain hostapi.Brain) (*listener, error) {
	o := h.options
	f := &listener{
		host: h, tunnels: make(map[*tunnel.Conn]struct{}), errors: connecthttp.NewErrorWriter(), own: tunnel.ServerHandler(h.server),
		admission: newAdmission(),
	}
	f.closing, f.cancel = context.WithCancel(context.Background())
	allowed, err := parseOrigins(o.Origins)
	if err != nil {
		return nil, err
	}
	if slices.Contains(allowed, anyOrigin) && o.Token == "" {
		return nil, connect.Errorf(connect.CodeFailedPrecondition,
			"allowing every browser origin (%s) without a token would open this system to every page that a browser here shows: "+
				"list the origins, or set a token (RAYLINK_TOKEN)", anyOrigin)
	}
	f.origins.Store(newOrigins(allowed))
	f.compression.Store(o.Compression)
	host, _, err := net.SplitHostPort(o.Listen)
	if err != nil {
		return nil, connect.Errorf(connect.CodeInvalidArgument, "the address to listen on, %q, is not of the form HOST:PORT", o.Listen)
	}
	f.loopback = isLoopback(host)
	if !f.loopback && (o.Token == "" || !o.Insecure) {
		return nil, connect.Errorf(connect.CodeFailedPrecondition,
			"listening on %s, beyond loopback, needs a token (RAYLINK_TOKEN; without it one is made, but not with --open) and "+
				"--insecure (RAYLINK_INSECURE=1): nothing is encrypted yet", o.Listen)
	}
	if f.tcp, err = new(net.ListenConfig).Listen(h.life, "tcp", o.Listen); err != nil {
		return nil, connect.Errorf(connect.CodeUnavailable, "listening on %s: %v", o.Listen, err)
	}
	f.advertised = f.tcp.Addr().String()
	if o.Advertise != "" {
		if f.advertised, err = advertise(o.Advertise, f.tcp.Addr()); err != nil {
			_ = f.tcp.Close()
			return nil, err
		}
	} else if ip := net.ParseIP(hostOf(f.advertised)); ip != nil && ip.IsUnspecified() {
		_ = f.tcp.Close()
		return nil, connect.Errorf(connect.CodeInvalidArgument, "listening on %s, which is no address to be reached by: say which with --advertise (RAYLINK_ADVERTISE)", o.Listen)
	}
	f.socket = h.dir.Socket()
	if f.unix, err = new(net.ListenConfig).Listen(h.life, "unix", f.socket); err != nil {
		// The socket only saves time: TCP is equivalent.
		h.log.Warn("no Unix socket", slog.Any("error", err))
		f.socket = ""
	} else if err := os.Chmod(f.socket, 0o600); err != nil {
		_ = f.tcp.Close()
		_ = f.unix.Close()
		return nil, connect.Errorf(connect.CodeInternal, "keeping the socket to this user: %v", err)
	}
	handler := newNodeHandler(h)
	if brain != nil {
		handler = brain.Gateway(handler, h.peers.DialHTTP)
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	f.webConns = newConnListener(f.tcp.Addr())
	f.web = &http.Server{
		Handler: f.guard(handler), Protocols: protocols, ReadHeaderTimeout: firstBytes, IdleTimeout: idleTime,
		ConnContext: func(ctx context.Context, nc net.Conn) context.Context {
			return context.WithValue(ctx, webConnKey{}, nc)
		},
		HTTP2: &http.HTTP2Config{
			// Detect a peer that has silently disappeared: an HTTP/2 connection is not idle while
			// it has an open stream.
			SendPingTimeout: pingAfter, PingTimeout: pingAfter,
		},
		ErrorLog: slog.NewLogLogger(h.log.Handler(), slog.LevelDebug),
	}
	h.goBackground(func(context.Context) {
		if err := f.web.Serve(f.webConns); !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
			h.log.Error("the HTTP server ended", slog.Any("error", err))
		}
	})
	for _, l := range []net.Listener{f.tcp, f.unix} {
		if l != nil {
			h.goBackground(func(ctx context.Context) { f.accept(ctx, l) })
		}
	}
	return f, nil
}

func (f *listener) accept(ctx context.Context, l net.Listener) {
	var retry backoff.Backoff
	for {
		nc, err := l.Accept()
		switch {
		case err == nil:
			retry.Reset()
			p := f.admission.enter(ctx, nc)
			if p == nil {
				return
			}
			if !f.host.goBackground(func(ctx context.Context) { f.identify(ctx, nc, p) }) {
				p.gone()
				_ = nc.Close()
				return
			}
		case ctx.Err() != nil || errors.Is(err, net.ErrClosed):
			return
		default:
			// Most likely the process is out of file descriptors: wait until some are closed.
			f.host.log.Warn("accepting a connection", slog.Any("error", err))
			if retry.Wait(ctx) != nil {
				return
			}
		}
	}
}

// helloBytes is the size of the buffer for sniffing; the first bytes of nearly all connections fit.
const helloBytes = 512

// identify sniffs what protocol a new connection speaks, and hands it over accordingly.
func (f *listener) identify(ctx context.Context, nc net.Conn, p *pending) {
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
		f.webConns.deliver(&webConn{Conn: nc, in: &peekedReader{conn: nc, in: in}, listener: f, pending: p})
		return
	}
	var tag *tunnelTag
	begun, err := in.Peek(in.Buffered())
	if err != nil {
		_ = nc.Close()
		return
	}
	self := tunnel.Welcome{Host: f.host.id, Build: launch.Build()}
	conn, raw, err := tunnel.AcceptAny(ctx, tunnel.Unread(nc, begun), f.host.tunnelConfig(), self, func(hello tunnel.Hello) (tunnel.Handler, error) {
		if hello.Protocol == tunnel.ProtocolHTTP {
			return nil, nil //nolint:nilnil // HTTP has a handler of its own
		}
		d, err := f.admit(hello)
		if err != nil {
			return nil, err
		}
		tag = d.tag
		return d, nil
	})
	if err != nil {
		f.host.log.Debug("a tunnel was refused", slog.Any("error", err))
		return
	}
	if raw != nil {
		isWeb = true
		p.admit()
		f.webConns.deliver(&webConn{Conn: raw, in: raw, listener: f, pending: p, proven: true})
		return
	}
	f.mu.Lock()
	if f.closed {
		f.mu.Unlock()
		_ = conn.Close()
		return
	}
	f.tunnels[conn] = struct{}{}
	f.mu.Unlock()
	if tag != nil {
		tag.carry(conn)
	}
	conn.AfterEnd(func() {
		f.mu.Lock()
		delete(f.tunnels, conn)
		f.mu.Unlock()
	})
}

// admit returns the dispatcher for a dialler, which has proven that it knows the token.
func (f *listener) admit(hello tunnel.Hello) (*dispatcher, error) {
	h := f.host
	if hello.Protocol != "" {
		return nil, connect.Errorf(connect.CodeUnimplemented, "a host's connections carry no %q", hello.Protocol)
	}
	if hello.Tag == "" {
		return &dispatcher{host: h, client: hello.Client}, nil
	}
	n := h.localNode(hello.Target)
	if n == nil {
		return nil, connect.Errorf(connect.CodeUnavailable, "no node %s lives on host %s", hello.Target, h.id)
	}
	tag, err := n.tunnelTag(hello.Tag)
	if err != nil {
		return nil, err
	}
	return &dispatcher{host: h, client: hello.Client, only: n, tag: tag}, nil
}

const wrongToken = "the token is missing or wrong: send it in the header `Authorization: Bearer ...`; " +
	"`raylink token` prints it to the user who started the system (or it is what RAYLINK_TOKEN or --token said there)"

// tokenFits compares in constant time.
func (f *listener) tokenFits(token string) bool {
	want := f.host.options.Token
	return want == "" || subtle.ConstantTimeCompare([]byte(token), []byte(want)) == 1
}

// shutdown stops accepting and waits until running requests have ended or ctx ends.
func (f *listener) shutdown(ctx context.Context) error {
	_ = f.tcp.Close()
	if f.unix != nil {
		_ = f.unix.Close()
	}
	var errs []error
	f.cancel()
	f.admission.closeIdle()
	// What is left then is a caller without a token that does not read its response.
	defer time.AfterFunc(endTime, f.admission.close).Stop()
	for _, c := range f.openTunnels() {
		errs = append(errs, c.Shutdown(ctx))
	}
	switch err := f.web.Shutdown(ctx); {
	case err != nil && ctx.Err() == nil:
		errs = append(errs, err)
	case err != nil:
		f.host.log.Warn("HTTP responses are cut off: they were not read to their end within the drain")
	}
	return errors.Join(errs...)
}

// close closes everything at once.
func (f *listener) close() {
	_ = f.tcp.Close()
	if f.unix != nil {
		_ = f.unix.Close()
	}
	f.cancel()
	f.admission.close()
	_ = f.web.Close()
	_ = f.webConns.Close()
	for _, c := range f.openTunnels() {
		_ = c.Close()
	}
}

func (f *listener) openTunnels() []*tunnel.Conn {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	conns := make([]*tunnel.Conn, 0, len(f.tunnels))
	for c := range f.tunnels {
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

// hostOf returns the host of HOST:PORT, or of a bare host.
func hostOf(address string) string {
	if host, _, err := net.SplitHostPort(address); err == nil {
		return host
	}
	return strings.Trim(address, "[]")
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return strings.EqualFold(host, "localhost") || ip != nil && ip.IsLoopback()
}
