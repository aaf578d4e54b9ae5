package raylink_test

import (
	"net/http"
	"testing"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"
	"github.com/stretchr/testify/require"

	"github.com/raylink/raylink"
	"github.com/raylink/raylink/internal/contract"
	"github.com/raylink/raylink/internal/contract/gen/contract/v1/contractv1raylink"
	"github.com/raylink/raylink/join"
	"github.com/raylink/raylink/runtime"
)

// system makes a system of its own for a test.
func system(t *testing.T, opts ...raylink.Option) *raylink.Runtime {
	t.Helper()
	opts = append(append([]raylink.Option{raylink.WithData(t.TempDir())}, contract.Types()...), opts...)
	rt, err := raylink.Start(t.Context(), opts...)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, rt.Close()) })
	return rt
}

// joined is a second part of a system, which reaches the first one's nodes from outside.
func joined(t *testing.T, rt *raylink.Runtime, opts ...join.Option) *join.Runtime {
	t.Helper()
	opts = append(append([]join.Option{runtime.WithBrain(rt.Address()), runtime.WithData(t.TempDir())}, contract.Types()...), opts...)
	other, err := join.Start(t.Context(), opts...)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, other.Close()) })
	return other
}

// joinBare is as joined, by a binary that knows no node types.
func joinBare(t *testing.T, rt *raylink.Runtime) (*join.Runtime, error) {
	t.Helper()
	other, err := join.Start(t.Context(), runtime.WithBrain(rt.Address()), runtime.WithData(t.TempDir()))
	if err == nil {
		t.Cleanup(func() { require.NoError(t, other.Close()) })
	}
	return other, err
}

func create(t *testing.T, parent runtime.Parent, opts ...runtime.CreateOption) *contractv1raylink.Probe {
	t.Helper()
	p, err := contractv1raylink.CreateProbe(t.Context(), parent, nil, opts...)
	require.NoError(t, err)
	return p
}

func TestContractInOneProcess(t *testing.T) {
	t.Parallel()
	rt := system(t)
	open := func(t *testing.T) *contractv1raylink.Probe { return create(t, rt) }
	contract.Run(t, contract.Way{Name: runtime.WayLocal, Local: true, Open: open, Second: open})
}

// TestContractTunnelUnix goes through the tunnel, by the host's Unix socket, between two parts of a system.
func TestContractTunnelUnix(t *testing.T) {
	t.Parallel()
	rt := system(t)
	other := joined(t, rt)
	open := func(t *testing.T) *contractv1raylink.Probe {
		ref := create(t, rt).Ref().NodeRef()
		p, err := contractv1raylink.ProbeFrom(other, ref)
		require.NoError(t, err)
		return p
	}
	contract.Run(t, contract.Way{Name: runtime.WayTunnel, Open: open, Second: open})
}

func TestContractTunnelTCP(t *testing.T) {
	t.Parallel()
	rt := system(t)
	other := joined(t, rt)
	open := func(t *testing.T) *contractv1raylink.Probe {
		ref := create(t, rt).Ref().NodeRef()
		ref.Host.Socket = ""
		p, err := contractv1raylink.ProbeFrom(other, ref)
		require.NoError(t, err)
		return p
	}
	contract.Run(t, contract.Way{Name: runtime.WayTunnel, Open: open})
}

// TestContractOwnProcesses calls nodes that live in processes of their own.
func TestContractOwnProcesses(t *testing.T) {
	t.Parallel()
	open := func(t *testing.T) *contractv1raylink.Probe { return create(t, driver) }
	contract.Run(t, contract.Way{Name: runtime.WayTunnel, Open: open, Second: open})
}

// TestContractOwnTunnel goes over a tunnel of the node's own.
func TestContractOwnTunnel(t *testing.T) {
	t.Parallel()
	rt := system(t)
	contract.Run(t, contract.Way{Name: runtime.WayTunnel, Open: func(t *testing.T) *contractv1raylink.Probe {
		info, err := create(t, rt).Ref().CreateTunnel(t.Context(), "mine")
		require.NoError(t, err)
		tunnel, err := runtime.DialTunnel(t.Context(), info, "")
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, tunnel.Close()) })
		return contractv1raylink.NewProbeTunnel(tunnel.Client())
	}})
}

// TestContractHTTP goes by HTTP, in each protocol that the listener speaks, to the node's host and through Brain's gateway.
func TestContractHTTP(t *testing.T) {
	t.Parallel()
	brain := system(t)
	host := joined(t, brain)
	ways := []struct {
		name    string
		options []connecthttp.Option
		h1      bool
		gateway bool
	}{
		{name: "connect over HTTP/1.1", h1: true},
		{name: "connect over HTTP/1.1 through the gateway", h1: true, gateway: true},
		{name: "connect over h2c"},
		{name: "connect JSON over h2c", options: []connecthttp.Option{connecthttp.WithProtoJSON()}},
		{name: "gRPC", options: []connecthttp.Option{connecthttp.WithGRPC()}},
		{name: "gRPC-Web", options: []connecthttp.Option{connecthttp.WithGRPCWeb()}},
		{name: "connect through the gateway", gateway: true},
		{name: "gRPC through the gateway", gateway: true, options: []connecthttp.Option{connecthttp.WithGRPC()}},
	}
	for _, way := range ways {
		t.Run(way.name, func(t *testing.T) {
			t.Parallel()
			protocols := new(http.Protocols)
			protocols.SetHTTP1(way.h1)
			protocols.SetUnencryptedHTTP2(!way.h1)
			transport := &http.Transport{Protocols: protocols}
			t.Cleanup(transport.CloseIdleConnections)
			options := append([]connecthttp.Option{connecthttp.WithReadMaxBytes(64 << 20)}, way.options...)
			contract.Run(t, contract.Way{Name: runtime.WayHTTP, HalfDuplex: way.h1, Open: func(t *testing.T) *contractv1raylink.Probe {
				p := create(t, host)
				address := host.Address()
				if way.gateway {
					address = brain.Address()
				}
				url := "http://" + address + "/" + p.Ref().Path()
				client := runtime.HTTPClient(&http.Client{Transport: transport})
				return contractv1raylink.NewProbeTunnel(connect.NewClient(connecthttp.NewTransport(client, url, options...)))
			}})
		})
	}
}
