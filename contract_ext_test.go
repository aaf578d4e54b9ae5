package raylink_test

import (
	"os"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/raylink/raylink"
	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	"github.com/raylink/raylink/internal/contract"
	contractv1 "github.com/raylink/raylink/internal/contract/gen/contract/v1"
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

// joined joins a system as a second runtime, which reaches the first one's nodes from outside.
func joined(t *testing.T, rt *raylink.Runtime, opts ...join.Option) *join.Runtime {
	t.Helper()
	opts = append(append([]join.Option{runtime.WithBrain(rt.Address()), runtime.WithData(t.TempDir())}, contract.Types()...), opts...)
	other, err := join.Start(t.Context(), opts...)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, other.Close()) })
	return other
}

// joinBare joins a system with a runtime that knows no node types.
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

// ways are the ways between runtimes of one system. Each makes a system with the given options.
var ways = map[string]func(t *testing.T, opts ...raylink.Option) contract.Way{
	"in one process":     wayInOneProcess,
	"tunnel by Unix":     wayTunnelUnix,
	"tunnel by TCP":      wayTunnelTCP,
	"tunnel by TLS":      wayTunnelTLS,
	"tunnel of its own":  wayOwnTunnel,
	"HTTP, 1.1":          wayHTTP(&contractv1.Reach{Http1: true}, false),
	"HTTP, 1.1, gateway": wayHTTP(&contractv1.Reach{Http1: true}, true),
	"HTTP, h2c":          wayHTTP(&contractv1.Reach{}, false),
	"HTTP, h2c, JSON":    wayHTTP(&contractv1.Reach{Protocol: "json"}, false),
	"HTTP, h2c, gateway": wayHTTP(&contractv1.Reach{}, true),
	"gRPC":               wayHTTP(&contractv1.Reach{Protocol: "grpc"}, false),
	"gRPC, gateway":      wayHTTP(&contractv1.Reach{Protocol: "grpc"}, true),
	"gRPC-Web":           wayHTTP(&contractv1.Reach{Protocol: "grpcweb"}, false),
}

func TestContract(t *testing.T) {
	t.Parallel()
	for name, way := range ways {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			contract.Run(t, way(t))
		})
	}
}

// TestContractIntercepted tests interceptors on every way.
func TestContractIntercepted(t *testing.T) {
	t.Parallel()
	for name, way := range ways {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			contract.RunIntercepted(t, way(t, contract.Intercepted()))
		})
	}
}

// TestContractClientIntercepted has client interceptors on every way.
func TestContractClientIntercepted(t *testing.T) {
	t.Parallel()
	for name, way := range ways {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			contract.RunClientIntercepted(t, way(t))
		})
	}
}

// TestContractPassedOn checks all promises of calls through client interceptors.
func TestContractPassedOn(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"in one process", "tunnel by Unix", "HTTP, h2c"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			contract.Run(t, contract.PassedOn(ways[name](t)))
		})
	}
}

// TestContractHiddenErrors tests hidden errors on every way.
func TestContractHiddenErrors(t *testing.T) {
	t.Parallel()
	for name, way := range ways {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			contract.RunHidden(t, way(t, runtime.WithHiddenErrors()))
		})
	}
}

func wayInOneProcess(t *testing.T, opts ...raylink.Option) contract.Way {
	t.Helper()
	rt := system(t, opts...)
	return contract.Way{Name: runtime.WayLocal, Local: true, Open: func(t *testing.T) contract.Peer { return peer(t, rt, create(t, rt).Ref().NodeRef()) }}
}

// peer returns a node as a runtime of the system reaches it.
func peer(t *testing.T, from runtime.Finder, ref *nodev1.NodeRef) contract.Peer {
	t.Helper()
	again := func(t *testing.T) *contractv1raylink.Probe {
		t.Helper()
		p, err := contractv1raylink.ProbeFrom(from, ref)
		require.NoError(t, err)
		return p
	}
	p := again(t)
	return contract.Peer{Probe: p, Near: p, Path: ref.GetPath(), NID: ref.GetNid(), Reach: &contractv1.Reach{Node: ref}, Again: again}
}

// wayTunnelUnix is the tunnel over the host's Unix socket.
func wayTunnelUnix(t *testing.T, opts ...raylink.Option) contract.Way {
	t.Helper()
	host, other := hosts(t, opts...)
	return contract.Way{Name: runtime.WayTunnel, Open: func(t *testing.T) contract.Peer { return peer(t, other, create(t, host()).Ref().NodeRef()) }}
}

