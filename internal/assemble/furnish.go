package assemble

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	psv1 "github.com/raylink/raylink/gen/raylink/ps/v1"
	"github.com/raylink/raylink/gen/raylink/ps/v1/psv1raylink"
	"github.com/raylink/raylink/gen/raylink/storage/v1/storagev1raylink"
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

// withSystemTypes adds the node types that every process can host: storages, replays and parameter servers. They take no name from the
// program's own types, and yield to implementations of their services that it brings.
func withSystemTypes(o runtime.Options) runtime.Options {
	o.SystemTypes = append([]runtime.NodeType{storage.Type(), replay.Type()}, ps.Types()...)
	return o
}

// FurnishHere creates the system's own nodes in this process, as an embedded Brain has them: they end with it, after all others.
func FurnishHere(ctx context.Context, h *runtime.Host) error {
	return furnish(ctx, h, runtime.ProvideNode)
}

// FurnishBeside sees to it that the system's own nodes live, each in a process of its own, as a Brain in a process of its own has them: they
// outlive its death, and are started again after theirs.
func FurnishBeside(ctx context.Context, h *runtime.Host) error {
	return furnish(ctx, h, runtime.KeepNode)
}

func furnish(ctx context.Context, h *runtime.Host, add func(ctx context.Context, h *runtime.Host, service string) error) error {
	if err := add(ctx, h, storagev1raylink.StorageName); err != nil {
		return fmt.Errorf("the storage: %w", err)
	}
	if err := add(ctx, h, psv1raylink.CaptainName); err != nil {
		return fmt.Errorf("the parameter server: %w", err)
	}
	return nil
}

// officerKeeper sees to it that this process's machine has an officer of the parameter server, as long as the process lives: the first process
// of a machine that gets the lock hosts it, and when that process dies another gets the lock.
type officerKeeper struct {
	cancel context.CancelFunc
	done   sync.WaitGroup
}

// The keeper pauses between its attempts, longer and longer while there is no captain to serve. While there is one, it only listens.
const (
	firstPause = time.Second
	lastPause  = 30 * time.Second
)

func keepOfficer(h *runtime.Host) *officerKeeper {
	ctx, cancel := context.WithCancel(context.Background())
	k := &officerKeeper{cancel: cancel}
	k.done.Go(func() {
		pause := firstPause
		for ctx.Err() == nil {
			err := serveMachine(ctx, h)
			if err == nil {
				pause = firstPause
			} else if ctx.Err() == nil {
				h.Options().Logger.Debug("this machine has no officer yet", slog.Any("error", err))
			}
			t := time.NewTimer(pause)
			select {
			case <-t.C:
			case <-ctx.Done():
			}
			t.Stop()
			pause = min(2*pause, lastPause)
		}
	})
	return k
}

func (k *officerKeeper) stop() {
	k.cancel()
	k.done.Wait()
}

// serveMachine sees the present life of the captain through: it hosts the machine's officer, if it is this process's turn to. It returns nil
// when that life or the officer's has ended. On the captain's own machine it only waits: the captain has an officer there.
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
	// The lock is held for as long as the officer lives, and he no longer than his captain.
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
