package brain

import (
	"context"

	"connectrpc.com/connect/v2"

	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
	"github.com/raylink/raylink/gen/raylink/brain/v1/brainv1connect"
)

// ListMachines returns the machines of the system.
func (s *service) ListMachines(context.Context, *brainv1.ListMachinesRequest) (*brainv1.ListMachinesResponse, error) {
	return nil, connect.NewError(connect.CodeUnimplemented, "machines are not kept yet")
}

// WatchMachines follows the machines of the system.
func (s *service) WatchMachines(context.Context, *brainv1.WatchMachinesRequest, brainv1connect.BrainServiceWatchMachinesServerStream) error {
	return connect.NewError(connect.CodeUnimplemented, "machines are not kept yet")
}
