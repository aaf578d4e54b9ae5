package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/raylink/raylink/examples/cartpole/internal/dqn"
	"github.com/raylink/raylink/examples/cartpole/internal/play"
	"github.com/raylink/raylink/examples/cartpole/internal/pole"
	"github.com/raylink/raylink/examples/cartpole/internal/seed"
)

// config configures a run. Its defaults are also those of the pipeline.
type config struct {
	learner  dqn.Config
	exam     play.Exam
	workers  int
	lookout  int     // steps of a transition
	discount float32 // of a step's reward relative to the previous one
	capacity int     // rows in the replay
	warmup   int     // rows before the first learner step
	batch    int     // rows in a learner step
	explore  int     // steps of a worker until its final exploration rate
	stale    int     // learner steps between pulls: the maximum age of the workers' parameters
	examine  int     // learner steps between exams
	limit    int     // maximum number of learner steps
}

func defaultConfig() config {
	return config{
		exam: play.DefaultExam(), workers: 2, lookout: 3, discount: 0.995, capacity: 50_000, warmup: 500, batch: 64,
		explore: 2_000, stale: 20, examine: 500, limit: 40_000,
	}
}

// result is the result of a run.
type result struct {
	// first and last are the mean returns of 100 greedy episodes: before training, and with the
	// parameters that passed the exam.
	first, last  float64
	learnerSteps int
	took         time.Duration
	passed       bool
}

// worker acts and collects transitions.
type worker struct {
	env       *pole.Environment
	seen      pole.Observation
	explorer  *dqn.Explorer
	policy    *dqn.Policy
	assembler *dqn.Assembler
}

func (w *worker) step(done []dqn.Transition) ([]dqn.Transition, error) {
	action := w.explorer.Act(w.policy, w.seen)
	out, err := w.env.Step(action)
	if err != nil {
		return nil, err
	}
	done = w.assembler.Add(done, w.seen, action, out)
	w.seen = out.Observation
	if out.Over() {
		w.seen = w.env.Reset()
	}
	return done, nil
}

// ring holds the newest transitions.
type ring struct {
	rows     []dqn.Transition
	capacity int
	oldest   int
}

func (r *ring) add(rows []dqn.Transition) {
	for _, t := range rows {
		if len(r.rows) < r.capacity {
			r.rows = append(r.rows, t)
			continue
		}
		r.rows[r.oldest] = t
		r.oldest = (r.oldest + 1) % r.capacity
	}
}

func (r *ring) sample(batch *dqn.Batch, rows int, rng *rand.Rand) {
	batch.Clear()
	for range rows {
		batch.Append(r.rows[rng.IntN(len(r.rows))])
	}
}

// train runs one seed: workers and learner alternate steps, and the workers' parameters are
// slightly stale, as in the pipeline.
func train(ctx context.Context, c config, run uint64) (result, error) {
	learner, err := dqn.NewLearner(c.learner, seed.Stream(run, "learner", 0))
	if err != nil {
		return result{}, err
	}
	var res result
	if res.first, err = score(ctx, learner, seed.Stream(run, "first", 0)); err != nil {
		return result{}, err
	}
	began := time.Now()
	workers := make([]*worker, c.workers)
	for i := range workers {
		workers[i] = &worker{
			env:       pole.New(seed.Stream(run, "environment", i)),
			explorer:  dqn.NewExplorer(dqn.NewExploration(i, c.workers, c.explore), seed.Stream(run, "explorer", i)),
			assembler: dqn.NewAssembler(c.lookout, c.discount),
		}
		workers[i].seen = workers[i].env.Reset()
	}
	if err := pull(learner, workers); err != nil {
		return result{}, err
	}
	replay := &ring{capacity: c.capacity}
	sampler, examiner := seed.Stream(run, "sampler", 0), seed.Stream(run, "examiner", 0)
	var batch dqn.Batch
	for res.learnerSteps < c.limit && !res.passed {
		if err := act(workers, replay); err != nil {
			return result{}, err
		}
		if len(replay.rows) < c.warmup {
			continue
		}
		replay.sample(&batch, c.batch, sampler)
		if _, err := learner.Learn(&batch); err != nil {
			return result{}, err
		}
		res.learnerSteps++
		if res.learnerSteps%c.stale == 0 {
			if err := pull(learner, workers); err != nil {
				return result{}, err
			}
		}
		if res.learnerSteps%c.examine == 0 {
			if res.passed, err = examine(ctx, c.exam, learner, examiner); err != nil {
				return result{}, err
			}
		}
	}
	res.took = time.Since(began)
	res.last, err = score(ctx, learner, seed.Stream(run, "last", 0))
	return res, err
}

func act(workers []*worker, replay *ring) error {
	var done []dqn.Transition
	for _, w := range workers {
		var err error
		if done, err = w.step(done); err != nil {
			return fmt.Errorf("step environment: %w", err)
		}
	}
	replay.add(done)
	return nil
}

// pull updates the parameters of all workers.
func pull(learner *dqn.Learner, workers []*worker) error {
	network := learner.Network()
	for _, w := range workers {
		policy, err := dqn.NewPolicy(network)
		if err != nil {
			return err
		}
		w.policy = policy
	}
	return nil
}

func examine(ctx context.Context, exam play.Exam, learner *dqn.Learner, rng *rand.Rand) (passed bool, err error) {
	policy, err := dqn.NewPolicy(learner.Network())
	if err != nil {
		return false, err
	}
	result, err := exam.Take(ctx, policy, rng)
	return result.Passed, err
}

func score(ctx context.Context, learner *dqn.Learner, rng *rand.Rand) (mean float64, err error) {
	policy, err := dqn.NewPolicy(learner.Network())
	if err != nil {
		return 0, err
	}
	returns, err := play.Episodes(ctx, policy, 100, rng)
	return play.Mean(returns), err
}
