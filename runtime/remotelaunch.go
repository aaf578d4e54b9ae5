package runtime

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/types/known/durationpb"

	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
	machinev1 "github.com/raylink/raylink/gen/raylink/machine/v1"
	"github.com/raylink/raylink/gen/raylink/machine/v1/machinev1connect"
	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	"github.com/raylink/raylink/internal/backoff"
	"github.com/raylink/raylink/runtime/launch"
)

// launcherOn returns the launcher for a node's process: of this host, or of the host that keeps the
// machine of its allocation.
func (h *Host) launcherOn(rec *nodev1.NodeRecord, at *brainv1.MachineUse) launch.Launcher {
	given := rec.GetAllocation()
	if given == nil || given.GetMachine() == h.machine {
		return localLauncher{host: h, gpus: at.GetMachine().GetGpus(), given: given}
	}
	return &remoteLauncher{host: h, given: given, at: at}
}

// localLauncher launches on this machine.
type localLauncher struct {
	host  *Host
	gpus  []string
	given *nodev1.Allocation
}

// Launch implements [launch.Launcher].
func (l localLauncher) Launch(ctx context.Context, spec launch.Spec) (launch.Process, error) {
	devices, err := devicesEnv(l.gpus, l.given.GetGpus())
	if err != nil {
		return nil, err
	}
	spec.Env = append(spec.Env, devices...)
	return l.host.launcher.Launch(ctx, spec)
}

// remoteLauncher launches by the keeper of a machine: a process on another machine, or a node in
// the keeper's own process.
type remoteLauncher struct {
	host      *Host
	given     *nodev1.Allocation
	at        *brainv1.MachineUse
	inProcess bool
}

func isInProcess(l launch.Launcher) bool {
	remote, ok := l.(*remoteLauncher)
	return ok && remote.inProcess
}

// keeps reports whether this host keeps a machine, or would: where at is nil, no other one does.
func (h *Host) keeps(at *brainv1.MachineUse) bool {
	return at == nil || at.GetKeeper().GetId() == h.id
}

// Launch implements [launch.Launcher].
func (l *remoteLauncher) Launch(ctx context.Context, spec launch.Spec) (launch.Process, error) {
	h, name := l.host, l.given.GetName()
	if l.at.GetKeeper() == nil {
		return nil, fmt.Errorf("the machine %s has left the system", name)
	}
	what, err := l.spec()
	if err != nil {
		return nil, err
	}
	client := machinev1connect.NewMachineServiceClient(connect.NewClient(h.peers.Host(l.at.GetKeeper())))
	// One goroutine opens streams, and waits between them.
	opened, pause := false, backoff.Backoff{First: 10 * time.Millisecond, Max: time.Second}
	remote := &launch.Remote{
		Machine: name,
		Open: func(ctx context.Context) (launch.RemoteStream, error) {
			if opened {
				if err := l.checkKeeper(ctx); err != nil {
					return nil, err
				}
			}
			opened = true
			stream, err := client.Launch(own(ctx))
			if err != nil {
				return nil, err
			}
			return launchStream{stream}, nil
		},
		IsRefusal: func(err error) bool { return errors.Is(err, errKeeperGone) || isAnswer(err) },
		Pause: func(ctx context.Context, attempt int) error {
			if attempt == 0 {
				pause.Reset()
			}
			return pause.Wait(ctx)
		},
		Patience: h.options.Lease,
	}
	return remote.Launch(ctx, what, spec)
}

// isAnswer reports whether an error was returned by the other host, as opposed to a lost
// connection.
func isAnswer(err error) bool {
	e, ok := errors.AsType[*connect.Error](err)
	return ok && e.IsRemote()
}

// spec describes the process to the keeper.
func (l *remoteLauncher) spec() (*machinev1.LaunchSpec, error) {
	if l.inProcess {
		return &machinev1.LaunchSpec{InProcess: true, Build: launch.Build()}, nil
	}
	args, err := launch.Arguments()
	if err != nil {
		return nil, err
	}
	program, err := ownProgram()
	if err != nil {
		return nil, err
	}
	id, machine := program.Identity(), l.at.GetMachine()
	build := launch.Build()
	if slices.Contains(machine.GetPrograms(), id.Name) {
		build = "" // whatever is installed there
	} else if err := id.CheckPlatform(machine.GetPlatform().GetOs(), machine.GetPlatform().GetArch()); err != nil {
		return nil, err
	}
	return &machinev1.LaunchSpec{
		Program: programMessage(id), Arguments: args, Build: build, HelloTimeout: durationpb.New(l.host.options.StartTimeout),
		Gpus: l.given.GetGpus(), Launcher: l.host.info(),
	}, nil
}

// errKeeperGone means that the host that has launched a process has ended, and its processes with
// it.
var errKeeperGone = errors.New("its keeper is gone")

// checkKeeper returns an error if Brain has another keeper of the machine, or none, and this one
// can't be reached.
func (l *remoteLauncher) checkKeeper(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, brainTimeout)
	defer cancel()
	keeper := l.at.GetKeeper()
	if _, err := l.host.peers.Get(ctx, &nodev1.NodeRecord{Host: keeper}, ""); err == nil || ctx.Err() != nil {
		return nil
	}
	res, err := l.host.brain.ListMachines(ctx, &brainv1.ListMachinesRequest{Machine: l.given.GetMachine()})
	if err != nil && connect.CodeOf(err) != connect.CodeNotFound {
		return nil // Brain is away: it is not known
	}
	for _, use := range res.GetMachines() {
		if use.GetKeeper().GetId() == keeper.GetId() {
			return nil
		}
	}
	return fmt.Errorf("%w: process %d on %s has ended", errKeeperGone, keeper.GetPid(), l.given.GetName())
}

// launchStream is a stream of MachineService.Launch as [launch.Remote] uses it.
type launchStream struct {
	machinev1connect.MachineServiceLaunchClientStream
}
