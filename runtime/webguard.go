package runtime

import (
	"bytes"
	"context"
	"crypto/subtle"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"

	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
	healthv1 "github.com/raylink/raylink/gen/raylink/health/v1"
	"github.com/raylink/raylink/internal/access"
	"github.com/raylink/raylink/internal/nodename"
	"github.com/raylink/raylink/internal/nodeurl"
	"github.com/raylink/raylink/internal/pki"
	"github.com/raylink/raylink/runtime/internal/listen"
)

const (
	// maxPublicBody bounds the request of a call without a token, in bytes.
	maxPublicBody = 4 << 10
	// maxPublicCalls bounds how many such calls may run at once; health streams are long.
	maxPublicCalls = 64
)

// webGuard authorizes the HTTP requests of a host's listener.
type webGuard struct {
	host *Host
	// loopback is set if the listener is bound to loopback.
	loopback bool
	errors   *connecthttp.ErrorWriter
	// public counts the running calls that need no token.
	public atomic.Int64
	// origins are the browser origins that may call: the host's own, and those that Brain allows.
	origins atomic.Pointer[origins]
	// compression is set if responses may be compressed.
	compression atomic.Bool
}

// newWebGuard refuses options with which the host would be open to more callers than its user may
// expect.
func newWebGuard(h *Host) (*webGuard, error) {
	o := h.options
	allowed, err := parseOrigins(o.Origins)
	if err != nil {
		return nil, err
	}
	if slices.Contains(allowed, anyOrigin) && o.Token == "" {
		return nil, connect.Errorf(connect.CodeFailedPrecondition,
			"allowing every browser origin (%s) without a token would open this system to every page that a browser here shows: "+
				"list the origins, or set a token (RAYLINK_TOKEN)", anyOrigin)
	}
	g := &webGuard{host: h, errors: connecthttp.NewErrorWriter()}
	g.origins.Store(newOrigins(allowed))
	g.compression.Store(o.Compression)
	host, _, err := net.SplitHostPort(o.Listen)
	if err != nil {
		return nil, connect.Errorf(connect.CodeInvalidArgument, "the address to listen on, %q, is not of the form HOST:PORT", o.Listen)
	}
	g.loopback = listen.IsLoopback(host)
	switch {
	case g.loopback || h.member != nil:
	case o.Token == "" || !o.Insecure:
		return nil, connect.Errorf(connect.CodeFailedPrecondition,
			"listening on %s, beyond loopback, needs TLS: the token of a system that uses it (RAYLINK_TOKEN; `raylink token` prints it there), or "+
				"certificates (RAYLINK_TLS_CERT). --insecure (RAYLINK_INSECURE=1), with a token, is for networks that are trusted", o.Listen)
	default:
		h.log.Warn("this host listens beyond loopback, and nothing is encrypted (--insecure): any process that can read the network can read and change calls",
			slog.String("listen", o.Listen))
	}
	return g, nil
}

// setPolicy combines the host's own options with Brain's policy for HTTP clients, so that what
// Brain's address serves to a page its hosts serve too.
func (g *webGuard) setPolicy(brains *brainv1.WebPolicy) {
	g.compression.Store(g.host.options.Compression || brains.GetCompression())
	list, err := parseOrigins(append(slices.Clone(g.host.options.Origins), brains.GetOrigins()...))
	if err != nil {
		g.host.log.Warn("Brain's browser origins are not understood", slog.Any("error", err))
		return
	}
	g.origins.Store(newOrigins(list))
}

// guard refuses HTTP requests that are not authorized, before it reads anything of their bodies.
func (g *webGuard) guard(next http.Handler) http.Handler {
	admit := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { g.admitRequest(w, r, next) })
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor < 2 && r.ContentLength != 0 {
			// After its handler the server reads the rest of a body, for as long as that takes to
			// arrive.
			r = r.WithContext(r.Context()) // a copy: the server uses its own
			body := &endingBody{ReadCloser: r.Body}
			r.Body = body
			defer func() {
				if c := listen.ConnOf(r.Context()); !body.ended.Load() && c != nil && !c.Lingers() {
					g.deadline(w, time.Now().Add(listen.LingerTime))
				}
			}()
		}
		if isProven(r.Context()) {
			admit.ServeHTTP(w, r)
			return
		}
		if err := g.refusePage(r); err != nil {
			w.Header().Add("Vary", "Origin, Sec-Fetch-Site")
			g.refuseRequest(w, r, err)
			return
		}
		g.origins.Load().wrap(admit).ServeHTTP(w, r)
	})
}

