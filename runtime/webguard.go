package runtime

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"connectrpc.com/connect/v2"

	"github.com/raylink/raylink/internal/webroute"
)

const (
	// idleTime is how long a connection may be idle between two requests. It is longer than the
	// idle timeout of clients, including the gateway, so that they close first.
	idleTime = 2 * time.Minute
	// maxPublicBody bounds the request of a call without a token, in bytes.
	maxPublicBody = 4 << 10
	// maxPublicCalls bounds how many such calls may run at once; health streams are long.
	maxPublicCalls = 64
	// maxLinger bounds how many bytes of a refused request's body are read, and lingerTime for how
	// long, so that the refusal arrives before the connection is closed.
	maxLinger  = 256 << 10
	lingerTime = time.Second
	// endTime bounds the time to write responses to requests for the host itself when the listener
	// closes.
	endTime = time.Second
)

// guard refuses HTTP requests that are not authorized, before it reads anything of their bodies.
func (f *listener) guard(next http.Handler) http.Handler {
	admit := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { f.admitRequest(w, r, next) })
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor < 2 && r.ContentLength != 0 {
			// After its handler the server reads the rest of a body, for as long as that takes to
			// arrive.
			r = r.WithContext(r.Context()) // a copy: the server uses its own
			body := &endingBody{ReadCloser: r.Body}
			r.Body = body
			defer func() {
				if c := webConnOf(r.Context()); !body.ended.Load() && c != nil && !c.lingers.Load() {
					f.deadline(w, time.Now().Add(lingerTime))
				}
			}()
		}
		if isProven(r.Context()) {
			admit.ServeHTTP(w, r)
			return
		}
		if err := f.refusePage(r); err != nil {
			w.Header().Add("Vary", "Origin, Sec-Fetch-Site")
			f.refuseRequest(w, r, err)
			return
		}
		f.origins.Load().wrap(admit).ServeHTTP(w, r)
	})
}

// admitRequest forwards requests with the token, and serves those that need none.
func (f *listener) admitRequest(w http.ResponseWriter, r *http.Request, next http.Handler) {
	if isProbe(r.URL.Path) {
		f.answerProbe(w, r)
		return
	}
	token, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	switch {
	case isProven(r.Context()) || f.tokenFits(token):
		if c := webConnOf(r.Context()); c != nil {
			c.pending.admit()
		}
		next.ServeHTTP(w, r)
	case isPublic(r):
		f.servePublic(w, r, next)
	default:
		f.refuseRequest(w, r, connect.NewError(connect.CodeUnauthenticated, wrongToken))
	}
}

// refuseRequest responds with an error in the caller's protocol. A connection that is not admitted
// is closed afterwards, and so is one with a body that was not read.
func (f *listener) refuseRequest(w http.ResponseWriter, r *http.Request, err error) {
	if c := webConnOf(r.Context()); c != nil && !c.pending.isAdmitted() {
		w.Header().Set("Connection", "close") // over HTTP/2 the server sends a GOAWAY
	}
	f.dropBody(w, r)
	if werr := f.errors.Write(w, r, err); werr != nil {
		f.host.log.Debug("writing a refusal", slog.Any("error", werr))
	}
}

// dropBody keeps the server from waiting for the rest of a request that is answered without it: the
// connection is closed after the response.
func (f *listener) dropBody(w http.ResponseWriter, r *http.Request) {
	c := webConnOf(r.Context())
	if c == nil || r.ProtoMajor > 1 || r.ContentLength == 0 {
		return
	}
	w.Header().Set("Connection", "close")
	c.lingers.Store(true)
	f.deadline(w, time.Unix(1, 0))
}

// deadline sets the read deadline of a request.
func (f *listener) deadline(w http.ResponseWriter, t time.Time) {
	if err := http.NewResponseController(w).SetReadDeadline(t); err != nil {
		f.host.log.Debug("setting a request's deadline", slog.Any("error", err))
	}
}

// isPublic reports whether a request is for the host's health, which needs no token.
func isPublic(r *http.Request) bool {
	to, err := webroute.Of(r)
	return err == nil && (to.Node == "" || to.Node == webroute.Root) && isPublicProcedure(to.Procedure)
}

