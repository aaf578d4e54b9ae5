package runtime

import (
	"context"
	"log/slog"

	"connectrpc.com/connect/v2"

	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
	"github.com/raylink/raylink/internal/backoff"
)

// watchMachines is [hostapi.Functions].WatchMachines.
func watchMachines(ctx context.Context, each func(machines []*brainv1.MachineUse)) error {
	n := NodeFrom(ctx)
	if n == nil || n.host == nil || n.host.brain == nil {
		return errNoSystem()
	}
	pause := new(backoff.Backoff)
	for ctx.Err() == nil {
		err := n.host.followMachines(ctx, func(machines []*brainv1.MachineUse) {
			pause.Reset()
			each(machines)
		})
		if connect.CodeOf(err) == connect.CodeUnimplemented {
			return err // an older Brain
		}
		n.logger().Debug("the machines are not followed at present", slog.Any("error", err))
		_ = pause.Wait(ctx)
	}
	return nil
}

// followMachines is watchMachines as long as one stream lasts.
func (h *Host) followMachines(ctx context.Context, each func(machines []*brainv1.MachineUse)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := h.brain.WatchMachines(ctx, &brainv1.WatchMachinesRequest{})
	if err != nil {
		return err
	}
	defer stream.Close() //nolint:errcheck // its context ends it
	for {
		res, err := stream.Receive()
		if err != nil {
			return err
		}
		each(res.GetMachines())
	}
}
