package assemble

import (
	"context"
	"errors"
	"sync/atomic"

	"connectrpc.com/connect/v2"

	"github.com/raylink/raylink/runtime"
	"github.com/raylink/raylink/runtime/rundir"
)

// serving says that this process serves a Brain by ServeBrain.
var serving atomic.Bool //nolint:gochecknoglobals // a process is one

// ServeBrain makes this process a Brain for others, tells ready when it serves, and returns when ctx has ended and Brain with it, in good order,
// or when Brain has failed. If the process was launched as the host of one of Brain's own nodes, it serves that and never returns. options are
// asked for after that was found out.
func ServeBrain(
	ctx context.Context, embed *Embed, options func() (runtime.Options, error), ready func(address, data, tokenFile string),
) error {
	if !serving.CompareAndSwap(false, true) {
		return connect.NewError(connect.CodeFailedPrecondition, "this process serves a Brain already")
	}
	defer serving.Store(false)
	if err := serveLaunched(withSystemTypes(runtime.NewOptions())); err != nil {
		return err
	}
	o, err := options()
	if err != nil {
		return err
	}
	o = withSystemTypes(o)
	// Whoever serves a Brain joins none, whatever the environment says.
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
	ready(rt.Address(), o.Data, rt.TokenFile())
	select {
	case <-ctx.Done():
	case <-rt.brain.Failed():
		err = rt.brain.Err()
	}
	return errors.Join(err, rt.Close())
}
