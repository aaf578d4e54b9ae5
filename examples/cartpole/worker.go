package main

import (
	"context"
	"fmt"
	"time"

	cartpolev1 "github.com/raylink/raylink/examples/cartpole/gen/cartpole/v1"
	"github.com/raylink/raylink/examples/cartpole/gen/cartpole/v1/cartpolev1raylink"
	"github.com/raylink/raylink/examples/cartpole/internal/dqn"
	"github.com/raylink/raylink/examples/cartpole/internal/pole"
	"github.com/raylink/raylink/examples/cartpole/internal/seed"
	"github.com/raylink/raylink/runtime"
	"github.com/raylink/raylink/services/replay"
	"github.com/raylink/raylink/services/storage"
)

// worker implements the worker node: it acts, and writes transitions to the replay.
type worker struct {
	clients *clients
	index   int
	rows    *replay.TypedWriter[cartpolev1raylink.TransitionColumns]

	env       *pole.Environment
	seen      pole.Observation
	explorer  *dqn.Explorer
	assembler *dqn.Assembler
	policy    *dqn.Policy
	version   uint64

	earned   float64 // in the current episode
	episodes []*cartpolev1.Episode
	steps    uint64
}

func newWorker(ctx context.Context, self *runtime.Node, config *cartpolev1.WorkerConfig) (cartpolev1raylink.WorkerNode, error) {
	l, err := openClients(ctx, self, config.GetReplay())
	if err != nil {
		return nil, err
	}
	run, experience, index := l.config.GetSeed(), l.config.GetExperience(), int(config.GetIndex())
	w := &worker{
		clients: l, index: index,
		env: pole.New(seed.Stream(run, "environment", index)),
		explorer: dqn.NewExplorer(dqn.NewExploration(index, int(l.config.GetWorkers()), int(experience.GetExplore())), //nolint:gosec // small numbers
			seed.Stream(run, "explorer", index)),
		assembler: dqn.NewAssembler(int(experience.GetLookout()), experience.GetDiscount()),
	}
	w.seen = w.env.Reset()
	if w.rows, err = l.replay.Writer(replay.History(1), replay.Caller(fmt.Sprint("worker-", index))); err != nil {
		return nil, err
	}
	w.policy, w.version, err = l.pull(ctx, tagPolicy)
	return w, err
}

// Work plays one stint after another until the run ends.
func (w *worker) Work(ctx context.Context, _ *cartpolev1.WorkRequest) (*cartpolev1.WorkResponse, error) {
	total := uint64(0)
	for {
		if on, err := w.clients.running(ctx); err != nil || !on {
			return &cartpolev1.WorkResponse{Episodes: w.episodes, Steps: w.steps}, err
		}
		ahead, err := w.ahead(ctx, total)
		if err != nil {
			return nil, err
		}
		if ahead {
			if err := pause(ctx, time.Millisecond); err != nil {
				return nil, err
			}
			continue
		}
		if err := w.refresh(ctx); err != nil {
			return nil, err
		}
		rows, err := w.stint(total)
		if err != nil {
			return nil, err
		}
		if err := w.write(ctx, rows); err != nil {
			return nil, err
		}
		if total, err = w.report(ctx); err != nil {
			return nil, err
		}
	}
}

// ahead reports whether the workers are ahead of the learner by more than one stint each.
func (w *worker) ahead(ctx context.Context, total uint64) (bool, error) {
	learned, err := storage.GetOr[int64](ctx, w.clients.storage, keyLearnerSteps, 0)
	if err != nil {
		return false, err
	}
	experience := w.clients.config.GetExperience()
	slack := experience.GetWarmup() + uint64(experience.GetStint()*w.clients.config.GetWorkers())
	return total > slack+uint64(learned)*uint64(w.clients.config.GetPace()), nil //nolint:gosec // a count
}

// refresh pulls parameters if there are newer ones. The check is cheap.
func (w *worker) refresh(ctx context.Context) error {
	if w.clients.config.GetCut() == cartpolev1.Link_LINK_PULL {
		return nil
	}
	id, err := w.clients.ps.ID(ctx, tagPolicy)
	if err != nil || id == w.version {
		return err
	}
	w.policy, w.version, err = w.clients.pull(ctx, tagPolicy)
	return err
}

// stint takes some steps, and returns the transitions that they complete.
func (w *worker) stint(total uint64) ([]dqn.Transition, error) {
	var rows []dqn.Transition
	for i := range uint64(w.clients.config.GetExperience().GetStint()) {
		action := w.explorer.Act(w.policy, w.seen)
		out, err := w.env.Step(action)
		if err != nil {
			return nil, fmt.Errorf("step environment: %w", err)
		}
		rows = w.assembler.Add(rows, w.seen, action, out)
		w.seen = out.Observation
		w.earned += float64(out.Reward)
		w.steps++
		if out.Over() {
			w.episodes = append(w.episodes, &cartpolev1.Episode{Steps: total + i, Earned: w.earned, Version: w.version})
			w.earned = 0
			w.seen = w.env.Reset()
		}
	}
	return rows, nil
}

// write appends transitions to the replay: all of them become readable together. If they are
// prioritized, each becomes an item of the table.
func (w *worker) write(ctx context.Context, rows []dqn.Transition) error {
	if w.clients.config.GetCut() == cartpolev1.Link_LINK_REPLAY {
		return nil
	}
	if w.clients.config.GetLearning().GetPriorities() == nil {
		return w.rows.Append(ctx, len(rows), func(to *cartpolev1raylink.TransitionColumns) { fill(to, rows...) })
	}
	for _, t := range rows {
		if err := w.rows.Append(ctx, 1, func(to *cartpolev1raylink.TransitionColumns) { fill(to, t) }); err != nil {
			return err
		}
		// Until it was learned from, a transition is as likely as the likeliest.
		if _, err := w.rows.Item(ctx, tableTransitions, 1, 0, replay.AtMaximum()); err != nil {
			return err
		}
	}
	return nil
}

// fill copies transitions to rows of the replay.
func fill(to *cartpolev1raylink.TransitionColumns, rows ...dqn.Transition) {
	for i, t := range rows {
		copy(to.Observation[i*pole.Features:], t.Observation[:])
		copy(to.Next[i*pole.Features:], t.Next[:])
		to.Action[i], to.Return[i], to.Discount[i] = t.Action, t.Return, t.Discount
	}
}

// report counts the stint's steps and publishes the worker's statistics. It returns the total steps
// of all workers.
func (w *worker) report(ctx context.Context) (uint64, error) {
	const recent = 20
	var sum float64
	last := w.episodes[max(0, len(w.episodes)-recent):]
	for _, e := range last {
		sum += e.GetEarned()
	}
	_, err := storage.PutMessage(ctx, w.clients.storage, fmt.Sprint(keyWorker, w.index), &cartpolev1.WorkerStats{
		Steps: w.steps, Episodes: uint64(len(w.episodes)), MeanReturn: sum / float64(max(1, len(last))), Version: w.version,
	})
	if err != nil {
		return 0, err
	}
	total, err := storage.Add(ctx, w.clients.storage, keySteps, int64(w.clients.config.GetExperience().GetStint()))
	return uint64(total), err //nolint:gosec // a count
}
