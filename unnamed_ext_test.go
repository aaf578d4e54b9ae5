package raylink_test

import (
	"io"
	"net/http"
	"testing"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	contractv1 "github.com/raylink/raylink/internal/contract/gen/contract/v1"
	"github.com/raylink/raylink/internal/contract/gen/contract/v1/contractv1raylink"
	"github.com/raylink/raylink/runtime"
)

// TestCallWithoutANodeReachesTheOnlyOne sends requests as `grpcurl -plaintext -d '{}' HOST
// pkg.Svc/M` does. They are for the only node of the host that serves pkg.Svc; if there are several
// or none, the error explains how to name one.
func TestCallWithoutANodeReachesTheOnlyOne(t *testing.T) {
	t.Parallel()
	brain := system(t)
	host := joined(t, brain)
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	transport := &http.Transport{Protocols: protocols}
	t.Cleanup(transport.CloseIdleConnections)
	dial := func(address string, opts ...connecthttp.Option) *contractv1raylink.Probe {
		client := connect.NewClient(connecthttp.NewTransport(&http.Client{Transport: transport}, "http://"+address, opts...))
		return contractv1raylink.NewProbeTunnel(client)
	}
	ways := map[string][]connecthttp.Option{"connect": nil, "grpc": {connecthttp.WithGRPC()}, "grpc-web": {connecthttp.WithGRPCWeb()}}
	refused := func(code connect.Code, address string, texts ...string) {
		t.Helper()
		for name, opts := range ways {
			p := dial(address, opts...)
			_, err := p.Add(t.Context(), &contractv1.AddRequest{By: 1})
			stream, streamErr := p.Count(t.Context(), nil)
			if streamErr == nil {
				_, streamErr = stream.Receive()
			}
			for _, err := range []error{err, streamErr} {
				require.Equal(t, code, connect.CodeOf(err), "%s: %v", name, err)
				for _, text := range append(texts, "raylink-node", "contract.v1.Probe") {
					assert.ErrorContains(t, err, text, name)
				}
			}
		}
	}
	refused(connect.CodeUnavailable, host.Address(), "is on this host")
	only := create(t, host, runtime.ParentProcess())
	for name, opts := range ways {
		_, err := dial(host.Address(), opts...).Add(t.Context(), &contractv1.AddRequest{By: 1})
		require.NoError(t, err, name)
	}
	res, err := only.Add(t.Context(), nil)
	require.NoError(t, err)
	require.Equal(t, int64(len(ways)), res.GetSum())
	// The gateway's own process has none, and it does not choose among nodes of others.
	refused(connect.CodeUnavailable, brain.Address())
	second := create(t, host, runtime.ParentProcess())
	refused(connect.CodeInvalidArgument, host.Address(), "2 nodes", only.Ref().Path(), second.Ref().Path())
	require.NoError(t, second.Ref().Stop(t.Context()))
	_, err = dial(host.Address()).Add(t.Context(), nil)
	require.NoError(t, err)

	for _, url := range []string{"http://" + host.Address() + "/demo.v1.Nobody/Nothing", "http://" + host.Address() + "/" + only.Ref().Path() + "/contract.v1.Probe/Missing"} {
		res, err := http.Post(url, "application/json", nil)
		require.NoError(t, err)
		answer, err := io.ReadAll(res.Body)
		require.NoError(t, err)
		require.NoError(t, res.Body.Close())
		assert.Equal(t, http.StatusNotFound, res.StatusCode, "%s: %s", url, answer)
	}
}

// TestCallsOfBrainUseNothingOfTheCaller checks that requests to Brain which the runtime makes on
// behalf of a call, with its context, neither carry the call's metadata nor change its CallInfo.
func TestCallsOfBrainUseNothingOfTheCaller(t *testing.T) {
	t.Parallel()
	brain := system(t)
	create(t, brain, runtime.WithAlias("found"))
	ctx, info := connect.NewClientContext(t.Context())
	info.RequestHeader().Set("see", "a value that no call can carry: \n")
	for _, rt := range []runtime.Finder{brain, joined(t, brain)} {
		p, err := contractv1raylink.FindProbe(ctx, rt, runtime.Alias("found"))
		require.NoError(t, err, "Brain must not be called with it")
		_, err = p.Add(ctx, nil)
		require.Equal(t, connect.CodeInvalidArgument, connect.CodeOf(err))
	}
	info.RequestHeader().Delete("see")
	p, err := contractv1raylink.FindProbe(ctx, joined(t, brain), runtime.Alias("found"))
	require.NoError(t, err)
	_, err = p.Who(ctx, &contractv1.WhoRequest{Header: "h"})
	require.NoError(t, err)
	_, err = contractv1raylink.FindProbe(ctx, brain, runtime.Alias("found"))
	require.NoError(t, err)
	require.Equal(t, "h", info.ResponseHeader().Get("probe-header"), "it must show the caller's own last call")
}
