package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	cartpolev1 "github.com/raylink/raylink/examples/cartpole/gen/cartpole/v1"
	"github.com/raylink/raylink/examples/cartpole/gen/cartpole/v1/cartpolev1raylink"
	"github.com/raylink/raylink/examples/cartpole/internal/dqn"
	"github.com/raylink/raylink/examples/cartpole/internal/play"
	"github.com/raylink/raylink/examples/cartpole/internal/seed"
	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	"github.com/raylink/raylink/runtime"
	"github.com/raylink/raylink/services/ps"
	"github.com/raylink/raylink/services/storage"
)

// runner implements the runner node: it creates the learner and the workers, and examines policies.
type runner struct {
	self    *runtime.Node
	clients *clients
	replay  *nodev1.NodeRef
	rng     *rand.Rand
	exams   []*cartpolev1.ExamStats
}

func newRunner(ctx context.Context, self *runtime.Node, config *cartpolev1.RunnerConfig) (cartpolev1raylink.RunnerNode, error) {
	l, err := openClients(ctx, self, nil)
	if err != nil {
		return nil, err
	}
	return &runner{self: self, clients: l, replay: config.GetReplay(), rng: seed.Stream(l.config.GetSeed(), "examiner", 0)}, nil
}

// Run trains until a policy passes an exam, or until the time limit.
func (r *runner) Run(ctx context.Context, _ *cartpolev1.RunRequest) (*cartpolev1.RunResponse, error) {
	learner, workers, err := r.create(ctx)
	if err != nil {
		return nil, err
	}
	if err := r.examineFirst(ctx); err != nil {
		return nil, err
	}
	if err := r.setState(ctx, cartpolev1.RunState_RUN_STATE_RUNNING); err != nil {
		return nil, err
	}
	began := time.Now()
	learning := learner.LearnAsync(ctx, nil)
	working := make([]*runtime.Future[*cartpolev1.WorkResponse], len(workers))
	for i, w := range workers {
		working[i] = w.WorkAsync(ctx, nil)
	}
	state, err := r.watch(ctx, began, learning, working)
	took := time.Since(began)
	// Stop the learner and the workers, whatever the result.
	if serr := r.setState(ctx, state); serr != nil || err != nil {
		return nil, errors.Join(err, serr)
	}
	learned, err := learning.Get(ctx)
	if err != nil {
		return nil, fmt.Errorf("learner: %w", err)
	}
	worked, err := runtime.Gather(ctx, working...)
	if err != nil {
		return nil, fmt.Errorf("worker: %w", err)
	}
	res := &cartpolev1.RunResponse{State: state, Exams: r.exams, LearnerSteps: learned.GetSteps(), Took: durationpb.New(took)}
	for _, w := range worked {
		res.Episodes = append(res.Episodes, w.GetEpisodes()...)
		res.Steps += w.GetSteps()
	}
	slices.SortStableFunc(res.GetEpisodes(), func(a, b *cartpolev1.Episode) int { return cmp.Compare(a.GetSteps(), b.GetSteps()) })
	return res, nil
}

// create creates the learner, which pushes the initial parameters, and then all workers, which pull
// them.
func (r *runner) create(ctx context.Context) (*cartpolev1raylink.Learner, []*cartpolev1raylink.Worker, error) {
	learner, err := preferring("trainer", learnerNeeds(), func(opts ...runtime.CreateOption) (*cartpolev1raylink.Learner, error) {
		return cartpolev1raylink.CreateLearner(ctx, r.self, &cartpolev1.LearnerConfig{Replay: r.replay}, opts...)
	})
	if err != nil {
		return nil, nil, err
	}
	each := runtime.EachConfig(func(i int, config *cartpolev1.WorkerConfig) { config.Index = uint32(i) }) //nolint:gosec // a small number
	workers, err := preferring("worker", workerNeeds(), func(opts ...runtime.CreateOption) ([]*cartpolev1raylink.Worker, error) {
		n := int(r.clients.config.GetWorkers())
		return cartpolev1raylink.CreateWorkerN(ctx, r.self, n, &cartpolev1.WorkerConfig{Replay: r.replay}, append(opts, each, runtime.Spread())...)
	})
	return learner, workers, err
}

