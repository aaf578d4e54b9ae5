// Package gateway makes every node reachable at one address: a streaming reverse proxy from Brain's
// listener to the nodes' hosts.
//
// A request names its node in front of the service and the method, `/<path, alias or
// nid>/<package.Service>/<Method>`, or, as gRPC clients can't choose their paths, by the header
// `raylink-node`: package webroute has the rules, which hosts share. The gateway finds the node,
// and passes the request on to its host as `/<nid>/<package.Service>/<Method>`, so that the host
// needs to know neither paths nor aliases.
//
// Nothing is decoded: bodies stream both ways, flushed as they come; headers, with deadlines and
// authorization among them, and trailers pass; a caller that goes away cancels the call. HTTP/2
// goes on as HTTP/2 without TLS, HTTP/1.1 as HTTP/1.1, so that a host sees what its caller can do.
//
// What the gateway itself has to say, that a node doesn't exist, is starting, or can't be reached,
// it says in the caller's own protocol. Where a host breaks off in the middle of a response, the
// caller is told how it died, if the protocol leaves room for that; else the stream is reset.
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
	"github.com/raylink/raylink/internal/webroute"
)

// Options configures a gateway.
type Options struct {
	// ID is the gateway's own id, the same for all gateways that share a Brain.
	ID string
	// Resolve finds the node that a path, an alias or an nid names. Its errors go to the caller.
	Resolve func(ctx context.Context, where string) (*nodev1.NodeRecord, error)
	// Local serves requests that name no node, with their path as it came; those for Brain itself,
	// with the path `/<package.Service>/<Method>`; and those for nodes of the process's own host,
	// with the path `/<nid>/<package.Service>/<Method>`.
	Local http.Handler
	// IsLocal says whether a node's host is this process.
	IsLocal func(host *nodev1.HostInfo) bool
	// Cause says how a node's host died, or ”. It is asked when a connection to it has failed; it
	// may wait a moment for the news.
	Cause func(ctx context.Context, nid string) string
	// Connect opens a connection to a host, on which no request needs a token. Default: a plain one
	// to its address.
	Connect func(ctx context.Context, host *nodev1.HostInfo) (net.Conn, error)
	// Dial bounds the time to connect to a host.
	Dial time.Duration
	// Silence is after how long without a frame a host is pinged, and again how long it has to
	// answer; HTTP/2 only.
	Silence time.Duration
	// Logger gets what can't be told to a caller. Not nil.
	Logger *slog.Logger
}

// Gateway is the proxy, an http.Handler.
type Gateway struct {
	opts   Options
	one    *http.Transport // HTTP/1.1
	two    *http.Transport // HTTP/2 without TLS
	proxy  *httputil.ReverseProxy
	errors *connecthttp.ErrorWriter
}

// New makes a gateway. Close frees its idle connections.
func New(opts Options) *Gateway {
	g := &Gateway{opts: opts, errors: connecthttp.NewErrorWriter()}
	g.one = g.transport(false)
	g.two = g.transport(true)
	g.proxy = &httputil.ReverseProxy{
		Rewrite:        rewrite,
		Transport:      roundTripper(g.roundTrip),
		FlushInterval:  -1, // streams are not to be kept waiting, and unary responses come in one piece
		ModifyResponse: g.watchEnding,
		ErrorHandler:   g.unreachable,
		ErrorLog:       slog.NewLogLogger(opts.Logger.Handler(), slog.LevelDebug),
	}
	return g
}

func (g *Gateway) transport(two bool) *http.Transport {
	var protocols http.Protocols
	protocols.SetHTTP1(!two)
	protocols.SetUnencryptedHTTP2(two)
	return &http.Transport{
		Protocols:           &protocols,
		DialContext:         g.dial,
		DisableCompression:  true, // what the caller asked for is between it and the host
		MaxIdleConnsPerHost: 16,
		IdleConnTimeout:     90 * time.Second,
		HTTP2: &http.HTTP2Config{
			SendPingTimeout: g.opts.Silence,
			PingTimeout:     g.opts.Silence,
		},
	}
}

// dial connects to a request's host. Connections are kept by the host's id, which no two have: an
// address can change hands.
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

// Close frees connections that nobody uses. Requests under way go on; the server ends them.
func (g *Gateway) Close() {
	g.one.CloseIdleConnections()
	g.two.CloseIdleConnections()
}

// destination is where a request goes.
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

