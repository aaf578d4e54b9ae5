package brain_test

import (
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink/brain"
	"github.com/raylink/raylink/internal/contract"
	"github.com/raylink/raylink/internal/contract/gen/contract/v1/contractv1raylink"
	"github.com/raylink/raylink/internal/hostapi"
	"github.com/raylink/raylink/runtime"
)

// TestBrainWhoseDiskFailedIsNotReady breaks a Brain's disk. Its process stays live, and the nodes
// there respond, but it is not ready.
func TestBrainWhoseDiskFailedIsNotReady(t *testing.T) {
	disk, quiet := new(brokenDisk), slog.New(slog.DiscardHandler)
	b, err := brain.Open(brain.Options{Dir: "data", FS: errorfs.Wrap(vfs.NewMem(), disk), Logger: quiet})
	require.NoError(t, err)
	t.Cleanup(func() { _ = b.Close() }) // it may report the disk's failure
	hosts := hostapi.Get[*runtime.Host, runtime.Options, runtime.Option, runtime.NodeType]()
	options := hosts.NewOptions(append(contract.Types(), runtime.WithInProcess(), runtime.WithOpen(), runtime.WithLogger(quiet))...)
	h, err := hosts.Start(t.Context(), options, hostapi.Parts{Brain: b})
	require.NoError(t, err)
	t.Cleanup(func() { _ = h.Close(t.Context()) }) // likewise
	p, err := contractv1raylink.CreateProbe(t.Context(), h, nil)
	require.NoError(t, err)

	transport := &http.Transport{DisableKeepAlives: true}
	ask := func(method, path string) (int, string) {
		req, err := http.NewRequestWithContext(t.Context(), method, "http://"+h.Address()+path, strings.NewReader("{}"))
		require.NoError(t, err)
		req.Header.Set("Content-Type", "application/json")
		res, err := transport.RoundTrip(req)
		require.NoError(t, err)
		body, err := io.ReadAll(res.Body)
		require.NoError(t, err)
		require.NoError(t, res.Body.Close())
		return res.StatusCode, string(body)
	}
	expect := func(method, path string, status int, says string) {
		t.Helper()
		got, body := ask(method, path)
		require.Equal(t, status, got, "%s: %s", path, body)
		require.Contains(t, body, says, path)
	}
	const health = "/grpc.health.v1.Health/"
	expect(http.MethodGet, "/readyz", http.StatusOK, "ok")
	expect(http.MethodPost, health+"Check", http.StatusOK, `"SERVING"`)
	// A watcher is notified of the change.
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+h.Address()+health+"Watch",
		strings.NewReader("\x00\x00\x00\x00\x02{}"))
	require.NoError(t, err)
	req.Header.Set("Content-Type", "application/connect+json")
	watch, err := transport.RoundTrip(req)
	require.NoError(t, err)
	defer watch.Body.Close() //nolint:errcheck // it was read to its end

	disk.broken.Store(true)
	_, err = contractv1raylink.CreateProbe(t.Context(), h, nil)
	require.ErrorContains(t, err, "could not keep the change")
	<-b.Failed()
	all, err := io.ReadAll(watch.Body)
	require.NoError(t, err)
	require.Contains(t, string(all), `"NOT_SERVING"`)
	expect(http.MethodGet, "/readyz", http.StatusServiceUnavailable, "not serving")
	expect(http.MethodGet, "/healthz", http.StatusServiceUnavailable, "not serving")
	expect(http.MethodGet, "/livez", http.StatusOK, "ok")
	expect(http.MethodPost, health+"Check", http.StatusOK, `"NOT_SERVING"`)
	expect(http.MethodPost, "/"+p.Ref().Path()+"/contract.v1.Probe/Add", http.StatusOK, "")
}
