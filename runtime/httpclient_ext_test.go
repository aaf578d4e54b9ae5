package runtime_test

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	contractv1 "github.com/raylink/raylink/internal/contract/gen/contract/v1"
	"github.com/raylink/raylink/internal/contract/gen/contract/v1/contractv1raylink"
	"github.com/raylink/raylink/runtime"
)

// breaking is a server that responds to the first request, and closes the connection of all others
// once it has read them. It counts them.
func breaking(t *testing.T) (url string, requests *atomic.Int64) {
	t.Helper()
	requests = new(atomic.Int64)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		if requests.Add(1) > 1 {
			panic(http.ErrAbortHandler)
		}
		w.Header().Set("Content-Type", "application/proto")
	}))
	t.Cleanup(server.Close)
	return server.URL, requests
}

// TestCallIsSentOnceOverHTTP breaks the connection during a call with metadata that permits
// net/http to send it again.
func TestCallIsSentOnceOverHTTP(t *testing.T) {
	t.Parallel()
	for _, request := range []*contractv1.AddRequest{{}, {By: 1}} {
		url, requests := breaking(t)
		transport := &http.Transport{}
		t.Cleanup(transport.CloseIdleConnections)
		client := runtime.HTTPClient(&http.Client{Transport: transport})
		p := contractv1raylink.NewProbeTunnel(connect.NewClient(connecthttp.NewTransport(client, url)))
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		t.Cleanup(cancel)
		_, err := p.Add(ctx, request)
		require.NoError(t, err)
		ctx = runtime.WithMetadata(runtime.WithMetadata(ctx, "idempotency-key", "1"), "x-idempotency-key", "1")
		_, err = p.Add(ctx, request)
		require.Error(t, err)
		assert.EqualValues(t, 2, requests.Load(), "the call was sent again")
	}
}
