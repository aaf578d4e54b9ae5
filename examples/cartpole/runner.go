package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/types/known/durationpb"

	cartpolev1 "github.com/raylink/raylink/examples/cartpole/gen/cartpole/v1"
	"github.com/raylink/raylink/examples/cartpole/gen/cartpole/v1/cartpolev1raylink"
	"github.com/raylink/raylink/examples/cartpole/internal/dqn"
	"github.com/raylink/raylink/examples/cartpole/internal/play"
	"github.com/raylink/raylink/examples/cartpole/internal/seed"
	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	"github.com/raylink/raylink/runtime"
	"github.com/raylink/raylink/services/storage"
)

// runner makes those who learn, and examines what they achieve.
type runner struct {
	self   *runtime.Node
	links  *links
	replay *nodev1.NodeRef
	rng    *rand.Rand
	exams  []*cartpolev1.ExamStats
}

func newRunner(ctx context.Context, self *runtime.Node, config *cartpolev1.RunnerConfig) (cartpolev1raylink.RunnerNode, error) {
	l, err := openLinks(ctx, self, nil)
	if err != nil {
		return nil, err
	}
	return &runner{self: self, links: l, replay: config.GetReplay(), rng: seed.Stream(l.config.GetSeed(), "examiner", 0)}, nil
}

// Run trains until an exam is passed, or the time is up.
func (r *runner) Run(ctx context.Context, _ *cartpolev1.RunRequest) (*cartpolev1.RunResponse, error) {
	learner, workers, err := r.hire(ctx)
	if err != nil {
		return nil, err
	}
	if err := r.examineFirst(ctx); err != nil {
		return nil, err
	}
	if err := r.say(ctx, cartpolev1.RunState_RUN_STATE_RUNNING); err != nil {
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
	// Whatever came of it, those who still work are told to stop.
	if serr := r.say(ctx, state); serr != nil || err != nil {
		return nil, errors.Join(err, serr)
	}
	learned, err := learning.Get(ctx)
	if err != nil {
		return nil, fmt.Errorf("the learner: %w", err)
	}
	worked, err := runtime.Gather(ctx, working...)
	if err != nil {
		return nil, fmt.Errorf("a worker: %w", err)
	}
	res := &cartpolev1.RunResponse{State: state, Exams: r.exams, LearnerSteps: learned.GetSteps(), Took: durationpb.New(took)}
	for _, w := range worked {
		res.Episodes = append(res.Episodes, w.GetEpisodes()...)
		res.Steps += w.GetSteps()
	}
	slices.SortStableFunc(res.GetEpisodes(), func(a, b *cartpolev1.Episode) int { return cmp.Compare(a.GetSteps(), b.GetSteps()) })
	return res, nil
}

// hire creates the learner, who pushes the first parameters, and then all workers at once, who pull them.
func (r *runner) hire(ctx context.Context) (*cartpolev1raylink.Learner, []*cartpolev1raylink.Worker, error) {
	learner, err := cartpolev1raylink.CreateLearner(ctx, r.self, &cartpolev1.LearnerConfig{Replay: r.replay})
	if err != nil {
		return nil, nil, err
	}
	workers := make([]*cartpolev1raylink.Worker, r.links.config.GetWorkers())
	all, ctx := errgroup.WithContext(ctx)
	for i := range workers {
		all.Go(func() (err error) {
			config := &cartpolev1.WorkerConfig{Index: uint32(i), Replay: r.replay} //nolint:gosec // a small number
			workers[i], err = cartpolev1raylink.CreateWorker(ctx, r.self, config)
			return err
		})
	}
	return learner, workers, all.Wait()
}

// watch examines a version every so many learner steps, until one passes, the time is up, or somebody's work has ended before it should.
func (r *runner) watch(
	ctx context.Context, began time.Time, learning *runtime.Future[*cartpolev1.LearnResponse], working []*runtime.Future[*cartpolev1.WorkResponse],
) (cartpolev1.RunState, error) {
	const givenUp = cartpolev1.RunState_RUN_STATE_GIVEN_UP
	every := int64(r.links.config.GetExam().GetEvery())
	next := every
	for time.Since(began) < r.links.config.GetLimit().AsDuration() {
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			return givenUp, err
		}
		if err := failed(ctx, learning, working); err != nil {
			return givenUp, err
		}
		learned, err := storage.GetOr[int64](ctx, r.links.storage, keyLearnerSteps, 0)
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

// failed tells of the first whose work has ended by an error.
func failed(ctx context.Context, learning *runtime.Future[*cartpolev1.LearnResponse], working []*runtime.Future[*cartpolev1.WorkResponse]) error {
	select {
	case <-learning.Done():
		if _, err := learning.Get(ctx); err != nil {
			return fmt.Errorf("the learner: %w", err)
		}
	default:
	}
	for _, w := range working {
		select {
		case <-w.Done():
			if _, err := w.Get(ctx); err != nil {
				return fmt.Errorf("a worker: %w", err)
			}
		default:
		}
	}
	return nil
}

// examineFirst plays the policy that nothing has taught yet, so that there is something to compare with.
func (r *runner) examineFirst(ctx context.Context) error {
	policy, version, err := r.links.pull(ctx, tagPolicy)
	if err != nil {
		return err
	}
	many := r.links.config.GetExam().GetMany()
	earned, err := play.Episodes(ctx, policy, int(many), r.rng)
	r.exams = append(r.exams, &cartpolev1.ExamStats{Version: version, Episodes: many, MeanReturn: play.Mean(earned)})
	return err
}

// examine lets the newest version sit the exam. The very bytes that passed are pushed for the player.
func (r *runner) examine(ctx context.Context) (passed bool, err error) {
	if r.links.config.GetCut() == cartpolev1.Link_LINK_PULL {
		return false, nil // nobody pulls a second time
	}
	parameters, err := r.links.ps.Pull(ctx, tagPolicy)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, parameters.Release()) }()
	policy, err := dqn.ParsePolicy(parameters.Bytes())
	if err != nil {
		return false, err
	}
	c := r.links.config.GetExam()
	result, err := play.Exam{Few: int(c.GetFew()), Many: int(c.GetMany()), Pass: c.GetPass()}.Take(ctx, policy, r.rng)
	if err != nil {
		return false, err
	}
	steps, err := storage.GetOr[int64](ctx, r.links.storage, keySteps, 0)
	if err != nil {
		return false, err
	}
	stats := &cartpolev1.ExamStats{
		Version: parameters.Version().GetId(), Steps: uint64(steps), Episodes: uint32(result.Episodes), //nolint:gosec // counts
		MeanReturn: result.Mean, Passed: result.Passed,
	}
	r.exams = append(r.exams, stats)
	if _, err := storage.PutMessage(ctx, r.links.storage, keyExam, stats); err != nil || !result.Passed {
		return false, err
	}
	_, err = r.links.ps.Push(ctx, tagSolved, parameters.Bytes(), nil)
	return err == nil, err
}

// say tells everybody whether to go on.
func (r *runner) say(ctx context.Context, state cartpolev1.RunState) error {
	_, err := storage.Put(ctx, r.links.storage, keyState, int64(state))
	return err
}
