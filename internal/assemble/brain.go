package assemble

import (
	"context"
	"errors"
	"sync/atomic"

	"connectrpc.com/connect/v2"

	"github.com/raylink/raylink/runtime"
	"github.com/raylink/raylink/runtime/rundir"
)

// serving reports whether this process serves a Brain by ServeBrain.
var serving atomic.Bool //nolint:gochecknoglobals // there is one process

// ServeBrain makes this process a Brain for others, and calls ready once it serves. It returns
// after Brain has been shut down gracefully because ctx has ended, or after Brain has failed. If
// the process was launched as the host of one of Brain's own nodes, it serves the node and never
// returns; options is not called then.
func ServeBrain(
	ctx context.Context, embed *Embed, options func() (runtime.Options, error), ready func(address, data, tokenFile, joinToken string),
) error {
	if !serving.CompareAndSwap(false, true) {
		return connect.NewError(connect.CodeFailedPrecondition, "this process serves a Brain already")
	}
	defer serving.Store(false)
	if err := serveLaunched(withSystemTypes(hosts.NewOptions())); err != nil {
		return err
	}
	o, err := options()
	if err != nil {
		return err
	}
	o = withSystemTypes(o)
	// A process that serves a Brain does not join one, even if RAYLINK_BRAIN is set.
	o.Brain = ""
	if o.Data == "" {
		if o.Data, err = rundir.DataDir(); err != nil {
			return err
		}
	}
	rt, err := start(ctx, embed, o)
	if err != nil {
		return err
	}
	ready(rt.Address(), o.Data, rt.TokenFile(), rt.JoinToken())
	select {
	case <-ctx.Done():
	case <-rt.brain.Failed():
		err = rt.brain.Err()
	}
	return errors.Join(err, rt.Close())
}
