package runtime_test

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"
	"github.com/stretchr/testify/require"

	contractv1 "github.com/raylink/raylink/internal/contract/gen/contract/v1"
	"github.com/raylink/raylink/internal/contract/gen/contract/v1/contractv1raylink"
)

// TestUndecodableResponseIsInternalWhateverTheCodec converts connect's code, which is
// invalid_argument.
func TestUndecodableResponseIsInternalWhateverTheCodec(t *testing.T) {
	t.Parallel()
	for codec, body := range map[string]string{"proto": "\x0f", "json": "{"} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			w.Header().Set("Content-Type", "application/"+codec)
			_, _ = io.WriteString(w, body)
		}))
		defer server.Close()
		probe := contractv1raylink.NewProbeTunnel(connect.NewClient(connecthttp.NewTransport(
			server.Client(), server.URL, connecthttp.WithSendCodec(codec))))
		_, err := probe.Add(t.Context(), &contractv1.AddRequest{})
		require.Equal(t, connect.CodeInternal, connect.CodeOf(err), "%s: %v", codec, err)
		require.ErrorContains(t, err, "decoding a response of contract.v1.Probe/Add", codec)
	}
}

// TestUsersInvalidArgumentStays returns errors of the user's own client interceptors unchanged.
func TestUsersInvalidArgumentStays(t *testing.T) {
	t.Parallel()
	own := connect.NewError(connect.CodeInvalidArgument, "not this one")
	probe := contractv1raylink.NewProbeTunnel(connect.NewClient(refusing{own}))
	_, err := probe.Add(t.Context(), nil)
	require.Equal(t, connect.CodeInvalidArgument, connect.CodeOf(err))
	require.ErrorContains(t, err, "not this one")
}

// refusing is a transport that fails all calls.
type refusing struct{ err error }

// NewClientStream implements connect.Transport.
func (r refusing) NewClientStream(context.Context, connect.Spec) (connect.ClientStream, error) {
	return nil, r.err
}
