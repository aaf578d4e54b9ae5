package assemble

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"connectrpc.com/connect/v2"

	psv1 "github.com/raylink/raylink/gen/raylink/ps/v1"
	"github.com/raylink/raylink/gen/raylink/ps/v1/psv1raylink"
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

// withSystemTypes adds the node types that every process can host: storages, replays and parameter servers, unless the options bring their own.
func withSystemTypes(o runtime.Options) runtime.Options {
	known := make(map[string]bool)
	for _, t := range o.Types {
		known[t.Service().Name()] = true
	}
	for _, t := range append([]runtime.NodeType{storage.Type(), replay.Type()}, ps.Types()...) {
		if !known[t.Service().Name()] {
			o.Types = append(o.Types, t)
		}
	}
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

func furnish(ctx context.Context, h *runtime.Host, add func(ctx context.Context, h *runtime.Host, typeName string) error) error {
	if err := add(ctx, h, storage.Type().Service().Type()); err != nil {
		return fmt.Errorf("the storage: %w", err)
	}
	if err := add(ctx, h, ps.Type().Service().Type()); err != nil {
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

// keepPause is how long the keeper waits before it looks again for a captain that was not there, or for one that has been started again.
const keepPause = 2 * time.Second

func keepOfficer(h *runtime.Host) *officerKeeper {
	ctx, cancel := context.WithCancel(context.Background())
	k := &officerKeeper{cancel: cancel}
	k.done.Go(func() {
		for ctx.Err() == nil {
			if err := serveMachine(ctx, h); err != nil && ctx.Err() == nil {
				h.Options().Logger.Debug("this machine has no officer yet", slog.Any("error", err))
			}
			t := time.NewTimer(keepPause)
			select {
			case <-t.C:
			case <-ctx.Done():
			}
			t.Stop()
		}
	})
	return k
}

func (k *officerKeeper) stop() {
	k.cancel()
	k.done.Wait()
}

// serveMachine hosts the machine's officer, if it has none, until that ends or ctx does. It returns at once where the captain's own process
// has one on this machine.
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
		return nil
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
	// The lock is held for as long as the officer lives, which is as long as the captain does.
	for {
		if _, err := officer.Ref().Ping(ctx); connect.CodeOf(err) == connect.CodeUnavailable {
			return err
		}
		if _, err := psv1raylink.FindCaptain(ctx, h, runtime.NID(captain.Ref().NID())); connect.CodeOf(err) == connect.CodeNotFound {
			return officer.Ref().Stop(ctx)
		}
		t := time.NewTimer(keepPause)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		}
		t.Stop()
	}
}
