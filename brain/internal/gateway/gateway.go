// Package gateway makes every node reachable at one address: it is a streaming reverse proxy from
// Brain's listener to the nodes' hosts.
//
// A request names its node before the service and the method, `/<path, alias or
// nid>/<package.Service>/<Method>`, or, since gRPC clients cannot choose their paths, in the header
// `raylink-node`. Package nodeurl has the rules, which hosts share. The gateway resolves the node
// and forwards the request to its host as `/<nid>/<package.Service>/<Method>`, so hosts need to
// know neither paths nor aliases.
//
// Nothing is decoded: bodies stream in both directions, flushed as they arrive; headers, including
// deadlines, and trailers are passed through; a caller that disconnects cancels the call. HTTP/2 is
// forwarded as HTTP/2 without TLS, HTTP/1.1 as HTTP/1.1, so a host sees its caller's capabilities.
//
// The gateway's own errors, when a node does not exist, is starting, or cannot be reached, are in
// the caller's protocol. If a host breaks off in the middle of a response, the caller gets an error
// with the cause of the host's death, if the protocol still permits that; otherwise the stream is
// reset.
//
// Start with [Gateway.ServeHTTP].
package gateway

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"

	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	"github.com/raylink/raylink/internal/access"
	"github.com/raylink/raylink/internal/nodename"
	"github.com/raylink/raylink/internal/nodeurl"
)

// Options configures a gateway.
type Options struct {
	// ID is the gateway's own id, the same for all gateways that share a Brain.
	ID string
	// Resolve finds the node that a path, an alias or an nid identifies. Its errors go to the
	// caller.
	Resolve func(ctx context.Context, where string) (*nodev1.NodeRecord, error)
	// Local serves requests that name no node, with their path unchanged; requests for Brain
	// itself, with the path `/<package.Service>/<Method>`; and requests for nodes of the process's
	// own host, with the path `/<nid>/<package.Service>/<Method>`.
	Local http.Handler
	// IsLocal reports whether a node's host is this process.
	IsLocal func(host *nodev1.HostInfo) bool
	// Cause returns how a node's host died, or the empty string. It is called when a connection to
	// the host has failed, and may wait briefly for the death notice.
	Cause func(ctx context.Context, nid string) string
	// Connect opens a connection to a host on which requests need no token. Default: a plain
	// connection to its address.
	Connect func(ctx context.Context, host *nodev1.HostInfo) (net.Conn, error)
	// Dial bounds the time to connect to a host.
	Dial time.Duration
	// Silence is the time without a frame after which a host is pinged, and the time that it then
	// has to respond; HTTP/2 only.
	Silence time.Duration
	// Logger receives errors that cannot be sent to a caller. Not nil.
	Logger *slog.Logger
}

// Gateway is the proxy, an [http.Handler].
type Gateway struct {
	opts   Options
	one    *http.Transport // HTTP/1.1
	two    *http.Transport // HTTP/2 without TLS
	proxy  *httputil.ReverseProxy
	errors *connecthttp.ErrorWriter
}

// New makes a gateway. Close closes its idle connections.
func New(opts Options) *Gateway {
	g := &Gateway{opts: opts, errors: connecthttp.NewErrorWriter()}
	g.one = g.transport(false)
	g.two = g.transport(true)
	g.proxy = &httputil.ReverseProxy{
		Rewrite:        rewrite,
		Transport:      roundTripper(g.roundTrip),
		FlushInterval:  -1, // flush at once: streams must not be delayed, and unary responses arrive in one piece
		ModifyResponse: g.watchEnding,
		ErrorHandler:   g.unreachable,
		ErrorLog:       slog.NewLogLogger(opts.Logger.Handler(), slog.LevelDebug),
	}
	return g
}

func (g *Gateway) transport(two bool) *http.Transport {
	dial := g.dial
	if !two {
		dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := g.dial(ctx, network, address)
			if err != nil {
				return nil, err
			}
			return &connection{Conn: conn}, nil // see roundTripOne
		}
	}
	var protocols http.Protocols
	protocols.SetHTTP1(!two)
	protocols.SetUnencryptedHTTP2(two)
	return &http.Transport{
		Protocols:           &protocols,
		DialContext:         dial,
		DisableCompression:  true, // compression is between the caller and the host
		MaxIdleConnsPerHost: 16,
		IdleConnTimeout:     90 * time.Second,
		HTTP2: &http.HTTP2Config{
			SendPingTimeout: g.opts.Silence,
			PingTimeout:     g.opts.Silence,
		},
	}
}

