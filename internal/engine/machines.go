package engine

import (
	"context"
	"net/http"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"

	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
	"github.com/raylink/raylink/gen/raylink/brain/v1/brainv1connect"
	"github.com/raylink/raylink/internal/backoff"
	"github.com/raylink/raylink/internal/machine"
	"github.com/raylink/raylink/internal/nodeurl"
	"github.com/raylink/raylink/runtime"
)

// watchMachines calls changed with the agents' machines by name, at first and after each change,
// until ctx ends. Of machines with the same name, the latest counts: an earlier one was lost. It
// connects again when a connection is lost: Brain's end is noticed elsewhere.
func watchMachines(ctx context.Context, address, token string, changed func(map[string]*brainv1.MachineUse)) {
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	client := &http.Client{Transport: runtime.NewHTTPTransport(token, protocols)}
	defer client.CloseIdleConnections()
	base := nodeurl.Route{}.URL(address).String()
	brain := brainv1connect.NewBrainServiceClient(connect.NewClient(connecthttp.NewTransport(client, base)))
	for retry := (backoff.Backoff{First: 20 * time.Millisecond, Max: time.Second}); ; {
		stream, err := brain.WatchMachines(ctx, &brainv1.WatchMachinesRequest{})
		for err == nil {
			var res *brainv1.WatchMachinesResponse
			if res, err = stream.Receive(); err == nil {
				agents := make(map[string]*brainv1.MachineUse)
				for _, use := range res.GetMachines() {
					name := use.GetMachine().GetName()
					if other := agents[name]; use.GetMachine().GetAgent() && (other == nil || other.GetJoined().AsTime().Before(use.GetJoined().AsTime())) {
						agents[name] = use
					}
				}
				changed(agents)
			}
		}
		if retry.Wait(ctx) != nil {
			return
		}
	}
}

// describe says in a line what a machine has.
func describe(use *brainv1.MachineUse) string {
	m := use.GetMachine()
	text := machine.Resources(m.GetResources()).Summary()
	if labels := machine.Labels(m.GetLabels()).String(); labels != "" {
		text += ", labels " + labels
	}
	return text
}
