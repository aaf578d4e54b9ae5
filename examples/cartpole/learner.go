package main

import (
	"context"
	"time"

	cartpolev1 "github.com/raylink/raylink/examples/cartpole/gen/cartpole/v1"
	"github.com/raylink/raylink/examples/cartpole/gen/cartpole/v1/cartpolev1raylink"
	"github.com/raylink/raylink/examples/cartpole/internal/dqn"
	"github.com/raylink/raylink/examples/cartpole/internal/seed"
	"github.com/raylink/raylink/runtime"
	"github.com/raylink/raylink/services/replay"
	"github.com/raylink/raylink/services/storage"
)

// learner implements the learner node: it samples the replay, learns, and pushes parameters.
type learner struct {
	clients *clients
	learner *dqn.Learner
	reader  *replay.TypedReader[cartpolev1raylink.TransitionColumns]
	batch   *replay.TypedBatch[cartpolev1raylink.TransitionColumns]
	// sampler samples by priority; nil if transitions are not prioritized.
	sampler *replay.Sampler[cartpolev1raylink.TransitionColumns]
	stats   *cartpolev1.LearnerStats
}

// newLearner pushes the initial parameters, so that nodes created after the learner can pull.
func newLearner(ctx context.Context, self *runtime.Node, config *cartpolev1.LearnerConfig) (cartpolev1raylink.LearnerNode, error) {
	l, err := openClients(ctx, self, config.GetReplay())
	if err != nil {
		return nil, err
	}
	run, learning := l.config.GetSeed(), l.config.GetLearning()
	n := &learner{clients: l, reader: l.replay.Reader(seed.Stream(run, "sampler", 0)), stats: &cartpolev1.LearnerStats{}}
	hidden := make([]int, len(learning.GetHidden()))
	for i, width := range learning.GetHidden() {
		hidden[i] = int(width)
	}
	n.learner, err = dqn.NewLearner(dqn.Config{
		Hidden: hidden, Rate: learning.GetRate(), Average: learning.GetAverage(), MaxNorm: learning.GetMaxNorm(),
	}, seed.Stream(run, "learner", 0))
	if err != nil {
		return nil, err
	}
	if n.batch, err = l.replay.NewBatch(int(learning.GetBatch())); err != nil {
		return nil, err
	}
	if p := learning.GetPriorities(); p != nil {
		n.sampler, err = l.replay.Sampler(tableTransitions,
			replay.BatchOf(int(learning.GetBatch())), replay.Weights(p.GetWeights()), replay.Caller("learner"))
		if err != nil {
			return nil, err
		}
		self.OnStop(func(context.Context) error { return n.sampler.Close() })
	}
	return n, n.push(ctx)
}

// Learn takes as many steps as the workers' progress allows, until the run ends.
func (n *learner) Learn(ctx context.Context, _ *cartpolev1.LearnRequest) (*cartpolev1.LearnResponse, error) {
	store, warmup, pace := n.clients.storage, n.clients.config.GetExperience().GetWarmup(), uint64(n.clients.config.GetPace())
	for {
		if on, err := n.clients.running(ctx); err != nil || !on {
			return &cartpolev1.LearnResponse{Steps: n.stats.GetSteps(), Version: n.stats.GetVersion()}, err
		}
		seen, err := storage.GetOr[int64](ctx, store, keySteps, 0)
		if err != nil {
			return nil, err
		}
		due := uint64(0)
		if steps := uint64(seen); steps > warmup { //nolint:gosec // a count
			due = (steps - warmup) / pace
		}
		if due <= n.stats.GetSteps() || n.clients.config.GetCut() == cartpolev1.Link_LINK_REPLAY {
			// Wait for the workers.
			if err := pause(ctx, time.Millisecond); err != nil {
				return nil, err
			}
			continue
		}
		for range min(due-n.stats.GetSteps(), uint64(n.clients.config.GetLearning().GetPushEvery())) {
			if err := n.step(ctx); err != nil {
				return nil, err
			}
		}
		if _, err := storage.Put(ctx, store, keyLearnerSteps, int64(n.stats.GetSteps())); err != nil { //nolint:gosec // a count
			return nil, err
		}
		if _, err := storage.PutMessage(ctx, store, keyLearner, n.stats); err != nil {
			return nil, err
		}
	}
}

// step learns from one batch, and pushes at regular intervals.
func (n *learner) step(ctx context.Context) error {
	learn := n.learnUniformly
	if n.sampler != nil {
		learn = n.learnByPriority
	}
	loss, err := learn(ctx)
	if err != nil {
		return err
	}
	// A new message, because the previous one was passed to storage and must not be modified.
	n.stats = &cartpolev1.LearnerStats{Steps: n.stats.GetSteps() + 1, Loss: loss, Version: n.stats.GetVersion()}
	if n.stats.GetSteps()%uint64(n.clients.config.GetLearning().GetPushEvery()) == 0 {
		return n.push(ctx)
	}
	return nil
}

// learnUniformly learns from rows of the replay.
func (n *learner) learnUniformly(ctx context.Context) (loss float64, _ error) {
	if err := n.reader.Sample(ctx, n.batch.Len(), n.batch); err != nil {
		return 0, err
	}
	return n.learner.Learn(transitions(&n.batch.Columns))
}

// learnByPriority learns from items of the table, and sets their priorities to how far the values
// of their transitions were off.
func (n *learner) learnByPriority(ctx context.Context) (loss float64, _ error) {
	sampled, err := n.sampler.Next(ctx)
	if err != nil {
		return 0, err
	}
	batch := transitions(&sampled.Columns)
	for _, info := range sampled.Info {
		batch.Weights = append(batch.Weights, float32(info.Weight))
	}
	if loss, err = n.learner.Learn(batch); err != nil {
		return 0, err
	}
	priorities := make([]float64, sampled.Len())
	for i, off := range n.learner.Errors() {
		priorities[i] = float64(off) + n.clients.config.GetLearning().GetPriorities().GetLeast()
	}
	// Items whose rows were overwritten meanwhile have no priority any more.
	_, err = n.sampler.Update(ctx, sampled.Keys(), priorities)
	return loss, err
}

func (n *learner) push(ctx context.Context) error {
	parameters, err := n.learner.Network().MarshalBinary()
	if err != nil {
		return err
	}
	version, err := n.clients.ps.Push(ctx, tagPolicy, parameters)
	if err != nil {
		return err
	}
	n.stats.Version = version.GetId()
	return nil
}

// pause sleeps for d, or until ctx ends.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