// watch examines a version at regular intervals of learner steps, until one passes, the time limit
// is reached, or a node fails.
func (r *runner) watch(
	ctx context.Context, began time.Time, learning *runtime.Future[*cartpolev1.LearnResponse], working []*runtime.Future[*cartpolev1.WorkResponse],
) (cartpolev1.RunState, error) {
	const givenUp = cartpolev1.RunState_RUN_STATE_GIVEN_UP
	every := int64(r.clients.config.GetExam().GetEvery())
	next := every
	for time.Since(began) < r.clients.config.GetLimit().AsDuration() {
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			return givenUp, err
		}
		if err := failed(ctx, learning, working); err != nil {
			return givenUp, err
		}
		learned, err := storage.GetOr[int64](ctx, r.clients.storage, keyLearnerSteps, 0)
		if err != nil {
			return givenUp, err
		}
		if learned < next {
			continue
		}
		next = learned + every
		passed, err := r.examine(ctx)
		if err != nil {
			return givenUp, err
		}
		if passed {
			return cartpolev1.RunState_RUN_STATE_SOLVED, nil
		}
	}
	return givenUp, nil
}

// failed returns the first error of a call that has ended.
func failed(ctx context.Context, learning *runtime.Future[*cartpolev1.LearnResponse], working []*runtime.Future[*cartpolev1.WorkResponse]) error {
	select {
	case <-learning.Done():
		if _, err := learning.Get(ctx); err != nil {
			return fmt.Errorf("learner: %w", err)
		}
	default:
	}
	for _, w := range working {
		select {
		case <-w.Done():
			if _, err := w.Get(ctx); err != nil {
				return fmt.Errorf("worker: %w", err)
			}
		default:
		}
	}
	return nil
}

// examineFirst evaluates the untrained policy, as a baseline.
func (r *runner) examineFirst(ctx context.Context) error {
	policy, version, err := r.clients.pull(ctx, tagPolicy)
	if err != nil {
		return err
	}
	many := r.clients.config.GetExam().GetMany()
	earned, err := play.Episodes(ctx, policy, int(many), r.rng)
	r.exams = append(r.exams, &cartpolev1.ExamStats{Version: version, Episodes: many, MeanReturn: play.Mean(earned)})
	return err
}

// examine examines the newest version. If it passes, the same bytes are pushed for the player.
func (r *runner) examine(ctx context.Context) (passed bool, err error) {
	if r.clients.config.GetCut() == cartpolev1.Link_LINK_PULL {
		return false, nil // the link is cut: no second pull
	}
	parameters, err := r.clients.ps.Pull(ctx, tagPolicy)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, parameters.Release()) }()
	policy, err := dqn.ParsePolicy(parameters.Bytes())
	if err != nil {
		return false, err
	}
	c := r.clients.config.GetExam()
	result, err := play.Exam{Few: int(c.GetFew()), Many: int(c.GetMany()), Pass: c.GetPass()}.Take(ctx, policy, r.rng)
	if err != nil {
		return false, err
	}
	steps, err := storage.GetOr[int64](ctx, r.clients.storage, keySteps, 0)
	if err != nil {
		return false, err
	}
	stats := &cartpolev1.ExamStats{
		Version: parameters.Version().GetId(), Steps: uint64(steps), Episodes: uint32(result.Episodes), //nolint:gosec // counts
		MeanReturn: result.Mean, Passed: result.Passed,
	}
	r.exams = append(r.exams, stats)
	if _, err := storage.PutMessage(ctx, r.clients.storage, keyExam, stats); err != nil || !result.Passed {
		return false, err
	}
	_, err = r.clients.ps.Push(ctx, tagSolved, parameters.Bytes(),
		ps.Info("policy-version", strconv.FormatUint(stats.GetVersion(), 10)),
		ps.Info("mean-return", strconv.FormatFloat(stats.GetMeanReturn(), 'f', 1, 64)),
		ps.Info("seed", strconv.FormatUint(r.clients.config.GetSeed(), 10)))
	return err == nil, err
}

// setState publishes whether the run continues.
func (r *runner) setState(ctx context.Context, state cartpolev1.RunState) error {
	_, err := storage.Put(ctx, r.clients.storage, keyState, int64(state))
	return err
}
