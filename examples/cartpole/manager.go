package main

import (
	"context"

	cartpolev1 "github.com/raylink/raylink/examples/cartpole/gen/cartpole/v1"
	"github.com/raylink/raylink/examples/cartpole/gen/cartpole/v1/cartpolev1raylink"
	"github.com/raylink/raylink/examples/cartpole/internal/play"
	"github.com/raylink/raylink/examples/cartpole/internal/pole"
	replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"
	"github.com/raylink/raylink/gen/raylink/replay/v1/replayv1raylink"
	"github.com/raylink/raylink/runtime"
	"github.com/raylink/raylink/services/replay"
	"github.com/raylink/raylink/services/storage"
)

// manager implements the manager node, the entrance to a run.
type manager struct {
	self   *runtime.Node
	config *cartpolev1.RunConfig
}

// newManager stores the configuration, which every node of the run reads, and removes what an
// earlier run in the same system has left.
func newManager(ctx context.Context, self *runtime.Node, config *cartpolev1.ManagerConfig) (cartpolev1raylink.ManagerNode, error) {
	store, err := openStorage(ctx, self)
	if err != nil {
		return nil, err
	}
	if err := forget(ctx, store); err != nil {
		return nil, err
	}
	_, err = storage.PutMessage(ctx, store, keyConfig, config.GetRun())
	return &manager{self: self, config: config.GetRun()}, err
}

// Train creates the replay and the runner, and lets a new player confirm the result.
func (m *manager) Train(ctx context.Context, _ *cartpolev1.TrainRequest) (*cartpolev1.TrainResponse, error) {
	config := &replayv1.ReplayConfig{
		Columns: cartpolev1raylink.TransitionRow.Columns(), Capacity: m.config.GetExperience().GetCapacity(),
	}
	if p := m.config.GetLearning().GetPriorities(); p != nil {
		config.Tables = append(config.Tables,
			replay.Table(tableTransitions, replay.Prioritized(p.GetExponent()), replay.MaxItems(config.GetCapacity())))
	}
	buffer, err := preferring("trainer", runtime.Resources{}, func(opts ...runtime.CreateOption) (*replayv1raylink.Replay, error) {
		return replayv1raylink.CreateReplay(ctx, m.self, config, opts...)
	})
	if err != nil {
		return nil, err
	}
	runner, err := cartpolev1raylink.CreateRunner(ctx, m.self, &cartpolev1.RunnerConfig{Replay: buffer.Ref().NodeRef()})
	if err != nil {
		return nil, err
	}
	run, err := runner.Run(ctx, nil)
	if err != nil {
		return nil, err
	}
	exams := run.GetExams()
	res := &cartpolev1.TrainResponse{First: exams[0].GetMeanReturn(), Took: run.GetTook(), Run: run}
	if run.GetState() != cartpolev1.RunState_RUN_STATE_SOLVED {
		return res, nil
	}
	passed := exams[len(exams)-1]
	res.Exam, res.Version = passed.GetMeanReturn(), passed.GetVersion()
	player, err := cartpolev1raylink.CreatePlayer(ctx, m.self)
	if err != nil {
		return nil, err
	}
	played, err := player.Play(ctx, &cartpolev1.PlayRequest{Tag: tagSolved, Episodes: 100, Seed: m.config.GetSeed()})
	if err != nil {
		return nil, err
	}
	res.Played = play.Mean(played.GetEarned())
	res.Solved = res.GetPlayed() >= pole.Solved
	return res, nil
}
