package runtime

import (
	"context"
	"fmt"
	"os"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"

	machinev1 "github.com/raylink/raylink/gen/raylink/machine/v1"
	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	"github.com/raylink/raylink/internal/connecterr"
	"github.com/raylink/raylink/runtime/launch"
)

// resident is a node in this process that another host has launched here ([AgentProcess]). To that
// host it is a process like others: the stream of its launch carries how its set-up ended, that it
// is to stop, and that it has, and it ends when the stream is lost for good.
type resident struct {
	host *Host
	// giveUp ends the set-up.
	giveUp context.CancelCauseFunc
	// ready is closed when the set-up is over: then payload, or failure, and node are set.
	ready   chan struct{}
	payload []byte
	failure error
	node    *Node
	// done is closed when nothing is left of the node.
	done chan struct{}
}

var _ launch.Process = (*resident)(nil)

// setUpHere begins to set a node up in this process for another host.
func (k *machineKeeper) setUpHere(what *machinev1.LaunchSpec, spec launch.Spec) (launch.Process, error) {
	h := k.host
	if build := launch.Build(); what.GetBuild() != build {
		return nil, connect.Errorf(connect.CodeFailedPrecondition, "on %s: the process that keeps the machine is of another program (build %s) than "+
			"the creator (build %s): run the creator's program as the agent (join.Agent), or give nodes processes of their own (OwnProcess)",
			k.declared.GetName(), build, what.GetBuild())
	}
	p, rec, err := readPayload(spec.Payload)
	if err != nil {
		return nil, connect.Errorf(connect.CodeInvalidArgument, "on %s: %v", k.declared.GetName(), err)
	}
	if _, err := h.types.get(p.Type, rec.GetService()); err != nil {
		return nil, connect.Errorf(connect.CodeFailedPrecondition, "on %s: the process that keeps the machine lacks the type of the new nodes: %s; "+
			"give the agent (join.Agent) the same types as the creator", k.declared.GetName(), connecterr.Text(err))
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	r := &resident{host: h, giveUp: cancel, ready: make(chan struct{}), done: make(chan struct{})}
	if !h.goBackground(func(context.Context) { r.run(ctx, rec, p) }) {
		cancel(nil)
		return nil, k.closed()
	}
	return r, nil
}

// run sets the node up, and waits for its end.
func (r *resident) run(ctx context.Context, rec *nodev1.NodeRecord, p launchPayload) {
	defer close(r.done)
	defer r.giveUp(nil)
	n, err := r.host.setUpLaunched(ctx, rec, p)
	if err == nil {
		r.node = n
		r.payload, err = proto.Marshal(n.snapshot())
	}
	if err != nil {
		r.failure = &launch.FailedError{Name: rec.GetPath(), Payload: encodeError(err), Exit: launch.Retired()}
	}
	close(r.ready)
	if r.node != nil {
		<-r.node.stopped
	}
}

// PID implements [launch.Process].
func (*resident) PID() int { return os.Getpid() }

// Ready implements [launch.Process].
func (r *resident) Ready(ctx context.Context) ([]byte, error) {
	select {
	case <-r.ready:
	case <-ctx.Done():
		_ = r.Kill() // it never fails
		<-r.done
		return nil, fmt.Errorf("the set-up of a node was given up: %w", context.Cause(ctx))
	}
	if r.failure != nil {
		<-r.done
	}
	return r.payload, r.failure
}

// Stop implements [launch.Process]. A node that has not stopped when ctx ends is abandoned: it is
// no process that could be killed.
func (r *resident) Stop(ctx context.Context) error {
	r.giveUp(errLauncherGaveUp) // has no effect after the set-up
	select {
	case <-r.ready:
	case <-ctx.Done():
		return fmt.Errorf("stopping a node: %w", context.Cause(ctx))
	}
	if r.node == nil {
		return nil
	}
	return r.host.stopNode(ctx, r.node, remaining(ctx, r.host.options.Drain), reasonStopped)
}

// Kill implements [launch.Process]: running calls are not waited for.
func (r *resident) Kill() error {
	r.giveUp(errLauncherGaveUp)
	r.host.goBackground(func(ctx context.Context) { // or else the host's end ends the node
		select {
		case <-r.ready:
		case <-ctx.Done():
			return
		}
		if r.node != nil {
			r.host.beginStop(r.node, 0, "its launcher ended it")
		}
	})
	return nil
}

// Done implements [launch.Process].
func (r *resident) Done() <-chan struct{} { return r.done }

// Exit implements [launch.Process]. The host that the node is on has reported its end.
func (r *resident) Exit() launch.Exit {
	select {
	case <-r.done:
		return launch.Retired()
	default:
		return launch.Exit{}
	}
}
