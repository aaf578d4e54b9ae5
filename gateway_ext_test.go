package raylink_test

import (
	"encoding/binary"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestGatewayStreamsOverHTTP1 requests a stream as a client does that declares its request's
// length. The host has all of it, and responds, before the gateway has read the request's end. Go's
// server would close the request's body by default then, which breaks the connection to the host.
func TestGatewayStreamsOverHTTP1(t *testing.T) {
	t.Parallel()
	brain := system(t)
	host := joined(t, brain)
	url := "http://" + brain.Address() + "/" + create(t, host).Ref().Path() + "/contract.v1.Probe/Count"
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	client := &http.Client{Transport: transport}
	const message = `{"to":100,"payload":10000}`
	envelope := string(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(message)))) + message
	for range 150 {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, strings.NewReader(envelope))
		require.NoError(t, err)
		req.Header.Set("Content-Type", "application/connect+json")
		res, err := client.Do(req)
		require.NoError(t, err)
		body, err := io.ReadAll(res.Body)
		require.NoError(t, err)
		require.NoError(t, res.Body.Close())
		require.True(t, strings.HasSuffix(string(body), "{}"), "the stream ended with %q", body[max(0, len(body)-200):])
	}
}