// ServeHTTP implements http.Handler.
func (g *Gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	named, err := webroute.Of(r)
	if err == nil && named.Node == "" || errors.Is(err, webroute.ErrNotACall) {
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
	case rec.GetPath() == webroute.Root:
		g.local(w, r, method)
		return
	case g.opts.IsLocal(rec.GetHost()):
		g.local(w, r, "/"+rec.GetNid()+method)
		return
	case rec.GetState() == nodev1.NodeState_NODE_STATE_DEAD:
		err = connect.Errorf(connect.CodeUnavailable, "the node %s is dead: %s", rec.GetPath(), rec.GetCause())
	case rec.GetHost() == nil:
		err = connect.Errorf(connect.CodeUnavailable, "the node %s is starting: it has no host yet", rec.GetPath())
	case rec.GetHost().GetAddress() == "":
		err = connect.Errorf(connect.CodeUnavailable, "the node %s can't be reached from here: its host has no address", rec.GetPath())
	case r.Header.Get(webroute.ViaHeader) == g.opts.ID:
		err = connect.Errorf(connect.CodeInternal, "the request for %s has come round in a circle: at %s, its host's address, there is a gateway",
			rec.GetPath(), rec.GetHost().GetAddress())
	}
	if err != nil {
		g.refuse(w, r, err)
		return
	}
	to := &destination{node: rec, method: method, body: newRequestBody(w, r)}
	r = r.WithContext(context.WithValue(r.Context(), destinationKey{}, to))
	if r.ProtoMajor < 2 {
		// Go's server would close the request's body as soon as the response begins, while the
		// transport has yet to see its end: it would take that for a failure, and break the
		// connection to the host off in the middle of the response.
		if err := http.NewResponseController(w).EnableFullDuplex(); err != nil {
			g.opts.Logger.Debug("gateway: no full duplex", "error", err)
		}
	}
	if r.ContentLength != 0 {
		// The transport must not read on once the handler has returned.
		defer to.body.Close() //nolint:errcheck // nothing was written
	}
	r.Header.Set(webroute.ViaHeader, g.opts.ID)
	g.proxy.ServeHTTP(w, r)
}

// local serves a request in this process, under another path.
func (g *Gateway) local(w http.ResponseWriter, r *http.Request, path string) {
	inner := r.Clone(r.Context())
	inner.URL = &url.URL{Path: path, RawQuery: r.URL.RawQuery}
	inner.RequestURI = inner.URL.RequestURI()
	inner.Header.Del(webroute.NodeHeader)
	g.opts.Local.ServeHTTP(w, inner)
}

// rewrite sends a request to the node's host.
func rewrite(pr *httputil.ProxyRequest) {
	to := destinationOf(pr.In.Context())
	pr.Out.URL = &url.URL{
		Scheme: "http", Host: to.node.GetHost().GetId(),
		Path: "/" + to.node.GetNid() + to.method, RawQuery: pr.In.URL.RawQuery,
	}
	pr.Out.Host = to.node.GetHost().GetAddress()
	if pr.Out.Body != nil {
		pr.Out.Body = to.body
	}
	for name := range pr.Out.Header {
		if isForListener(name) {
			delete(pr.Out.Header, name)
		}
	}
	if webroute.IsSameMachine(pr.In) {
		// Compressing costs time, and on one machine saves none. The host sees the gateway, not its
		// caller.
		for _, name := range []string{"Accept-Encoding", "Connect-Accept-Encoding", "Grpc-Accept-Encoding"} {
			pr.Out.Header.Del(name)
		}
	}
	// Who asked is for the host's log; the gateway is who it trusts or not.
	pr.SetXForwarded()
}

// isForListener says whether a header is for the listener that the request reached, and no business
// of the host behind it: the gateway's listener has decided whether the browser's page may ask, and
// whether its token is right. The host believes the gateway, whose connection is proven.
func isForListener(name string) bool {
	switch name {
	case webroute.NodeHeader, "Authorization", "Origin", "Cookie", "Proxy-Authorization":
		return true
	}
	return strings.HasPrefix(name, "Sec-Fetch-") || strings.HasPrefix(name, "Access-Control-")
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func (g *Gateway) roundTrip(r *http.Request) (*http.Response, error) {
	for _, key := range [...]string{"Idempotency-Key", "X-Idempotency-Key"} {
		// The transport sends a request again that carries one of these and whose connection was
		// lost. They are a caller's metadata, and no promise that the node's method may run twice.
		// Under a name that is not canonical the transport does not find them.
		if values, ok := r.Header[key]; ok {
			delete(r.Header, key)
			r.Header[strings.ToLower(key)] = values
		}
	}
	if r.ProtoMajor < 2 { // the clone has the caller's version
		return g.one.RoundTrip(r)
	}
	return g.two.RoundTrip(r)
}

// unreachable answers where there was no response.
func (g *Gateway) unreachable(w http.ResponseWriter, r *http.Request, err error) {
	g.refuse(w, r, g.explain(r.Context(), err))
}

// explain makes an error for the caller of why a node's host can't be reached, or has gone.
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

// refuse answers with an error, in the caller's protocol.
func (g *Gateway) refuse(w http.ResponseWriter, r *http.Request, err error) {
	if writeErr := g.errors.Write(w, r, err); writeErr != nil {
		g.opts.Logger.Debug("gateway: an error could not be written", "error", err, "cause", writeErr)
	}
}
