package assemble

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	psv1 "github.com/raylink/raylink/gen/raylink/ps/v1"
	"github.com/raylink/raylink/gen/raylink/ps/v1/psv1raylink"
	"github.com/raylink/raylink/gen/raylink/storage/v1/storagev1raylink"
	"github.com/raylink/raylink/internal/backoff"
	"github.com/raylink/raylink/runtime"
	"github.com/raylink/raylink/runtime/rundir"
	"github.com/raylink/raylink/services/ps"
	"github.com/raylink/raylink/services/replay"
	"github.com/raylink/raylink/services/storage"
)

// The paths of the nodes that every system has.
const (
	StoragePath = "storage-0"
	CaptainPath = "ps-0"
)

// withSystemTypes adds the node types that every process can host: storages, replays and parameter
// servers. If a name or a service is the program's own too, the program's type takes precedence.
func withSystemTypes(o runtime.Options) runtime.Options {
	hosts.SetSystemTypes(&o, append([]runtime.NodeType{storage.Type(), replay.Type()}, ps.Types()...))
	return o
}

// Configuration is that of the system's own nodes. The zero value has their defaults.
type Configuration struct {
	// Captain configures the parameter server's captain; nil means its defaults.
	Captain *psv1.CaptainConfig
}

// StartInProcess creates the system's own nodes in this process, for an embedded Brain: they end
// with it, after all other nodes.
func (c Configuration) StartInProcess(ctx context.Context, h *runtime.Host) error {
	return c.start(ctx, h, hosts.ProvideNode)
}

// StartSupervised creates the system's own nodes, each in a process of its own, for a Brain that
// has a process of its own: they outlive its death, and are restarted after theirs. A node that has
// outlived the last Brain keeps its configuration until it is restarted.
func (c Configuration) StartSupervised(ctx context.Context, h *runtime.Host) error {
	return c.start(ctx, h, hosts.SuperviseNode)
}

func (c Configuration) start(
	ctx context.Context, h *runtime.Host, add func(ctx context.Context, h *runtime.Host, service string, config proto.Message) error,
) error {
	if err := add(ctx, h, storagev1raylink.StorageName, nil); err != nil {
		return fmt.Errorf("the storage: %w", err)
	}
	var captain proto.Message // a nil pointer in it would be a configuration
	if c.Captain != nil {
		captain = c.Captain
	}
	if err := add(ctx, h, psv1raylink.CaptainName, captain); err != nil {
		return fmt.Errorf("the parameter server: %w", err)
	}
	return nil
}

// officerSupervisor ensures that this process's machine has an officer of the parameter server. The
// process of a machine that holds a file lock hosts the officer; when it dies, another gets the
// lock.
type officerSupervisor struct {
	cancel context.CancelFunc
	done   sync.WaitGroup
}

// Bounds of the pauses between attempts while there is no captain to serve.
const (
	firstPause = time.Second
	maxPause   = 30 * time.Second
)

func superviseOfficer(h *runtime.Host, log *slog.Logger) *officerSupervisor {
	ctx, cancel := context.WithCancel(context.Background())
	k := &officerSupervisor{cancel: cancel}
	k.done.Go(func() {
		pause := backoff.Backoff{First: firstPause, Max: maxPause}
		for {
			err := serveMachine(ctx, h)
			if err == nil {
				pause.Reset()
			} else if ctx.Err() == nil {
				log.Debug("this machine has no officer yet", slog.Any("error", err))
			}
			if pause.Wait(ctx) != nil {
				return
			}
		}
	})
	return k
}

func (k *officerSupervisor) stop() {
	k.cancel()
	k.done.Wait()
}

// serveMachine hosts the machine's officer once this process holds the lock. It returns nil when
// the captain's present incarnation or the officer has ended. On the captain's own machine it only
// waits for that: the captain has an officer there.
func serveMachine(ctx context.Context, h *runtime.Host) error {
	machine, err := rundir.Machine()
	if err != nil {
		return err
	}
	captain, err := psv1raylink.FindCaptain(ctx, h, runtime.Path(CaptainPath))
	if err != nil {
		return err
	}
	if captain.Ref().NodeRef().GetHost().GetMachine() == machine {
		return captain.Ref().Ended(ctx)
	}
	path, err := rundir.LockPath("", "officer-"+captain.Ref().NID())
	if err != nil {
		return err
	}
	lock, err := rundir.AcquireLock(ctx, path)
	if err != nil {
		return err
	}
	defer func() { _ = lock.Release() }()
	officer, err := psv1raylink.CreateOfficer(ctx, captain.Ref(), &psv1.OfficerConfig{
		Machine: machine, CaptainRef: captain.Ref().NodeRef(),
	}, runtime.Here())
	if err != nil {
		return err
	}
	// Hold the lock for as long as the officer lives, and end the officer with its captain.
	captainLives, end := context.WithCancel(ctx)
	go func() {
		defer end()
		_ = captain.Ref().Ended(captainLives)
	}()
	err = officer.Ref().Ended(captainLives)
	end()
	if err == nil || ctx.Err() != nil {
		return err
	}
	return officer.Ref().Stop(ctx)
}
