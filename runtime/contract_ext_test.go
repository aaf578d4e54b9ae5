package runtime_test

import (
	"testing"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connectinprocess"

	"github.com/raylink/raylink/internal/contract"
	"github.com/raylink/raylink/internal/contract/gen/contract/v1/contractv1raylink"
	"github.com/raylink/raylink/runtime"
)

// TestContractLocalStub calls a fake in the same process.
func TestContractLocalStub(t *testing.T) {
	t.Parallel()
	stubs := contract.NewStubs()
	contract.Run(t, contract.Way{Name: runtime.WayLocal, Local: true, Open: func(*testing.T) contract.Peer {
		return stubs.Open(contractv1raylink.NewLocalProbe)
	}})
}

// TestContractTunnelAdapters goes through the generated tunnel adapters, over a transport that can't pipeline.
func TestContractTunnelAdapters(t *testing.T) {
	t.Parallel()
	stubs := contract.NewStubs()
	contract.Run(t, contract.Way{Name: runtime.WayTunnel, Local: true, EndsOnClose: true, Foreign: true, Open: func(*testing.T) contract.Peer {
		return stubs.Open(func(node contractv1raylink.ProbeNode) *contractv1raylink.Probe {
			server := connect.NewServer()
			contractv1raylink.RegisterProbeTunnel(server, node)
			return contractv1raylink.NewProbeTunnel(connect.NewClient(connectinprocess.New(server)))
		})
	}})
}