// refusePage refuses requests that a page of an origin that is not allowed makes a browser send.
// Such a page can reach loopback by a name that its owner resolves to it, or directly from its own
// origin.
func (g *webGuard) refusePage(r *http.Request) error {
	if g.loopback && !listen.IsLoopback(listen.HostOf(r.Host)) {
		return connect.Errorf(connect.CodePermissionDenied, "the host %q is not a name of this machine's loopback", r.Host)
	}
	if values := r.Header.Values("Origin"); len(values) > 0 {
		for _, origin := range values {
			if len(values) > 1 || !g.origins.Load().allows(origin) {
				return connect.Errorf(connect.CodePermissionDenied,
					"requests from the browser origin %q are not allowed: WithOrigins or --origin lists those that are", origin)
			}
		}
		return nil
	}
	// A browser sends the page's origin with every request except plain GETs, such as those of
	// images and links.
	if site := r.Header.Get("Sec-Fetch-Site"); site == "cross-site" || site == "same-site" {
		return connect.Errorf(connect.CodePermissionDenied,
			"%s requests of a browser's page that don't name its origin are not allowed", site)
	}
	return nil
}

// admitRequest forwards requests with the token, and serves those that need none.
func (g *webGuard) admitRequest(w http.ResponseWriter, r *http.Request, next http.Handler) {
	if isProbe(r.URL.Path) {
		g.answerProbe(w, r)
		return
	}
	peer, err := g.identify(r)
	switch {
	case err == nil:
		if c := listen.ConnOf(r.Context()); c != nil {
			c.Admit()
			if peer.TokenID != "" && peer.HostID == "" {
				c.HasSent(peer.TokenID)
			}
		}
		next.ServeHTTP(w, r.WithContext(access.WithPeer(r.Context(), forwarded(peer, r))))
	case isPublic(r):
		g.servePublic(w, r.WithContext(access.WithPeer(r.Context(), pki.Peer{})), next)
	default:
		g.refuseRequest(w, r, err)
	}
}

// identify returns the identity of a request's sender: that of its connection, or that which its
// token gives.
func (g *webGuard) identify(r *http.Request) (pki.Peer, error) {
	if c := listen.ConnOf(r.Context()); c != nil && c.IsProven() {
		return c.Peer(), nil
	}
	token, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if m := g.host.member; m != nil && m.IsNamed() {
		peer, err := m.Authenticate(token)
		if err != nil {
			return pki.Peer{}, connect.Errorf(connect.CodeUnauthenticated, "%s (%v)", wrongToken, err).WithCause(err)
		}
		return peer, nil
	}
	if !g.tokenFits(token) {
		return pki.Peer{}, connect.NewError(connect.CodeUnauthenticated, wrongToken)
	}
	return pki.Peer{Role: pki.RoleAdmin}, nil
}

// forwarded returns the identity of a request that a gateway has forwarded: with the lesser of its
// role and that of the gateway's own caller.
func forwarded(peer pki.Peer, r *http.Request) pki.Peer {
	for _, value := range r.Header.Values(nodeurl.RoleHeader) {
		if role := pki.Role(value); !role.Includes(peer.Role) {
			peer.Role = role // one that is not known is none
		}
	}
	return peer
}

// answerProbe responds with `ok`, or that the host is not serving, and nothing else.
func (g *webGuard) answerProbe(w http.ResponseWriter, r *http.Request) {
	if c := listen.ConnOf(r.Context()); c != nil {
		defer c.Serving(false)()
	}
	header := w.Header()
	header.Set("Content-Type", "text/plain; charset=utf-8")
	header.Set("Cache-Control", "no-store")
	header.Set("X-Content-Type-Options", "nosniff")
	status, text := http.StatusOK, "ok\n"
	switch {
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		header.Set("Allow", "GET, HEAD")
		status, text = http.StatusMethodNotAllowed, "this is asked for by GET\n"
	case r.URL.Path != livePath && g.host.health("") != healthv1.HealthCheckResponse_SERVING:
		status, text = http.StatusServiceUnavailable, "not serving\n"
	}
	g.dropBody(w, r)
	w.WriteHeader(status)
	if r.Method != http.MethodHead {
		_, _ = w.Write([]byte(text)) // the caller may have gone
	}
}