// servePublic serves a call without a token, with little memory and time: the whole request is read
// first, since such a call has only one message.
func (f *listener) servePublic(w http.ResponseWriter, r *http.Request, next http.Handler) {
	defer f.public.Add(-1)
	if f.public.Add(1) > maxPublicCalls {
		f.refuseRequest(w, r, connect.Errorf(connect.CodeResourceExhausted,
			"the host answers %d calls without a token already", maxPublicCalls))
		return
	}
	f.deadline(w, time.Now().Add(pendingTime))
	body, err := io.ReadAll(io.LimitReader(r.Body, maxPublicBody+1))
	if err == nil && len(body) > maxPublicBody {
		err = connect.Errorf(connect.CodeResourceExhausted, "a request without a token is larger than %d bytes", maxPublicBody)
	}
	if err != nil {
		if _, authored := errors.AsType[*connect.Error](err); !authored {
			err = connect.Errorf(connect.CodeDeadlineExceeded, "reading the request: %v", err)
		}
		f.refuseRequest(w, r, err)
		return
	}
	f.deadline(w, time.Time{})
	if c := webConnOf(r.Context()); c != nil {
		defer c.pending.answers(true)()
	}
	r = r.WithContext(context.WithValue(r.Context(), anonymousKey{}, true))
	r.Body = io.NopCloser(bytes.NewReader(body))
	next.ServeHTTP(w, r)
}

type anonymousKey struct{}

// isAnonymous reports whether a call came without a token to a system that has one.
func isAnonymous(ctx context.Context) bool {
	anonymous, _ := ctx.Value(anonymousKey{}).(bool)
	return anonymous
}

// untilClosed serves a request for this process. When the listener closes, the nodes have ended:
// reading the request is then aborted, and for a request for the host itself its context is
// canceled.
func (f *listener) untilClosed(w http.ResponseWriter, r *http.Request, own bool, next http.Handler) {
	ctx := r.Context()
	if own {
		var cancel context.CancelCauseFunc
		ctx, cancel = context.WithCancelCause(ctx)
		defer cancel(nil)
		defer context.AfterFunc(f.closing, func() { cancel(ErrClosed) })()
		r = r.WithContext(ctx)
	}
	done := make(chan struct{})
	stop := context.AfterFunc(f.closing, func() {
		defer close(done)
		f.deadline(w, time.Unix(1, 0))
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

// webConn is an HTTP connection. It first returns the bytes that were peeked at.
type webConn struct {
	net.Conn

	in       io.Reader
	listener *listener
	pending  *pending
	// proven is set if the other side has proven in a handshake that it knows the token.
	proven bool
	// lingers is set if the connection must stay open until its other side has had time to read the
	// refusal: closing it with unread data would reset it.
	lingers atomic.Bool
}

type webConnKey struct{}

func webConnOf(ctx context.Context) *webConn {
	c, _ := ctx.Value(webConnKey{}).(*webConn)
	return c
}

func (c *webConn) Read(p []byte) (int, error) { return c.in.Read(p) }

// Close implements [net.Conn].
func (c *webConn) Close() error {
	half, ok := c.Conn.(interface{ CloseWrite() error })
	if !ok || !c.lingers.Swap(false) {
		c.pending.gone()
		return c.Conn.Close()
	}
	err := half.CloseWrite()
	if !c.listener.host.goBackground(c.linger) {
		c.pending.gone()
		return errors.Join(err, c.Conn.Close())
	}
	return err
}

// linger discards what arrives for a short time, and closes the connection.
func (c *webConn) linger(ctx context.Context) {
	defer c.pending.gone()
	defer c.Conn.Close() //nolint:errcheck // the refusal has been written
	if err := c.SetReadDeadline(time.Now().Add(lingerTime)); err != nil {
		return
	}
	defer context.AfterFunc(ctx, func() { _ = c.SetReadDeadline(time.Unix(1, 0)) })()
	_, _ = io.Copy(io.Discard, io.LimitReader(c.Conn, maxLinger)) // it ends in one way or another
}