// dial connects to a request's host. Connections are pooled by the host's id, which is unique: an
// address can be reused by another host.
func (g *Gateway) dial(ctx context.Context, network, _ string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, g.opts.Dial)
	defer cancel()
	host := destinationOf(ctx).node.GetHost()
	if g.opts.Connect != nil {
		return g.opts.Connect(ctx, host)
	}
	var dialer net.Dialer
	return dialer.DialContext(ctx, network, host.GetAddress())
}

// Close closes idle connections. Requests in progress continue; the server ends them.
func (g *Gateway) Close() {
	g.one.CloseIdleConnections()
	g.two.CloseIdleConnections()
}

// destination is where a request is forwarded to.
type destination struct {
	node   *nodev1.NodeRecord
	method string // `/<package.Service>/<Method>`
	body   *requestBody
}

type destinationKey struct{}

func destinationOf(ctx context.Context) *destination {
	d, _ := ctx.Value(destinationKey{}).(*destination)
	return d
}

// ServeHTTP implements [http.Handler].
func (g *Gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	named, err := nodeurl.Parse(r)
	if err == nil && named.Node == "" || errors.Is(err, nodeurl.ErrNotACall) {
		g.opts.Local.ServeHTTP(w, r)
		return
	}
	if err != nil {
		g.refuse(w, r, err)
		return
	}
	method := named.Procedure
	rec, err := g.opts.Resolve(r.Context(), named.Node)
	if err != nil {
		g.refuse(w, r, err)
		return
	}
	switch {
	case rec.GetPath() == nodename.RootPath:
		g.local(w, r, method)
		return
	case g.opts.IsLocal(rec.GetHost()):
		g.local(w, r, nodeurl.Route{Node: rec.GetNid(), Procedure: method}.Path())
		return
	case rec.GetState() == nodev1.NodeState_NODE_STATE_DEAD:
		err = connect.Errorf(connect.CodeUnavailable, "the node %s is dead: %s", rec.GetPath(), rec.GetCause())
	case rec.GetHost() == nil:
		err = connect.Errorf(connect.CodeUnavailable, "the node %s is starting: it has no host yet", rec.GetPath())
	case rec.GetHost().GetAddress() == "":
		err = connect.Errorf(connect.CodeUnavailable, "the node %s can't be reached from here: its host has no address", rec.GetPath())
	case r.Header.Get(nodeurl.ViaHeader) == g.opts.ID:
		err = connect.Errorf(connect.CodeInternal, "the request for %s is in a forwarding loop: its host's address, %s, leads back to this gateway",
			rec.GetPath(), rec.GetHost().GetAddress())
	}
	if err != nil {
		g.refuse(w, r, err)
		return
	}
	to := &destination{node: rec, method: method, body: newRequestBody(w, r)}
	r = r.WithContext(context.WithValue(r.Context(), destinationKey{}, to))
	if r.ProtoMajor < 2 {
		// Go's server would close the request's body as soon as the response begins, before the
		// transport has seen its end. The transport would treat that as an error, and close the
		// connection to the host in the middle of the response.
		if err := http.NewResponseController(w).EnableFullDuplex(); err != nil {
			g.opts.Logger.Debug("gateway: no full duplex", "error", err)
		}
	}
	if r.ContentLength != 0 {
		// The transport must not read from the body after the handler has returned.
		defer to.body.Close() //nolint:errcheck // nothing was written
	}
	r.Header.Set(nodeurl.ViaHeader, g.opts.ID)
	g.proxy.ServeHTTP(w, r)
}

// local serves a request in this process, under another path.
func (g *Gateway) local(w http.ResponseWriter, r *http.Request, path string) {
	inner := r.Clone(r.Context())
	inner.URL = &url.URL{Path: path, RawQuery: r.URL.RawQuery}
	inner.RequestURI = inner.URL.RequestURI()
	inner.Header.Del(nodeurl.NodeHeader)
	g.opts.Local.ServeHTTP(w, inner)
}

