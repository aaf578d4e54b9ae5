package runtime

import (
	"context"
	"io"
	"net/http"
	"strings"

	"connectrpc.com/connect/v2/connecthttp"
)

// HTTPClient adapts client to carry streams for connecthttp: if a call's context ends, or its
// stream is closed, while requests may still be sent, the request is aborted, and the node sees a
// canceled call. Without it the request ends as if it were complete, and a node may mistake the
// part that it received for the whole.
//
// It also ensures that a call is sent at most once: net/http repeats a request whose connection was
// lost if it has the header Idempotency-Key, which a call's metadata may contain. client is an
// [http.Client], for example:
//
//	transport := connecthttp.NewTransport(runtime.HTTPClient(http.DefaultClient), "http://127.0.0.1:7777/learner-0")
//	learner := demov1raylink.NewLearnerTunnel(connect.NewClient(transport))
func HTTPClient(client connecthttp.HTTPClient) connecthttp.HTTPClient { return streamingClient{client} }

type streamingClient struct{ client connecthttp.HTTPClient }

// Do implements [connecthttp.HTTPClient].
func (c streamingClient) Do(req *http.Request) (*http.Response, error) {
	req = sentOnce(req)
	if req.Body == nil || req.ContentLength >= 0 {
		return c.client.Do(req) // its length is known: it is sent as a whole
	}
	ctx, body := req.Context(), req.Body
	req = req.WithContext(ctx)
	req.Body = &requestBody{
		ReadCloser: body, ctx: ctx,
		stop: context.AfterFunc(ctx, func() { _ = body.Close() }), // unblocks its reader
	}
	return c.client.Do(req)
}

// sentOnce prevents net/http's transport from repeating the request because of a header that its
// metadata happens to contain. The transport looks for canonical header names only; on the wire,
// and for the receiver, case is insignificant.
func sentOnce(req *http.Request) *http.Request {
	for _, key := range [...]string{"Idempotency-Key", "X-Idempotency-Key"} {
		if values, ok := req.Header[key]; ok {
			req = req.Clone(req.Context())
			delete(req.Header, key)
			req.Header[strings.ToLower(key)] = values
		}
	}
	return req
}

// requestBody fails with the cause of the request's context once that has ended, even if the body
// itself reported its end.
type requestBody struct {
	io.ReadCloser

	ctx  context.Context //nolint:containedctx // a body lives as long as its request
	stop func() bool
}

// Read implements [io.Reader].
func (b *requestBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil && b.ctx.Err() != nil {
		err = context.Cause(b.ctx)
	}
	return n, err
}

// Close implements [io.Closer].
func (b *requestBody) Close() error {
	b.stop()
	return b.ReadCloser.Close()
}
