package gateway

import (
	"context"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"sync"
	"sync/atomic"
)

// roundTripOne is the RoundTrip of an HTTP/1 transport, except that the end of a request's context
// does not fail another request.
//
// The transport makes a connection available to other requests just before it returns a response
// without a body, so that two requests have it for a moment. If the context of one of them ends
// then, the transport closes the connection, and the other one fails with "context canceled" (as in
// golang.org/issue/9496). So the next request waits until the one before has returned; and once a
// response has begun, the transport gets to know the end of its request's context only after it has
// returned. The transport's connections must be of the type [connection].
func roundTripOne(transport http.RoundTripper, r *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(r.Context()))
	e := &exchange{cancel: cancel, returned: make(chan struct{})}
	context.AfterFunc(r.Context(), func() { e.end(context.Cause(r.Context())) })
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn:              func(info httptrace.GotConnInfo) { e.use(info.Conn) },
		GotFirstResponseByte: e.begin,
		Got1xxResponse:       e.informational,
	})
	res, err := transport.RoundTrip(r.WithContext(ctx))
	e.complete()
	return res, err
}

// connection is one to a host.
type connection struct {
	net.Conn

	// last is the last request that had it.
	last atomic.Pointer[exchange]
}

// exchange is a request, and its response until the transport has returned it.
type exchange struct {
	cancel   context.CancelCauseFunc // of the transport's context
	returned chan struct{}

	mu sync.Mutex
	// responding is set while the transport reads the header of a response.
	responding bool
	// cause is why the request's context has ended.
	cause error
}

// use is called when the request has a connection, before it is sent.
func (e *exchange) use(conn net.Conn) {
	if c, ok := conn.(*connection); ok {
		if before := c.last.Swap(e); before != nil && before != e {
			<-before.returned
		}
	}
}

// begin is called by the goroutine that reads the response, before it makes the connection
// available to others. If the context has ended, the connection is about to be closed: wait for
// that, because a closed one is not made available.
func (e *exchange) begin() {
	e.mu.Lock()
	ended := e.cause != nil
	e.responding = !ended
	e.mu.Unlock()
	if ended {
		<-e.returned
	}
}

// informational is called after a response with a status below 200. Another one will follow, and
// the context may end until then.
func (e *exchange) informational(int, textproto.MIMEHeader) error {
	e.resume()
	return nil
}

// end is called when the request's context ends.
func (e *exchange) end(cause error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.cause = cause
	if !e.responding {
		e.cancel(cause)
	}
}

// complete is called when the transport has returned the response's header, or an error.
func (e *exchange) complete() {
	close(e.returned)
	e.resume()
}

// resume lets the transport get to know the end of the request's context, also if it was before.
func (e *exchange) resume() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.responding = false
	if e.cause != nil {
		e.cancel(e.cause)
	}
}