// refuseRequest responds with an error in the caller's protocol. A connection that is not admitted
// is closed afterwards, and so is one with a body that was not read.
func (g *webGuard) refuseRequest(w http.ResponseWriter, r *http.Request, err error) {
	if c := listen.ConnOf(r.Context()); c != nil && !c.IsAdmitted() {
		w.Header().Set("Connection", "close") // over HTTP/2 the server sends a GOAWAY
	}
	if r.ProtoMajor > 1 && 0 < r.ContentLength && r.ContentLength <= maxPublicBody {
		// A stream that is reset before its request has ended loses the response in some clients,
		// such as curl.
		g.deadline(w, time.Now().Add(listen.LingerTime))
		_, _ = io.Copy(io.Discard, r.Body) // it is refused anyway
	}
	g.dropBody(w, r)
	if werr := g.errors.Write(w, r, err); werr != nil {
		g.host.log.Debug("writing a refusal", slog.Any("error", werr))
	}
}

// dropBody keeps the server from waiting for the rest of a request that is answered without it: the
// connection is closed after the response.
func (g *webGuard) dropBody(w http.ResponseWriter, r *http.Request) {
	c := listen.ConnOf(r.Context())
	if c == nil || r.ProtoMajor > 1 || r.ContentLength == 0 {
		return
	}
	w.Header().Set("Connection", "close")
	c.Linger()
	g.deadline(w, time.Unix(1, 0))
}

// deadline sets the read deadline of a request.
func (g *webGuard) deadline(w http.ResponseWriter, t time.Time) {
	if err := http.NewResponseController(w).SetReadDeadline(t); err != nil {
		g.host.log.Debug("setting a request's deadline", slog.Any("error", err))
	}
}

// isPublic reports whether a request is for the host's health, which needs no token.
func isPublic(r *http.Request) bool {
	to, err := nodeurl.Parse(r)
	return err == nil && (to.Node == "" || to.Node == nodename.RootPath) && isPublicProcedure(to.Procedure)
}

// servePublic serves a call without a token, with little memory and time: the whole request is read
// first, since such a call has only one message.
func (g *webGuard) servePublic(w http.ResponseWriter, r *http.Request, next http.Handler) {
	defer g.public.Add(-1)
	if g.public.Add(1) > maxPublicCalls {
		g.refuseRequest(w, r, connect.Errorf(connect.CodeResourceExhausted,
			"the host answers %d calls without a token already", maxPublicCalls))
		return
	}
	g.deadline(w, time.Now().Add(listen.PendingTime))
	body, err := io.ReadAll(io.LimitReader(r.Body, maxPublicBody+1))
	if err == nil && len(body) > maxPublicBody {
		err = connect.Errorf(connect.CodeResourceExhausted, "a request without a token is larger than %d bytes", maxPublicBody)
	}
	if err != nil {
		if _, converted := errors.AsType[*connect.Error](err); !converted {
			err = connect.Errorf(connect.CodeDeadlineExceeded, "reading the request: %v", err)
		}
		g.refuseRequest(w, r, err)
		return
	}
	g.deadline(w, time.Time{})
	if c := listen.ConnOf(r.Context()); c != nil {
		defer c.Serving(true)()
	}
	r = r.WithContext(context.WithValue(r.Context(), anonymousKey{}, true))
	r.Body = io.NopCloser(bytes.NewReader(body))
	next.ServeHTTP(w, r)
}

// untilClosed serves a request for this process. When the listener closes, the nodes have ended:
// reading the request is then aborted, and for a request for the host itself its context is
// canceled.
func (g *webGuard) untilClosed(w http.ResponseWriter, r *http.Request, own bool, next http.Handler) {
	ctx := r.Context()
	if own {
		var cancel context.CancelCauseFunc
		ctx, cancel = context.WithCancelCause(ctx)
		defer cancel(nil)
		defer context.AfterFunc(g.host.listener.Closing(), func() { cancel(ErrClosed) })()
		r = r.WithContext(ctx)
	}
	done := make(chan struct{})
	stop := context.AfterFunc(g.host.listener.Closing(), func() {
		defer close(done)
		g.deadline(w, time.Unix(1, 0))
	})
	defer func() {
		if !stop() {
			<-done // the writer must not be used after the handler has returned
		}
	}()
	next.ServeHTTP(w, r)
}

// endingBody is a request's body that records whether it was read to its end.
type endingBody struct {
	io.ReadCloser

	ended atomic.Bool
}

// Read implements [io.Reader].
func (b *endingBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil {
		b.ended.Store(true)
	}
	return n, err
}

const wrongToken = "the token is missing or wrong: send it in the header `Authorization: Bearer ...`; " +
	"`raylink token` prints it to the user who started the system (or it is what RAYLINK_TOKEN or --token said there)"

// tokenFits compares in constant time.
func (g *webGuard) tokenFits(token string) bool {
	want := g.host.options.Token
	return want == "" || subtle.ConstantTimeCompare([]byte(token), []byte(want)) == 1
}
