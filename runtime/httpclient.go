package runtime

import (
	"context"
	"io"
	"net/http"
	"strings"

	"connectrpc.com/connect/v2/connecthttp"
)

// HTTPClient makes client fit to carry streams for connecthttp: a call whose context ends, or whose
// stream is closed, while it may still send requests is then cut off, so that the node sees a call
// that was canceled. Without it the request ends as if all had been sent, and a node may take the
// half that it has got for the whole.
//
// It also sees to it that a call is sent at most once: net/http sends a request again whose
// connection was lost, if it carries the header Idempotency-Key, which a call's metadata may.
// client is an [http.Client], for example:
//
//	transport := connecthttp.NewTransport(runtime.HTTPClient(http.DefaultClient), "http://127.0.0.1:7777/learner-0")
//	learner := demov1raylink.NewLearnerTunnel(connect.NewClient(transport))
func HTTPClient(client connecthttp.HTTPClient) connecthttp.HTTPClient { return streamingClient{client} }

type streamingClient struct{ client connecthttp.HTTPClient }

// Do implements connecthttp.HTTPClient.
func (c streamingClient) Do(req *http.Request) (*http.Response, error) {
	req = sentOnce(req)
	if req.Body == nil || req.ContentLength >= 0 {
		return c.client.Do(req) // it is sent as a whole
	}
	ctx, body := req.Context(), req.Body
	req = req.WithContext(ctx) // a copy
	req.Body = &requestBody{
		ReadCloser: body, ctx: ctx,
		stop: context.AfterFunc(ctx, func() { _ = body.Close() }), // wakes who reads it
	}
	return c.client.Do(req)
}

// sentOnce keeps net/http's transport from replaying the request where its metadata looks like a
// promise that it may. The transport looks the headers up by their canonical names; on the wire,
// and for who gets them, case makes no difference.
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

// requestBody is a request's body that fails when the request's context has ended, whether or not
// it was ended beside that.
type requestBody struct {
	io.ReadCloser

	ctx  context.Context //nolint:containedctx // a body lives as long as its request
	stop func() bool
}

// Read implements io.Reader.
func (b *requestBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil && b.ctx.Err() != nil {
		err = context.Cause(b.ctx)
	}
	return n, err
}

// Close implements io.Closer.
func (b *requestBody) Close() error {
	b.stop()
	return b.ReadCloser.Close()
}
