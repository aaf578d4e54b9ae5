package runtime_test

import (
	"testing"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connectinprocess"

	"github.com/raylink/raylink/internal/contract"
	"github.com/raylink/raylink/internal/contract/gen/contract/v1/contractv1raylink"
	"github.com/raylink/raylink/runtime"
)

// localStub calls a fake in the same process.
func localStub() contract.Way {
	stubs := contract.NewStubs()
	return contract.Way{Name: runtime.WayLocal, Local: true, Open: func(*testing.T) contract.Peer {
		return stubs.Open(contractv1raylink.NewLocalProbe)
	}}
}

// tunnelAdapters is the generated tunnel adapters over a transport that can't pipeline.
func tunnelAdapters() contract.Way {
	stubs := contract.NewStubs()
	return contract.Way{Name: runtime.WayTunnel, Local: true, EndsOnClose: true, Foreign: true, Open: func(*testing.T) contract.Peer {
		return stubs.Open(func(node contractv1raylink.ProbeNode) *contractv1raylink.Probe {
			server := connect.NewServer()
			contractv1raylink.RegisterProbeTunnel(server, node)
			return contractv1raylink.NewProbeTunnel(connect.NewClient(connectinprocess.New(server)))
		})
	}}
}

func TestContractLocalStub(t *testing.T) {
	t.Parallel()
	contract.Run(t, localStub())
}

func TestContractTunnelAdapters(t *testing.T) {
	t.Parallel()
	contract.Run(t, tunnelAdapters())
}

func TestContractStubsClientIntercepted(t *testing.T) {
	t.Parallel()
	contract.RunClientIntercepted(t, localStub())
	contract.RunClientIntercepted(t, tunnelAdapters())
}