// wayTunnelTCP is the tunnel over TCP, where the socket can't be reached.
func wayTunnelTCP(t *testing.T, opts ...raylink.Option) contract.Way {
	t.Helper()
	host, other := hosts(t, opts...)
	for range 2 {
		require.NoError(t, os.Remove(create(t, host()).Ref().NodeRef().GetHost().GetSocket()))
	}
	return contract.Way{Name: runtime.WayTunnel, Open: func(t *testing.T) contract.Peer { return peer(t, other, create(t, host()).Ref().NodeRef()) }}
}

// wayTunnelTLS is wayTunnelTCP in a system that encrypts.
func wayTunnelTLS(t *testing.T, opts ...raylink.Option) contract.Way {
	t.Helper()
	e := newEncrypted(t, opts...)
	all := [2]runtime.Parent{e.Runtime, e.joined(t, e.join, opts...)}
	other := e.joined(t, e.join, opts...)
	var n atomic.Uint32
	host := func() runtime.Parent { return all[n.Add(1)%2] }
	for range 2 {
		require.NoError(t, os.Remove(create(t, host()).Ref().NodeRef().GetHost().GetSocket()))
	}
	return contract.Way{Name: runtime.WayTunnel, Open: func(t *testing.T) contract.Peer { return peer(t, other, create(t, host()).Ref().NodeRef()) }}
}

// hosts makes a system of three runtimes. Two create nodes alternately, so that a node and the next
// one are on different hosts, and the third calls both.
func hosts(t *testing.T, opts ...raylink.Option) (host func() runtime.Parent, other runtime.Finder) {
	t.Helper()
	rt := system(t, opts...)
	all := [2]runtime.Parent{rt, joined(t, rt, opts...)}
	var n atomic.Uint32
	return func() runtime.Parent { return all[n.Add(1)%2] }, joined(t, rt, opts...)
}

// TestContractOwnProcesses calls nodes that live in processes of their own.
func TestContractOwnProcesses(t *testing.T) {
	t.Parallel()
	contract.Run(t, contract.Way{Name: runtime.WayTunnel, Open: func(t *testing.T) contract.Peer {
		return peer(t, driver, create(t, driver).Ref().NodeRef())
	}})
}

// wayOwnTunnel is a tagged tunnel of the node, which a program outside of the system dials.
func wayOwnTunnel(t *testing.T, opts ...raylink.Option) contract.Way {
	t.Helper()
	rt := system(t, opts...)
	return contract.Way{Name: runtime.WayTunnel, Foreign: true, Open: func(t *testing.T) contract.Peer {
		near := create(t, rt)
		info, err := near.Ref().CreateTunnel(t.Context(), "mine")
		require.NoError(t, err)
		reach := &contractv1.Reach{Tunnel: info}
		return foreign(t, near, reach, func(t *testing.T) *contractv1raylink.Probe {
			p, closes, err := contract.DialTunnel(t.Context(), reach)
			require.NoError(t, err)
			t.Cleanup(closes)
			return p
		})
	}}
}

// foreign returns a node as a plain client reaches it.
func foreign(
	t *testing.T, near *contractv1raylink.Probe, reach *contractv1.Reach, dial func(t *testing.T) *contractv1raylink.Probe,
) contract.Peer {
	t.Helper()
	return contract.Peer{Probe: dial(t), Near: near, Path: near.Ref().Path(), NID: near.Ref().NID(), Reach: reach, Again: dial}
}

// wayHTTP is HTTP, to the node's host or through Brain's gateway.
func wayHTTP(protocol *contractv1.Reach, gateway bool) func(t *testing.T, opts ...raylink.Option) contract.Way {
	return func(t *testing.T, opts ...raylink.Option) contract.Way {
		t.Helper()
		brain := system(t, opts...)
		host := joined(t, brain, opts...)
		address := host.Address()
		if gateway {
			address = brain.Address()
		}
		return contract.Way{Name: runtime.WayHTTP, HalfDuplex: protocol.GetHttp1(), JSON: protocol.GetProtocol() == "json", Foreign: true, Open: func(t *testing.T) contract.Peer {
			near := create(t, host)
			reach := proto.CloneOf(protocol)
			reach.Url = "http://" + address + "/" + near.Ref().Path()
			return foreign(t, near, reach, func(t *testing.T) *contractv1raylink.Probe {
				p, closes := contract.DialHTTP(reach)
				t.Cleanup(closes)
				return p
			})
		}}
	}
}
