package main

import (
	"context"
	"errors"
	"fmt"

	cartpolev1 "github.com/raylink/raylink/examples/cartpole/gen/cartpole/v1"
	"github.com/raylink/raylink/examples/cartpole/gen/cartpole/v1/cartpolev1raylink"
	"github.com/raylink/raylink/examples/cartpole/internal/dqn"
	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	"github.com/raylink/raylink/gen/raylink/ps/v1/psv1raylink"
	"github.com/raylink/raylink/gen/raylink/replay/v1/replayv1raylink"
	"github.com/raylink/raylink/gen/raylink/storage/v1/storagev1raylink"
	"github.com/raylink/raylink/runtime"
	"github.com/raylink/raylink/services/ps"
	"github.com/raylink/raylink/services/replay"
	"github.com/raylink/raylink/services/storage"
)

// Keys in storage, and their prefixes.
const (
	prefixRun   = "run/"
	prefixPace  = "pace/"
	prefixStats = "stats/"

	keyConfig       = "config"
	keyState        = prefixRun + "state"
	keySteps        = prefixPace + "steps"
	keyLearnerSteps = prefixPace + "learner-steps"
	keyWorker       = prefixStats + "worker-"
	keyLearner      = prefixStats + "learner"
	keyExam         = prefixStats + "exam"
)

// tableTransitions is the replay's table in which each row is an item, if they are prioritized.
const tableTransitions = "transitions"

// Tags of the parameter server.
const (
	tagPolicy = "policy"
	tagSolved = "solved"
)

// clients are a node's clients of the run's services.
type clients struct {
	config  *cartpolev1.RunConfig
	storage *storage.Client
	ps      *ps.Client
	// replay is nil in nodes that do not use the replay.
	replay *replay.Typed[cartpolev1raylink.TransitionColumns]
}

// openClients finds the services of the system, reads the configuration, and opens the run's replay
// if there is a reference to it. The clients are closed when the node stops.
func openClients(ctx context.Context, self *runtime.Node, buffer *nodev1.NodeRef) (*clients, error) {
	l := &clients{config: &cartpolev1.RunConfig{}}
	var err error
	if l.storage, err = openStorage(ctx, self); err != nil {
		return nil, err
	}
	if err := storage.GetMessage(ctx, l.storage, keyConfig, l.config); err != nil {
		return nil, err
	}
	if l.ps, err = openParameters(ctx, self); err != nil {
		return nil, err
	}
	self.OnStop(func(context.Context) error { return l.ps.Close() })
	if buffer == nil {
		return l, nil
	}
	handle, err := replayv1raylink.ReplayFrom(self, buffer)
	if err != nil {
		return nil, err
	}
	if l.replay, err = replay.Open(ctx, handle, cartpolev1raylink.TransitionRow); err != nil {
		return nil, err
	}
	self.OnStop(func(context.Context) error { return l.replay.Close() })
	return l, nil
}

func openStorage(ctx context.Context, from runtime.Finder) (*storage.Client, error) {
	handle, err := storagev1raylink.FindStorage(ctx, from, runtime.Path("storage-0"))
	if err != nil {
		return nil, err
	}
	return storage.New(handle), nil
}

func openParameters(ctx context.Context, from runtime.Finder, opts ...ps.OpenOption) (*ps.Client, error) {
	captain, err := psv1raylink.FindCaptain(ctx, from, runtime.Path("ps-0"))
	if err != nil {
		return nil, err
	}
	return ps.Open(ctx, captain, opts...)
}

// forget removes what an earlier run in the same system has left in storage.
func forget(ctx context.Context, store *storage.Client) error {
	var left []storage.Op
	for _, prefix := range []string{prefixRun, prefixPace, prefixStats} {
		for entry, err := range store.All(ctx, prefix) {
			if err != nil {
				return err
			}
			left = append(left, storage.DeleteOp(entry.GetKey()))
		}
	}
	return store.Batch(ctx, left...)
}

// running reports whether the run is still in progress.
func (l *clients) running(ctx context.Context) (bool, error) {
	state, err := storage.GetOr(ctx, l.storage, keyState, int64(cartpolev1.RunState_RUN_STATE_RUNNING))
	return state == int64(cartpolev1.RunState_RUN_STATE_RUNNING), err
}

// pull returns the newest policy of a tag, and its version.
func (l *clients) pull(ctx context.Context, tag string) (_ *dqn.Policy, version uint64, err error) {
	parameters, err := l.ps.Pull(ctx, tag)
	if err != nil {
		return nil, 0, err
	}
	defer func() { err = errors.Join(err, parameters.Release()) }()
	// ParsePolicy copies the bytes, which are mapped memory and invalid after Release.
	policy, err := dqn.ParsePolicy(parameters.Bytes())
	if err != nil {
		return nil, 0, fmt.Errorf("version %d of %q: %w", parameters.Version().GetId(), tag, err)
	}
	return policy, parameters.Version().GetId(), nil
}

// transitions are the rows of the replay as the learner's batch, which shares their memory.
func transitions(rows *cartpolev1raylink.TransitionColumns) *dqn.Batch {
	return &dqn.Batch{
		Observations: rows.Observation, Actions: rows.Action, Returns: rows.Return, Next: rows.Next, Discounts: rows.Discount,
	}
}
