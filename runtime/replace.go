package runtime

import (
	"context"
	"errors"
	"log/slog"

	"connectrpc.com/connect/v2"

	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	"github.com/raylink/raylink/runtime/launch"
)

// A machine can leave between Brain's decision and the end of a set-up: its agent is stopped, or
// dies. That is no failure of the creation, whose nodes are then placed again, all of them: they
// are made together. Only a machine that was asked for by name is not replaced.

// isReplaceable reports whether the nodes of a creation, which has failed and is undone, are to be
// placed again, because the machine of the one that failed first has left.
func (h *Host) isReplaceable(ctx context.Context, c *creation, place *nodev1.Place, failure error) bool {
	if place == nil || place.GetOn() != "" || ctx.Err() != nil || c.failedOn == "" || c.failedOn == h.machine {
		return false
	}
	if died, ok := errors.AsType[*launch.DiedError](failure); ok && died.Exit.Lost != "" {
		return true // Brain may notice it later
	}
	now, err := h.machineUse(ctx, c.failedOn)
	if err != nil || now != nil && now.GetKeeper().GetId() == c.machines[c.failedOn].GetKeeper().GetId() {
		return false
	}
	h.log.Info("new nodes are placed again, because a machine has left",
		slog.String("machine", c.machines[c.failedOn].GetMachine().GetName()), slog.Any("error", failure))
	return true
}

// machineUse returns a machine by its id; nil if it is not in the system.
func (h *Host) machineUse(ctx context.Context, id string) (*brainv1.MachineUse, error) {
	ctx, cancel := context.WithTimeout(ctx, brainTimeout)
	defer cancel()
	res, err := h.brain.ListMachines(ctx, &brainv1.ListMachinesRequest{Machine: id})
	if connect.CodeOf(err) == connect.CodeNotFound {
		return nil, nil //nolint:nilnil // as said
	}
	if err != nil {
		return nil, err
	}
	for _, use := range res.GetMachines() {
		if use.GetMachine().GetId() == id {
			return use, nil
		}
	}
	return nil, nil //nolint:nilnil // another machine has the id as its name
}
