package gateway

import (
	"context"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// closing is a connection that says when it is closed.
type closing struct {
	net.Conn

	once   sync.Once
	closed chan struct{}
}

func (c *closing) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// dialing returns a transport, and its connections.
func dialing(t *testing.T) (*http.Transport, chan *connection) {
	t.Helper()
	dialed := make(chan *connection, 1<<16)
	transport := &http.Transport{DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		c := &connection{Conn: &closing{Conn: conn, closed: make(chan struct{})}}
		dialed <- c
		return c, nil
	}}
	t.Cleanup(transport.CloseIdleConnections)
	return transport, dialed
}

func get(ctx context.Context, t *testing.T, host *httptest.Server) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, host.URL, nil)
	assert.NoError(t, err)
	return r
}

// TestEndOfOneRequestDoesNotFailAnother ends the context of one of two requests at the moment at
// which both have the connection: the transport has made it available, and has not returned the
// first response.
func TestEndOfOneRequestDoesNotFailAnother(t *testing.T) {
	for _, ended := range []string{"the first", "the second"} {
		t.Run(ended, func(t *testing.T) {
			host := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
			defer host.Close()
			transport, dialed := dialing(t)
			firstCtx, endFirst := context.WithCancel(t.Context())
			defer endFirst()
			secondCtx, endSecond := context.WithCancel(t.Context())
			defer endSecond()
			later, second := get(secondCtx, t, host), make(chan error, 1)
			firstCtx = httptrace.WithClientTrace(firstCtx, &httptrace.ClientTrace{PutIdleConn: func(error) {
				conn := <-dialed
				before := conn.last.Load()
				go func() {
					res, err := roundTripOne(transport, later)
					if err == nil {
						err = res.Body.Close()
					}
					second <- err
				}()
				assert.Eventually(t, func() bool { return conn.last.Load() != before }, 20*time.Second, 100*time.Microsecond)
				if ended == "the first" {
					endFirst()
				} else {
					endSecond()
				}
				select { // what must not happen has that long
				case <-conn.Conn.(*closing).closed:
				case <-time.After(100 * time.Millisecond):
				}
			}})
			res, err := roundTripOne(transport, get(firstCtx, t, host))
			require.NoError(t, err)
			require.NoError(t, res.Body.Close())
			err = <-second
			if ended == "the first" {
				require.NoError(t, err)
			} else if err != nil { // the response may have been quicker
				require.ErrorIs(t, err, context.Canceled)
			}
			require.Empty(t, dialed, "the second request had another connection")
		})
	}
}

// TestEndOfARequestEndsItsConnection ends it before, during and after the response's header.
func TestEndOfARequestEndsItsConnection(t *testing.T) {
	for _, when := range []string{"before a response", "after an early response", "in a body"} {
		t.Run(when, func(t *testing.T) {
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			host := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				switch when {
				case "before a response":
					cancel(io.ErrClosedPipe)
				case "after an early response":
					w.WriteHeader(http.StatusEarlyHints)
				case "in a body":
					_, _ = io.WriteString(w, "some")
					http.NewResponseController(w).Flush() //nolint:errcheck // the caller notices
				}
				<-r.Context().Done()
			}))
			defer host.Close()
			transport, dialed := dialing(t)
			traced := httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{Got1xxResponse: func(int, textproto.MIMEHeader) error {
				go cancel(io.ErrClosedPipe)
				return nil
			}})
			res, err := roundTripOne(transport, get(traced, t, host))
			if when == "in a body" {
				require.NoError(t, err)
				cancel(io.ErrClosedPipe)
				_, err = io.ReadAll(res.Body)
				_ = res.Body.Close()
			}
			require.ErrorIs(t, err, io.ErrClosedPipe)
			<-(<-dialed).Conn.(*closing).closed
		})
	}
}

// TestResponseAfterTheEndWaits lets a response begin when the context has ended already.
func TestResponseAfterTheEndWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(t.Context())
		e := &exchange{cancel: cancel, returned: make(chan struct{})}
		e.end(io.ErrClosedPipe)
		require.Equal(t, io.ErrClosedPipe, context.Cause(ctx))
		var begun atomic.Bool
		go func() {
			e.begin()
			begun.Store(true)
		}()
		synctest.Wait()
		require.False(t, begun.Load(), "the connection would be made available")
		e.complete()
		synctest.Wait()
		require.True(t, begun.Load())
	})
}

// TestRequestsAreOnlyEndedByTheirOwnContexts ends the contexts of many requests about when their
// responses arrive.
func TestRequestsAreOnlyEndedByTheirOwnContexts(t *testing.T) {
	host := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer host.Close()
	transport, _ := dialing(t)
	transport.MaxIdleConnsPerHost = 16
	var callers sync.WaitGroup
	for range 8 {
		callers.Go(func() {
			took := time.Millisecond
			for i := range 3000 {
				ctx, cancel := context.WithCancel(t.Context())
				ends := i%2 == 0
				if ends {
					time.AfterFunc(rand.N(2*took), cancel)
				}
				begin := time.Now()
				res, err := roundTripOne(transport, get(ctx, t, host))
				if err == nil {
					err = res.Body.Close()
					took = (3*took + time.Since(begin)) / 4
				}
				if !ends {
					assert.NoError(t, err, "request %d", i) //nolint:testifylint // not in the test's goroutine
				}
				cancel()
			}
		})
	}
	callers.Wait()
}