// rewrite directs a request to the node's host.
func rewrite(pr *httputil.ProxyRequest) {
	to := destinationOf(pr.In.Context())
	pr.Out.URL = nodeurl.Route{Node: to.node.GetNid(), Procedure: to.method}.URL(to.node.GetHost().GetId())
	pr.Out.URL.RawQuery = pr.In.URL.RawQuery
	pr.Out.Host = to.node.GetHost().GetAddress()
	if pr.Out.Body != nil {
		pr.Out.Body = to.body
	}
	for name := range pr.Out.Header {
		if isForListener(name) {
			delete(pr.Out.Header, name)
		}
	}
	if nodeurl.IsSameMachine(pr.In) {
		// On one machine compression costs time and saves none. The host cannot see that: its peer
		// is the gateway.
		for _, name := range []string{"Accept-Encoding", "Connect-Accept-Encoding", "Grpc-Accept-Encoding"} {
			pr.Out.Header.Del(name)
		}
	}
	if peer, known := access.Peer(pr.In.Context()); known {
		// Without it, the request would have the role of this process.
		pr.Out.Header.Set(nodeurl.RoleHeader, string(peer.Role))
	}
	// For the host's log only: the host trusts the gateway, not these headers.
	pr.SetXForwarded()
}

// isForListener reports whether a header is for the listener that received the request, and not for
// the host behind it: the listener has checked the browser's origin and the token. The host trusts
// the gateway, which has proven that it knows the token.
func isForListener(name string) bool {
	switch name {
	case nodeurl.NodeHeader, nodeurl.RoleHeader, "Authorization", "Origin", "Cookie", "Proxy-Authorization":
		return true
	}
	return strings.HasPrefix(name, "Sec-Fetch-") || strings.HasPrefix(name, "Access-Control-")
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func (g *Gateway) roundTrip(r *http.Request) (*http.Response, error) {
	for _, key := range [...]string{"Idempotency-Key", "X-Idempotency-Key"} {
		// The transport repeats a request with one of these headers if its connection was lost.
		// Here they are a caller's metadata, and no promise that the node's method may run twice.
		// The transport does not recognize them under a name that is not canonical.
		if values, ok := r.Header[key]; ok {
			delete(r.Header, key)
			r.Header[strings.ToLower(key)] = values
		}
	}
	if r.ProtoMajor < 2 { // the clone has the caller's version
		return roundTripOne(g.one, r)
	}
	return g.two.RoundTrip(r)
}

// unreachable responds when the host has not.
func (g *Gateway) unreachable(w http.ResponseWriter, r *http.Request, err error) {
	g.refuse(w, r, g.explain(r.Context(), err))
}

// explain converts the failure of a connection to a node's host to an error for the caller.
func (g *Gateway) explain(ctx context.Context, err error) error {
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return connect.NewError(connect.CodeDeadlineExceeded, "the call's deadline has passed").WithCause(err)
	case ctx.Err() != nil:
		return connect.NewError(connect.CodeCanceled, "the caller has gone").WithCause(err)
	}
	if tooBig, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return connect.Errorf(connect.CodeResourceExhausted, "the request is larger than %d bytes", tooBig.Limit).WithCause(err)
	}
	to := destinationOf(ctx)
	if cause := g.opts.Cause(ctx, to.node.GetNid()); cause != "" {
		return connect.Errorf(connect.CodeUnavailable, "the node %s is dead: %s", to.node.GetPath(), cause).WithCause(err)
	}
	return connect.Errorf(connect.CodeUnavailable, "no answer for %s from its host at %s: %v",
		to.node.GetPath(), to.node.GetHost().GetAddress(), err).WithCause(err)
}

// refuse responds with an error in the caller's protocol.
func (g *Gateway) refuse(w http.ResponseWriter, r *http.Request, err error) {
	if writeErr := g.errors.Write(w, r, err); writeErr != nil {
		g.opts.Logger.Debug("gateway: an error could not be written", "error", err, "cause", writeErr)
	}
}
